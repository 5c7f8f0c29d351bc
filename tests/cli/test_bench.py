"""``moshi-server bench`` as a user runs it: a process of its own against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from moshi_server.audio import wav_bytes

from ..app.server import KEY, Server, serve
from ..app.test_speech import speaking
from ..fakes import FakeRunner, say


async def bench(server: Server, folder: Path, *arguments: str, audio: bool = True) -> tuple[int, str, str]:
    recording = folder / "a.wav"
    recording.write_bytes(wav_bytes(say(3, 3, 11, 12, 999, 3)))
    command = ["bench", "--url", f"ws://127.0.0.1:{server.port}", "--api-key", KEY]
    command += ["--audio", str(recording)] if audio else []
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moshi_server.cli", *command, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=folder,
        env={"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "HOME": str(folder)},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_table_a_file_and_a_picture(tmp_path: Path) -> None:
    async with serve(FakeRunner(4)) as server:
        options = ("-n", "2", "-s", "1", "--limit", "2000", "--jitter", "20", "--json", "o.json", "--plot", "o.png")
        code, out, err = await bench(server, tmp_path, *options)
    assert (code, err) == (0, "")
    assert "yes" in out
    record = json.loads((tmp_path / "o.json").read_text())
    assert record["most_streams_held"] == 2
    assert record["plan"]["jitter_seconds"] == 0.02
    assert KEY not in json.dumps(record)
    assert record["trials"][0]["server"]["memory_mb"] > 10
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


async def test_a_search_stops_where_the_server_is_full(tmp_path: Path) -> None:
    async with serve(FakeRunner(3)) as server:
        options = ("--search", "-n", "2", "-s", "1", "--join", "0.2", "--limit", "2000")
        code, out, err = await bench(server, tmp_path, *options)
    assert code == 0
    assert "most streams that hold: 3" in out
    assert "4 streams: not held: 1 x no free channels" in err


async def test_a_server_that_does_not_hold_is_exit_status_1(tmp_path: Path) -> None:
    async with serve(FakeRunner(1)) as server:
        code, out, _ = await bench(server, tmp_path, "-n", "2", "-s", "1")
    assert code == 1
    assert "2 streams were not held: 1 x no free channels" in out


async def test_text_to_speech_is_heard(tmp_path: Path) -> None:
    async with speaking() as server:
        options = ("--tts", "--text", "one two three", "-n", "2", "-s", "1", "--limit", "2000")
        code, out, err = await bench(server, tmp_path, *options, audio=False)
    assert (code, err) == (0, "")
    assert "first audio" in out
    assert "s of sound a second" in out


def test_the_embedded_model_does_not_speak(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moshi_server.cli", "bench", "--tts"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert "--url" in done.stderr


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    program = "import sys; sys.modules['picows'] = None; from moshi_server.cli import main; main()"
    command = [sys.executable, "-c", program, "bench", "--url", "ws://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "error: the load generator needs picows (pip install 'moshi-server[bench]')\n"


def test_the_load_generator_imports_no_torch() -> None:
    program = "import sys, moshi_server.bench.run, moshi_server.cli.bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
