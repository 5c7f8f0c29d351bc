"""``moshi-server token``: a token as Better Auth signs it, to try a server without Better Auth; development only."""

from __future__ import annotations

import os
import secrets
import shlex
import time
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer

from ..errors import ConfigError

SECRET = "BETTER_AUTH_SECRET"  # noqa: S105  (the variable's name)


def token(
    user: Annotated[str, typer.Option("--user", help="The id of the user whom the token is for.")] = "developer",
    name: Annotated[str, typer.Option("--name", help="That user's name.")] = "Developer",
    email: Annotated[str, typer.Option("--email", help="That user's address.")] = "developer@localhost",
    hours: Annotated[float, typer.Option("--hours", min=0, max=87600, help="For how long it is accepted.")] = 24,
    url: Annotated[
        str, typer.Option("--url", help="The module's address, for the examples.")
    ] = "http://127.0.0.1:8080/api/asr-streaming",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the token only.")] = False,
) -> None:
    """Mint a token for development, signed with BETTER_AUTH_SECRET, and show how to use it.

    For example: moshi-server token --user ada --hours 2
    """
    from .environment import load_dotenv

    load_dotenv()
    minted = mint(os.environ.get(SECRET, ""), user=user, name=name, email=email, seconds=hours * 3600)
    typer.echo(minted if quiet else f"{minted}\n\n{examples(minted, url)}")


def mint(secret: str, *, user: str, name: str, email: str, seconds: float) -> str:
    """A token with the claims that Better Auth's cookie cache has (strategy ``jwt``), valid from now.

    Raises:
        ConfigError: there is no secret.
    """
    import warnings

    import jwt

    if not secret.strip():
        raise ConfigError(
            "there is no secret to sign with",
            key=SECRET,
            hint=f"set {SECRET} in .env or the environment to the server's own; `openssl rand -base64 32` makes one",
        )
    now = time.time()
    ends = now + seconds
    claims: dict[str, Any] = {
        "session": {
            "id": secrets.token_urlsafe(24),
            "token": secrets.token_urlsafe(24),
            "userId": user,
            "createdAt": _iso(now),
            "updatedAt": _iso(now),
            "expiresAt": _iso(ends),
            "ipAddress": "",
            "userAgent": "moshi-server token",
        },
        "user": {
            "id": user,
            "name": name,
            "email": email,
            "emailVerified": False,
            "createdAt": _iso(now),
            "updatedAt": _iso(now),
        },
        "updatedAt": int(now * 1000),
        "version": "1",
        "iat": int(now),
        "exp": int(ends),
    }
    with warnings.catch_warnings(action="ignore"):  # the server says at start that a secret is short
        return jwt.encode(claims, secret, algorithm="HS256")


def examples(minted: str, url: str) -> str:
    """Commands that use a token, ready to be copied.

    Raises:
        ConfigError: ``url`` is none.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if not parts.netloc or parts.scheme not in ("http", "https", "ws", "wss"):
        raise ConfigError(f"{url!r} is no address", key="--url", hint="such as http://HOST:8080/api/asr-streaming")
    secure = "s" if parts.scheme in ("https", "wss") else ""
    path = parts.path if parts.path.strip("/") else "/api/asr-streaming"
    http = urlunsplit((f"http{secure}", parts.netloc, path, "", ""))
    socket = urlunsplit((f"ws{secure}", parts.netloc, path, f"auth_id={minted}", ""))
    header = shlex.quote(f"Authorization: Bearer {minted}")
    return "\n".join(
        [
            "# a whole file, with curl:",
            f"curl -H {header} --data-binary @FILE {shlex.quote(http)}",
            "",
            "# a WebSocket (a browser cannot set headers on one, so the token goes into the address):",
            f"python -m websockets {shlex.quote(socket)}",
            "",
            "# the same in a browser:",
            f'new WebSocket("{socket}")',
        ]
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
