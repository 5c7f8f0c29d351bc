"""``moshi-server wyoming`` where it cannot serve: one line that says why."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from moshi_server.auth import Authenticator

from ..app.server import serve
from .test_commands import moshi_server, one_error

KEY = "public_token"


def test_without_the_package_it_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "wyoming.py").write_text("raise ModuleNotFoundError(\"No module named 'wyoming'\", name='wyoming')\n")
    said = one_error(moshi_server("wyoming", cwd=tmp_path, PYTHONPATH=str(tmp_path)))
    assert "pip install 'moshi-server[wyoming]'" in said


def test_without_a_server_it_does_not_begin(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        said = one_error(moshi_server("wyoming", "--url", f"ws://127.0.0.1:{nobody.getsockname()[1]}", cwd=tmp_path))
    assert "no moshi-server answers at ws://127.0.0.1" in said


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with serve(auth=Authenticator([KEY])) as server:
            done = await asyncio.to_thread(moshi_server, "wyoming", "--url", server.http, "-p", port, cwd=tmp_path)
    assert f"cannot listen on 127.0.0.1 port {port}" in one_error(done)
