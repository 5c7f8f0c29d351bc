"""Files at the root: the operator's own, and our page where they have no ``index.html``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.staticfiles import StaticFiles

OUR_PAGE: Final = Path(__file__).parent / "static"


class Files(StaticFiles):
    """The files of ``static_dir``, if there is such a folder, and then of our page, unless it has a page of its own."""

    def __init__(self, static_dir: str | Path | None) -> None:
        own = Path(static_dir) if static_dir is not None and Path(static_dir).is_dir() else None
        super().__init__(directory=own or OUR_PAGE, html=True)
        if own is not None and not (own / "index.html").is_file():
            self.all_directories = [own, OUR_PAGE]
