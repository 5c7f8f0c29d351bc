"""Text to speech by a script: what it is told and when, words and their times, streams that keep apart."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moshi_server.engine.script import Script
from moshi_server.engine.script_tts import ScriptTtsRunner, ScriptTtsStream
from moshi_server.engine.worker import Engine
from moshi_server.errors import InvalidMessageError, ScriptError
from moshi_server.events import Audio, Eos, Flush, Ready, SpeechSettings, SpokenWord, Text, Voice
from moshi_server.speech.text import SpokenText

from ..speech_fakes import Letters

EXAMPLE = Path(__file__).parents[2] / "examples" / "scripts" / "tts_tones.py"
FRAMES_A_TOKEN = 4  # in the example


class Recording:
    """What an engine's script was told, and what its words cost."""

    def __init__(self, engine: Engine, script: Script) -> None:
        self.engine = engine
        self.script = script
        self.updates: list[tuple[int, list[int], Any]] = []
        self.missing = self.ready = 0

    def on_words(self, missing: int, ready: int) -> None:
        self.missing += missing
        self.ready += ready


@asynccontextmanager
async def serving(path: Path = EXAMPLE, slots: int = 3, **options: Any) -> AsyncIterator[Recording]:
    script = Script(path, "tts", seconds=5.0, methods=("step",))
    runner = ScriptTtsRunner(script, slots, options, lambda *counts: recording.on_words(*counts))
    engine = Engine(
        "tts",
        "Py",
        runner,
        lambda: ScriptTtsStream(SpokenText(Letters(), 1)),
        prepare=runner.prepare,
        isolated=True,
    )
    recording = Recording(engine, script)
    script.on_hang = engine.abandon
    call = script.call

    def recorded(method: str, *arguments: Any) -> Any:
        recording.updates += [(slot, list(tokens), voice) for slot, tokens, voice in arguments[0]]
        return call(method, *arguments)

    script.call = recorded  # type: ignore[method-assign]
    engine.start()
    try:
        await engine.wait_ready()
        yield recording
    finally:
        engine.stop()
        script.close()


async def speak(engine: Engine, *sent: Any, pause: float = 0.0) -> list[Any]:
    session = await engine.open()
    try:
        for event in sent:
            await session.send(event)
            await asyncio.sleep(pause)
        events: list[Any] = []
        async with asyncio.timeout(10):
            while got := await session.receive():
                events += got
        return events
    finally:
        session.close()


def sound(events: list[Any]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(event.pcm for event in events if isinstance(event, Audio))])


async def test_words_go_to_the_script_one_a_step_and_come_back_with_their_times() -> None:
    async with serving() as recording:
        events = await speak(recording.engine, Text("ab c"), Text("d"), Eos())
        assert isinstance(events[0], Ready)
        assert recording.updates == [
            (0, [-1, 1, ord("a"), ord("b")], None),  # the stream begins; 1 begins a turn
            (0, [ord("c")], None),
            (0, [ord("d")], None),
            (0, [-2], None),
        ]
        frames = [3 * FRAMES_A_TOKEN, FRAMES_A_TOKEN, FRAMES_A_TOKEN]
        assert len(sound(events)) == 1920 * sum(frames)
        words = [event for event in events if isinstance(event, SpokenWord)]
        assert [word.text for word in words] == ["ab", "c", "d"]
        assert [word.start for word in words] == pytest.approx([0.08, 13 * 0.08, 17 * 0.08])
        assert [word.stop for word in words] == pytest.approx([13 * 0.08, 17 * 0.08, 20 * 0.08])
        assert recording.engine.slots_used == 0


async def test_a_pause_is_as_many_paddings() -> None:
    async with serving() as recording:
        await speak(recording.engine, Text('a <break time="0.4s"/> b'), Eos())
        assert [tokens for _, tokens, _ in recording.updates][1] == [3] * 5


@pytest.mark.parametrize(
    ("voice", "told"), [(SpeechSettings(voice="quiet"), "quiet"), (Voice(np.full((2, 3), 0.25, np.float32)), (2, 3))]
)
async def test_the_voice_goes_with_the_first_word(voice: Any, told: Any) -> None:
    async with serving() as recording:
        events = await speak(recording.engine, voice, Text("a b"), Eos())
        given = [voice for _, _, voice in recording.updates]
        assert [each if isinstance(each, str | None) else each.shape for each in given] == [told, None, None]
        assert np.abs(sound(events)).max() == pytest.approx(0.1 if told == "quiet" else 0.25, rel=1e-3)


async def test_streams_do_not_hear_each_other_and_wait_for_words_at_no_cost() -> None:
    async with serving() as recording:
        alone = await speak(recording.engine, Text("abc de f"), Eos())
        slow = [Text("ab"), Text("c "), Text("de"), Text("f"), Eos()]
        others = await asyncio.gather(
            speak(recording.engine, Text("abc de f"), Eos()),
            speak(recording.engine, *slow, pause=0.05),
            speak(recording.engine, Text("abc de f"), Eos(), pause=0.02),
        )
        for events in (others[0], others[2]):
            np.testing.assert_array_equal(sound(events), sound(alone))
        assert [event.text for event in others[1] if isinstance(event, SpokenWord)] == ["ab", "c", "de", "f"]
        # 1 for the turn, then the letters
        assert len(sound(others[1])) == 1920 * FRAMES_A_TOKEN * 7
        assert recording.missing > 0
        assert recording.ready > 0
        calls = recording.missing + recording.ready
        await asyncio.sleep(0.1)
        assert recording.missing + recording.ready == calls  # nobody speaks: the script is left in peace


@pytest.mark.parametrize("text", ["", "()", " \n ", "–"])
async def test_a_text_without_a_word_ends_at_once(text: str) -> None:
    async with serving() as recording:
        events = await speak(recording.engine, *([Text(text)] if text else []), Eos())
        assert [type(event) for event in events] == [Ready]
        assert recording.updates == []


async def test_who_leaves_in_mid_speech_frees_the_slot_for_another() -> None:
    async with serving(slots=1) as recording:
        for _ in range(3):
            session = await recording.engine.open(wait_seconds=2)
            await session.send(Text("abcdefgh ij kl"))
            while not any(isinstance(event, Audio) for event in await session.receive()):
                pass
            session.close()
        events = await speak(recording.engine, Text("a"), Eos())
        assert len(sound(events)) == 1920 * FRAMES_A_TOKEN * 2


async def test_a_long_text_is_handed_over_as_it_is_spoken() -> None:
    async with serving() as recording:
        session = await recording.engine.open()
        await session.send(Text("ab " * 5000))
        while not any(isinstance(event, SpokenWord) for event in await session.receive()):
            pass
        assert len(recording.updates) < 100
        session.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('boom')", r"mine\.py, line 4: step failed: ValueError: boom"),
        ("pcm_out[:] = 1.0 / np.zeros(1)", r"not finite into pcm_out\[0\]"),
        ("pcm_out[:] = np.zeros((2, 5))", r"mine\.py, line 4: step failed: ValueError"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
async def test_a_step_that_fails_ends_the_stream_with_its_line(tmp_path: Path, body: str, reason: str) -> None:
    path = tmp_path / "mine.py"
    text = f"""
        import numpy as np
        class Service:
            def step(self, updates, pcm_out, flags_out, codes_out):
                {body}
                flags_out[:] = 9
        def init(batch_size, config):
            return Service()
    """
    path.write_text(textwrap.dedent(text).lstrip())
    async with serving(path) as recording:
        with pytest.raises(ScriptError, match=reason):
            await speak(recording.engine, Text("a"), Eos())
        assert recording.engine.slots_used == 0


def test_other_messages_are_refused() -> None:
    with pytest.raises(InvalidMessageError, match="Flush is not a message of text to speech"):
        ScriptTtsStream(SpokenText(Letters(), 1)).put(Flush(), 0.0)
