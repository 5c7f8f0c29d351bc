"""Credentials to who is calling, or why not; pure: no clock of its own, no I/O, and no idea of HTTP responses.

Three kinds are known: API keys, HS256 tokens as Better Auth signs them, and the cookies in which a Better Auth server
keeps such a token (``session.cookieCache = {enabled: true, strategy: "jwt"}``). That token is in the cookie
``better-auth.session_data``, cut into ``.0``, ``.1``, ... when it is long; ``better-auth.session_token`` holds an
opaque database key, which only the Better Auth server itself can check, but some set-ups put a token there.
"""

from __future__ import annotations

import hashlib
import hmac
import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import unquote

import jwt

from .errors import AuthError

KEY_HEADER: Final = "kyutai-api-key"
KEY_QUERY: Final = "auth_id"

INVALID_KEY: Final = "invalid_key"
EXPIRED_TOKEN: Final = "expired_token"  # noqa: S105 - the code's name, not a secret
MISSING_CREDENTIALS: Final = "missing_credentials"
JWT_VALIDATION_FAILED: Final = "jwt_validation_failed"
CODES: Final = (INVALID_KEY, EXPIRED_TOKEN, MISSING_CREDENTIALS, JWT_VALIDATION_FAILED)

_COOKIES: Final = tuple(
    f"{prefix}better-auth.{name}" for name in ("session_data", "session_token") for prefix in ("__Secure-", "")
)
_SESSION_FIELDS: Final = ("id", "userId", "createdAt", "updatedAt", "expiresAt")
_USER_FIELDS: Final = ("id",)
_SHORTEST_SECRET: Final = 32


@dataclass(frozen=True, slots=True)
class Caller:
    """Who was let in. ``name`` is fit for a log: a masked key, or the user's id.

    ``identity`` tells two callers apart whose names are masked alike; it is no secret.
    """

    method: Literal["api_key", "token", "cookie", "open"]
    name: str
    session_id: str = ""
    identity: str = field(default="", compare=False, repr=False)


OPEN: Final = Caller("open", "anyone")
"""The caller of a module that asks for no credentials."""


class Authenticator:
    """Checks the credentials of one request.

    Args:
        keys: accepted API keys; surrounding blanks and empty ones are dropped.
        secret: Better Auth's secret, or None when tokens are not accepted.
    """

    def __init__(self, keys: Iterable[str] = (), secret: str | None = None) -> None:
        self._keys = {_digest(key.strip()): mask(key.strip()) for key in keys if key.strip()}
        self._secret = secret if secret and secret.strip() else None

    @property
    def accepts_keys(self) -> bool:
        """Whether any API key is configured."""
        return bool(self._keys)

    @property
    def accepts_tokens(self) -> bool:
        """Whether Better Auth's tokens and cookies are accepted."""
        return self._secret is not None

    def notes(self) -> list[str]:
        """What an operator should read at start about this configuration; no secrets."""
        if not self._keys and self._secret is None:
            return [
                "no API key and no secret are configured, so every request will be refused: set MOSHI_API_KEY or "
                "authorized_ids to accept keys, BETTER_AUTH_SECRET to accept Better Auth sessions"
            ]
        notes = []
        if self._keys:
            notes.append(f"{len(self._keys)} API key(s) accepted: {', '.join(sorted(self._keys.values()))}")
        if self._secret is not None:
            notes.append("Better Auth tokens and session cookies are accepted")
            if len(self._secret.encode()) < _SHORTEST_SECRET:
                notes.append(f"BETTER_AUTH_SECRET is shorter than {_SHORTEST_SECRET} bytes and can be guessed")
        return notes

    def check(self, headers: Iterable[tuple[str, str]], query: Mapping[str, str], now: float) -> Caller:
        """Who sent a request with these headers and query parameters, at ``now`` (s since 1970).

        The first credential present decides: key header, ``auth_id``, bearer token, cookies.

        Raises:
            AuthError: with one of `CODES`.
        """
        found: dict[str, list[str]] = {}
        for name, value in headers:
            found.setdefault(name.lower(), []).append(value)
        for key in (*found.get(KEY_HEADER, ())[:1], query.get(KEY_QUERY, "")):
            if key.strip():
                return self._check_key(key.strip(), now)
        for value in found.get("authorization", ()):
            scheme, _, token = value.strip().partition(" ")
            if scheme.lower() == "bearer" and token.strip():
                return self._check_token(token.strip(), now, "token")
        cookies = read_cookies(found.get("cookie", ()))
        candidates = [value for name in _COOKIES if (value := chunked_cookie(cookies, name))]
        if candidates:
            return self._check_cookies(candidates, now)
        raise AuthError(
            MISSING_CREDENTIALS,
            "no credentials were sent",
            hint=f"send the {KEY_HEADER} header, the {KEY_QUERY} query parameter, 'Authorization: Bearer TOKEN' or "
            "Better Auth's session cookie",
        )

    def _check_key(self, key: str, now: float) -> Caller:
        digest = _digest(key)
        accepted = ""
        for known, masked in self._keys.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, digest):
                accepted = masked
        if accepted:
            return Caller("api_key", accepted, identity=digest.hex()[:16])
        if self._secret is not None and looks_like_token(key):
            return self._check_token(key, now, "token")
        raise AuthError(INVALID_KEY, "the API key is not known here", hint="check the key, or ask the operator for one")

    def _check_cookies(self, candidates: list[str], now: float) -> Caller:
        first: AuthError | None = None
        for value in candidates:
            if not looks_like_token(value):
                continue
            try:
                return self._check_token(value, now, "cookie")
            except AuthError as error:
                first = first or error
        raise first or AuthError(
            JWT_VALIDATION_FAILED,
            "the session cookie holds no token",
            hint='enable session.cookieCache with strategy "jwt" in Better Auth, and fetch the session again',
        )

    def _check_token(self, token: str, now: float, method: Literal["token", "cookie"]) -> Caller:
        if self._secret is None:
            raise _invalid("this server accepts no tokens", hint="the operator can set BETTER_AUTH_SECRET")
        claims = _verified_claims(token, self._secret)
        session, user = _fields(claims, "session", _SESSION_FIELDS), _fields(claims, "user", _USER_FIELDS)
        if "nbf" in claims and not _number(claims, "nbf") <= now:
            raise _invalid("the token is not valid yet")
        if ("exp" in claims and not now < _number(claims, "exp")) or not now < _instant(session["expiresAt"]):
            raise AuthError(EXPIRED_TOKEN, "the session has expired", hint="sign in again, or refresh the session")
        return Caller(method, user["id"], session["id"])


def mask(key: str) -> str:
    """A key as a log may show it."""
    return f"{key[:6]}...{key[-4:]}" if len(key) > 10 else "*hidden*"


def looks_like_token(value: str) -> bool:
    """Whether this has the three parts of a signed token, and not the form of a key."""
    return value.count(".") == 2 and value.startswith("ey")


def read_cookies(headers: Iterable[str]) -> dict[str, str]:
    """The cookies of all ``Cookie`` headers; of those with one name, the first."""
    cookies: dict[str, str] = {}
    for header in headers:
        for part in header.split(";"):
            name, equals, value = part.strip(" \t").partition("=")
            if equals:
                cookies.setdefault(name.strip(" \t"), unquote(value.strip(' \t"')))
    return cookies


def chunked_cookie(cookies: Mapping[str, str], name: str) -> str:
    """The cookie of this name, put together from ``name.0``, ``name.1``, ... when it was cut; empty if absent."""
    if cookies.get(name):
        return cookies[name]
    chunks = {
        int(suffix): value
        for key, value in cookies.items()
        if (suffix := key.removeprefix(f"{name}.")) != key and suffix.isascii() and suffix.isdigit() and len(suffix) < 4
    }
    return "".join(chunks[index] for index in sorted(chunks))


def refusal(error: AuthError) -> dict[str, str]:
    """The JSON body of a 401."""
    return {"error": "unauthorized", "code": error.code, "message": error.message, "hint": error.hint}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _verified_claims(token: str, secret: str) -> dict[str, Any]:
    # Times are checked by the caller against its own clock; an issuer whose clock runs ahead is no reason to refuse.
    options: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False}
    short = len(secret.encode()) < _SHORTEST_SECRET
    with warnings.catch_warnings(action="ignore") if short else nullcontext():  # `notes` says it once, and better
        try:
            return jwt.decode(token, secret, algorithms=["HS256"], options=options)
        except jwt.InvalidAlgorithmError:
            raise _invalid("the token is not signed with HS256") from None
        except jwt.InvalidSignatureError:
            raise _invalid("the token's signature does not match") from None
        except jwt.DecodeError:
            raise _invalid("the token is malformed") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise _invalid("the token's claims are not valid") from None


def _fields(claims: dict[str, Any], name: str, required: tuple[str, ...]) -> dict[str, str]:
    part = claims.get(name)
    if not isinstance(part, dict):
        raise _invalid(f"the token has no {name!r}")
    for key in required:
        if not isinstance(part.get(key), str) or not part[key]:
            raise _invalid(f"the token's {name!r} has no {key!r}")
    return part


def _number(claims: dict[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(f"the token's {name!r} is not a number")
    return value


def _instant(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise _invalid("the session's 'expiresAt' is not an ISO 8601 date") from None


def _invalid(
    message: str, *, hint: str = "send the token as Better Auth signed it, with this server's secret"
) -> AuthError:
    return AuthError(JWT_VALIDATION_FAILED, message, hint=hint)
