"""How every client of this SDK gets its WebSocket: addresses, credentials, and why a connection failed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI

from ..errors import ServerUnreachableError
from .closing import START_HINT, error_of_refusal

DEFAULT_URL: Final = "ws://127.0.0.1:8080"
THIS_MACHINE: Final = ("localhost", "127.0.0.1", "::1")


class Closable(Protocol):
    """What a client must have to be entered."""

    async def close(self) -> None:
        """End the stream."""
        ...


class Client(Closable, Protocol):
    """What a client must have to be connected."""

    async def wait_ready(self) -> None:
        """Return once the server has said that it is ready for this stream."""
        ...


T = TypeVar("T", bound=Closable)
C = TypeVar("C", bound=Client)


class Opening(Generic[T]):
    """A client on its way: await it, or enter it. How it comes about is a subclass's business (`_connect`)."""

    _client: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._connect().__await__()

    async def __aenter__(self) -> T:
        self._client = await self._connect()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()

    async def _connect(self) -> T:
        raise NotImplementedError


class Connecting(Opening[C]):
    """A connection under way, to a client that the server is ready for."""

    def __init__(
        self, kind: Callable[[ClientConnection, str], C], url: str, api_key: str | None, timeout: float
    ) -> None:
        self._kind = kind
        self._url = url
        self._api_key = api_key
        self._timeout = timeout

    async def _connect(self) -> C:
        where = public_url(self._url)
        try:
            async with asyncio.timeout(self._timeout):
                client = self._kind(await self._open(where), where)
                try:
                    await client.wait_ready()
                except BaseException:
                    await client.close()
                    raise
                return client
        except TimeoutError:
            raise ServerUnreachableError(
                f"{where} did not answer within {self._timeout:g} s", hint="check the address, or see the server's log"
            ) from None

    async def _open(self, where: str) -> ClientConnection:
        headers = {"kyutai-api-key": self._api_key} if self._api_key else {}
        try:
            return await open_websocket(
                self._url,
                additional_headers=headers,
                compression=None,  # samples hardly compress, and it doubles the delay
                open_timeout=None,
                max_queue=None,
                max_size=None,
                # The server looks after dead clients. A ping of ours could wait behind audio that it does not read yet.
                ping_interval=None,
                close_timeout=2,
                proxy=None if urlsplit(self._url).hostname in THIS_MACHINE else True,
            )
        except InvalidStatus as refused:
            raise error_of_refusal(refused.response, where) from None
        except InvalidURI:
            raise ServerUnreachableError(f"{where} is no address of a server", hint=f"like {DEFAULT_URL}") from None
        except (InvalidHandshake, EOFError) as error:
            raise ServerUnreachableError(f"{where} speaks no WebSocket: {error}") from None
        except OSError as error:
            raise ServerUnreachableError(f"no server answers at {where}: {_why(error)}", hint=START_HINT) from None


def _why(error: OSError) -> str:
    # asyncio writes the address into `strerror`, and several addresses' errors into one without a number.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)


def websocket_url(url: str, default_path: str, query: Sequence[tuple[str, str]] = ()) -> str:
    """The WebSocket address that a user's shorter one means, with ``query`` added.

    Raises:
        ServerUnreachableError: it is no such address.
    """
    text = url if "://" in url else f"ws://{url}"
    try:
        parts = urlsplit(text)
        valid = bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    schemes = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
    if not valid or parts.scheme not in schemes:
        raise ServerUnreachableError(f"{url!r} is no address of a server", hint=f"like {DEFAULT_URL}")
    pairs = [*parse_qsl(parts.query, keep_blank_values=True), *query]
    path = parts.path if parts.path not in ("", "/") else default_path
    return urlunsplit((schemes[parts.scheme], parts.netloc, path, urlencode(pairs), ""))


def public_url(url: str) -> str:
    """The address without its query and password, which may hold a key."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
