"""What scenes in event loops use."""

from __future__ import annotations

import asyncio

from support.scenes.stage import (
    scene,
)


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


async def in_turns(*steps, every=3):
    for step in steps:
        await turns(every)
        yield step


async def then_silent(*steps):
    for step in steps:
        yield step
    await asyncio.get_running_loop().create_future()


async def aoutcome(awaitable):
    try:
        return await awaitable
    except BaseException as error:  # noqa: BLE001 - it is the outcome
        return error.with_traceback(None)


async def akind(awaitable):
    try:
        return await awaitable
    except BaseException as error:  # noqa: BLE001 - it is the outcome
        return type(error).__name__


async def rest(stream):
    return [output async for output in stream]


def in_asyncio(function):
    """Make a scene of a coroutine function."""

    def play():
        asyncio.run(function())

    play.__name__ = function.__name__
    return scene(play)
