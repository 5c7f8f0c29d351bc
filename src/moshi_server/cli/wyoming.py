"""``moshi-server wyoming``: a running server as Home Assistant's speech to text and text to speech."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import MoshiServerError
from .options import ApiKey, key_for

if TYPE_CHECKING:
    from ..client.wyoming import Bridge


def wyoming(
    url: Annotated[
        str, typer.Option("--url", help="The running server that hears and speaks.")
    ] = "ws://127.0.0.1:8080",
    tts_url: Annotated[str | None, typer.Option("--tts-url", help="The one that speaks, if that is another.")] = None,
    api_key: ApiKey = None,
    language: Annotated[
        list[str] | None,
        typer.Option("--language", "-l", help="What its models know, as often as needed: en (the default), fr, ..."),
    ] = None,
    addr: Annotated[
        str,
        typer.Option("--addr", "-a", help="Where Home Assistant connects; 0.0.0.0 lets other machines in, unasked."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="And at which port.")] = 10300,
) -> None:
    """Serve Home Assistant, by the Wyoming protocol, with the modules of a running server.

    The protocol has no passwords: whoever reaches the port is served with the key given here.

    For example: moshi-server wyoming --url ws://HOST:8080 --api-key KEY --language en --language fr --addr 0.0.0.0
    """
    from .environment import load_dotenv

    load_dotenv()
    try:
        from ..client.wyoming import Bridge
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("wyoming"):
            raise
        raise MoshiServerError(
            "for Home Assistant, the package wyoming is needed",
            hint="install it with: pip install 'moshi-server[wyoming]'",
        ) from None
    key = key_for(api_key)
    bridge = Bridge(url, tts_url or url, key, tuple(language or ["en"]), _complain)
    asyncio.run(_serve(bridge, addr, port))


def _complain(line: str) -> None:
    typer.echo(f"error: {' '.join(line.split())}", err=True)


async def _serve(bridge: Bridge, addr: str, port: int) -> None:
    from wyoming.server import AsyncTcpServer

    services = await bridge.services()  # a wrong address is told now, not when somebody speaks
    server = AsyncTcpServer(addr, port)
    try:
        await server.start(bridge.handler)
    except OSError as error:
        raise MoshiServerError(f"cannot listen on {addr} port {port}: {error.strerror or error}") from None
    does = (
        " and ".join(name for name, url in (("hears", services.asr), ("speaks", services.tts)) if url) or "does nothing"
    )
    typer.echo(f"Home Assistant may connect to {addr}, port {port}; this server {does}.")
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    await ended.wait()
    await server.stop()
