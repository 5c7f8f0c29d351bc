"""Text to be spoken, as it arrives, to words and pauses with their tokens; it knows no model, no step and no voice.

Upstream takes each message's text by itself: the end of a message is the end of a word, and clients that send a word
a message rely on it. So it is here (`TextSplitter`); but a ``<break time="1.5s"/>`` that came in several messages is
still one pause. `PieceJoiner` is for those who send text cut anywhere, as language models write it.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from .tokenizer import END_OF_PADDING, PADDING

MAX_PAUSE_SECONDS: Final = 10.0
"""A longer pause is cut to this."""
MAX_WORD_CHARACTERS: Final = 256
"""What has no space for longer is spoken in pieces of this length."""

_FRAME_RATE: Final = 12.5
_PIECE: Final = 1024
"""Characters of which words are made at once."""
_BREAK_ATOMS: Final = [*"<break", r"\s{1,16}", *'time="', "([0-9.]{1,16})", "s", '"', r"\s{0,16}", "/", ">"]
_BREAK: Final = re.compile("".join(_BREAK_ATOMS))
_BREAK_BEGUN: Final = re.compile("".join(f"(?:{atom}" for atom in _BREAK_ATOMS[:-1]) + ")?" * (len(_BREAK_ATOMS) - 1))
_MAX_BREAK_CHARACTERS: Final = 64
_CONTROL: Final = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if not chr(code).isspace()}
_REPLACED: Final = str.maketrans({"’": "'", "–": None, ":": " ", "(": None, ")": None}) | _CONTROL


@dataclass(frozen=True, slots=True)
class Word:
    """One word to be spoken.

    Attributes:
        text: as it is told back to the client.
        tokens: its pieces, at least one; the very first word of a stream begins with the token that starts a turn.
    """

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """Silence, of more than 0 and at most `MAX_PAUSE_SECONDS` seconds."""

    seconds: float

    @property
    def frames(self) -> int:
        """How many steps of 80 ms it lasts, at least one."""
        return max(1, int(self.seconds * _FRAME_RATE))

    @property
    def text(self) -> str:
        """How upstream names it among the words."""
        return f'<break time="{self.seconds:.2f}s">'


class Encoder(Protocol):
    """What is needed of a tokenizer; `TextTokenizer` has it."""

    def encode(self, text: str) -> Sequence[int]:
        """The piece ids of a text."""
        ...


class SpokenText:
    """One stream's text to words with tokens.

    Args:
        tokenizer: gives a word's pieces.
        bos: the token put before the first word of a turn (``text_bos_token``).
    """

    def __init__(self, tokenizer: Encoder, bos: int) -> None:
        self._tokenizer = tokenizer
        self._bos = bos
        self._turn_begins = True
        self._splitter = TextSplitter()

    def push(self, text: str) -> list[Word | Pause]:
        """Take one message's text; returns what it completes."""
        return list(self._tokenized(self._splitter.push(text)))

    def finish(self) -> list[Word | Pause]:
        """Return what was held back in case a pause would come of it: the text ends here."""
        return list(self._tokenized(self._splitter.finish()))

    def begin_turn(self, *, marked: bool = True) -> list[Word | Pause]:
        """End this turn's text and begin another's, whose first word gets the `bos` token if it is ``marked``."""
        rest = self.finish()
        self._turn_begins = marked
        return rest

    def _tokenized(self, parts: list[str | Pause]) -> Iterator[Word | Pause]:
        for part in parts:
            if isinstance(part, Pause):
                yield part
                continue
            # These two steer the model and are no text; the first is also what an unknown character gives.
            tokens = tuple(token for token in self._tokenizer.encode(part) if token not in (END_OF_PADDING, PADDING))
            if not tokens:
                continue
            if self._turn_begins:
                tokens = (self._bos, *tokens)
                self._turn_begins = False
            yield Word(part, tokens)


class TextQueue:
    """One stream's text, as much as may come, of which words are made only as they are needed.

    A megabyte in one message costs nothing until it is spoken, so that one client's text holds up nobody else's speech.
    """

    def __init__(self, spoken: SpokenText) -> None:
        self._spoken = spoken
        self._waiting: deque[str | _Mark] = deque()
        self._ready: deque[Word | Pause] = deque()
        self.characters_in = 0
        """Characters that were put in since the beginning."""
        self.characters_out = 0
        """Characters of these of which words were made."""

    def put(self, text: str) -> None:
        """Add one message's text, whose end is the end of a word."""
        self.characters_in += len(text)
        joiner = PieceJoiner()
        pieces = [joiner.push(text[at : at + _PIECE]) for at in range(0, len(text), _PIECE)]
        self._waiting.extend(piece for piece in (*pieces, joiner.finish()) if piece)

    def next_turn(self, *, marked: bool = True) -> None:
        """The text that follows is another turn, see `SpokenText.begin_turn`."""
        self._waiting.append(_Mark.MARKED_TURN if marked else _Mark.TURN)

    def end(self) -> None:
        """The text ends here."""
        self._waiting.append(_Mark.END)

    def pull(self, count: int) -> list[Word | Pause]:
        """Take out the next words and pauses, at most ``count``; fewer if no more have come."""
        while len(self._ready) < count and self._waiting:
            item = self._waiting.popleft()
            if isinstance(item, str):
                self.characters_out += len(item)
                self._ready.extend(self._spoken.push(item))
            elif item is _Mark.END:
                self._ready.extend(self._spoken.finish())
            else:
                self._ready.extend(self._spoken.begin_turn(marked=item is _Mark.MARKED_TURN))
        return [self._ready.popleft() for _ in range(min(count, len(self._ready)))]

    @property
    def empty(self) -> bool:
        """Whether nothing is left to pull until more is put in."""
        return not self._waiting and not self._ready


class _Mark(Enum):
    TURN = auto()
    MARKED_TURN = auto()
    END = auto()


class TextSplitter:
    """Messages to normalized words and pauses. What may become a pause is held back until that is decided."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> list[str | Pause]:
        """Take one message's text, whose end is the end of a word; returns what it completes."""
        before: list[str | Pause] = []
        if self._held:
            text, before = self._with_held(text)
        cut = _undecided(text)
        self._held = text[cut:]
        return before + list(_split(text[:cut]))

    def finish(self) -> list[str | Pause]:
        """Return what was held back: the text ends here."""
        held, self._held = self._held, ""
        return list(_split(held))

    def _with_held(self, text: str) -> tuple[str, list[str | Pause]]:
        """The text with what was held before it; or without, and the words of what was held."""
        held, self._held = self._held, ""
        at = held.rfind("<")
        for joined in (held + text, f"{held} {text}"):
            if _BREAK.match(joined, at) or _pause_begun(joined) == at:
                return joined, []
        return text, list(_split(held))


class PieceJoiner:
    """Text cut anywhere to text that ends where a word does, so that `TextSplitter` gives the words of the whole."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, piece: str) -> str:
        """Take a piece; returns what is known to be whole words, which may be nothing."""
        text = self._held + piece
        pause = _pause_begun(text)
        word = _last_word(text[:pause])
        # A word without end is given out in the pieces in which it will be spoken.
        end = word + (pause - word) // MAX_WORD_CHARACTERS * MAX_WORD_CHARACTERS
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """Return what was held back: the text ends here."""
        held, self._held = self._held, ""
        return held


def normalize(text: str) -> str:
    """Text as the model was taught it: plain apostrophes, no colons, parentheses or dashes between words."""
    return text.translate(_REPLACED)


def _split(text: str) -> Iterator[str | Pause]:
    last = 0
    for found in _BREAK.finditer(text):
        yield from _words(text[last : found.start()])
        if (seconds := _seconds(found[1])) > 0:
            yield Pause(min(seconds, MAX_PAUSE_SECONDS))
        last = found.end()
    yield from _words(text[last:])


def _words(text: str) -> Iterator[str]:
    for word in text.split():
        for start in range(0, len(word), MAX_WORD_CHARACTERS):
            yield from normalize(word[start : start + MAX_WORD_CHARACTERS]).split()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:  # such as 1.2.3: upstream passes over it
        return 0.0
    return seconds if math.isfinite(seconds) else MAX_PAUSE_SECONDS


def _undecided(text: str) -> int:
    """Where a text's last word begins that may yet turn out to hold a pause; the text's length if there is none."""
    pause = _pause_begun(text)
    return pause if pause == len(text) else _last_word(text[:pause])


def _pause_begun(text: str) -> int:
    """Where a pause begins that the text may be about to complete; the text's length if there is none."""
    at = text.rfind("<", max(0, len(text) - _MAX_BREAK_CHARACTERS))
    return at if at >= 0 and _BREAK_BEGUN.fullmatch(text, at) else len(text)


def _last_word(text: str) -> int:
    """Where the last word begins, after a space or a pause; the text's length if it ends with one of these."""
    space = next((at for at in range(len(text), 0, -1) if text[at - 1].isspace()), 0)
    pauses = _BREAK.finditer(text, max(0, space - _MAX_BREAK_CHARACTERS))
    return max(space, *(found.end() for found in pauses), 0)
