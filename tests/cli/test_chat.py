"""``moshi-server chat`` in a process of its own, talking with a server over a real socket."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest

from moshi_server.audio import read_audio, wav_bytes

from ..app.server import KEY, serve
from ..dialogue_fakes import EchoRunner, make_stream


async def chat(*arguments: object) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moshi_server.cli", "chat", *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def test_a_recording_is_answered_into_a_file(tmp_path: Path) -> None:
    tone = (0.4 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)).astype(np.float32)
    (tmp_path / "question.wav").write_bytes(wav_bytes(tone))
    runner = EchoRunner(1)
    async with serve(runner, paths=("/api/chat",), kind="Lm", make_stream=make_stream) as server:
        seen: list[int] = []
        runner.before_step = lambda: seen.extend(each.text_seed for each in runner.settings.values())
        code, out, err = await chat(
            tmp_path / "question.wav", "-o", tmp_path / "answer.wav", "--url", server.ws("", ""),
            "--api-key", KEY, "--set", "seed=41", "--after", 0.5,
        )  # fmt: skip
    assert (code, err) == (0, "")
    assert out.startswith("well indeed,")
    assert 41 in seen
    answer = read_audio(tmp_path / "answer.wav")
    assert len(answer) > 24_000, "the model went on after the recording"
    assert abs(int(np.abs(np.fft.rfft(answer[4800:16800])).argmax()) * 2 - 440) < 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("x.wav", "--set", "seed"), "'seed' is not NAME=VALUE"),
        (("x.wav", "-o", "answer.txt"), "the file must end in"),
    ],
)
async def test_what_cannot_be_is_said_before_anything_is_asked(arguments: tuple[str, ...], said: str) -> None:
    code, _, err = await chat(*arguments)
    assert code == 2
    assert said in err


async def test_the_servers_reason_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "question.wav").write_bytes(wav_bytes(np.zeros(48_000, np.float32)))
    async with serve(EchoRunner(1), paths=("/api/chat",), kind="Lm", make_stream=make_stream) as server:
        code, _, err = await chat(
            tmp_path / "question.wav", "-o", tmp_path / "a.wav", "--url", server.ws("", ""), "--api-key", KEY,
            "--set", "text_topk=0",
        )  # fmt: skip
    assert code == 1
    assert err.startswith("error: text_topk=0 is not a whole number from 1 to 500")
