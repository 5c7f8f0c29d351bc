"""Word times to text-stream tokens and pause labels, at one step a frame; the inverse of the server's word logic.

A step `n` (from 0) hears the frames before `n`, and token 0 there means the boundary time `(n + 1 - DELAY) / 12.5`.
A word from frame `s` to frame `e` becomes token 0 at step `s + DELAY - 1`, the word's own token at step
`e + DELAY - 2`, just before it is closed, and token 0 at step `e + DELAY - 1`, which also opens a word that starts
there. The word's token could stand anywhere between the two; at the end it has heard the whole word and `DELAY - 2`
frames more.
"""

import numpy as np

from training.synth.speech import SpokenWord
from training.vocabulary import LEXICON_US, WORDS

FRAME_RATE = 12.5
DELAY = 6
BOUNDARY, UNKNOWN, PAD = 0, 1, 3
"""`UNKNOWN` is the tokenizer's begin of text, which decodes to nothing: a word outside the vocabulary."""
FIRST_WORD = 4
TOKENS = {word: FIRST_WORD + i for i, word in enumerate(sorted(WORDS))}
VOCABULARY = FIRST_WORD + len(WORDS)
PAUSES = (0.5, 1.0, 2.0, 3.0)

_STRESS = str.maketrans("", "", "ˈˌː")
PHONES = sorted({p for spoken in LEXICON_US.values() for p in spoken.translate(_STRESS).replace(" ", "")})
_PHONE_IDS = {p: i + 1 for i, p in enumerate(PHONES)}
PHONE_CLASSES = len(PHONES) + 1  # 0 is silence
PHONES_A_FRAME = 2
WORD_PHONES = {
    word: np.array([_PHONE_IDS[p] for p in spoken.split(" ")[0].translate(_STRESS)])
    for word, spoken in LEXICON_US.items()
}


def known(words: list[SpokenWord]) -> list[SpokenWord]:
    """Those that are to be heard: the vocabulary's."""
    return [w for w in words if w.text in TOKENS]


def frame_spans(words: list[SpokenWord], frames: int) -> list[tuple[str, int, int]]:
    """Each word's first frame and the one past its last, at least two apart and never overlapping."""
    spans: list[tuple[str, int, int]] = []
    last = 0
    for i, w in enumerate(words):
        start = max(last, round(w.start * FRAME_RATE))
        end = max(start + 2, round(w.end * FRAME_RATE))
        if i + 1 < len(words):
            # A short gap is no pause: the next word's boundary closes this one too.
            following = round(words[i + 1].start * FRAME_RATE)
            if following <= end + 1:
                end = max(start + 2, following)
        if start >= frames:
            break
        spans.append((w.text, start, end))
        last = end
    return spans


def text_tokens(spans: list[tuple[str, int, int]], frames: int) -> np.ndarray:
    """(frames,) int64 tokens of the text stream; a word outside the vocabulary is `UNKNOWN` there."""
    tokens = np.full(frames + DELAY + 64, PAD, np.int64)
    for text, start, end in spans:
        if end + DELAY - 1 >= len(tokens):
            break
        tokens[start + DELAY - 1] = BOUNDARY
        tokens[end + DELAY - 2] = TOKENS.get(text, UNKNOWN)
        tokens[end + DELAY - 1] = BOUNDARY
    return tokens[:frames]


def pause_labels(spans: list[tuple[str, int, int]], frames: int) -> np.ndarray:
    """(frames, 4) bool: whether at step n a pause of that length, in the audio heard so far, is under way."""
    speech = np.zeros(frames + 1, bool)
    for _, start, end in spans:
        speech[start:end] = True
    # At step n frame n - 1 is the newest one heard.
    heard = np.concatenate([[False], speech[: frames - 1]])
    steps = np.arange(frames)
    last_speech = np.maximum.accumulate(np.where(heard, steps, 0))
    return (steps - last_speech)[:, None] / FRAME_RATE >= np.array(PAUSES)[None]


def phone_labels(words: list[SpokenWord], frames: int) -> np.ndarray:
    """(frames, 2) int64: rough phone classes, each word's phones spread evenly over it (an auxiliary target only)."""
    rate = FRAME_RATE * PHONES_A_FRAME
    labels = np.zeros(frames * PHONES_A_FRAME, np.int64)
    for w in words:
        phones = WORD_PHONES[w.text]
        a, b = int(np.ceil(w.start * rate - 0.5)), int(np.ceil(w.end * rate - 0.5))
        for i in range(max(a, 0), min(b, len(labels))):
            place = ((i + 0.5) / rate - w.start) / (w.end - w.start)
            labels[i] = phones[min(int(place * len(phones)), len(phones) - 1)]
    return labels.reshape(frames, PHONES_A_FRAME)


def words_of(tokens: list[int]) -> list[SpokenWord]:
    """Tokens back to timed words, as the server does it (for tests and for evaluation without a server)."""
    names = {v: k for k, v in TOKENS.items()}
    words: list[SpokenWord] = []
    pending: list[str] = []
    open_word = False
    stop = 0.0
    for n, token in enumerate(tokens):
        step = n + 1
        if step < DELAY:
            continue
        if token in (PAD, BOUNDARY):
            if pending:
                words.append(SpokenWord(" ".join(pending), stop, stop))
                pending = []
                open_word = True
        elif token in names:
            pending.append(names[token])
        if token == BOUNDARY:
            stop = (step - DELAY) / FRAME_RATE
            if open_word:
                words[-1] = SpokenWord(words[-1].text, words[-1].start, stop)
                open_word = False
    return words
