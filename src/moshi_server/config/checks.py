"""Field types with their own sentence for a wrong value; they know no file and no table."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, NonNegativeInt
from pydantic_core import PydanticCustomError

from .. import hub
from ..errors import ConfigError

_DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


def same_kind(message: str) -> PydanticCustomError:
    """A validation error that is reported as it stands (``message`` may hold braces)."""
    return PydanticCustomError("moshi_server", "{message}", {"message": message})


def _batch_size(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise same_kind('expected a whole number of at least 1, or "auto" for what the memory allows')


def _route(value: str) -> str:
    if not value.startswith("/") or any(c in value for c in "?# {}"):
        raise same_kind('expected a URL path that begins with "/", such as "/api/asr-streaming"')
    return value


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise same_kind('expected "cpu", "cuda", "cuda:N" (the N-th GPU, from 0) or "mps"')
    return value


def _instance_name(value: str) -> str:
    if not value or value in (".", "..") or any(c in "/\\" or ord(c) < 32 for c in value):
        raise same_kind("expected a name that can end a file name: not empty, no slash")
    return value


def _file(value: str) -> str:
    try:
        hub.parse(value)
    except ConfigError as error:
        raise same_kind(error.message) from None
    return value


def _file_not_folder(value: str) -> str:
    if value.startswith(hub.SNAPSHOT_SCHEME):
        raise same_kind(f"{hub.SNAPSHOT_SCHEME} names a folder, but one file is needed: use {hub.HUB_SCHEME}")
    return _file(value)


Count = NonNegativeInt
BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_batch_size)]
Route = Annotated[str, AfterValidator(_route)]
InstanceName = Annotated[str, AfterValidator(_instance_name)]
Device = Annotated[str, AfterValidator(_device)]
File = Annotated[str, AfterValidator(_file_not_folder)]
"""A path, or a URI that `moshi_server.hub.resolve` makes one; nothing is fetched while the configuration is read."""
Folder = Annotated[str, AfterValidator(_file)]
