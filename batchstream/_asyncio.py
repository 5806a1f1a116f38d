"""asyncio's side of the seam to event loops; imported where asyncio runs, and nowhere else."""

from __future__ import annotations

import asyncio
from collections import deque
from operator import methodcaller
from typing import TYPE_CHECKING, Any, Final

from batchstream._loops import InterruptedStep, LoopClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from contextvars import Context

    from batchstream._loops import Task


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs the calling code, if any."""
    return asyncio._get_running_loop()  # noqa: SLF001 - exported for such as us, and documented


def runs_here() -> bool:
    """Whether the calling code runs in an asyncio loop."""
    return running_loop() is not None


class AsyncioLoop:
    """The asyncio loop that runs the calling code. A waiter is a future."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.key: object = loop
        self.new_waiter: Callable[[], asyncio.Future[None]] = loop.create_future
        self._loop = loop

    @property
    def closed(self) -> bool:
        """Whether the loop was closed."""
        return self._loop.is_closed()

    @property
    def is_here(self) -> bool:
        """Whether the calling code runs in this loop."""
        return running_loop() is self._loop

    def resume(self, waiters: Sequence[asyncio.Future[None]]) -> None:
        """Let these waiters go on, with one call into the loop."""
        try:
            self._loop.call_soon_threadsafe(_resume, waiters)
        except RuntimeError:
            if self._loop.is_closed():
                raise LoopClosedError from None
            raise

    def resume_here(self, waiters: Sequence[asyncio.Future[None]]) -> None:
        """Let these waiters go on."""
        _resume(waiters)

    async def wait(self, waiter: asyncio.Future[None], seconds: float | None) -> None:
        """Wait until woken, or until so many seconds have passed."""
        await asyncio.wait((waiter,), timeout=seconds)

    async def checkpoint(self) -> None:
        """Let everything else in the loop have its turn."""
        await asyncio.sleep(0)

    def spawn(
        self, main: Callable[[Task], Coroutine[Any, Any, None]], context: Context
    ) -> AsyncioTask:
        """Run a task of its own."""
        return AsyncioTask(self._loop, main, context)


_complete: Final = methodcaller("set_result", None)


def _resume(waiters: Sequence[asyncio.Future[None]]) -> None:
    completing = map(_complete, waiters)
    while True:
        try:
            deque(completing, maxlen=0)  # in C, for as long as nobody was cancelled meanwhile
        except asyncio.InvalidStateError:
            continue
        return


class AsyncioTask:
    """A task in an asyncio loop, kept alive until it has ended."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        main: Callable[[Task], Coroutine[Any, Any, None]],
        context: Context,
    ) -> None:
        self._loop = loop
        self._asked = False
        self._waits = False
        self._broken_off = False
        self._task = loop.create_task(main(self), context=context, name="batchstream pump")
        _tasks.add(self._task)  # the loop itself would let go of it
        self._task.add_done_callback(_forget)

    def interrupt(self) -> None:
        """Break off what is being waited for."""
        try:
            self._loop.call_soon_threadsafe(self._interrupt)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _interrupt(self) -> None:
        if not self._asked:
            self._asked = True
            if self._waits:
                self._broken_off = True
                self._task.cancel()

    async def interruptible(self, function: Callable[..., Awaitable[Any]], *args: object) -> Any:
        """Await what the function returns."""
        if self._asked:
            raise InterruptedStep
        self._waits = True
        try:
            return await function(*args)
        except asyncio.CancelledError:
            if self._broken_off and self._task.cancelling() == 1:  # and nobody else did
                raise InterruptedStep from None
            raise
        finally:
            self._waits = False
            if self._broken_off:
                self._broken_off = False
                self._task.uncancel()

    def was_cancelled(self, error: BaseException) -> bool:
        """Whether somebody else cancelled this task."""
        return isinstance(error, asyncio.CancelledError) and self._task.cancelling() > 0

    @property
    def destroyed(self) -> bool:
        """Whether the task is collected as garbage, not run."""
        return running_loop() is not self._loop

    @property
    def may_raise(self) -> bool:
        """Whether what stops a program may be raised out of this task."""
        return True


_tasks: Final[set[asyncio.Task[None]]] = set()


def _forget(task: asyncio.Task[None]) -> None:
    _tasks.discard(task)
    if not task.cancelled():
        task.exception()  # every stream was told, and what stops a program has gone its way
