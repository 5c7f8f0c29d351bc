"""The worker's life: a port, engines that warm up, a web server, and an orderly end; it knows no configuration."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI

from ..engine.hanging import HangWatch
from ..errors import ConfigError, EngineFailedError
from .connection import Connection
from .routes import ServerState
from .websocket import PING_SECONDS

logger = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections that may wait to be accepted."""
EXIT_SECONDS = 5.0
"""How long, after the last stream has ended, its socket may take to close."""
WATCH_SECONDS = 0.2
"""How often the engines are looked at."""
FAILED_SECONDS = 1.0
"""How long a worker that ends since a model has failed still says so to those who ask for its health."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything is loaded, so that a taken port costs no minutes.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror}", hint="check --addr") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} is already in use", hint="end the other program or give --port") from error
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="check --addr and --port"
        ) from error
    return listener


@dataclass(slots=True)
class Worker:
    """Engines and web server together.

    Args:
        app: what answers.
        state: its modules, and the flag that says it is ending.
        listener: a listening socket.
        grace_seconds: how long running streams may go on once asked to end.
        ping_seconds: how often clients are pinged.
        head_seconds: how long the head of a request may take to come.
        exit_on_failure: end once a model has failed for good.
        on_ready: is told the address, once every module is ready.
    """

    app: FastAPI
    state: ServerState
    listener: socket.socket
    grace_seconds: float = 30.0
    ping_seconds: float = PING_SECONDS
    head_seconds: float = 20.0
    exit_on_failure: bool = False
    on_ready: Callable[[str], object] | None = None
    failed: bool = False
    """It ended, or is about to, since a model has failed for good."""
    _asked_to_end: asyncio.Event = field(default_factory=asyncio.Event)
    _server: uvicorn.Server | None = None
    _was_ready: bool = False

    @property
    def open_connections(self) -> int:
        """How many sockets are open, HTTP and WebSocket, those included that only wait for a goodbye to be read."""
        return len(self._server.server_state.connections) if self._server else 0

    def end(self) -> None:
        """Ask to end, as the first SIGTERM does. Belongs to the event loop."""
        self._asked_to_end.set()

    async def run(self) -> None:
        """Serve until a signal comes.

        Raises:
            EngineFailedError: a module failed before it was ever ready.
        """
        loop = asyncio.get_running_loop()
        server = self._server = _Server(self._uvicorn_config())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number, server)
        for module in self.state.modules:
            module.engine.start()
        serving = asyncio.create_task(server.serve(sockets=[self.listener]))
        warming = asyncio.create_task(self._wait_ready())
        watching = asyncio.create_task(self._watch())
        ending = asyncio.create_task(self._asked_to_end.wait())
        try:
            await asyncio.wait({ending, warming}, return_when=asyncio.FIRST_COMPLETED)
            if warming.done():
                warming.result()
                await asyncio.wait({ending, serving}, return_when=asyncio.FIRST_COMPLETED)
            await self._drain(server)
        finally:
            warming.cancel()
            ending.cancel()
            watching.cancel()
            server.should_exit = True
            await asyncio.gather(warming, ending, watching, serving, return_exceptions=True)
            for module in self.state.modules:
                await asyncio.to_thread(module.engine.stop)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        if serving.done() and not serving.cancelled():
            serving.result()  # a failure of the web server itself
        logger.info("ended")

    async def _wait_ready(self) -> None:
        port = self.listener.getsockname()[1]
        failed = 0
        for module in self.state.modules:
            try:
                await module.engine.wait_ready()
            except EngineFailedError:
                failed += 1
                if not module.engine.isolated or failed == len(self.state.modules):
                    raise
                logger.error("module %s has failed; the others are served without it", module.name)
                continue
            fields = {"path": module.path, "slots": module.engine.slots_total}
            logger.info("module %s is ready", module.name, extra={"fields": fields})
        self._was_ready = True
        # What is loaded by now stays: a full collection would walk all of it, and hold every stream up meanwhile.
        gc.collect()
        gc.freeze()
        # Ended streams leave cycles, with buffers in them. A full collection waits for a quarter as many objects as the
        # last one saw (hence once more, with nothing left to walk), and by default for a hundred small ones.
        gc.collect()
        gc.set_threshold(700, 5, 1)
        host = self.listener.getsockname()[0]
        logger.info("listening on http://%s:%d", host, port)
        if self.on_ready is not None:
            # An address that listens everywhere is none to go to.
            here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
            self.on_ready(f"http://{here}:{port}")

    async def _watch(self) -> None:
        """Notice steps that hang; end the worker, if that is wanted, once a model has failed for good."""
        watches = [HangWatch(module.engine, module.step_seconds) for module in self.state.modules]
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for watch in watches:
                watch.look(time.monotonic())
            # A module that was never ready is the start's affair, which fails.
            if self.exit_on_failure and self._was_ready and self.state.failed and not self.failed:
                logger.critical("ending, since a model has failed for good")
                self.failed = True
                self.end()

    async def _drain(self, server: uvicorn.Server) -> None:
        """Health says 503 and no stream begins; running ones may finish, then are closed with 1001."""
        self.state.draining = True
        for module in self.state.modules:
            for tell in module.at_drain:
                tell(self.grace_seconds)
        drains = [module.engine.drain(self.grace_seconds) for module in self.state.modules]
        drained = asyncio.gather(*drains)
        while not drained.done() and not server.force_exit:
            await asyncio.wait({drained}, timeout=0.1)
        if not drained.done():
            drained.cancel()
            await asyncio.gather(drained, return_exceptions=True)
            await asyncio.gather(*(module.engine.drain(0) for module in self.state.modules))
        for module in self.state.modules:
            for call in module.at_end:
                call()
        # The pumps say goodbye, and answers are sent, before the server closes what is left.
        end = time.monotonic() + EXIT_SECONDS
        while self.state.admission.served and time.monotonic() < end and not server.force_exit:
            await asyncio.sleep(0.01)
        if self.failed and not server.force_exit:
            await asyncio.sleep(FAILED_SECONDS)

    def _on_signal(self, number: int, server: uvicorn.Server) -> None:
        name = signal.Signals(number).name
        if self._asked_to_end.is_set():
            logger.warning("%s again: ending running streams now", name)
            server.force_exit = True
        else:
            logger.info("%s: no new streams; running ones have %g s to end", name, self.grace_seconds)
            self.end()

    def _uvicorn_config(self) -> uvicorn.Config:
        limits = [module.limits for module in self.state.modules]
        return uvicorn.Config(
            self.app,
            http=_http(self.head_seconds),
            ws=Connection,
            ws_max_size=max((limit.max_message_bytes for limit in limits), default=2**20),
            ws_ping_interval=min([self.ping_seconds, *(limit.idle_seconds / 2 for limit in limits)]),
            ws_ping_timeout=None,
            ws_per_message_deflate=False,
            lifespan="off",
            # Its lines at "info" hold the whole URL, and with it a key in `auth_id`.
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=round(EXIT_SECONDS),
            server_header=False,
            backlog=BACKLOG,
        )


def _http(seconds: float) -> Any:
    try:
        from .heads import patient_http
    except ImportError:  # httptools is not there on Windows
        return "auto"
    return patient_http(seconds)


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: on SIGTERM it would close every socket at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
