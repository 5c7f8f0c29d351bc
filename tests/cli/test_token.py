"""``moshi-server token``: the server accepts what it mints, and its examples run as they are printed."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import subprocess
import sys
import time
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from moshi_server.auth import Authenticator
from moshi_server.errors import AuthError

from ..app.server import PATH, Server, events, serve
from ..app.test_http import wav
from ..fakes import say
from .test_commands import moshi_server, one_error

SECRET = secrets.token_urlsafe(40)
BETTER_AUTHS = {
    "session": ["id", "token", "userId", "createdAt", "updatedAt", "expiresAt", "ipAddress", "userAgent"],
    "user": ["id", "name", "email", "emailVerified", "createdAt", "updatedAt"],
}


def claims(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    return json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def mint(folder: Path, *options: str, **environ: str) -> str:
    done = moshi_server("token", *options, cwd=folder, **(environ or {"BETTER_AUTH_SECRET": SECRET}))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_4_a_minted_token_has_better_auths_claims(tmp_path: Path) -> None:
    token = mint(tmp_path, "-q", "--user", "u1", "--email", "a@b.example", "--name", "Ada", "--hours", "2")
    held = claims(token)
    assert set(held) == {"session", "user", "updatedAt", "version", "iat", "exp"}
    for part, fields in BETTER_AUTHS.items():
        assert sorted(held[part]) == sorted(fields)
    assert held["session"]["userId"] == held["user"]["id"] == "u1"
    assert (held["user"]["name"], held["user"]["email"]) == ("Ada", "a@b.example")
    assert held["session"]["expiresAt"].endswith("Z")
    assert 7190 < held["exp"] - time.time() <= 7200


def test_4_a_minted_token_is_refused_once_its_time_has_passed(tmp_path: Path) -> None:
    token = mint(tmp_path, "-q", "--hours", "1")
    checker, sent = Authenticator([], SECRET), [("authorization", f"Bearer {token}")]
    assert checker.check(sent, {}, time.time()).name == "developer"
    with pytest.raises(AuthError) as caught:
        checker.check(sent, {}, time.time() + 3601)
    assert caught.value.code == "expired_token"


def test_4_the_secret_may_come_from_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"BETTER_AUTH_SECRET={SECRET}\n")
    token = mint(tmp_path, "-q", LANG="C")
    assert Authenticator([], SECRET).check([], {"auth_id": token}, time.time()).method == "token"


def test_4_without_a_secret_it_says_how_to_set_one(tmp_path: Path) -> None:
    line = one_error(moshi_server("token", cwd=tmp_path))
    assert "BETTER_AUTH_SECRET: there is no secret to sign with" in line
    assert "openssl rand" in line


def test_an_address_that_is_none_is_one_line(tmp_path: Path) -> None:
    done = moshi_server("token", "--url", "ftp://x/", cwd=tmp_path, BETTER_AUTH_SECRET=SECRET)
    assert "is no address" in one_error(done)


async def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    def now() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", command], cwd=folder, capture_output=True, text=True, timeout=30, check=False, input=""
        )

    return await asyncio.to_thread(now)


def example(printed: str, beginning: str) -> str:
    (line,) = (line for line in printed.splitlines() if line.startswith(beginning))
    return line


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_4_the_printed_curl_and_websocket_examples_run_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "FILE").write_bytes(wav(say(3, 200, 3, 3, 999, 3)))
    async with serve(auth=Authenticator([], SECRET)) as server:
        printed = await asyncio.to_thread(mint, tmp_path, "--url", f"{server.http}{PATH}")
        posted = await run(example(printed, "curl ").replace("curl ", "curl --noproxy '*' -sS ", 1), tmp_path)
        assert posted.returncode == 0, posted
        assert json.loads(posted.stdout)[0]["text"] == "<200>"
        python = example(printed, "python ").replace("python ", f"{sys.executable} ", 1)
        talked = await run(python, tmp_path)
        assert "Connected to" in talked.stdout
        assert "rejected" not in talked.stdout
        address = example(printed, "new WebSocket").split('"')[1]
        await opens(server, address.partition("?")[2])
        with pytest.raises(InvalidStatus):
            await opens(server, address.partition("?")[2][:-4])


async def opens(server: Server, query: str) -> None:
    async with server.connect(query=f"?{query}") as client:
        await events(client, "Ready")
