"""Visits that misbehave; each knows how the server has to end them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct

import httpx
import msgpack
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from moshi_server.audio import wav_bytes

from .visitor import (
    CHAT,
    HEARING,
    SEND,
    SPEAKING,
    Fault,
    Visitor,
    audio_message,
    ended,
)


async def resets(visitor: Visitor) -> str:
    return await visitor.rudely("reset", _reset)


async def sends_garbage(visitor: Visitor) -> str:
    async def garbage(ws: ClientConnection, module: str) -> None:
        start = {"lm": b"\x03\xff", "rooms": b"\x09\x00\x00"}  # no control that there is; no whole number
        await ws.send(start.get(module) or b"\xc1" + visitor.rng.randbytes(visitor.rng.randint(0, 3000)))
        await ended(ws, 4003)

    return await visitor.rudely("garbage", garbage)


async def breaks_frames(visitor: Visitor) -> str:
    async def broken(ws: ClientConnection, module: str) -> None:
        ws.transport.write(b"\xff\xff" + visitor.rng.randbytes(200))
        await ended(ws, 1002)

    return await visitor.rudely("broken", broken)


async def stops_reading(visitor: Visitor) -> str:
    async def stall(ws: ClientConnection, module: str) -> None:
        # What the system keeps for us counts as read: minutes of sound, if it may grow.
        ws.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        ws.transport.pause_reading()
        if module in HEARING:
            with contextlib.suppress(TimeoutError, ConnectionClosed):
                async with asyncio.timeout(3):
                    for _ in range(25):  # half a minute, which the server may be busy with afterwards
                        await ws.send(audio_message(visitor.sound(0.5, 2.0)))
        elif module in SPEAKING:
            for _ in range(20):
                await ws.send(msgpack.packb({"type": "Text", "text": visitor.text(100, 200)}))
        await asyncio.sleep(20)  # where more was due than the buffers hold, the server has given up by then
        ws.transport.resume_reading()
        try:
            async with asyncio.timeout(10):
                await ended(ws, None)
        except TimeoutError:  # nothing was held up for long: there are minutes of speech to come
            await ws.close()

    return await visitor.rudely("stalled", stall)


async def leaves_without_a_close(visitor: Visitor) -> str:
    async def leave(ws: ClientConnection, module: str) -> None:
        ws.transport.close()

    return await visitor.rudely("left", leave)


async def _reset(ws: ClientConnection, module: str) -> None:
    ws.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ws.transport.abort()


async def has_a_wrong_key(visitor: Visitor) -> str:
    paths = [*HEARING.values(), *SPEAKING.values(), CHAT, SEND]
    visitor.ledger.wrong_keys += 1
    if visitor.rng.random() < 0.3:
        async with httpx.AsyncClient(base_url=visitor.http, headers={"kyutai-api-key": "wrong"}) as http:
            status = (
                await http.post(visitor.rng.choice(("/api/asr", "/api/tones", "/api/spectrum")), content=b"x")
            ).status_code
    else:
        try:
            async with websockets.connect(visitor.ws + visitor.rng.choice(paths) + "?auth_id=wrong", compression=None):
                raise Fault("a wrong key was let in")
        except InvalidStatus as refused:
            status = refused.response.status_code
    if status != 401:
        raise Fault(f"status {status} for a wrong key")
    return "401"


async def asks_for_what_is_not_there(visitor: Visitor) -> str:
    module = visitor.rng.choice(("tts", "speak", "rooms", "path"))
    if module == "path":
        try:
            async with visitor.socket("/api/nothing"):
                raise Fault("a path without a module was let in")
        except InvalidStatus as refused:
            if refused.response.status_code != 404:
                raise Fault(f"status {refused.response.status_code} for an unknown path") from None
            return "404"
    query = f"{SEND}?room_id=purple" if module == "rooms" else f"{SPEAKING[module]}?voice=nobody&format=PcmMessagePack"
    if module == "tts" and visitor.rng.random() < 0.5:
        async with visitor.client() as http:
            status = (await http.post(SPEAKING[module], json={"text": "abc", "voice": "nobody"})).status_code
        return visitor.answered(module, status, good=(404,))
    async with visitor.socket(query) as ws:
        visitor.ledger.of(module).sockets += 1
        await ended(ws, 4005)
    return "4005"


async def posts_garbage(visitor: Visitor) -> str:
    """A recording that is none, or a text that is none, is refused before there is a slot."""
    path = visitor.rng.choice((*HEARING.values(), "/api/spectrum", *(p for m, p in SPEAKING.items() if m != "speak")))
    module = next((m for m, p in (HEARING | SPEAKING | {"spectrum": "/api/spectrum"}).items() if p == path), "")
    async with visitor.client() as http:
        status = (await http.post(path, content=visitor.rng.randbytes(visitor.rng.randint(1, 5000)))).status_code
    if status != 400:
        raise Fault(f"status {status} for garbage")
    visitor.ledger.of(module).posts += module not in HEARING  # a recording counts once it could be read
    return "400"


async def breaks_a_post_off(visitor: Visitor) -> str:
    """In the middle of the body, or of the answer, with a reset or by reading no more."""
    module = visitor.rng.choice(("asr", "single", "loud", "tts", "tones", "spectrum"))
    path = (HEARING | SPEAKING | {"spectrum": "/api/spectrum"})[module]
    body = json.dumps({"text": visitor.text(20, 60)}).encode() if module in SPEAKING else wav_bytes(visitor.sound())
    whole = visitor.rng.random() < 0.6
    account = visitor.ledger.of(module)
    account.unsure += whole
    account.unsure_posts += 1
    _reader, writer = await asyncio.open_connection(visitor.host, int(visitor.port))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nkyutai-api-key: {visitor.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        writer.write(head.encode() + (body if whole else body[: len(body) // 2]))
        if whole and module in SPEAKING and visitor.rng.random() < 0.5:
            writer.transport.pause_reading()
            await asyncio.sleep(8)
        else:
            await asyncio.sleep(visitor.rng.uniform(0, 0.6))
        if visitor.rng.random() < 0.5:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    except ConnectionError:
        pass
    return "whole body" if whole else "half a body"


RUDE = {
    resets: 3, sends_garbage: 3, breaks_frames: 2, stops_reading: 2, leaves_without_a_close: 3, has_a_wrong_key: 2,
    asks_for_what_is_not_there: 2, posts_garbage: 2, breaks_a_post_off: 4,
}  # fmt: skip
