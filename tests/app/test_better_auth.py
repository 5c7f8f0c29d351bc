"""The cookies of a real Better Auth server open a stream, and nothing that only resembles them does.

The server runs in Node (`better_auth/server.mjs`, npm's `better-auth`, data in memory). Without Node, or without its
packages and a way to install them, these tests are skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import subprocess
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from websockets.exceptions import InvalidStatus

from moshi_server.auth import EXPIRED_TOKEN, JWT_VALIDATION_FAILED, Authenticator

from .server import Server, events, serve

FOLDER = Path(__file__).parent / "better_auth"
SECRET = secrets.token_urlsafe(48)
DATA = "better-auth.session_data"
TOKEN = "better-auth.session_token"


@pytest.fixture(scope="module")
def node() -> str:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None:
        pytest.skip("node is not installed")
    if not (FOLDER / "node_modules" / "better-auth").is_dir():
        if npm is None:
            pytest.skip("npm is not installed, and better-auth is not there")
        command = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=100)
        if done.returncode:
            pytest.skip(f"npm could not install better-auth: {done.stderr[-200:]}")
    return node


class BetterAuth:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api/auth"

    async def sign_up(self, **extra: str) -> dict[str, str]:
        """The cookies set by a sign-up."""
        email = f"{secrets.token_hex(8)}@example.org"
        return await self.cookies("/sign-up/email", {"name": "Ada", "email": email, "password": "difference", **extra})

    async def cookies(
        self, path: str, body: dict[str, str] | None, sent: dict[str, str] | None = None
    ) -> dict[str, str]:
        headers = {"origin": "http://127.0.0.1", "cookie": join(sent or {})}
        async with httpx.AsyncClient(timeout=60) as client:  # hashing a password takes its time on a busy machine
            url = self.url + path
            answer = await (
                client.get(url, headers=headers) if body is None else client.post(url, json=body, headers=headers)
            )
        assert answer.status_code == 200, answer.text
        return dict(line.split(";")[0].split("=", 1) for line in answer.headers.get_list("set-cookie"))


@contextlib.asynccontextmanager
async def better_auth(
    node: str, *, secret: str = SECRET, max_age: int = 300, secure: bool = False
) -> AsyncIterator[BetterAuth]:
    process = await asyncio.create_subprocess_exec(
        *(node, "server.mjs", secret, str(max_age), "secure" if secure else "plain"),
        cwd=FOLDER,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 60))
        yield BetterAuth(port)
    finally:
        process.kill()
        await process.wait()


def join(cookies: dict[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


def claims_of(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    return json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def segment(value: object) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def opens(server: Server, headers: dict[str, str], query: str = "") -> None:
    async with server.connect(query=query, additional_headers=headers) as client:
        await events(client, "Ready")


async def refusal(server: Server, headers: dict[str, str], query: str = "") -> dict[str, str]:
    with pytest.raises(InvalidStatus) as caught:
        await server.connect(query=query, additional_headers=headers)
    assert caught.value.response.status_code == 401
    return json.loads(caught.value.response.body or b"")


def ours() -> Any:
    return serve(auth=Authenticator([], SECRET))


async def test_4_the_cookies_of_a_sign_up_open_a_stream(node: str) -> None:
    async with ours() as server, better_auth(node) as auth:
        cookies = await auth.sign_up()
        assert {DATA, TOKEN} <= set(cookies)
        await opens(server, {"cookie": join(cookies)})
        await opens(server, {"cookie": join({"theme": "dark", **cookies, "lang": "en"})})
        token = cookies[DATA]
        await opens(server, {"authorization": f"Bearer {token}"})
        await opens(server, {}, f"?auth_id={token}")
        claims = claims_of(token)
        assert set(claims) >= {"session", "user", "iat", "exp"}
        assert set(claims["session"]) >= {"id", "userId", "createdAt", "updatedAt", "expiresAt"}


async def test_the_cookies_of_a_secure_server(node: str) -> None:
    async with ours() as server, better_auth(node, secure=True) as auth:
        cookies = await auth.sign_up()
        assert f"__Secure-{DATA}" in cookies
        assert DATA not in cookies
        await opens(server, {"cookie": join(cookies)})


async def test_a_session_too_large_for_one_cookie(node: str) -> None:
    async with ours() as server, better_auth(node) as auth:
        cookies = await auth.sign_up(biography="x" * 9000)
        assert {f"{DATA}.0", f"{DATA}.1", f"{DATA}.2"} <= set(cookies)
        await opens(server, {"cookie": join(cookies)})
        del cookies[f"{DATA}.1"]
        assert (await refusal(server, {"cookie": join(cookies)}))["code"] == JWT_VALIDATION_FAILED


async def test_an_expired_cookie_is_refused_until_the_session_is_fetched_again(node: str) -> None:
    async with ours() as server, better_auth(node, max_age=2) as auth:
        cookies = await auth.sign_up()
        await opens(server, {"cookie": join(cookies)})
        await asyncio.sleep(2.2)
        refused = await refusal(server, {"cookie": join(cookies)})
        assert refused["code"] == EXPIRED_TOKEN
        assert list(refused) == ["error", "code", "message", "hint"]
        cookies |= await auth.cookies("/get-session", None, cookies)
        await opens(server, {"cookie": join(cookies)})
        assert await server.metric('auth_error_total{error_type="expired_token"}') == 1


async def test_the_opaque_session_token_alone_is_not_enough(node: str) -> None:
    async with ours() as server, better_auth(node) as auth:
        cookies = await auth.sign_up()
        refused = await refusal(server, {"cookie": join({TOKEN: cookies[TOKEN]})})
        assert refused["code"] == JWT_VALIDATION_FAILED
        assert "cookieCache" in refused["hint"]


async def test_another_servers_cookies_are_refused(node: str) -> None:
    async with ours() as server, better_auth(node, secret=secrets.token_urlsafe(40)) as auth:
        cookies = await auth.sign_up()
        assert (await refusal(server, {"cookie": join(cookies)}))["code"] == JWT_VALIDATION_FAILED


async def test_forgeries_of_a_real_token_are_refused(node: str) -> None:
    async with ours() as server, better_auth(node) as auth:
        token = (await auth.sign_up())[DATA]
        claims = claims_of(token)
        head, _, signature = token.split(".")
        pipe = asyncio.subprocess.PIPE
        forger = await asyncio.create_subprocess_exec(node, "forge.mjs", cwd=FOLDER, stdin=pipe, stdout=pipe)
        rs256, _ = await forger.communicate(json.dumps(claims).encode())
        other_user = {**claims, "user": {**claims["user"], "id": "someone-else"}}
        session_ended = {**claims, "session": {**claims["session"], "expiresAt": "2020-01-01T00:00:00.000Z"}}
        forgeries = {
            "tampered": f"{head}.{segment(other_user)}.{signature}",
            "cut": token[:-5],
            "none": f"{segment({'alg': 'none', 'typ': 'JWT'})}.{token.split('.')[1]}.",
            "none, with the signature": f"{segment({'alg': 'none'})}.{token.split('.')[1]}.{signature}",
            "RS256": rs256.decode().strip(),
            "HS512": jwt.encode(claims, SECRET, algorithm="HS512"),
            "no session": jwt.encode({**claims, "session": None}, SECRET, algorithm="HS256"),
            "no user": jwt.encode({k: v for k, v in claims.items() if k != "user"}, SECRET, algorithm="HS256"),
            "no expiry": jwt.encode({**claims, "session": {"id": "x", "userId": "y"}}, SECRET, algorithm="HS256"),
        }
        for name, forged in forgeries.items():
            for headers, query in (
                ({"cookie": f"{DATA}={forged}"}, ""),
                ({"authorization": f"Bearer {forged}"}, ""),
                ({}, f"?auth_id={forged}"),
            ):
                refused = await refusal(server, headers, query)
                assert refused["code"] == JWT_VALIDATION_FAILED, name
        ended = jwt.encode(session_ended, SECRET, algorithm="HS256")
        assert (await refusal(server, {"cookie": f"{DATA}={ended}"}))["code"] == EXPIRED_TOKEN
        assert server.engines[0].slots_used == 0
        await opens(server, {"cookie": f"{DATA}={token}"})
