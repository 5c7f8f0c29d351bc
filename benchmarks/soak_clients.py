"""The virtual users of `soak.py`: each visit is one stream or request, polite or not, and is written into a `Ledger`.

What a client cannot know, such as whether a request that it broke off had a slot already, is written down as unsure.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgpack
import numpy as np
import websockets
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from moshi_server.audio import FRAME_SIZE, OpusEncoder, read_audio, wav_bytes
from moshi_server.client import (
    AsrClient,
    DialogueClient,
    NoFreeSlotError,
    ResourceNotFoundError,
    TtsClient,
)
from moshi_server.events import Marker

SAMPLES = Path(__file__).parents[1] / "src" / "moshi_server" / "demo" / "samples"
HEARING = {"asr": "/api/asr-streaming", "single": "/api/asr", "loud": "/api/loud"}
SPEAKING = {"tts": "/api/tts_streaming", "tones": "/api/tones", "speak": "/api/speak_streaming"}
VOICES = {
    "tts": ("alice.wav", "bob.wav", "folder/carol.wav"),
    "tones": ("quiet", "loud"),
    "speak": ("one.wav", "two.wav"),
}
CHAT, SEND, RECV = "/api/chat", "/api/room-send", "/api/room-recv"
ROOMS = ("red", "green", "blue")
HANG_SECONDS = 90.0
"""A visit that takes longer has hung."""


class Fault(Exception):  # noqa: N818
    """The server did what it must not."""


@dataclass
class Account:
    """What the clients know of one module.

    Attributes:
        sockets: upgrades that were accepted.
        posts: requests that reached the module, whether or not there was a slot.
        opened: streams that surely had a slot.
        unsure: streams that may have had one.
        unsure_posts: requests that may have reached the module.
    """

    sockets: int = 0
    posts: int = 0
    opened: int = 0
    unsure: int = 0
    unsure_posts: int = 0


@dataclass
class Ledger:
    accounts: dict[str, Account] = field(default_factory=dict)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    wrong_keys: int = 0
    lost: int = 0
    """Sockets that surely ended without a close frame; as `unsure_lost` if the server may have ended them first."""
    unsure_lost: int = 0
    faults: list[str] = field(default_factory=list)

    def of(self, module: str) -> Account:
        return self.accounts.setdefault(module, Account())

    def note(self, visit: str, outcome: str) -> None:
        self.outcomes.setdefault(visit, Counter())[outcome] += 1


class Visitor:
    """One virtual user; comes again and again until told to stop."""

    def __init__(self, address: str, key: str, ledger: Ledger, rng: random.Random) -> None:
        self.http, self.ws = f"http://{address}", f"ws://{address}"
        self.host, self.port = address.split(":")
        self.key = key
        self.ledger = ledger
        self.rng = rng
        self.speech = [read_audio(path.read_bytes()) for path in sorted(SAMPLES.glob("*.[fow][lga][agv]*"))]

    async def come_and_go(self, over: Callable[[], bool]) -> None:
        while not over():
            visits = RUDE if self.rng.random() < 0.2 else POLITE
            await self.visit(self.rng.choices(list(visits), list(visits.values()))[0])
            await asyncio.sleep(self.rng.expovariate(2.0))

    async def visit(self, kind: Callable[[Visitor], Awaitable[str]]) -> None:
        name = kind.__name__
        try:
            async with asyncio.timeout(HANG_SECONDS):
                outcome = await kind(self)
        except NoFreeSlotError:
            outcome = "full"
        except TimeoutError:
            outcome = "HUNG"
            self.ledger.faults.append(f"{name}: not over after {HANG_SECONDS:g} s")
        except Exception as error:
            outcome = "FAULT"
            self.ledger.faults.append(f"{name}: {type(error).__name__}: {error}")
        self.ledger.note(name, outcome)

    # What is said.

    def sound(self, least: float = 0.4, most: float = 6.0) -> NDArray[np.float32]:
        """A piece of a recording, of random length."""
        whole = self.rng.choice(self.speech)
        length = round(self.rng.uniform(least, most) * 24_000)
        start = self.rng.randrange(max(1, len(whole) - length))
        return whole[start : start + length]

    def text(self, least: int = 1, most: int = 25) -> str:
        words = ("abc", "de", "fghi", "jk", "lmnop", "q", "rs", "tuv", "wx", "yz", '<break time="0.3s"/>')
        return "one " + " ".join(self.rng.choice(words) for _ in range(self.rng.randint(least, most)))

    async def pace(self, pcm: NDArray[np.float32]) -> AsyncIterator[NDArray[np.float32]]:
        """Chunks of random size, in real time or all at once."""
        real_time, start = self.rng.random() < 0.5, 0
        while start < len(pcm):
            size = self.rng.choice((480, FRAME_SIZE, FRAME_SIZE, 5000))
            yield pcm[start : start + size]
            start += size
            await asyncio.sleep(size / 24_000 if real_time else 0)

    @contextlib.contextmanager
    def counted(self, module: str) -> Iterator[Account]:
        """Around the SDK's connection: on the way in it is refused, or holds a slot once the body runs."""
        account = self.ledger.of(module)
        try:
            yield account
        except (NoFreeSlotError, ResourceNotFoundError):
            account.sockets += 1
            raise

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.http, headers={"kyutai-api-key": self.key}, timeout=60)

    def answered(self, module: str, status: int, *, good: tuple[int, ...] = (200,)) -> str:
        """Write a POST's answer down."""
        account = self.ledger.of(module)
        account.posts += 1
        if status == 503:
            return "full"
        if status not in good:
            raise Fault(f"status {status}")
        account.opened += status == 200
        return str(status)

    # Bare sockets.

    @contextlib.asynccontextmanager
    async def socket(self, path: str) -> AsyncIterator[ClientConnection]:
        headers = {"kyutai-api-key": self.key}
        async with websockets.connect(
            self.ws + path, additional_headers=headers, compression=None, max_size=None, max_queue=None,
            ping_interval=None, close_timeout=3,
        ) as ws:  # fmt: skip
            yield ws

    @contextlib.asynccontextmanager
    async def listener(self, room: str) -> AsyncIterator[ClientConnection]:
        async with self.socket(f"{RECV}?room_id={room}") as ws:
            self.ledger.of("rooms").sockets += 1
            for _ in range(2):  # the handshake, the Opus header
                await ws.recv()
            yield ws

    def codes(self) -> bytes:
        return b"\x09" + struct.pack("<8I", *(self.rng.randrange(64) for _ in range(8)))

    async def heard_in(self, ear: ClientConnection, ws: ClientConnection) -> bool:
        """Whether this producer has the room: its own word is heard there, or the server says that another has it."""
        word = f"it is {self.rng.getrandbits(60)}".encode()
        refused = asyncio.create_task(ws.recv())
        try:
            with contextlib.suppress(ConnectionClosed):
                await ws.send(b"\x02" + word)
            while True:
                hearing = asyncio.create_task(ear.recv())
                await asyncio.wait((hearing, refused), return_when=asyncio.FIRST_COMPLETED)
                if not hearing.done():
                    hearing.cancel()
                    await asyncio.gather(hearing, return_exceptions=True)
                    if refused.exception() is not None or bytes(refused.result()[:1]) != b"\x05":
                        raise Fault(f"a producer was told {refused!r}")
                    return False
                if hearing.result() == b"\x02" + word:
                    self.ledger.of("rooms").opened += 1
                    return True
        finally:
            refused.cancel()
            await asyncio.gather(refused, return_exceptions=True)

    async def rudely(self, outcome: str, end: Callable[[ClientConnection, str], Awaitable[None]]) -> str:
        """Open a stream of some module, say a little, and end it so."""
        module = self.rng.choice((*HEARING, *SPEAKING, "lm", "rooms"))
        account = self.ledger.of(module)
        if module == "rooms":
            room = self.rng.choice(ROOMS)
            async with self.listener(room) as ear, self.socket(f"{SEND}?room_id={room}") as ws:
                account.sockets += 1
                if not await self.heard_in(ear, ws):
                    return "full"
                await ws.send(self.codes())
                self.ledger.lost += outcome in ("reset", "left")
                await end(ws, module)
            return outcome
        path = (HEARING | SPEAKING | {"lm": CHAT})[module]
        if module in SPEAKING:
            path += f"?format=PcmMessagePack&voice={quote(self.rng.choice(VOICES[module]))}"
        async with self.socket(path) as ws:
            account.sockets += 1
            if self.rng.random() < 0.1 and outcome in ("reset", "left"):  # at once
                account.unsure += 1
                self.ledger.unsure_lost += 1
                await end(ws, module)
                return f"{outcome} at once"
            if not _welcome(await ws.recv(), module):
                return "full"
            account.opened += 1
            for _ in range(self.rng.randint(0, 6)):
                await ws.send(self.something(module))
                await asyncio.sleep(self.rng.uniform(0, 0.1))
            self.ledger.lost += outcome in ("reset", "left")
            await end(ws, module)
        return outcome

    def something(self, module: str) -> bytes:
        if module in HEARING:
            return _audio(self.sound(0.1, 1.0))
        if module in SPEAKING:
            return msgpack.packb({"type": "Text", "text": self.text(1, 4)})
        encoder = OpusEncoder()
        return b"\x01" + encoder.header() + encoder.encode(self.sound(0.5, 1.0))


# Polite visits.


async def streams_to_text(self: Visitor) -> str:
    module, path = self.rng.choice(list(HEARING.items()))
    pcm = self.sound()
    with self.counted(module) as account:
        client = await AsrClient.connect(self.ws + path, api_key=self.key, turns=self.rng.random() < 0.3)
    account.sockets += 1
    account.opened += 1
    try:
        way = self.rng.choice(("whole", "marker", "leaves"))
        if way == "whole":
            await client.transcribe(pcm)
            return way
        async for chunk in self.pace(pcm):
            await client.send_audio(chunk)
        if way == "marker":
            await client.marker(7)
            async for event in client:
                if event == Marker(7):
                    return way
            raise Fault("the stream ended before its marker")
        return way
    finally:
        await client.close()


async def posts_a_recording(self: Visitor) -> str:
    module, path = self.rng.choice(list(HEARING.items()))
    async with self.client() as http:
        answer = await http.post(path, content=wav_bytes(self.sound()))
    return self.answered(module, answer.status_code)


async def asks_openai_for_text(self: Visitor) -> str:
    module = self.rng.choice(list(HEARING))
    fields = {"model": module, "response_format": self.rng.choice(("json", "text", "srt", "vtt", "verbose_json"))}
    if self.rng.random() < 0.4:
        fields |= {"stream": "true", "response_format": "json"}
    async with self.client() as http:
        file = {"file": ("a.wav", wav_bytes(self.sound()))}
        answer = await http.post("/v1/audio/transcriptions", data=fields, files=file)
    return self.answered(module, answer.status_code)


async def speaks_openai_realtime(self: Visitor) -> str:
    module = self.rng.choice(list(HEARING))
    pcm = (self.sound(0.5, 3.0) * 32767).astype("<i2").tobytes()
    account = self.ledger.of(module)
    async with self.socket(f"/v1/realtime?intent=transcription&model={module}") as ws:
        account.sockets += 1
        first = json.loads(await ws.recv())
        if first["type"] == "error":
            return "full"
        account.opened += 1
        detection = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
        await ws.send(json.dumps({"type": "session.update", "session": detection}))
        audio = base64.b64encode(pcm).decode()
        await ws.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        await ws.send(json.dumps({"type": "input_audio_buffer.commit"}))
        while (event := json.loads(await ws.recv()))["type"] != "conversation.item.input_audio_transcription.completed":
            if event["type"] == "error":
                raise Fault(str(event))
    return "ok"


async def is_spoken_to(self: Visitor) -> str:
    module, path = self.rng.choice(list(SPEAKING.items()))
    voice, opus = self.rng.choice(VOICES[module]), self.rng.random() < 0.5
    with self.counted(module) as account:
        client = await TtsClient.connect(self.ws + path, api_key=self.key, voice=voice, opus=opus)
    account.sockets += 1
    account.opened += 1
    try:
        if self.rng.random() < 0.3:
            await client.send_text(self.text())
            await asyncio.sleep(self.rng.uniform(0, 1))
            return "leaves"
        if not len((await client.speak(self.text())).pcm):
            raise Fault("no sound came")
        return "whole"
    finally:
        await client.close()


async def posts_a_text(self: Visitor) -> str:
    module = self.rng.choice(list(SPEAKING))
    fields: dict[str, Any] = {"text": self.text(), "voice": self.rng.choice(VOICES[module])}
    if module == "speak":
        fields["return_timestamps"] = self.rng.random() < 0.5
    async with self.client() as http:
        answer = await http.post(
            SPEAKING[module].removesuffix("_streaming") if module == "speak" else SPEAKING[module], json=fields
        )
    return self.answered(module, answer.status_code)


async def asks_openai_for_speech(self: Visitor) -> str:
    module = self.rng.choice(list(SPEAKING))
    fields = {"model": module, "input": self.text(), "voice": self.rng.choice(VOICES[module])}
    fields["response_format"] = self.rng.choice(("wav", "pcm", "opus"))
    fields["stream_format"] = self.rng.choice(("audio", "sse"))
    async with self.client() as http:
        answer = await http.post("/v1/audio/speech", json=fields)
    return self.answered(module, answer.status_code)


async def converses(self: Visitor) -> str:
    with self.counted("lm") as account:
        client = await DialogueClient.connect(
            self.ws + CHAT, api_key=self.key, settings={"seed": self.rng.randrange(99)}
        )
    account.sockets += 1
    account.opened += 1
    heard = 0

    async def listen() -> None:
        nonlocal heard
        async for _ in client:
            heard += 1

    listening = asyncio.create_task(listen())
    try:
        async for chunk in self.pace(self.sound(1.0, 6.0)):
            await client.send_audio(chunk)
        if self.rng.random() < 0.3:
            await client.control("end_turn")
            await asyncio.sleep(self.rng.uniform(0, 2))
        for _ in range(100):
            if heard:
                return "heard"
            await asyncio.sleep(0.1)
        raise Fault("nothing was heard")
    finally:
        await client.close()
        await asyncio.gather(listening, return_exceptions=True)


async def makes_a_room_heard(self: Visitor) -> str:
    room = self.rng.choice(ROOMS)
    account = self.ledger.of("rooms")
    async with self.listener(room) as ear:
        async with self.socket(f"{SEND}?room_id={room}") as ws:
            account.sockets += 1
            if not await self.heard_in(ear, ws):
                return "full"
            for _ in range(self.rng.randint(1, 60)):
                await ws.send(self.codes())
                await ws.send(b"\x02hello")
        return "heard"


async def listens(self: Visitor) -> str:
    async with self.listener(self.rng.choice(ROOMS)) as ear:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.rng.uniform(0.2, 8)):
                while True:
                    await ear.recv()
    return "ok"


async def posts_a_voice(self: Visitor) -> str:
    async with self.client() as http:
        answer = await http.post("/api/spectrum", content=wav_bytes(self.sound()))
    if answer.status_code == 200 and msgpack.unpackb(answer.content)["shape"] != [1, 16, 40]:
        raise Fault("the array has another shape")
    return self.answered("spectrum", answer.status_code)


# Rude ones.


async def resets(self: Visitor) -> str:
    return await self.rudely("reset", _reset)


async def sends_garbage(self: Visitor) -> str:
    async def garbage(ws: ClientConnection, module: str) -> None:
        start = {"lm": b"\x03\xff", "rooms": b"\x09\x00\x00"}  # no control that there is; no whole number
        await ws.send(start.get(module) or b"\xc1" + self.rng.randbytes(self.rng.randint(0, 3000)))
        await _ended(ws, 4003)

    return await self.rudely("garbage", garbage)


async def breaks_frames(self: Visitor) -> str:
    async def broken(ws: ClientConnection, module: str) -> None:
        ws.transport.write(b"\xff\xff" + self.rng.randbytes(200))
        await _ended(ws, 1002)

    return await self.rudely("broken", broken)


async def stops_reading(self: Visitor) -> str:
    async def stall(ws: ClientConnection, module: str) -> None:
        ws.transport.pause_reading()
        if module in HEARING:
            with contextlib.suppress(TimeoutError, ConnectionClosed):
                async with asyncio.timeout(3):
                    for _ in range(100):
                        await ws.send(_audio(self.sound(0.5, 2.0)))
        elif module in SPEAKING:
            for _ in range(20):
                await ws.send(msgpack.packb({"type": "Text", "text": self.text(100, 200)}))
        await asyncio.sleep(20)  # by then the server has given up
        ws.transport.resume_reading()
        await _ended(ws, None)

    return await self.rudely("stalled", stall)


async def leaves_without_a_close(self: Visitor) -> str:
    async def leave(ws: ClientConnection, module: str) -> None:
        ws.transport.close()

    return await self.rudely("left", leave)


async def _reset(ws: ClientConnection, module: str) -> None:
    ws.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ws.transport.abort()


async def has_a_wrong_key(self: Visitor) -> str:
    paths = [*HEARING.values(), *SPEAKING.values(), CHAT, SEND]
    self.ledger.wrong_keys += 1
    if self.rng.random() < 0.3:
        async with httpx.AsyncClient(base_url=self.http, headers={"kyutai-api-key": "wrong"}) as http:
            status = (
                await http.post(self.rng.choice(("/api/asr", "/api/tones", "/api/spectrum")), content=b"x")
            ).status_code
    else:
        try:
            async with websockets.connect(self.ws + self.rng.choice(paths) + "?auth_id=wrong", compression=None):
                raise Fault("a wrong key was let in")
        except InvalidStatus as refused:
            status = refused.response.status_code
    if status != 401:
        raise Fault(f"status {status} for a wrong key")
    return "401"


async def asks_for_what_is_not_there(self: Visitor) -> str:
    module = self.rng.choice(("tts", "speak", "rooms", "path"))
    if module == "path":
        try:
            async with self.socket("/api/nothing"):
                raise Fault("a path without a module was let in")
        except InvalidStatus as refused:
            if refused.response.status_code != 404:
                raise Fault(f"status {refused.response.status_code} for an unknown path") from None
            return "404"
    query = f"{SEND}?room_id=purple" if module == "rooms" else f"{SPEAKING[module]}?voice=nobody&format=PcmMessagePack"
    if module == "tts" and self.rng.random() < 0.5:
        async with self.client() as http:
            status = (await http.post(SPEAKING[module], json={"text": "abc", "voice": "nobody"})).status_code
        return self.answered(module, status, good=(404,))
    async with self.socket(query) as ws:
        self.ledger.of(module).sockets += 1
        await _ended(ws, 4005)
    return "4005"


async def posts_garbage(self: Visitor) -> str:
    """A recording that is none, or a text that is none, is refused before there is a slot."""
    path = self.rng.choice((*HEARING.values(), "/api/spectrum", *(p for m, p in SPEAKING.items() if m != "speak")))
    module = next((m for m, p in (HEARING | SPEAKING | {"spectrum": "/api/spectrum"}).items() if p == path), "")
    async with self.client() as http:
        status = (await http.post(path, content=self.rng.randbytes(self.rng.randint(1, 5000)))).status_code
    if status != 400:
        raise Fault(f"status {status} for garbage")
    self.ledger.of(module).posts += module not in HEARING  # a recording counts once it could be read
    return "400"


async def breaks_a_post_off(self: Visitor) -> str:
    """In the middle of the body, or of the answer, with a reset or by reading no more."""
    module = self.rng.choice(("asr", "single", "loud", "tts", "tones", "spectrum"))
    path = (HEARING | SPEAKING | {"spectrum": "/api/spectrum"})[module]
    body = json.dumps({"text": self.text(20, 60)}).encode() if module in SPEAKING else wav_bytes(self.sound())
    whole = self.rng.random() < 0.6
    account = self.ledger.of(module)
    account.unsure += whole
    account.unsure_posts += 1
    _reader, writer = await asyncio.open_connection(self.host, int(self.port))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nkyutai-api-key: {self.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        writer.write(head.encode() + (body if whole else body[: len(body) // 2]))
        if whole and module in SPEAKING and self.rng.random() < 0.5:
            writer.transport.pause_reading()
            await asyncio.sleep(8)
        else:
            await asyncio.sleep(self.rng.uniform(0, 0.6))
        if self.rng.random() < 0.5:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    except ConnectionError:
        pass
    return "whole body" if whole else "half a body"


def _audio(pcm: NDArray[np.float32]) -> bytes:
    return msgpack.packb({"type": "Audio", "pcm": pcm.tolist()}, use_single_float=True)


def _welcome(first: bytes | str, module: str) -> bool:
    """Whether the first message says that there is a slot."""
    assert isinstance(first, bytes)
    if module == "lm":
        return first[:1] == b"\x00"
    return msgpack.unpackb(first)["type"] == "Ready"


async def _ended(ws: ClientConnection, code: int | None) -> None:
    """Wait until the server ends the stream, with this code if one is given."""
    try:
        while True:
            await ws.recv()
    except ConnectionClosed as closed:
        if code is not None and (closed.rcvd is None or closed.rcvd.code != code):
            raise Fault(f"{code} was due, and {closed} came") from None


POLITE = {
    streams_to_text: 5, posts_a_recording: 2, asks_openai_for_text: 2, speaks_openai_realtime: 2, is_spoken_to: 4,
    posts_a_text: 2, asks_openai_for_speech: 2, converses: 4, makes_a_room_heard: 2, listens: 1, posts_a_voice: 2,
}  # fmt: skip
RUDE = {
    resets: 3, sends_garbage: 3, breaks_frames: 2, stops_reading: 2, leaves_without_a_close: 3, has_a_wrong_key: 2,
    asks_for_what_is_not_there: 2, posts_garbage: 2, breaks_a_post_off: 4,
}  # fmt: skip
