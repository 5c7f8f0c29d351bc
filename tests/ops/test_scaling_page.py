"""The page about many machines: its table is what the arithmetic gives, from what the other page says was measured."""

from __future__ import annotations

import re
import runpy

from ..cli.test_commands import ROOT

PAGE = (ROOT / "docs" / "scaling.md").read_text()
MEASURED = (ROOT / "docs" / "benchmarks.md").read_text()
ARITHMETIC = runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))
INPUTS = ARITHMETIC["Inputs"]()


def test_the_table_is_what_the_arithmetic_gives() -> None:
    rows = ARITHMETIC["table"]([1, 100, 10_000, 1_000_000], INPUTS, ARITHMETIC["weights"]()["pcm"])
    assert "\n".join(rows) in PAGE


def test_its_inputs_are_what_was_measured() -> None:
    assert f"| `stt-1b-en_fr` | 8 bits | {INPUTS.gpu_streams} |" in MEASURED
    assert f"| 256 clients: ours | {INPUTS.cpu_seconds} " in MEASURED


def test_the_weights_of_frames_are_those_on_the_page() -> None:
    weights = ARITHMETIC["weights"]()
    for name, text in (("pcm", "10 089 bytes a frame"), ("step", "130 bytes a `Step`")):
        assert f"{weights[name]:,.0f} bytes".replace(",", " ") == " ".join(text.split(" a ")[:1])
        assert text in PAGE
    # The encoder's version has a say in Opus.
    (said,) = re.findall(r"Opus \(`OggOpus`\) \| (\d+) bytes a frame", PAGE)
    assert abs(weights["opus"] / int(said) - 1) < 0.1


def test_machines_grow_with_streams_and_no_limit_is_passed() -> None:
    size = ARITHMETIC["weights"]()["pcm"]
    before = None
    for streams in (2, 500, 2000, 50_000, 300_000):
        it = ARITHMETIC["fleet"](streams, INPUTS, size)
        assert it.gpus * INPUTS.gpu_streams * INPUTS.used >= streams
        assert it.workers * ARITHMETIC["streams_a_process"](INPUTS) >= streams
        assert it.cells * INPUTS.cell >= streams
        if it.proxies:
            spare = it.proxies - it.cells
            assert spare * INPUTS.proxy_gbit / 2 >= it.gbit
            assert spare * INPUTS.proxy_cores * INPUTS.core >= it.proxy_cores
        assert before is None or (it.gpus, it.workers, it.price) >= before
        before = (it.gpus, it.workers, it.price)
