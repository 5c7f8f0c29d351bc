"""Of several coroutines the first that ends decides, and nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import pytest

from moshi_server.app.waiting import first_of


class Held:
    """Something that a coroutine holds."""


async def raises(held: Held) -> None:
    await asyncio.sleep(0)
    raise ValueError(str(held is None))


async def waits(held: Held) -> None:
    await asyncio.get_running_loop().create_future()


async def ends(held: Held) -> None:
    return None


async def test_the_first_error_is_raised_and_the_others_are_cancelled() -> None:
    cancelled = asyncio.Event()

    async def notices() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    with pytest.raises(ValueError, match="False"):
        await first_of(notices(), raises(Held()))
    assert cancelled.is_set()


@pytest.mark.parametrize("first", [raises, ends])
async def test_nothing_is_left_for_the_garbage_collector(first) -> None:
    held = [Held(), Held()]
    kept = [weakref.ref(each) for each in held]
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            await first_of(first(held[0]), waits(held[1]))
        held.clear()
        await asyncio.sleep(0)
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()
