"""Words with times to subtitles: cues that end where speakers pause, in SubRip and WebVTT; it writes no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from .transcript import TranscriptWord

LINE: Final = 42
"""Characters of a line; two lines make a cue. What broadcasters use."""
MAX_SECONDS: Final = 7.0
"""How long a cue may stay."""
MIN_SECONDS: Final = 1.0
"""How long a cue stays at least, if the next one leaves it the time."""
PAUSE: Final = 0.8
"""Seconds of silence that always end a cue."""
_SENTENCE_ENDS: Final = (".", "?", "!", "…", "。", "？", "！")
_CLAUSE_ENDS: Final = (",", ";", ":", "–", "—")


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown from ``start`` to ``stop`` (s), one or two lines."""

    start: float
    stop: float
    lines: tuple[str, ...]


def cues(words: Sequence[TranscriptWord]) -> list[Cue]:
    """Cut words into cues, best at pauses and sentence ends; they follow each other and do not overlap."""
    groups = [part for phrase in _phrases(words) for part in _fit(phrase)]
    made: list[Cue] = []
    for index, group in enumerate(groups):
        start, stop = group[0].start, max(group[-1].stop, group[0].start + MIN_SECONDS)
        if index + 1 < len(groups):
            stop = max(start, min(stop, groups[index + 1][0].start))
        made.append(Cue(start, stop, _lines([word.text for word in group])))
    return made


def to_srt(words: Sequence[TranscriptWord]) -> str:
    """SubRip."""
    blocks = [
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.stop, ',')}\n" + "\n".join(cue.lines) + "\n"
        for number, cue in enumerate(cues(words), start=1)
    ]
    return "\n".join(blocks)


def to_vtt(words: Sequence[TranscriptWord]) -> str:
    """WebVTT."""
    blocks = [
        f"{_clock(cue.start, '.')} --> {_clock(cue.stop, '.')}\n" + "\n".join(map(_escaped, cue.lines)) + "\n"
        for cue in cues(words)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _phrases(words: Sequence[TranscriptWord]) -> list[list[TranscriptWord]]:
    """Cut at every long pause, and at sentence ends once a line is full."""
    phrases: list[list[TranscriptWord]] = []
    for word in words:
        current = phrases[-1] if phrases else []
        if not current or word.start - current[-1].stop >= PAUSE or _sentence_is_over(current):
            phrases.append([word])
        else:
            current.append(word)
    return phrases


def _sentence_is_over(group: Sequence[TranscriptWord]) -> bool:
    return group[-1].text.endswith(_SENTENCE_ENDS) and _length(group) >= LINE // 2


def _fit(group: list[TranscriptWord]) -> list[list[TranscriptWord]]:
    """Halve a group until each part fits a cue, where it hurts least."""
    total = _length(group)
    short = total <= 2 * LINE + 1 and group[-1].stop - group[0].start <= MAX_SECONDS
    if len(group) == 1 or (short and max(map(len, _lines([word.text for word in group]))) <= LINE):
        return [group]
    lengths = list(accumulate(len(word.text) + 1 for word in group))

    def cost(at: int) -> float:
        before, after = group[at - 1], group[at]
        uneven = abs(lengths[at - 1] - total / 2) / total
        relief = 3 * min(after.start - before.stop, PAUSE)
        if before.text.endswith(_SENTENCE_ENDS):
            relief += 0.6
        elif before.text.endswith(_CLAUSE_ENDS):
            relief += 0.3
        return uneven - relief

    at = min(range(1, len(group)), key=cost)
    return [*_fit(group[:at]), *_fit(group[at:])]


def _length(group: Sequence[TranscriptWord]) -> int:
    return sum(len(word.text) + 1 for word in group) - 1


def _lines(texts: Sequence[str]) -> tuple[str, ...]:
    """One line if it fits, else the most even two."""
    whole = " ".join(texts)
    if len(whole) <= LINE or len(texts) == 1:
        return (whole,)
    options = [(" ".join(texts[:at]), " ".join(texts[at:])) for at in range(1, len(texts))]
    return min(options, key=lambda option: max(map(len, option)))


def _clock(seconds: float, point: str) -> str:
    milliseconds = max(0, round(seconds * 1000))
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
