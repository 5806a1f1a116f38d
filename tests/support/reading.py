"""Ways to read a stream to its end in asyncio, or in a thread."""

from __future__ import annotations

import asyncio


async def rest(stream):
    return [output async for output in stream]


async def following(stream):
    return await anext(stream)


async def read(stream):
    """Return what a stream gives, and the type of the error after that, if any."""
    outputs = []
    try:
        async for output in stream:
            outputs.append(output)  # noqa: PERF401 - to keep them when an error comes
    except Exception as error:  # noqa: BLE001 - the result
        return outputs, type(error)
    return outputs, None


def read_blocking(stream):
    """Do the same in a thread."""
    outputs = []
    try:
        outputs.extend(stream)
    except Exception as error:  # noqa: BLE001 - the result
        return outputs, type(error)
    return outputs, None


async def waiting_for(coroutine):
    """Return a task that has gone as far as it can."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    return task
