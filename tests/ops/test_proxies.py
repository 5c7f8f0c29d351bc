"""The shipped proxy configurations before a worker: streams, files, refusals and close codes come through unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import websockets

from ..app.server import KEY, PATH, Server, audio, close_of, events, free_port, message, serve, until
from ..app.test_http import wav
from ..fakes import FakeRunner, say

OPS = Path(__file__).parents[2] / "ops"


@dataclass
class Proxy:
    http: str
    tls: ssl.SSLContext | None = None
    log: Callable[[], str] = lambda: ""

    def connect(self, query: str = f"?auth_id={KEY}", **options: object) -> websockets.connect:
        return websockets.connect(
            f"{self.http.replace('http', 'ws', 1)}{PATH}{query}",
            ssl=self.tls, proxy=None, compression=None, max_size=None, **options,
        )  # fmt: skip

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.http, verify=self.tls or False, trust_env=False, timeout=20)


def program(name: str, package: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install {package})")
    return found


@contextlib.asynccontextmanager
async def running(proxy: Proxy, *command: str) -> AsyncIterator[Proxy]:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        for _ in range(200):
            with contextlib.suppress(httpx.TransportError):
                async with proxy.client() as client:
                    await client.get("/api/health")
                break
            if process.returncode is not None:
                assert process.stderr is not None
                pytest.fail((await process.stderr.read()).decode())
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the proxy does not answer")
        yield proxy
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


def nginx(folder: Path, worker: int) -> tuple[Proxy, tuple[str, ...]]:
    command, openssl = program("nginx", "nginx"), program("openssl", "openssl")
    key, certificate = folder / "privkey.pem", folder / "fullchain.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    port = free_port()
    text = (OPS / "nginx.conf").read_text()
    for shipped, here in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("127.0.0.1:8080", f"127.0.0.1:{worker}"),
        ("/etc/ssl/moshi-server", str(folder)),
        ("/var/log/nginx", str(folder)),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    (folder / "moshi-server.conf").write_text(text)
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "main.conf").write_text(
        f"user root;\ndaemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\n{temporary}include {folder}/moshi-server.conf;\n}}\n"
    )
    whole = (command, "-p", str(folder), "-c", str(folder / "main.conf"), "-e", str(folder / "error.log"))
    checked = subprocess.run([*whole, "-t"], capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stderr
    tls = ssl.create_default_context(cafile=str(certificate))
    log = folder / "moshi-server.log"
    return Proxy(f"https://127.0.0.1:{port}", tls, log.read_text), whole


def caddy(folder: Path, worker: int) -> tuple[Proxy, tuple[str, ...]]:
    command = program("caddy", "caddy")
    port = free_port()
    text = (OPS / "Caddyfile").read_text()
    assert "\nspeech.example.com {" in text
    text = text.replace("\nspeech.example.com {", f"\nhttp://127.0.0.1:{port} {{")
    (folder / "Caddyfile").write_text("{\n\tadmin off\n}\n" + text.replace("127.0.0.1:8080", f"127.0.0.1:{worker}"))
    return Proxy(f"http://127.0.0.1:{port}"), (
        command, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile"),
    )  # fmt: skip


@contextlib.asynccontextmanager
async def behind(kind: str, folder: Path, runner: FakeRunner) -> AsyncIterator[tuple[Server, Proxy]]:
    async with serve(runner) as server:
        proxy, command = {"nginx": nginx, "caddy": caddy}[kind](folder, server.port)
        async with running(proxy, *command):
            yield server, proxy


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
async def test_a_proxy_passes_everything_on_unchanged(kind: str, tmp_path: Path) -> None:
    async with behind(kind, tmp_path, FakeRunner(1)) as (server, proxy):
        async with proxy.connect() as client:
            await client.send(audio(say(3, 200, 3, 3, 999, 3)))
            await client.send(message("Flush"))
            words = [event["text"] for event in await events(client, "Flush") if event["type"] == "Word"]
            assert words == ["<200>"]
            async with proxy.connect() as second:
                assert (await close_of(second))[1:] == (4000, "no free channels")
        await until(lambda: server.engines[0].slots_used == 0)
        # A token in the address, and as many cookies as a long session takes.
        long = "ey" + "a" * 12_000
        for query, headers in (
            ("", {}),
            (f"?auth_id={long}", {}),
            ("", {"cookie": f"better-auth.session_data={long}"}),
        ):
            with pytest.raises(websockets.InvalidStatus) as caught:
                await proxy.connect(query, additional_headers=headers)
            assert caught.value.response.status_code == 401
            assert b'"error":"unauthorized"' in (caught.value.response.body or b"")
        async with proxy.client() as http:
            posted = await http.post(PATH, content=wav(say(3, 200, 3, 3, 999, 3)), headers={"kyutai-api-key": KEY})
            assert posted.json()[0]["text"] == "<200>"
            assert (await http.get("/api/status")).json()["status"] == "ok"
            assert (await http.get("/metrics")).status_code == 403
        assert KEY not in proxy.log()


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
async def test_a_client_that_vanishes_behind_a_proxy_frees_its_slot(kind: str, tmp_path: Path) -> None:
    async with behind(kind, tmp_path, FakeRunner(1)) as (server, proxy):
        client = await proxy.connect()
        await events(client, "Ready")
        client.transport.abort()
        await until(lambda: server.engines[0].slots_used == 0, 15)
