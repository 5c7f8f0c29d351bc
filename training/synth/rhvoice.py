"""RHVoice's English voices through its library, whose events give the words' times."""

import ctypes
import ctypes.util

import numpy as np

from training.synth.speech import Speech, merge_words, resample

DATA, CONFIG = b"/usr/share/RHVoice", b"/etc/RHVoice"
TEXT = 0  # a message of plain text

_RATE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
_PLAY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_uint, ctypes.c_void_p)
_PLACE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)


class _Init(ctypes.Structure):
    _fields_ = [
        ("data_path", ctypes.c_char_p),
        ("config_path", ctypes.c_char_p),
        ("resource_paths", ctypes.c_void_p),
        ("set_sample_rate", _RATE),
        ("play_speech", _PLAY),
        ("process_mark", ctypes.c_void_p),
        ("word_starts", _PLACE),
        ("word_ends", _PLACE),
        ("sentence_starts", ctypes.c_void_p),
        ("sentence_ends", ctypes.c_void_p),
        ("play_audio", ctypes.c_void_p),
        ("done", ctypes.c_void_p),
        ("options", ctypes.c_uint),
    ]


class _Settings(ctypes.Structure):
    _fields_ = [
        ("voice_profile", ctypes.c_char_p),
        ("absolute_rate", ctypes.c_double),
        ("absolute_pitch", ctypes.c_double),
        ("absolute_volume", ctypes.c_double),
        ("relative_rate", ctypes.c_double),
        ("relative_pitch", ctypes.c_double),
        ("relative_volume", ctypes.c_double),
        ("punctuation_mode", ctypes.c_int),
        ("punctuation_list", ctypes.c_char_p),
        ("capitals_mode", ctypes.c_int),
        ("flags", ctypes.c_int),
    ]


class RHVoice:
    """One engine; a word's event comes before the block of samples it lies in."""

    BLOCK = 0.1  # seconds

    def __init__(self) -> None:
        self.lib = ctypes.CDLL(ctypes.util.find_library("RHVoice") or "libRHVoice.so.5")
        self.lib.RHVoice_new_tts_engine.restype = ctypes.c_void_p
        self.lib.RHVoice_new_message.restype = ctypes.c_void_p
        self.rate = 24_000
        self.blocks: list[np.ndarray] = []
        self.count = 0
        self.spans: list[list[float]] = []
        # Kept, for the library calls them later.
        self._callbacks = (_RATE(self._set_rate), _PLAY(self._play), _PLACE(self._starts), _PLACE(self._ends))
        init = _Init(DATA, CONFIG, None, *self._callbacks[:2], None, *self._callbacks[2:])
        self.engine = self.lib.RHVoice_new_tts_engine(ctypes.byref(init))
        if not self.engine:
            raise OSError("RHVoice cannot be initialized; are its English voices installed?")

    def _set_rate(self, rate: int, _: object) -> int:
        self.rate = rate
        return 1

    def _play(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: object) -> int:
        self.blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        self.count += count
        return 1

    def _starts(self, place: int, length: int, _: object) -> int:
        self.spans.append([self.count / self.rate, 0.0])
        return 1

    def _ends(self, place: int, length: int, _: object) -> int:
        self.spans[-1][1] = self.count / self.rate
        return 1

    def say(self, sentence: str, voice: str, pitch: float) -> Speech:
        """`pitch` as a multiple of the voice's own. Word times are true to half a block."""
        self.blocks.clear()
        self.spans.clear()
        self.count = 0
        settings = _Settings(voice.encode(), 0.0, 0.0, 0.0, 1.0, pitch, 1.0)
        text = sentence.encode()
        message = self.lib.RHVoice_new_message(
            ctypes.c_void_p(self.engine), text, len(text), TEXT, ctypes.byref(settings), None
        )
        if not message:
            raise ValueError(f"RHVoice does not take: {sentence}")
        try:
            self.lib.RHVoice_speak(ctypes.c_void_p(message))
        finally:
            self.lib.RHVoice_delete_message(ctypes.c_void_p(message))
        if not self.blocks:
            raise ValueError("no audio")
        samples = np.concatenate(self.blocks).astype(np.float32) / 32768
        half = self.BLOCK / 2
        spans = [(a + half if a else 0.0, b + half) for a, b in self.spans]
        return Speech(resample(samples, self.rate), merge_words(sentence, spans))
