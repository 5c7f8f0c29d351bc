"""Voices by name: which there are, what to say of one that is not, and files that must stay in their folder."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from ..errors import InvalidMessageError, ResourceNotFoundError

NEAR: Final = 3
"""How many near matches are named."""
_LISTED: Final = "GET /api/voices lists them"


class Voices:
    """The voices of a module.

    Args:
        names: of those that are loaded.
        default: the one taken when none is named; None if one must be.
        folder: recordings in it may be named too, by their path in it.
    """

    def __init__(
        self, names: Iterable[str] = (), *, default: str | None = None, folder: str | Path | None = None
    ) -> None:
        self.names = tuple(sorted(names))
        self.default = default
        self._known = frozenset(self.names)
        self._folder = Path(folder) if folder is not None else None

    def check(self, name: str) -> None:
        """Return if there is such a voice.

        Raises:
            ResourceNotFoundError: there is none; the sentence names near matches.
        """
        if name not in self._known:
            if self._folder is None:
                raise unknown_voice(name, self.names)
            self.file(name)

    def file(self, name: str) -> tuple[Path, float]:
        """The recording of this name, and at which second of it the voice is taken (``NAME+SECONDS``).

        Raises:
            ResourceNotFoundError: there is none in the folder.
            InvalidMessageError: the seconds are no number.
        """
        relative, plus, seconds = name.partition("+")
        try:
            start = float(seconds) if plus else 0.0
        except ValueError:
            start = -1.0
        if not 0 <= start < 1e6:
            raise InvalidMessageError(
                f"voice {name[:60]!r}: what follows '+' must be seconds", hint="as in alice.wav+2"
            )
        if self._folder is not None and (path := inside(self._folder, relative)) is not None:
            return path, start
        raise unknown_voice(relative, self.names)


def unknown_voice(name: str, names: Sequence[str]) -> ResourceNotFoundError:
    """The error for a voice that does not exist, with the names that come nearest to it."""
    asked = name[:200].casefold()
    folded = {each.casefold(): each for each in names}
    near = [folded[each] for each in difflib.get_close_matches(asked, folded, n=NEAR, cutoff=0.6)]
    # A part of a name is no near match to difflib, but likely what was meant.
    near += [each for each in names if asked and asked in each.casefold() and each not in near]
    said = f"; did you mean {' or '.join(map(repr, near[:NEAR]))}?" if near else ""
    return ResourceNotFoundError(f"there is no voice {name[:80]!r}{said}", hint=_LISTED)


def inside(folder: Path, relative: str) -> Path | None:
    """The file of this name below the folder, symbolic links followed; None if there is none, or it lies elsewhere."""
    try:
        root = folder.resolve(strict=True)
        path = (root / relative).resolve(strict=True)
        return path if path.is_file() and path.is_relative_to(root) else None
    except (OSError, ValueError, RuntimeError):  # not there, a NUL in the name, or links that go in circles
        return None
