"""From what a configuration calls a file to a path on this machine, fetched from the Hugging Face hub where needed.

    path/to/file                     a local path, relative to the working directory
    demo://FILE                      a file of the embedded model, inside this package
    hf://ORG/REPO/PATH               one file of a hub repository
    hf-snapshot://ORG/REPO[/GLOB]    the folder of a hub repository with all files that match

It knows no configuration and no model.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import CheckpointError, ConfigError, DownloadError

logger = logging.getLogger(__name__)

HUB_SCHEME = "hf://"
SNAPSHOT_SCHEME = "hf-snapshot://"
DEMO_SCHEME = "demo://"


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A path on this machine; it may not exist."""

    path: Path


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a hub repository."""

    repo: str
    path: str


@dataclass(frozen=True, slots=True)
class HubSnapshot:
    """The files of a hub repository that match ``pattern`` (all of them if None)."""

    repo: str
    pattern: str | None


Location = LocalFile | HubFile | HubSnapshot


def parse(uri: str) -> Location:
    """Say what ``uri`` names, without touching disk or network.

    Raises:
        ConfigError: no such scheme, or a part is missing.
    """
    if uri.startswith(HUB_SCHEME):
        parts = uri.removeprefix(HUB_SCHEME).split("/")
        if len(parts) < 3 or not all(parts):
            raise ConfigError(f"expected hf://ORG/REPO/PATH, got {uri!r}")
        return HubFile("/".join(parts[:2]), "/".join(parts[2:]))
    if uri.startswith(SNAPSHOT_SCHEME):
        org, _, rest = uri.removeprefix(SNAPSHOT_SCHEME).partition("/")
        name, _, pattern = rest.partition("/")
        if not org or not name:
            raise ConfigError(f"expected hf-snapshot://ORG/REPO/GLOB, got {uri!r}")
        return HubSnapshot(f"{org}/{name}", pattern or None)
    if uri.startswith(DEMO_SCHEME):
        inside = PurePosixPath(uri.removeprefix(DEMO_SCHEME))
        if not inside.parts or inside.is_absolute() or ".." in inside.parts:
            raise ConfigError(f"expected demo://FILE, got {uri!r}")
        return LocalFile(Path(str(resources.files("moshi_server") / "demo")).joinpath(*inside.parts))
    if "://" in uri:
        raise ConfigError(f"unknown kind of address {uri!r}: expected a path, {HUB_SCHEME} or {SNAPSHOT_SCHEME}")
    if not uri or "\0" in uri:
        raise ConfigError("expected a path, got an empty string" if not uri else "a path cannot hold a zero byte")
    try:
        return LocalFile(Path(uri).expanduser())
    except RuntimeError:
        raise ConfigError(f"{uri!r} begins with the home folder of a user who is not known here") from None


def resolve(uri: str, *, progress: bool | None = None) -> Path:
    """Return the local path of what ``uri`` names, downloading it unless it is cached.

    A download is resumed where an earlier one stopped; without a network the cache is used as it is.

    Args:
        uri: see the head of this module.
        progress: show a progress bar; by default if the error output is a terminal.

    Raises:
        ConfigError: ``uri`` makes no sense.
        DownloadError: the hub has no such file, or cannot be reached and the file is not cached.
    """
    location = parse(uri)
    if isinstance(location, LocalFile):
        return location.path
    with _progress_bars(sys.stderr.isatty() if progress is None else progress):
        return _fetch(uri, location)


def resolve_tree(value: Any, *, progress: bool | None = None) -> Any:
    """Return ``value`` (tables, lists, strings) with each ``hf://`` string replaced by its local path.

    ``hf-snapshot://`` strings are left to the script that reads them, as upstream does.

    Raises:
        DownloadError: as `resolve`.
    """
    match value:
        case dict():
            return {key: resolve_tree(item, progress=progress) for key, item in value.items()}
        case list():
            return [resolve_tree(item, progress=progress) for item in value]
        case str() if value.startswith(HUB_SCHEME):
            return str(resolve(value, progress=progress))
        case _:
            return value


def cached(uri: str) -> Path | None:
    """Return the local path of the file that ``uri`` names, or None if it would have to be downloaded.

    Raises:
        ConfigError: ``uri`` makes no sense.
    """
    location = parse(uri)
    if isinstance(location, LocalFile):
        return location.path
    if isinstance(location, HubSnapshot):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(location.repo, location.path)
    return Path(found) if isinstance(found, str) else None


def remote_tensors(uri: str) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """Read the head of a safetensors file where it lies, an ``hf://`` address, without downloading the file.

    Returns:
        Each tensor's type and shape by its name, and the file's metadata.

    Raises:
        ConfigError: ``uri`` is no ``hf://`` address.
        CheckpointError: the file is no safetensors file.
        DownloadError: as `resolve`.
    """
    location = parse(uri)
    if not isinstance(location, HubFile):
        raise ConfigError(f"expected {HUB_SCHEME}ORG/REPO/PATH, got {uri!r}")
    with _explained(uri, location.repo):
        from huggingface_hub import HfApi, errors

        if _offline():
            raise errors.LocalEntryNotFoundError("offline")
        try:
            head = HfApi().parse_safetensors_file_metadata(location.repo, location.path)
        except errors.SafetensorsParsingError as error:
            why = str(error).splitlines()[0]
            raise CheckpointError(f"{uri}: not a safetensors checkpoint: {why}", hint="name the right file") from error
    return {name: (info.dtype, tuple(info.shape)) for name, info in head.tensors.items()}, dict(head.metadata)


def _fetch(uri: str, location: HubFile | HubSnapshot) -> Path:
    logger.info("looking up %s", uri)
    with _explained(uri, location.repo):
        # Imported here: it takes a third of a second, and most commands fetch nothing.
        from huggingface_hub import hf_hub_download, snapshot_download

        if isinstance(location, HubFile):
            return Path(hf_hub_download(location.repo, location.path))
        folder = Path(snapshot_download(location.repo, allow_patterns=location.pattern))
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if not any(fnmatchcase(name, location.pattern or "*") for name in names):
        what = f"matches {location.pattern}" if location.pattern else "is there"
        raise DownloadError(f"{uri}: nothing in {location.repo} {what}", hint="check the pattern, capitals included")
    return folder


@contextmanager
def _explained(uri: str, repo: str) -> Iterator[None]:
    """Turn what the hub's client raises within into an error that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        hint = f"accept its terms on the hub, then set HF_TOKEN to a token of that account ({_host()})"
        raise DownloadError(f"{uri}: access to {repo} is restricted", hint=hint) from error
    except errors.LocalEntryNotFoundError as error:
        hint = "check the network, or copy the hub's cache from another machine and point HF_HOME at it"
        if _offline():
            hint = "HF_HUB_OFFLINE is set: unset it to download"
        raise DownloadError(f"{uri}: not in the cache, and {_host()} cannot be reached", hint=hint) from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the name; a private repository needs HF_TOKEN"
        raise DownloadError(f"{uri}: there is no repository {repo} on {_host()}", hint=hint) from error
    except errors.EntryNotFoundError as error:
        hint = "check the path, capitals included"
        raise DownloadError(f"{uri}: the repository {repo} has no such file", hint=hint) from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{uri}: not a valid repository name", hint="expected ORG/REPO") from error
    except _transport_errors() as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DownloadError(
            f"{uri}: the download failed: {reason}", hint="start again: it goes on from there"
        ) from error
    except OSError as error:
        hint = "the cache is under HF_HOME: is its disk full, or not writable?"
        raise DownloadError(f"{uri}: cannot be stored: {error.strerror or error}", hint=hint) from error


def _transport_errors() -> tuple[type[Exception], ...]:
    """Every way in which a request can fail, whichever HTTP library the hub's client is built on."""
    from huggingface_hub import errors

    bases = [base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"]
    return (errors.HfHubHTTPError, *bases)


def _host() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
