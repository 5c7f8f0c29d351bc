"""The shipped balancers before four workers: every slot is found, full is said, an ending worker gets nothing new."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import websockets

from ..app.server import KEY, Server, audio, events, free_port, message, serve, until
from ..app.test_http import wav
from ..fakes import FakeRunner, say
from .test_many_workers import OPS, tool
from .test_proxies import Proxy

WORKERS, SLOTS = 4, 2


@dataclass
class Fleet:
    servers: list[Server]
    proxy: Proxy

    @property
    def used(self) -> list[int]:
        return [server.engines[0].slots_used for server in self.servers]


def certificate(folder: Path) -> ssl.SSLContext:
    openssl = tool("openssl")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", folder / "privkey.pem", "-out", folder / "fullchain.pem"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    (folder / "speech.pem").write_text((folder / "privkey.pem").read_text() + (folder / "fullchain.pem").read_text())
    return ssl.create_default_context(cafile=str(folder / "fullchain.pem"))


def swap(text: str, *pairs: tuple[str, str]) -> str:
    for shipped, here in pairs:
        assert shipped in text
        text = text.replace(shipped, here)
    return text


def haproxy(folder: Path, port: int, workers: list[int]) -> list[str]:
    command = [tool("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]
    numbers = [(f"127.0.0.1:{8080 + i}\n", f"127.0.0.1:{worker}\n") for i, worker in enumerate(workers)]
    places = [("bind :443", f"bind 127.0.0.1:{port}"), ("/etc/haproxy/speech.pem", f"{folder}/speech.pem")]
    (folder / "haproxy.cfg").write_text(swap((OPS / "haproxy" / "haproxy.cfg").read_text(), *places, *numbers))
    checked = subprocess.run([*command, "-c"], capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stderr
    return command


def envoy(folder: Path, port: int, workers: list[int]) -> list[str]:
    command = [tool("envoy"), "-c", str(folder / "envoy.yaml"), "--concurrency", "1", "-l", "error"]
    numbers = [(f"port_value: {8080 + i}}}", f"port_value: {worker}}}") for i, worker in enumerate(workers)]
    places = [("/etc/envoy/", f"{folder}/"), ("port_value: 443}", f"port_value: {port}}}")]
    places += [("port_value: 9901", f"port_value: {free_port()}"), ("address: 0.0.0.0", "address: 127.0.0.1")]
    (folder / "envoy.yaml").write_text(swap((OPS / "envoy" / "envoy.yaml").read_text(), *places, *numbers))
    return [*command, "--base-id", str(port)]


def traefik(folder: Path, port: int, workers: list[int]) -> list[str]:
    command = [tool("traefik"), f"--configFile={folder}/traefik.yml"]
    (folder / "dynamic").mkdir()
    static = swap(
        (OPS / "compose" / "traefik.yml").read_text(),
        ('":443"', f'"127.0.0.1:{port}"'), ("/etc/traefik/dynamic", f"{folder}/dynamic"),
    )  # fmt: skip
    (folder / "traefik.yml").write_text(static)
    servers = "".join(f"          - url: http://127.0.0.1:{worker}\n" for worker in workers)
    text = swap((OPS / "compose" / "workers.yml").read_text(), ("/etc/traefik/certificates", str(folder)))
    text, found = re.subn(r"(          - url: http://gpu\d:8080\n)+", servers, text)
    assert found == 1
    (folder / "dynamic" / "workers.yml").write_text(text)
    return command


@contextlib.asynccontextmanager
async def fleet(kind: str, folder: Path) -> AsyncIterator[Fleet]:
    make = {"haproxy": haproxy, "envoy": envoy, "traefik": traefik}[kind]
    tool(kind)
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serve(FakeRunner(SLOTS))) for _ in range(WORKERS)]
        for server in servers:
            server.state.refuse_before_upgrade = True
        port, log = free_port(), folder / "log"
        proxy = Proxy(f"https://127.0.0.1:{port}", certificate(folder), log.read_text)
        command = make(folder, port, [server.port for server in servers])
        with log.open("wb") as written:
            process = await asyncio.create_subprocess_exec(*command, stdout=written, stderr=written)
        try:
            async with proxy.client() as client, asyncio.timeout(30):
                while process.returncode is None:
                    with contextlib.suppress(httpx.TransportError):
                        if (await client.get("/api/health")).status_code == 200:
                            break
                    await asyncio.sleep(0.05)
            assert process.returncode is None, log.read_text()
            yield Fleet(servers, proxy)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def opened(proxy: Proxy) -> websockets.ClientConnection:
    client = await proxy.connect()
    await events(client, "Ready")
    return client


@pytest.mark.parametrize("kind", ["haproxy", "envoy", "traefik"])
async def test_every_slot_is_found_and_only_then_is_somebody_refused(kind: str, tmp_path: Path) -> None:
    async with fleet(kind, tmp_path) as it:
        streams = [await opened(it.proxy) for _ in range(WORKERS * SLOTS)]
        assert it.used == [SLOTS] * WORKERS
        with pytest.raises(websockets.InvalidStatus) as caught:
            await it.proxy.connect()
        assert caught.value.response.status_code == 503
        assert "Retry-After" in caught.value.response.headers
        # A place that comes free is there for the next one, whatever a health check has last seen.
        await streams.pop().close()
        await until(lambda: sum(it.used) == WORKERS * SLOTS - 1)
        streams.append(await opened(it.proxy))
        async with it.proxy.client() as http:
            assert (await http.get("/metrics")).status_code in (403, 404)
        for stream in streams:
            await stream.close()
        await until(lambda: sum(it.used) == 0)
        assert KEY not in it.proxy.log()


@pytest.mark.parametrize("kind", ["haproxy", "envoy", "traefik"])
async def test_an_ending_worker_gets_no_new_streams_and_keeps_its_own(kind: str, tmp_path: Path) -> None:
    async with fleet(kind, tmp_path) as it:
        streams = [await opened(it.proxy) for _ in range(WORKERS)]
        ending = it.used.index(max(it.used))
        before = it.used[ending]
        it.servers[ending].worker.end()
        await until(lambda: it.servers[ending].state.draining)
        # A POST that comes to it before a check has seen it is asked of another, body and all.
        async with it.proxy.client() as http:
            for _ in range(2 * WORKERS):
                recording = wav(say(3, 200, 3, 3, 999, 3))
                posted = await http.post("/api/asr-streaming", content=recording, headers={"kyutai-api-key": KEY})
                assert posted.status_code == 200, posted.text
                assert posted.json()[0]["text"] == "<200>"
        left = (WORKERS - 1) * SLOTS - (WORKERS - before)
        more = [await opened(it.proxy) for _ in range(left)]
        assert it.used[ending] == before
        assert all(used == SLOTS for number, used in enumerate(it.used) if number != ending)
        for stream in streams:
            await stream.send(audio(say(3, 200, 3, 3, 999, 3)))
            await stream.send(message("Flush"))
            assert [e["text"] for e in await events(stream, "Flush") if e["type"] == "Word"] == ["<200>"]
        for stream in more:
            await stream.close()
        for stream in streams:
            await stream.close()
