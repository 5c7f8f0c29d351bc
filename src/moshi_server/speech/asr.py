"""From a delayed stream of text tokens to timed words; it knows no audio, no model and no client.

The rules are those of `moshi-core/src/asr.rs`: from step ``delay`` on, a padding token closes the pending word, which
starts where the last boundary stood; `END_OF_PADDING` sets that boundary and ends a word not yet ended; any other
token joins the pending word. A word of the tokenizer's control pieces alone is none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from ..audio import FRAME_SIZE, SAMPLE_RATE
from ..events import EndWord, Word
from .tokenizer import END_OF_PADDING, PADDING


class StreamClock:
    """Maps frames that the model has heard to seconds of audio that the client has sent.

    The two differ where silence was fed in to give a client its last words: that silence takes no time of the
    client's. Frames must be asked for in ascending order.
    """

    def __init__(self) -> None:
        self._skipped = 0
        self._insertions: deque[tuple[int, int]] = deque()

    def insert(self, position: int, samples: int) -> None:
        """Note that ``samples`` of silence were fed from sample ``position`` on, counted as the model hears it."""
        if self._insertions and sum(self._insertions[-1]) == position:
            start, length = self._insertions.pop()
            self._insertions.append((start, length + samples))
        else:
            self._insertions.append((position, samples))

    def seconds(self, frame: int) -> float:
        """Client time (s) at the beginning of a frame."""
        if not self._insertions and not self._skipped:
            return frame / (SAMPLE_RATE / FRAME_SIZE)
        position = frame * FRAME_SIZE
        while self._insertions and sum(self._insertions[0]) <= position:
            self._skipped += self._insertions.popleft()[1]
        within = max(0, position - self._insertions[0][0]) if self._insertions else 0
        return (position - self._skipped - within) / SAMPLE_RATE


class WordAssembler:
    """One stream's words.

    Args:
        delay: how many frames the text runs behind the audio (``asr_delay_in_tokens``).
        decode: token ids to text.
        clock: frame index to seconds of the client's audio.
    """

    def __init__(
        self,
        delay: int,
        decode: Callable[[Sequence[int]], str],
        clock: Callable[[int], float] = lambda frame: frame / (SAMPLE_RATE / FRAME_SIZE),
    ) -> None:
        self._delay = delay
        self._decode = decode
        self._clock = clock
        self._first_frame = 0
        self._steps = 0
        self._tokens: list[int] = []
        self._unended = False
        self._last_stop = 0.0

    @property
    def pending(self) -> bool:
        """Whether a word has begun that no token has closed yet."""
        return bool(self._tokens)

    def restart(self, frame: int) -> None:
        """The model begins anew at this frame of the stream; the clock goes on."""
        self._first_frame = frame
        self._steps = 0
        self._tokens.clear()
        self._unended = False
        self._last_stop = self._clock(frame)

    def step(self, token: int) -> list[Word | EndWord]:
        """Take the text token of one step; returns the words that it closes or ends."""
        self._steps += 1
        if self._steps < self._delay:
            return []
        if token not in (PADDING, END_OF_PADDING):
            self._tokens.append(token)
            return []
        events: list[Word | EndWord] = []
        self._close(events)
        if token == END_OF_PADDING:
            self._end(events)
        return events

    def flush(self) -> list[Word | EndWord]:
        """Close and end what is pending, as if the speaker had stopped here."""
        events: list[Word | EndWord] = []
        self._close(events)
        if self._unended:
            self._end(events)
        return events

    def _close(self, events: list[Word | EndWord]) -> None:
        if not self._tokens:
            return
        # The tokenizer's begin and end of text write nothing: so the embedded model marks words that it does not know.
        if any(token > PADDING for token in self._tokens):
            events.append(Word(self._decode(self._tokens), self._last_stop))
            self._unended = True
        self._tokens.clear()

    def _end(self, events: list[Word | EndWord]) -> None:
        frame = max(0, self._steps - self._delay)
        self._last_stop = self._clock(self._first_frame + frame)
        if self._unended:
            self._unended = False
            events.append(EndWord(self._last_stop))
