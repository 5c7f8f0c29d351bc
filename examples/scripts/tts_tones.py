"""`Py` without a model: each token of a word is a tone of four frames, a voice is how loud, a pause is silence.

[modules.tones]
type = "Py"
path = "/api/tones"
script = "examples/scripts/tts_tones.py"
batch_size = 8
text_tokenizer_file = "demo://tokenizer.model"
text_bos_token = 1
[modules.tones.py]
lookahead = 1

moshi-server say "one two three" --url ws://127.0.0.1:8080/api/tones --api-key public_token -o tones.wav
"""

from collections import deque

import numpy as np

FRAME, RATE = 1920, 24_000

# Among the tokens of an update: the stream begins, its text is complete; 3 is a frame of pause.
START, END, PAUSE = -1, -2, 3
# What the script answers in `flags_out`.
HAS_PCM, IS_EOS, WORD_BEGINS, AR_STEP, MISSING_WORDS = 1, 2, 4, 8, 16
VOICES = {"quiet": 0.1, "loud": 0.5}


class Stream:
    """What one slot still has to say."""

    def __init__(self, loudness: float) -> None:
        self.loudness = loudness
        self.words: deque[list[int]] = deque()  # each a list of frames, a token a frame
        self.complete = False
        self.begun = False  # the first word is being spoken
        self.time = 0


class Tones:
    def __init__(self, batch_size: int, lookahead: int = 1, default_voice: str = "loud") -> None:
        self.lookahead = lookahead
        self.default_voice = default_voice
        self.streams: list[Stream | None] = [None] * batch_size

    def step(
        self,
        updates: list,  # in: (slot, tokens, voice), at most one a slot; voice is a name, an array or None
        pcm_out: np.ndarray,  # out: float32 (batch_size, 1920)
        flags_out: np.ndarray,  # out: uint8 (batch_size,)
        codes_out: np.ndarray,  # out: int32 (batch_size, 33); nobody reads it
    ) -> None:
        flags_out[:] = 0
        for slot, tokens, voice in updates:
            if tokens[0] == START:  # the voice comes with it
                self.streams[slot] = Stream(self.loudness(voice))
                tokens = tokens[1:]
            stream = self.streams[slot]
            if tokens == [END]:
                stream.complete = True
            elif tokens:
                stream.words.append(tokens if tokens[0] == PAUSE else [each for each in tokens for _ in range(4)])
        for slot, stream in enumerate(self.streams):
            if stream is None:
                continue
            if not stream.complete and len(stream.words) <= self.lookahead:
                flags_out[slot] = MISSING_WORDS  # it is asked again when more has come
            elif not stream.words:
                flags_out[slot] = IS_EOS
                self.streams[slot] = None
            else:
                flags_out[slot] = HAS_PCM | AR_STEP | self.speak(stream, pcm_out[slot])

    def speak(self, stream: Stream, frame: np.ndarray) -> int:
        begins = not stream.begun
        stream.begun = True
        token = stream.words[0].pop(0)
        times = np.arange(stream.time, stream.time + FRAME) / RATE
        stream.time += FRAME
        frame[:] = 0 if token == PAUSE else stream.loudness * np.sin(2 * np.pi * (200 + 20 * token) * times)
        if not stream.words[0]:
            stream.words.popleft()
            stream.begun = False
        return WORD_BEGINS if begins else 0

    def loudness(self, voice: np.ndarray | str | None) -> float:
        if isinstance(voice, np.ndarray):
            return float(np.abs(voice).mean())
        return VOICES.get(voice or "", VOICES[self.default_voice])


def init(batch_size: int, config: dict) -> Tones:
    return Tones(batch_size, **config)
