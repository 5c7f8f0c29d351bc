"""A virtual user of `soak.py`: each visit is one stream or request, polite or not, and is written into a `Ledger`.

What a client cannot know, such as whether a request that it broke off had a slot already, is written down as unsure.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx
import msgpack
import numpy as np
import websockets
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from moshi_server.audio import FRAME_SIZE, OpusEncoder, read_audio
from moshi_server.client import (
    NoFreeSlotError,
    ResourceNotFoundError,
)

SAMPLES = Path(__file__).parents[2] / "src" / "moshi_server" / "demo" / "samples"
HEARING = {"asr": "/api/asr-streaming", "single": "/api/asr", "loud": "/api/loud"}
SPEAKING = {"tts": "/api/tts_streaming", "tones": "/api/tones", "speak": "/api/speak_streaming"}
VOICES = {
    "tts": ("alice.wav", "bob.wav", "folder/carol.wav"),
    "tones": ("quiet", "loud"),
    "speak": ("one.wav", "two.wav"),
}
CHAT, SEND, RECV = "/api/chat", "/api/room-send", "/api/room-recv"
ROOMS = ("red", "green", "blue")
RUDE_SHARE = 0.28
"""A fifth of all, with the timed ones."""
HANG_SECONDS = 150.0
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
    delays: list[tuple[float, float]] = field(default_factory=list)
    """When an answer to a real-time stream's frame came, and how long it took (s)."""
    ticks: list[tuple[float, float]] = field(default_factory=list)
    """When a timer of ours went off, and how late (s): what the machine, and we, add to the delays."""

    def of(self, module: str) -> Account:
        return self.accounts.setdefault(module, Account())

    def note(self, visit: str, outcome: str) -> None:
        self.outcomes.setdefault(visit, Counter())[outcome] += 1


Visit = Callable[["Visitor"], Awaitable[str]]
"""One stream or request; says how it went."""
Visits = Mapping[Visit, int]
"""How often each comes, against the others."""


class Visitor:
    """One virtual user; comes again and again until told to stop."""

    def __init__(
        self, address: str, key: str, ledger: Ledger, rng: random.Random, polite: Visits, rude: Visits
    ) -> None:
        self.http, self.ws = f"http://{address}", f"ws://{address}"
        self.host, self.port = address.split(":")
        self.key = key
        self.ledger = ledger
        self.rng = rng
        self.polite, self.rude = polite, rude
        self.module = ""
        """Of the visit under way, where it is known."""
        self.speech = [read_audio(path.read_bytes()) for path in sorted(SAMPLES.glob("*.[fow][lga][agv]*"))]

    async def come_and_go(self, over: Callable[[], bool]) -> None:
        while not over():
            visits = self.rude if self.rng.random() < RUDE_SHARE else self.polite
            await self.visit(self.rng.choices(list(visits), list(visits.values()))[0])
            await asyncio.sleep(self.rng.expovariate(2.0))

    async def visit(self, kind: Visit) -> None:
        name, self.module = kind.__name__, ""
        try:
            async with asyncio.timeout(HANG_SECONDS):
                outcome = await kind(self)
        except NoFreeSlotError:
            outcome = "full"
        except TimeoutError:
            outcome = "HUNG"
            self.ledger.faults.append(f"{name} {self.module}: not over after {HANG_SECONDS:g} s")
        except Exception as error:
            outcome = "FAULT"
            self.ledger.faults.append(f"{name} {self.module}: {type(error).__name__}: {error}")
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
        return httpx.AsyncClient(base_url=self.http, headers={"kyutai-api-key": self.key}, timeout=120)

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
        module = self.module = self.rng.choice((*HEARING, *SPEAKING, "lm", "rooms"))
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
            if not welcome(await ws.recv(), module):
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
            return audio_message(self.sound(0.1, 1.0))
        if module in SPEAKING:
            return msgpack.packb({"type": "Text", "text": self.text(1, 4)})
        encoder = OpusEncoder()
        return b"\x01" + encoder.header() + encoder.encode(self.sound(0.5, 1.0))


def audio_message(pcm: NDArray[np.float32]) -> bytes:
    return msgpack.packb({"type": "Audio", "pcm": pcm.tolist()}, use_single_float=True)


def welcome(first: bytes | str, module: str) -> bool:
    """Whether the first message says that there is a slot."""
    assert isinstance(first, bytes)
    if module == "lm":
        return first[:1] == b"\x00"
    return msgpack.unpackb(first)["type"] == "Ready"


async def ended(ws: ClientConnection, code: int | None) -> None:
    """Wait until the server ends the stream, with this code if one is given."""
    try:
        while True:
            await ws.recv()
    except ConnectionClosed as closed:
        if code is not None and (closed.rcvd is None or closed.rcvd.code != code):
            raise Fault(f"{code} was due, and {closed} came") from None
