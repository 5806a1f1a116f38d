"""One put of a producer, in a thread or in a task: how it waits for room, and is resumed.

It may be resumed for whatever reason, and tries again then. What it tries is in `push.py`.
"""

from __future__ import annotations

from threading import TIMEOUT_MAX, Lock, get_ident
from typing import TYPE_CHECKING, TypeAlias

from batchstream._eventloops.base import LoopClosedError
from batchstream._handoff.parking import release

if TYPE_CHECKING:
    from batchstream._eventloops.base import EventLoop, Waiter


class PutInThread:
    """A put of a thread, which waits for room.

    Attributes:
        key: None: it waits in no event loop.
        seconds: For how long it waits at most; None for any time.
    """

    __slots__ = ("_thread", "_waiter", "key", "seconds")

    def __init__(self) -> None:
        self.key: object = None
        self.seconds: float | None = None
        self._thread = get_ident()
        self._waiter = Lock()
        self._waiter.acquire()

    @property
    def is_here(self) -> bool:
        """Whether the calling code runs in the thread that this put would wait in."""
        return self._thread == get_ident()

    def wait(self) -> None:
        """Wait until it is resumed, or was resumed before."""
        seconds = -1 if self.seconds is None else min(self.seconds, TIMEOUT_MAX)
        self._waiter.acquire(True, seconds)  # noqa: FBT003 - quicker than by keyword

    def resume(self) -> bool:
        """Let it try again, and return whether it can; from any thread."""
        release(self._waiter)
        return True


class PutInLoop:
    """A put of a task, which waits for room; see `PutInThread`.

    Args:
        loop: The event loop, which runs here.
    """

    __slots__ = ("_loop", "_waiter", "key", "seconds")

    def __init__(self, loop: EventLoop) -> None:
        self.key = loop.key
        self.seconds: float | None = None
        self._loop = loop
        self._waiter: Waiter = loop.new_waiter()

    @property
    def is_here(self) -> bool:
        """Whether the calling code runs in the loop that this put waits in."""
        return self._loop.is_here

    async def wait(self) -> None:
        """Wait until it is resumed."""
        await self._loop.wait(self._waiter, self.seconds)

    def resume(self) -> bool:
        """Let it try again, and return whether it can: not if its loop was closed."""
        try:
            self._loop.resume([self._waiter])
        except LoopClosedError:
            return False
        return True


Put: TypeAlias = PutInThread | PutInLoop
