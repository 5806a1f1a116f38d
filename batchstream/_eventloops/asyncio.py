"""The seam to event loops for asyncio; imported only where asyncio runs."""

from __future__ import annotations

import asyncio
import types
from contextlib import contextmanager
from itertools import islice
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final

from batchstream._eventloops.base import WAITERS_PER_TURN, InterruptedStep, LoopClosedError
from batchstream._native.selection import native

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
    from contextvars import Context

    from batchstream._eventloops.base import Args, Main, T, Waiter


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs the calling code, if any."""
    return asyncio._get_running_loop()  # noqa: SLF001 - documented, for third-party code


def runs_here() -> bool:
    """Whether the calling code runs in an asyncio loop."""
    return _running_loop() is not None


class AsyncioWaiter:
    """What a task awaits until it is resumed, many times, one task at a time.

    `asyncio.isfuture` and `asyncio.Task` take it for a future. It is cheaper than one: it is made
    once per stream and not once per output, and `resume_all` resumes its task directly instead of
    scheduling one callback of the loop for each task.
    """

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_context", "_loop", "_wakeup")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._cancelled: asyncio.CancelledError | None = None
        # While a task awaits this: its callback, and the context to call it in.
        self._wakeup: Callable[[AsyncioWaiter], object] | None = None
        self._context: Context

    def __await__(self) -> Generator[AsyncioWaiter, None, None]:
        self._asyncio_future_blocking = True  # asyncio.Task accepts nothing that was only yielded
        return iter((self,))  # type: ignore[return-value] # an await needs no more than an iterator

    # ---- for asyncio.Task

    def add_done_callback(
        self, wakeup: Callable[[AsyncioWaiter], object], *, context: Context
    ) -> None:
        """Keep the callback of the task that awaits this."""
        self._context = context
        self._wakeup = wakeup

    def result(self) -> None:
        """Raise the cancellation, if the wait ended in one."""
        cancelled, self._cancelled = self._cancelled, None
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                # Its traceback holds this frame: the cycle would keep the stream and its consumer.
                del cancelled

    def cancel(self, msg: object = None) -> bool:
        """Resume the task with a `CancelledError`, if it waits.

        Returns:
            Whether it was waiting.
        """
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is None:
            return False
        self._cancelled = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        self._loop.call_soon(wakeup, self, context=self._context)
        return True

    # ---- for the loop

    @staticmethod
    def resume_all(waiters: Iterator[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Resume the tasks that await these waiters: a few now, the others in later callbacks.

        Only the loop may call this, and never a task: asyncio does not nest tasks.
        """
        waiter: AsyncioWaiter
        try:
            for waiter in islice(waiters, WAITERS_PER_TURN):
                wakeup = waiter._wakeup  # noqa: SLF001 - its own class
                if wakeup is not None:
                    # Before the call, in which the task may await this waiter again.
                    waiter._wakeup = None  # noqa: SLF001
                    waiter._context.run(wakeup, waiter)  # noqa: SLF001
        finally:  # also after a KeyboardInterrupt that leaves a resumed task
            if length_hint(waiters):
                loop.call_soon(AsyncioWaiter.resume_all, waiters, loop)


if native is not None and not TYPE_CHECKING:

    class AsyncioWaiter(native.AsyncioWaiter):
        """The same, natively."""

        __slots__ = ()
        cancel = AsyncioWaiter.cancel


class AsyncioEventLoop:
    """The asyncio loop that runs the calling code."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.key: object = loop
        self.soon = loop.call_soon
        self._loop = loop

    def new_waiter(self) -> AsyncioWaiter:
        """Make a waiter for this loop."""
        return AsyncioWaiter(self._loop)

    @property
    def closed(self) -> bool:
        """Whether the loop was closed."""
        return self._loop.is_closed()

    @property
    def runs(self) -> bool:
        """Whether the loop runs: it has been started, and not stopped."""
        return self._loop.is_running()

    @property
    def is_here(self) -> bool:
        """Whether the calling code runs in this loop."""
        return _running_loop() is self._loop

    def resume(self, waiters: Sequence[Waiter]) -> None:
        """Resume the tasks that await these waiters, with one call into the loop."""
        self._call(AsyncioWaiter.resume_all, iter(waiters), self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Call the function in the loop, soon."""
        self._call(function)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if self._loop.is_closed():
                raise LoopClosedError from None
            raise

    def resume_here(self, waiters: Sequence[Waiter]) -> None:
        """Resume the tasks that await these waiters; from within this loop."""
        self._loop.call_soon(AsyncioWaiter.resume_all, iter(waiters), self._loop)

    def now(self) -> float:
        """Return the seconds of the loop's own clock."""
        return self._loop.time()

    async def wait(self, waiter: Waiter, seconds: float | None) -> None:
        """Await the waiter, for at most so many seconds."""
        if seconds is None:
            await waiter
            return
        timer = self._loop.call_later(
            seconds, AsyncioWaiter.resume_all, iter((waiter,)), self._loop
        )
        try:
            await waiter
        finally:
            timer.cancel()

    @staticmethod
    @types.coroutine
    def checkpoint() -> Generator[None, None, None]:
        """Let the loop's other tasks run, as `asyncio.sleep(0)` does."""
        yield

    def spawn(self, main: Main, at_end: Callable[[], None], context: Context) -> AsyncioPumpTask:
        """Spawn a task that belongs to no task group."""
        return AsyncioPumpTask(self._loop, main, at_end, context)


class AsyncioPumpTask:
    """A pump's task in an asyncio loop, kept alive until it has ended."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        main: Main,
        at_end: Callable[[], None],
        context: Context,
    ) -> None:
        self._loop = loop
        self._at_end = at_end
        self._work: object = None
        self._asked = False
        self._waits = False
        self._broken_off = False
        # Not made by the loop's task factory: an eager one would run the task before this object
        # is complete.
        self._task: Any  # None once it has ended
        self._task = task = asyncio.Task(
            main(self), loop=loop, context=context, name="batchstream pump"
        )
        # The program that closes its loop around the task knows that; asyncio need not log it.
        task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001
        _tasks.add(task)  # the loop has only a weak reference to it
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        _tasks.discard(task)
        self._task = None  # a cycle: the task's error holds frames, which hold this object
        if not task.cancelled():
            # So that asyncio does not log it: the streams have it, or it has stopped the program.
            task.exception()
        self._at_end()

    @contextmanager
    def begin_work(self) -> Generator[object, None, None]:
        """Begin the work of one pump."""
        self._work = object()
        self._asked = False
        try:
            yield self._work
        finally:
            self._work = None

    def interrupt(self, work: object) -> None:
        """End the wait in `interruptible`."""
        try:
            self._loop.call_soon_threadsafe(self._interrupt, work)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            _tasks.discard(self._task)
            raise LoopClosedError from None

    def _interrupt(self, work: object) -> None:
        if work is self._work and not self._asked:
            self._asked = True
            if self._waits:
                self._broken_off = True
                self._task.cancel()

    async def interruptible(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """Await what the function returns, until `interrupt`."""
        if self._asked:
            raise InterruptedStep
        self._waits = True
        try:
            return await function(*args)
        except asyncio.CancelledError:
            # One cancel is that of `_interrupt`; with another, the task is cancelled from outside.
            if self._broken_off and self._task.cancelling() == 1:
                raise InterruptedStep from None
            raise
        finally:
            self._waits = False
            if self._broken_off:
                self._broken_off = False
                self._task.uncancel()

    async def uninterrupted(self, function: Callable[[], Awaitable[None]]) -> None:
        """Await what the function returns to its end."""
        await function()  # `interruptible` has taken its cancellation back

    def forget(self) -> None:
        """Drop the reference that keeps the task alive: it will never go on."""
        _tasks.discard(self._task)

    def was_cancelled(self, error: BaseException) -> bool:
        """Whether this task was cancelled, and not by `interrupt`."""
        return isinstance(error, asyncio.CancelledError) and self._task.cancelling() > 0

    @property
    def is_current(self) -> bool:
        """Whether the calling code runs in this task."""
        task = self._task
        return task is not None and _running_loop() is self._loop and asyncio.current_task() is task

    @property
    def destroyed(self) -> bool:
        """Whether the task is collected as garbage: its loop does not run the calling code."""
        return _running_loop() is not self._loop

    @property
    def may_raise(self) -> bool:
        """Yes: asyncio passes an error that stops a program on to the loop's caller."""
        return True


_tasks: Final[set[asyncio.Task[None]]] = set()
"""The tasks of pumps that have not ended: the loop's own references are weak."""
