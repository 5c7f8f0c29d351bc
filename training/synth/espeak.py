"""espeak-ng (and the MBROLA voices it drives) through libespeak-ng, whose events give the words' times."""

import ctypes
import ctypes.util
import re

import numpy as np

from training.synth.speech import Speech, SpokenWord, merge_words, resample

RETRIEVAL = 1
PHONEME_EVENTS = 1
UTF8 = 1
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4
END, PHONEME = 0, 7


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """One process-wide engine."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL(ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1")
        self.rate = self.lib.espeak_Initialize(RETRIEVAL, 0, None, PHONEME_EVENTS)
        if self.rate <= 0:
            raise OSError("espeak-ng cannot be initialized; is espeak-ng-data installed?")
        self.blocks: list[np.ndarray] = []
        self.phonemes: list[tuple[float, str, int]] = []
        self._callback = _CALLBACK(self._collect)
        self.lib.espeak_SetSynthCallback(self._callback)
        self.lib.espeak_ng_GetSampleRate.restype = ctypes.c_int

    def _collect(self, wav: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]") -> int:
        if wav and count > 0:
            self.blocks.append(np.ctypeslib.as_array(wav, (count,)).copy())
        i = 0
        while events[i].type != END:
            event = events[i]
            if event.type == PHONEME:
                name = event.id.string.decode(errors="replace")
                self.phonemes.append((event.audio_position / 1000, name, event.text_position))
            i += 1
        return 0

    def say(self, sentence: str, voice: str, rate: int, pitch: int, span: int) -> Speech:
        """`rate` in words a minute, `pitch` and `span` (pitch range) 0 to 100."""
        samples, sample_rate = self._speak(sentence, voice, rate, pitch, span)
        words = merge_words(sentence, self._spans(sentence, len(samples) / sample_rate))
        return Speech(resample(samples, sample_rate), words)

    def timeline(self, sentence: str, voice: str, rate: int) -> tuple[list[tuple[str, float]], list[SpokenWord]]:
        """As it would be said: each phoneme by its name here, pauses too, with its beginning in s; and the words."""
        samples, sample_rate = self._speak(sentence, voice, rate, 50, 50)
        words = merge_words(sentence, self._spans(sentence, len(samples) / sample_rate))
        return [(name, start) for start, name, _ in self.phonemes], words

    def _speak(self, sentence: str, voice: str, rate: int, pitch: int, span: int) -> tuple[np.ndarray, int]:
        if self.lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise OSError(f"espeak-ng has no voice {voice}")
        for key, value in ((RATE, rate), (PITCH, pitch), (RANGE, span)):
            self.lib.espeak_SetParameter(key, value, 0)
        self.blocks.clear()
        self.phonemes.clear()
        text = sentence.encode()
        if self.lib.espeak_Synth(text, len(text) + 1, 0, 1, 0, UTF8, None, None) != 0:
            raise OSError("espeak-ng failed")
        self.lib.espeak_Synchronize()
        if not self.blocks:
            raise ValueError("no audio")
        return np.concatenate(self.blocks).astype(np.float32) / 32768, self.lib.espeak_ng_GetSampleRate()

    def _spans(self, sentence: str, end: float) -> list[tuple[float, float]]:
        """Each word's, in s. The first phoneme of a word carries the word's place in the text; a word ends where the
        next one or a pause begins.
        """
        places = {match.start() + 1 for match in re.finditer(r"\w+", sentence)}
        spans: dict[int, tuple[float, float]] = {}
        for i, (start, name, place) in enumerate(self.phonemes):
            if place not in places or place in spans or name.startswith("_"):
                continue
            later = (t for t, n, p in self.phonemes[i + 1 :] if (p in places and p > place) or n.startswith("_"))
            spans[place] = (start, next(later, end))
        for match in re.finditer(r"\w+", sentence):
            place = match.start() + 1
            if place in spans or place == 1:
                continue
            # It says some pairs (`in the`) as one word: the letters share its time.
            before = max(p for p in spans if p < place)
            start, stop = spans[before]
            letters = len(match[0])
            cut = stop - (stop - start) * letters / (letters + place - before - 1)
            spans[before], spans[place] = (start, cut), (cut, stop)
        return [spans[p] for p in sorted(spans)]
