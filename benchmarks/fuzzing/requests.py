"""Fuzz targets: what comes with a request (credentials, queries, JSON, forms), configurations and texts."""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import hashlib
import hmac
import json
import tempfile
from collections.abc import Coroutine
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast
from urllib.parse import quote

import jwt
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from websockets.datastructures import Headers
from websockets.http11 import Response

from moshi_server.app.module import ClientLimits
from moshi_server.app.openai import speech, transcriptions
from moshi_server.app.openai.errors import ApiError
from moshi_server.app.speech import SpeechQuery, StreamQuery
from moshi_server.app.synthesis import SpeechPosts
from moshi_server.auth import CODES, Authenticator
from moshi_server.client.closing import error_of_close, error_of_refusal
from moshi_server.config import check_config
from moshi_server.errors import AuthError, InvalidMessageError, MoshiServerError, ResourceNotFoundError
from moshi_server.speech.dialogue import DialogueSettings
from moshi_server.speech.text import Pause, SpokenText, TextQueue, Word
from moshi_server.speech.voices import Voices

from .target import Target, agree, framed, parts_of

SECRET = "a secret of more than thirty-two bytes"
KEY = "the_only_key"
NOW = 1_700_000_000.0
FOLDER = (Path(__file__).parents[2] / "src" / "moshi_server" / "demo").resolve()
CONFIGS = Path(__file__).parents[2] / "configs"
_AUTH = Authenticator([KEY], SECRET)
_T = TypeVar("_T")


@cache
def _loop() -> asyncio.Runner:
    runner = asyncio.Runner()
    atexit.register(runner.close)
    return runner


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """In a loop that stays, since making one takes longer than what is fed. What only waits uses no processor time."""
    return _loop().run(asyncio.wait_for(work, 30))


# Credentials.


def feed_headers(data: bytes) -> None:
    """Key, bearer token, cookies and query as they come: a caller who could prove it, or one of the codes."""
    names = ("kyutai-api-key", "authorization", "cookie", "cookie")
    headers: list[tuple[str, str]] = []
    query: dict[str, str] = {}
    for part in parts_of(data):
        value = part[1:].decode("latin-1")
        which = part[0] % 5 if part else 4
        if which == 4:
            query = dict(QueryParams(value))
        else:
            headers.append((names[which], value))
    try:
        caller = _AUTH.check(headers, query, NOW)
    except AuthError as error:
        agree(error.code in CODES, error.code)
        return
    if caller.method == "api_key":
        given = [value for name, value in headers if name == "kyutai-api-key"] + [query.get("auth_id", "")]
        agree(any(value.strip() == KEY for value in given), "a key that nobody has was accepted")
    else:
        agree(caller.method in ("token", "cookie") and caller.name == "user", f"{caller} was let in")


def feed_claims(data: bytes) -> None:
    """A token of any header and claims, the signature right: no claim may do more than be refused."""
    head, _, claims = data.partition(b"\0")
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (head, claims))
    mac = hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()
    token = (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()
    for header in (("authorization", f"Bearer {token}"), ("cookie", f"better-auth.session_data={token}")):
        try:
            caller = _AUTH.check([header], {}, NOW)
        except AuthError as error:
            agree(error.code in CODES, error.code)
        else:
            fields = json.loads(claims)
            agree(json.loads(head)["alg"] == "HS256", "a token without HS256 was let in")
            agree(caller.name == fields["user"]["id"], "the caller is not who the token names")


# Queries and bodies.

_LIMITS = ClientLimits()
_VOICES = Voices([f"voice {number}" for number in range(40)], folder=FOLDER)
_MODULES = [
    cast("Any", SimpleNamespace(kind="Tts", voices=_VOICES)),
    cast("Any", SimpleNamespace(kind="Py", voices=None)),
]


def feed_query(data: bytes) -> None:
    """The query of a socket that speaks, and of a dialogue: settings in their ranges, or a refusal."""
    query = QueryParams(data.decode("latin-1"))
    with contextlib.suppress(InvalidMessageError):
        _settings(StreamQuery.of(query))
    with contextlib.suppress(InvalidMessageError):
        settings = DialogueSettings().changed(dict(query), {"description": ("good", "bad")})
        agree(0 <= settings.text_temperature <= 10 and 1 <= settings.text_topk <= 500, f"{settings}")
        agree(settings.conditions.get("description", "good") in ("good", "bad"), f"{settings}")


def _settings(query: SpeechQuery) -> None:
    for module in _MODULES:
        with contextlib.suppress(InvalidMessageError, ResourceNotFoundError):
            settings = query.settings(module)
            for name in (*settings.voices, settings.voice) if module.voices else ():
                inside = name is None or name in _VOICES.names or FOLDER in _VOICES.file(name)[0].parents
                agree(inside, f"the voice {name!r} is not of the folder")
            agree(settings.seed is None or 0 <= settings.seed < 2**64, f"{settings}")
            agree(settings.temperature is None or 0 <= settings.temperature <= 100, f"{settings}")


def _request(body: bytes, content_type: str = "application/json") -> Request:
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in (body[:1000], body[1000:])]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return messages.pop(0)

    headers = [(b"content-type", content_type.encode("latin-1"))]
    scope = {"type": "http", "method": "POST", "headers": headers, "app": None}  # within an app, faults are HTTP's
    return Request(scope, receive)


def feed_json(data: bytes) -> None:
    """The body of a text to be spoken, in our form and in OpenAI's."""
    posts = SpeechPosts(cast("Any", SimpleNamespace(limits=_LIMITS)))
    with contextlib.suppress(InvalidMessageError):
        _settings(run(posts._query(_request(data))))
    with contextlib.suppress(ApiError):
        wish = run(speech._wish(_request(data), _LIMITS))
        wish.sound()
        wish.checked_voice(_MODULES[0])


def feed_form(data: bytes) -> None:
    """A form with a file, as OpenAI's clients send it; the content type is the input's too."""
    content_type, _, body = data.partition(b"\n")
    content_type = content_type.translate(None, b"\0\r")  # the web server lets no header have these
    request = transcriptions._limited(_request(body, content_type.decode("latin-1")), 1 << 20)

    async def read() -> None:
        async with request.form(max_files=1, max_fields=32) as form:
            wish = transcriptions._wish(form)
            agree(len(await wish.file.read()) <= len(body), "the file is larger than the form")
            agree(wish.format in transcriptions.FORMATS, wish.format)

    with contextlib.suppress(ApiError, HTTPException):
        run(read())


def feed_refusal(data: bytes) -> None:
    """What a client makes of a server's refusal, and of a close frame."""
    status, body = 300 + int.from_bytes(data[:1], "big"), data[1:]
    error = error_of_refusal(Response(status, "why", Headers(Location="/there"), body), "ws://here")
    agree(isinstance(error, MoshiServerError) and isinstance(str(error), str), f"{error!r}")
    said = body.decode("utf-8", "replace")
    agree(isinstance(error_of_close(int.from_bytes(data[:2], "big"), said, said[:9]), MoshiServerError), "no error")


# Files and texts.


def feed_config(data: bytes) -> None:
    """A configuration: one that can be used, or faults; never both, never neither."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        config, faults = check_config(file.name, {"HERE": "there", "EMPTY": ""})
    agree((config is None) == bool(faults), "neither a configuration nor a fault")
    for fault in faults:
        agree(bool(str(fault)), "a fault without a sentence")


class _Bytes:
    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "surrogatepass"))


def feed_text(data: bytes) -> None:
    """A text to be spoken, in messages or whole: the same words; no pause is longer than it may be."""
    parts = [part.decode("utf-8", "replace") for part in parts_of(data)]
    spoken = SpokenText(_Bytes(), bos=1)
    words = [word for part in parts for word in spoken.push(part)] + spoken.finish()
    queue = TextQueue(SpokenText(_Bytes(), bos=1))
    for part in parts:
        queue.put(part)
    queue.end()
    pulled: list[Word | Pause] = []
    while more := queue.pull(3):
        pulled += more
    agree(pulled == words, f"pulled {pulled[:9]}, pushed {words[:9]}")
    for word in words:
        agree(0 < word.seconds <= 30 if isinstance(word, Pause) else bool(word.tokens), f"{word}")


_SESSION = dict.fromkeys(("createdAt", "updatedAt", "expiresAt"), "2033-01-01T00:00:00Z")
_CLAIMS = {"session": {"id": "s", "userId": "user", **_SESSION}, "user": {"id": "user"}, "exp": 2e9, "iat": 1, "nbf": 1}


def _headers() -> list[bytes]:
    token = jwt.encode(_CLAIMS, SECRET, "HS256").encode()
    halves = b"better-auth.session_data.1=" + token[60:] + b"; better-auth.session_data.0=" + token[:60]
    return [
        framed(b"\x00" + KEY.encode()),
        framed(b"\x00 nobody ", b"\x04auth_id=" + KEY.encode()),
        framed(b"\x01Bearer " + token),
        framed(b"\x01bearer " + jwt.encode(_CLAIMS, SECRET + "!", "HS256").encode()),
        framed(b"\x02a=b; __Secure-better-auth.session_data=" + quote(token).encode()),
        framed(b"\x02" + halves, b"\x03better-auth.session_token=x%2e%zz"),
        framed(b"\x00" + token),
    ]


def _claims() -> list[bytes]:
    odd: list[dict[str, Any]] = [
        {"exp": None}, {"exp": "1"}, {"nbf": 2e9}, {"exp": 10**400}, {"aud": ["x"]}, {"iat": "x"}, {"user": []},
        {"session": {**_CLAIMS["session"], "expiresAt": "9999-12-31T23:59:59.999999-23:59"}},  # type: ignore[dict-item]
        {"sub": 5}, {"jti": {}},
    ]  # fmt: skip
    head = b'{"alg":"HS256","typ":"JWT"}\0'
    heads = [b'{"alg":"none"}\0', b'{"alg":"HS256","crit":["b64"],"b64":false}\0', b'{"alg":"HS256","kid":5}\0']
    claims = [json.dumps(_CLAIMS | each).encode() for each in ({}, *odd)]
    return [head + each for each in claims] + [each + claims[0] for each in heads]


def _form() -> bytes:
    def part(name: str, value: bytes) -> bytes:
        return b'--xyz\r\nContent-Disposition: form-data; name="' + name.encode() + b'"' + value + b"\r\n"

    fields = {"model": b"asr", "response_format": b"srt", "stream": b"true", "timestamp_granularities[]": b"word"}
    body = b"".join(part(name, b"\r\n\r\n" + value) for name, value in fields.items())
    body += part("file", b'; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\nRIFF')
    return b"multipart/form-data; boundary=xyz\n" + body + b"--xyz--\r\n"


def targets() -> list[Target]:
    texts = [b"One two, three.", b'a <break time="0.5s"/> b<break', b' time="99999s">c', "é 😀\u3000—«x»".encode()]
    bodies = [
        {"text": "Hello.", "voice": "a", "seed": 3, "temperature": 0.5, "top_k": 5, "cfg_alpha": 1.5},
        {"text": "Hello.", "voice": "voice 2", "return_timestamps": True},
        {"text": ["One.", "Two."], "voices": ["voice 1", "../demo/samples/joe.wav+0.5"], "max_seq_len": 10},
        {"model": "tts-1", "input": "Hello.", "voice": {"id": "a"}, "response_format": "opus", "stream_format": "sse"},
        {"input": "Hello.", "voice": "alloy", "speed": 1, "instructions": ""},
    ]  # fmt: skip
    queries = [
        b"voice=voice%203&format=PcmMessagePack&seed=1&temperature=0.5&top_k=3&cfg_alpha=1.5&max_seq_len=9&pieces=1",
        b"voices=voice%201&voices=samples/joe.wav%2B2&format=OggOpus",
        b"text_temperature=0.5&text_topk=9&seed=5&description=good&pad_mult=-1",
        b"audio_temperature=nan&max_steps=1e3&repetition_penalty=1_0&text_seed=%d9%a3",
    ]  # fmt: skip
    refusals = [
        b'\xc7{"error": "no free channels", "hint": "later"}',
        b'\x65{"code": "expired_token", "message": "m"}', b"\x01[]"
    ]  # fmt: skip
    configs = [path.read_bytes() for path in sorted(CONFIGS.glob("*.toml")) if path.stat().st_size < 3000]
    configs.append(b'static_dir = "$HERE/${EMPTY}$$"\nlog_dir = 1979-05-27\n[modules.a]\ntype = "Asr"\n')
    return [
        Target("credentials", feed_headers, _headers(), share=2),
        Target("token_claims", feed_claims, _claims()),
        Target("query", feed_query, queries, share=1.5),
        Target("json_body", feed_json, [json.dumps(body).encode() for body in bodies], share=0.6),
        Target("form", feed_form, [_form()], share=0.4),
        Target("refusal", feed_refusal, refusals, share=2),
        Target("config", feed_config, configs, share=0.25),
        Target("text", feed_text, [framed(*texts), *(framed(text) for text in texts)]),
    ]
