"""Words to the text tokens that a speaking model is forced to take, a step at a time; it knows no tensor and no sound.

At each step the model samples whether the next word begins; the machine answers with the token that stands instead:
a word's tokens one by one, and padding until the next. Two kinds of model are spoken to: delayed streams as the PyTorch
package has them (`DelayedWords`), and those of the Rust server's own module (`PaddedWords`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Protocol

from .text import Pause, Word
from .tokenizer import END_OF_PADDING, PADDING

NEW_WORD: Final = END_OF_PADDING
FRAME_RATE: Final = 12.5


@dataclass(frozen=True, slots=True)
class SpokenAt:
    """A word's text, and the steps between which it was fed in: seconds at 12.5 a second."""

    text: str
    begin: int
    end: int


class Machine(Protocol):
    """What steps a stream's text. `force` may be called while `ready`."""

    @property
    def ready(self) -> bool:
        """Whether the next step can be made with the words that have come."""
        ...

    @property
    def wanted(self) -> int:
        """How many more words and pauses are worth having now."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the last step that sounds has been made."""
        ...

    @property
    def empty(self) -> bool:
        """Whether every word and pause that came has begun."""
        ...

    def add(self, entry: Word | Pause) -> None:
        """Take one more word or pause."""
        ...

    def close(self) -> None:
        """No more words come."""
        ...

    def force(self, sampled: int) -> int:
        """One step: the text token that stands for the sampled one."""
        ...

    def spoken(self) -> list[SpokenAt]:
        """The words whose end has been seen since this was last asked."""
        ...


@dataclass(frozen=True, slots=True)
class Padding:
    """How long silences may be, in steps.

    Attributes:
        initial: before the first word, so that it is not cut.
        most: how many the model may make in a row.
        between: forced after each word, for clearer speech.
        final: made after the last word.
    """

    initial: int = 2
    most: int = 8
    between: int = 1
    final: int = 4


class DelayedWords:
    """The words of one stream, for a model with delayed streams.

    Args:
        padding: see there.
        tail: steps after the last word before its sound has come: the model's delays.
        ahead: how many words the second stream of text looks ahead; 0 for none.
        vocabulary: ids of the text's input, by which the two streams are folded into one number.
        new_word: the token that stands between words.
        pad: the token of silence.
    """

    def __init__(
        self,
        padding: Padding,
        tail: int,
        *,
        ahead: int = 0,
        vocabulary: int = 0,
        new_word: int = NEW_WORD,
        pad: int = PADDING,
    ) -> None:
        self._padding = padding
        self._tail = tail
        self._ahead = ahead
        self._vocabulary = vocabulary
        self._new_word = new_word
        self._pad = pad
        self._entries: deque[Word | Pause] = deque()
        self._words = 0  # among the entries
        self._tokens: deque[int] = deque()
        self._ahead_tokens: deque[int] = deque()
        self._may_pad = padding.initial
        self._must_pad = padding.initial
        self._closed = False
        self._steps = 0
        self._end: int | None = None
        self._told = _Times()

    @property
    def ready(self) -> bool:
        """Whether the next step can be made: a word to begin, and those that it must look ahead to."""
        if self.finished:
            return False
        if self._closed:
            return True
        if not self._entries:
            return False
        return not self._ahead or isinstance(self._entries[0], Pause) or self._words > self._ahead

    @property
    def wanted(self) -> int:
        """As many as a step may need."""
        return max(0, self._ahead + 1 - self._words) if not self._closed else 0

    @property
    def finished(self) -> bool:
        """Whether the last step that sounds has been made."""
        return self._end is not None and self._closed and self._steps >= self._end + self._tail + self._padding.final

    @property
    def empty(self) -> bool:
        """Whether every word and pause that came has begun."""
        return not self._entries

    def add(self, entry: Word | Pause) -> None:
        """Take one more word or pause."""
        assert not self._closed, "no more words were to come"
        self._entries.append(entry)
        self._words += isinstance(entry, Word)

    def close(self) -> None:
        """No more words come."""
        self._closed = True

    def force(self, sampled: int) -> int:
        """One step: the text token that stands for the sampled one."""
        begins = self._begins(sampled)
        token = self._pad
        if begins and self._entries:
            begins = self._begin_next()
        elif begins:
            begins = self._past_the_end()
        if begins:
            token = self._new_word
        else:
            self._may_pad = max(0, self._may_pad - 1)
            self._must_pad = max(0, self._must_pad - 1)
            if self._tokens:
                token = self._tokens.popleft()
        if self._ahead:
            token = self._with_second_stream(token, begins)
        self._steps += 1
        if self.finished:
            self._told.end(self._steps)
        return token

    def spoken(self) -> list[SpokenAt]:
        """The words whose end has been seen since this was last asked."""
        return self._told.take()

    def _begins(self, sampled: int) -> bool:
        """Whether this step is the one between two words."""
        if self._tokens or self._must_pad > 0:
            return False
        return self._may_pad <= 0 or sampled == self._new_word

    def _begin_next(self) -> bool:
        """Take the next word; False for a pause, in which nothing begins."""
        entry = self._entries.popleft()
        self._told.begin(entry.text, self._steps + 1)
        if isinstance(entry, Pause):
            self._must_pad = entry.frames
            return False
        self._words -= 1
        self._tokens.extend(entry.tokens)
        if self._ahead:
            self._ahead_tokens.extend(self._tokens_ahead())
        self._may_pad = self._padding.most
        between = self._padding.between
        self._must_pad = max(0, between + len(entry.tokens) - 1) if between > 0 else 0
        return True

    def _tokens_ahead(self) -> tuple[int, ...]:
        left = self._ahead
        for entry in self._entries:
            if isinstance(entry, Word):
                left -= 1
                if not left:
                    return entry.tokens
        return ()

    def _past_the_end(self) -> bool:
        """A word would begin, but there is none: this is the end. A second stream is told so, once."""
        first = self._end is None
        if first:
            self._end = self._steps
        return first and self._ahead > 0

    def _with_second_stream(self, token: int, begins: bool) -> int:
        """Both streams in one number. The sign of a new word goes into the second, so that its tokens come sooner."""
        second = -1
        if begins:
            second = self._new_word
            token = self._tokens.popleft() if self._tokens else self._pad
        elif self._ahead_tokens:
            second = self._ahead_tokens.popleft()
        return (second + 1) * self._vocabulary + token


class PaddedWords:
    """The words of one stream, for a model of the Rust server's `Tts` module.

    Args:
        most: paddings in a row after which the next word is forced (``max_consecutive_pads``).
        delay: steps that audio runs behind the text.
        extra: steps beyond that after the last word.
        end_of_padding: the token that stands between words.
        pad: the token of silence.
    """

    def __init__(
        self, most: int, delay: int, extra: int, *, end_of_padding: int = END_OF_PADDING, pad: int = PADDING
    ) -> None:
        self._most = most
        self._after = delay + extra
        self._end_of_padding = end_of_padding
        self._pad = pad
        self._entries: deque[Word | Pause] = deque()
        self._tokens: deque[int] = deque()
        self._pads = 0
        self._must_pad = 0
        self._closed = False
        self._past = 0
        self._ended = False
        self._steps = 0
        self._told = _Times()

    @property
    def ready(self) -> bool:
        """Whether the next step can be made: a word may begin in any that is between two."""
        if self.finished:
            return False
        return bool(self._closed or self._ended or self._tokens or self._must_pad or self._entries)

    @property
    def wanted(self) -> int:
        """One, unless one waits."""
        return int(not self._entries and not self._closed)

    @property
    def finished(self) -> bool:
        """Whether the last step that sounds has been made."""
        return self._ended and self._past >= self._after

    @property
    def empty(self) -> bool:
        """Whether every word and pause that came has begun."""
        return not self._entries

    def add(self, entry: Word | Pause) -> None:
        """Take one more word or pause."""
        assert not self._closed, "no more words were to come"
        self._entries.append(entry)

    def close(self) -> None:
        """No more words come."""
        self._closed = True

    def force(self, sampled: int) -> int:
        """One step: the text token that stands for the sampled one."""
        token = self._pad
        if self._ended:
            self._past += 1
        elif self._tokens:
            token = self._tokens.popleft()
        elif self._must_pad:
            self._must_pad -= 1
        elif self._pads > self._most or sampled != self._pad:
            token = self._next()
        self._pads = self._pads + 1 if token == self._pad else 0
        self._steps += 1
        if self.finished:
            self._told.end(self._steps)
        return token

    def spoken(self) -> list[SpokenAt]:
        """The words whose end has been seen since this was last asked."""
        return self._told.take()

    def _next(self) -> int:
        """Begin the next word, or end."""
        if not self._entries:
            assert self._closed, "a step was made without a word to begin"
            self._told.end(self._steps)
            self._ended = True
            return self._pad
        entry = self._entries.popleft()
        self._told.begin(entry.text, self._steps)
        if isinstance(entry, Pause):
            self._must_pad = entry.frames
            return self._pad
        self._tokens.extend(entry.tokens)
        return self._end_of_padding


@dataclass(slots=True)
class _Times:
    """Words with the steps at which they begin; a word ends where the next begins."""

    current: tuple[str, int] | None = None
    ended: list[SpokenAt] = field(default_factory=list)

    def begin(self, text: str, step: int) -> None:
        self.end(step)
        self.current = (text, step)

    def end(self, step: int) -> None:
        if self.current is not None:
            self.ended.append(SpokenAt(self.current[0], self.current[1], step))
            self.current = None

    def take(self) -> list[SpokenAt]:
        taken, self.ended = self.ended, []
        return taken
