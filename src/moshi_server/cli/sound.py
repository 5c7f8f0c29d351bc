"""The sound library, which is an extra: found, or an error that says how to get it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import MoshiServerError


def sound_library(purpose: str, *, instead: str = "") -> Any:
    """The module `sounddevice`.

    Args:
        purpose: what it is needed for, as "to play sound".
        instead: what can be done without it.

    Raises:
        MoshiServerError: it is not installed, or PortAudio is not.
    """
    otherwise = f"; or {instead}" if instead else ""
    try:
        with _silenced():
            import sounddevice
    except ImportError:
        raise MoshiServerError(
            f"{purpose}, the package sounddevice is needed",
            hint=f"install it with: pip install 'moshi-server[mic]'{otherwise}",
        ) from None
    except OSError as error:  # the package is there, but PortAudio is not
        raise MoshiServerError(
            f"{purpose}, PortAudio is needed: {error}", hint=f"install it: apt install libportaudio2{otherwise}"
        ) from None
    return sounddevice


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep ALSA's chatter about cards that are not there off the terminal."""
    with contextlib.ExitStack() as stack:
        try:
            saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        except OSError:
            yield
            return
        stack.callback(os.close, saved)
        stack.callback(os.close, nothing)
        stack.callback(os.dup2, saved, 2)
        os.dup2(nothing, 2)
        yield
