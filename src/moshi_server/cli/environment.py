"""The ``.env`` file of the working directory."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError

DOTENV = ".env"


def load_dotenv() -> None:
    """Put the variables of ``.env`` into the environment; one that is already set wins. No file is no error.

    Raises:
        ConfigError: the file cannot be read.
    """
    import dotenv

    path = Path(DOTENV)
    if not path.is_file():
        return
    try:
        dotenv.load_dotenv(path, override=False)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=DOTENV) from error
