"""Finds the event loop that runs the calling code, and waits in it for a thread's result."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from typing_extensions import TypeVar

from batchstream._eventloops.base import LoopClosedError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from batchstream._eventloops.base import EventLoop

R = TypeVar("R")


def current_loop() -> EventLoop:
    """Return the event loop that runs the calling code.

    Raises:
        RuntimeError: There is none.
    """
    loop = loop_if_any()
    if loop is None:
        raise RuntimeError(
            "an asynchronous stream is received from in an event loop, and none runs here"
        )
    return loop


def loop_if_any() -> EventLoop | None:
    """Return the event loop that runs the calling code, or None."""
    if "trio" in sys.modules:  # asked first: trio may run as a guest of an asyncio loop
        # Not `from … import`, which calls Python code each time.
        import batchstream._eventloops.trio as _trio  # noqa: PLC0415 - optional, and in use here

        if _trio.runs_here():
            return _trio.TrioEventLoop()
    if "asyncio" in sys.modules:
        import batchstream._eventloops.asyncio as _asyncio  # noqa: PLC0415 - not always needed

        if _asyncio.runs_here():
            return _asyncio.AsyncioEventLoop()
    return None


async def result_of(future: Future[R]) -> R:
    """Wait for a thread's result in the event loop that runs the calling code."""
    loop = current_loop()
    waiter = loop.new_waiter()

    def resume(_: object) -> None:
        try:
            loop.resume([waiter])
        except LoopClosedError:
            return  # the task that awaited the result is gone with its loop

    future.add_done_callback(resume)
    await waiter
    try:
        return future.result()
    finally:
        del future  # a cycle: its error holds this frame
