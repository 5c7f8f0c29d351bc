"""Word errors by kind, confusions, and word start errors; knows nothing of models."""

import collections
import dataclasses

import numpy as np

from training.synth.speech import SpokenWord


def align(reference: list[str], hypothesis: list[str]) -> list[tuple[int | None, int | None]]:
    """Pairs of positions of a least-cost alignment; None stands where a word is missing or too many."""
    rows, columns = len(reference) + 1, len(hypothesis) + 1
    cost = np.zeros((rows, columns), int)
    cost[:, 0], cost[0] = np.arange(rows), np.arange(columns)
    for i in range(1, rows):
        for j in range(1, columns):
            swap = cost[i - 1, j - 1] + (reference[i - 1] != hypothesis[j - 1])
            cost[i, j] = min(swap, cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    pairs: list[tuple[int | None, int | None]] = []
    i, j = len(reference), len(hypothesis)
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + (reference[i - 1] != hypothesis[j - 1]):
            pairs.append((i - 1, j - 1))
            i, j = i - 1, j - 1
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            pairs.append((i - 1, None))
            i -= 1
        else:
            pairs.append((None, j - 1))
            j -= 1
    return pairs[::-1]


@dataclasses.dataclass
class Score:
    words: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    sentences: int = 0
    sentence_errors: int = 0
    seconds: float = 0.0
    start_errors: list[float] = dataclasses.field(default_factory=list)
    confusions: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Errors in percent of the words spoken."""
        return 100 * self.errors / max(1, self.words)

    @property
    def false_a_minute(self) -> float:
        """Words that nobody said, a minute of what was heard."""
        return 60 * self.insertions / max(1e-9, self.seconds)

    def start_quantile(self, q: float) -> float:
        """A quantile of the absolute word start errors of the right words, in ms."""
        return float(np.quantile(np.abs(self.start_errors), q)) * 1000 if self.start_errors else float("nan")

    def add(self, reference: list[SpokenWord], hypothesis: list[SpokenWord], offset: float = 0.0) -> None:
        """`offset` is how much later the reference's time zero lies in the hypothesis's clock."""
        self.words += len(reference)
        self.sentences += 1
        before = self.errors
        for i, j in align([w.text for w in reference], [w.text for w in hypothesis]):
            if i is None:
                assert j is not None
                self.insertions += 1
                self.confusions["-", hypothesis[j].text] += 1
            elif j is None:
                self.deletions += 1
                self.confusions[reference[i].text, "-"] += 1
            elif reference[i].text != hypothesis[j].text:
                self.substitutions += 1
                self.confusions[reference[i].text, hypothesis[j].text] += 1
            else:
                self.start_errors.append(hypothesis[j].start - offset - reference[i].start)
        self.sentence_errors += self.errors > before

    def merge(self, other: "Score") -> None:
        for name in ("words", "substitutions", "deletions", "insertions", "sentences", "sentence_errors", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.start_errors += other.start_errors
        self.confusions.update(other.confusions)
