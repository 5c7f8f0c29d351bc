"""The watch itself: each kind of fault that it claims to see, it is shown."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fuzzing import messages, requests, sounds
from fuzzing.mutate import mutants
from fuzzing.target import Target, agree, framed, parts_of
from fuzzing.watch import GROWTH_BYTES, Watch, pick

import fuzz
from moshi_server.audio import OpusEncoder, ogg
from moshi_server.protocol import asr
from moshi_server.protocol.messages import float_cells

BENCHMARKS = Path(fuzz.__file__).parent
SMALL = argparse.Namespace(engine="mutations", seed=0, share=0.0, repeat=0.1)


def fed(target: Target, inputs: int = 300) -> Watch:
    watch = Watch(target)
    for data in islice(mutants(target.seeds, random.Random(1), target.max_len), inputs):
        watch.run(data)
    return watch


def test_what_is_raised_is_kept_once_with_its_shortest_input() -> None:
    def feed(data: bytes) -> None:
        if b"a" in data:
            raise KeyError(data)
        agree(data != b"b", "b came")

    watch = Watch(Target("x", feed, [b""]))
    for data in (b"xxa", b"a", b"aa", b"b", b"c"):
        watch.run(data)
    kinds = [(each.kind, each.data, each.count) for each in watch.findings.values()]
    assert kinds == [("raised", b"a", 3), ("raised", b"b", 1)]
    assert "KeyError at test_watch.py" in next(iter(watch.findings.values())).what


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_processor_time_is_seen_and_waiting_is_not() -> None:
    calls: list[bytes] = []

    def feed(data: bytes) -> None:
        calls.append(data)
        if data == b"slow" or (data == b"once" and calls.count(data) == 1):
            burn(0.15)
        if data == b"waits":
            time.sleep(0.15)

    watch = Watch(Target("x", feed, [b""]))
    for data in (b"waits", b"once", b"slow"):
        watch.run(data)
    assert [(each.kind, each.data) for each in watch.findings.values()] == [("slow", b"slow")]


GROW = """
import sys
sys.path.insert(0, sys.argv[1])
from fuzzing.target import Target
from fuzzing.watch import growth
kept, cache = [], {}
feed = {
    "leaks": lambda data: kept.append(bytearray(b"x" * 100_000)),
    "caches": lambda data: cache.setdefault(data, bytearray(b"x" * 100_000)),
}[sys.argv[2]]
print(growth(Target("x", feed, [b""]), [bytes([number]) for number in range(20)], 12)[0])
"""


@pytest.mark.parametrize("how", ["leaks", "caches"])
def test_growth_is_seen_and_a_cache_that_fills_is_not(how: str) -> None:
    # In a process of its own, as decoders are fed: one that has freed much takes from that, and grows by nothing.
    done = subprocess.run(
        [sys.executable, "-c", GROW, str(BENCHMARKS), how], capture_output=True, text=True, timeout=100, check=True
    )
    assert (int(done.stdout) > GROWTH_BYTES) == (how == "leaks")


def test_the_peak_is_not_that_of_the_process_that_started_it() -> None:
    big = bytearray(b"x" * (2 * fuzz.PEAK_BYTES))
    program = "import sys; sys.path.insert(0, sys.argv[1]); from fuzzing.watch import highest; print(highest())"
    done = subprocess.run(
        [sys.executable, "-c", program, str(BENCHMARKS)], capture_output=True, text=True, timeout=100, check=True
    )
    assert 0 < int(done.stdout) < len(big)


def test_a_fast_path_that_takes_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells' tags unchecked, as a faster reader might have it."""

    def careless(data: bytes, head: bytes):
        at, cells = len(head) + 1, bytearray(data)
        cells[at::5] = b"\xca" * len(cells[at::5])
        return float_cells(bytes(cells), head)

    target = next(each for each in messages.targets() if each.name == "asr_message")
    assert not fed(target, 2000).findings
    monkeypatch.setattr(asr, "float_cells", careless)
    assert any("fast:" in each.what for each in fed(target, 2000).findings.values())


def test_pages_that_depend_on_where_bytes_are_cut_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    push = ogg.PageReader.push
    monkeypatch.setattr(ogg.PageReader, "push", lambda self, data: push(self, data.removeprefix(b"\0")))
    target = next(each for each in sounds.targets() if each.name == "ogg_pages")
    assert any("cut" in each.what for each in fed(target, 50).findings.values())


def test_a_token_without_a_check_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import jwt

    decode = jwt.decode
    options = {"verify_signature": False}
    monkeypatch.setattr(jwt, "decode", lambda token, secret, **_: decode(token, options=options))
    target = next(each for each in requests.targets() if each.name == "token_claims")
    assert any("without HS256" in each.what for each in fed(target).findings.values())


def test_checksums_are_set_right() -> None:
    stream = OpusEncoder().header()
    broken = bytearray(stream)
    broken[30] ^= 1
    broken[22] ^= 255
    with pytest.raises(Exception, match="checksum"):
        list_pages(bytes(broken))
    assert list_pages(sounds.mended(bytes(broken)))[0].body[:8] != b"OpusHead"
    assert sounds.mended(stream) == stream


def list_pages(data: bytes) -> list[ogg.Page]:
    reader = ogg.PageReader()
    reader.push(data)
    return list(reader.pages())


def test_messages_are_framed_and_found_again() -> None:
    assert parts_of(framed(b"one", b"", b"x" * 300)) == [b"one", b"", b"x" * 300]
    assert parts_of(b"\x00\x05ab") == [b"ab"]
    assert pick([b"aaa", b"", b"a", b"aa"], 2) == [b"", b"aa"]


def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> dict:
    """`fuzz` with a decoder of its own in the child's process."""
    script = tmp_path / "bad.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2] / 'benchmarks')!r})\n"
        "import fuzz, fuzzing.watch\nfrom fuzzing.target import Target\n"
        f"fuzzing.watch.HANG_SECONDS = 0.5\ndef feed(data):\n    {body}\n"
        "fuzz.load_targets = lambda: [Target('bad', feed, [b'ok', b'bad'])]\nfuzz.main()\n"
    )
    monkeypatch.setattr(fuzz, "__file__", str(script))
    return fuzz.fuzz(Target("bad", lambda data: None, [b""]), 20, SMALL)


def test_a_hang_and_a_crash_end_in_a_finding_with_their_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = child(tmp_path, monkeypatch, "while data == b'bad': pass")
    assert [(each.kind, each.data) for each in row["findings"]][:1] == [("hangs", b"bad")]
    row = child(tmp_path, monkeypatch, "import os; data == b'bad' and os.abort()")
    assert [(each.kind, each.data) for each in row["findings"]][:1] == [("died", b"bad")]


def test_a_whole_run_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(
        **vars(SMALL), inputs=300, minutes=0.0, only=["refusal"], findings=str(tmp_path), json=str(tmp_path / "j")
    )
    del options.share
    assert fuzz.run_all(options) == 0
    assert "300 inputs" in capsys.readouterr().out
