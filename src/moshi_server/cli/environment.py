"""The ``.env`` file of the working directory."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError

DOTENV = ".env"


def load_dotenv() -> frozenset[str]:
    """Put the variables of ``.env`` into the environment; one that is already set wins. No file is no error.

    Returns:
        The names of those that came from the file.

    Raises:
        ConfigError: the file cannot be read.
    """
    import dotenv

    path = Path(DOTENV)
    if not path.is_file():
        return frozenset()
    before = frozenset(os.environ)
    try:
        dotenv.load_dotenv(path, override=False)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=DOTENV) from error
    return frozenset(os.environ) - before
