"""asyncio's side of the seam to event loops; imported where asyncio runs, and nowhere else."""

from __future__ import annotations

import asyncio
import types
from contextlib import contextmanager
from itertools import islice
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final

from batchstream._eventloops.base import TURN, InterruptedStep, LoopClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
    from contextvars import Context

    from batchstream._eventloops.base import Main


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs the calling code, if any."""
    return asyncio._get_running_loop()  # noqa: SLF001 - exported for such as us, and documented


def runs_here() -> bool:
    """Whether the calling code runs in an asyncio loop."""
    return running_loop() is not None


class AsyncioWaiter:
    """What a task awaits until it is woken, as often as need be, one task at a time.

    It is a future as far as `asyncio.isfuture` and `asyncio.Task` can tell, and cheaper than one,
    for it is made once per stream and not once per output, and lets its task go on from within
    `resume_all` instead of asking the loop for a call for each. Woken while nobody awaits it, it
    does nothing.
    """

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_context", "_loop", "_wakeup")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._cancelled: asyncio.CancelledError | None = None
        # What the task wants to be called, and in which context, while it waits.
        self._wakeup: Callable[[AsyncioWaiter], object] | None = None
        self._context: Context

    def __await__(self) -> Generator[AsyncioWaiter, None, None]:
        self._asyncio_future_blocking = True
        return iter((self,))  # type: ignore[return-value] # a coroutine asks for no more

    # ---- for asyncio.Task

    def add_done_callback(
        self, wakeup: Callable[[AsyncioWaiter], object], *, context: Context
    ) -> None:
        """Take note of who awaits this."""
        self._context = context
        self._wakeup = wakeup

    def result(self) -> None:
        """Return nothing; raise if the task was cancelled."""
        cancelled, self._cancelled = self._cancelled, None
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                del cancelled  # it holds this frame, and with it the stream and its consumer

    def cancel(self, msg: object = None) -> bool:
        """Let the task go on with a `CancelledError`, and tell whether it was waiting."""
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is None:
            return False
        self._cancelled = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        self._loop.call_soon(wakeup, self, context=self._context)
        return True

    # ---- for the loop

    @staticmethod
    def resume_all(waiters: Iterator[AsyncioWaiter], loop: asyncio.AbstractEventLoop) -> None:
        """Let these waiters' tasks go on, a few now and the others in their turn.

        Called by the loop itself and never from a task: tasks are not nested.
        """
        try:
            for waiter in islice(waiters, TURN):
                wakeup = waiter._wakeup  # noqa: SLF001 - its own class
                if wakeup is not None:
                    waiter._wakeup = None  # noqa: SLF001
                    waiter._context.run(wakeup, waiter)  # noqa: SLF001
        finally:  # after KeyboardInterrupt out of a task, too
            if length_hint(waiters):
                loop.call_soon(AsyncioWaiter.resume_all, waiters, loop)


class AsyncioEventLoop:
    """The asyncio loop that runs the calling code."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.key: object = loop
        self._loop = loop

    def new_waiter(self) -> AsyncioWaiter:
        """Make a waiter."""
        return AsyncioWaiter(self._loop)

    @property
    def closed(self) -> bool:
        """Whether the loop was closed."""
        return self._loop.is_closed()

    @property
    def runs(self) -> bool:
        """Whether the loop has not been stopped."""
        return self._loop.is_running()

    @property
    def is_here(self) -> bool:
        """Whether the calling code runs in this loop."""
        return running_loop() is self._loop

    def resume(self, waiters: Sequence[AsyncioWaiter]) -> None:
        """Let these waiters go on, with one call into the loop."""
        self._call(AsyncioWaiter.resume_all, iter(waiters), self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Call this in the loop, soon."""
        self._call(function)

    def soon(self, function: Callable[[], object]) -> None:
        """Call this in the loop's next turn."""
        self._loop.call_soon(function)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if self._loop.is_closed():
                raise LoopClosedError from None
            raise

    def resume_here(self, waiters: Sequence[AsyncioWaiter]) -> None:
        """Let these waiters go on, from within this loop."""
        self._loop.call_soon(AsyncioWaiter.resume_all, iter(waiters), self._loop)

    async def wait(self, waiter: AsyncioWaiter, seconds: float | None) -> None:
        """Wait until woken, or until so many seconds have passed."""
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
        """Let everything else in the loop have its turn, as `asyncio.sleep(0)` does."""
        yield

    def spawn(self, main: Main, at_end: Callable[[], None], context: Context) -> AsyncioPumpTask:
        """Run a task of its own."""
        return AsyncioPumpTask(self._loop, main, at_end, context)


class AsyncioPumpTask:
    """A task in an asyncio loop, kept alive until it has ended."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        main: Main,
        at_end: Callable[[], None],
        context: Context,
    ) -> None:
        self._loop = loop
        self._at_end = at_end
        self._stint: object = None
        self._asked = False
        self._waits = False
        self._broken_off = False
        # Not by the loop's task factory, which might run it now, before this object is complete.
        self._task: Any  # until it has ended
        self._task = task = asyncio.Task(
            main(self), loop=loop, context=context, name="batchstream pump"
        )
        # A loop that is closed around it is its owner's doing, and no news.
        task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001
        _tasks.add(task)  # the loop itself would let go of it
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        _tasks.discard(task)
        self._task = None  # its error holds the frames that hold this
        if not task.cancelled():
            task.exception()  # every stream was told, and what stops a program has gone its way
        self._at_end()

    @contextmanager
    def stint(self) -> Generator[object, None, None]:
        """Begin what can be interrupted by itself."""
        self._stint = object()
        self._asked = False
        try:
            yield self._stint
        finally:
            self._stint = None

    def interrupt(self, stint: object) -> None:
        """Break off what is being waited for."""
        try:
            self._loop.call_soon_threadsafe(self._interrupt, stint)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            _tasks.discard(self._task)
            raise LoopClosedError from None

    def _interrupt(self, stint: object) -> None:
        if stint is self._stint and not self._asked:
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

    async def uninterrupted(self, function: Callable[[], Awaitable[None]]) -> None:
        """Await what the function returns."""
        await function()

    def forget(self) -> None:
        """Let go of a task that will never go on."""
        _tasks.discard(self._task)

    def was_cancelled(self, error: BaseException) -> bool:
        """Whether somebody else cancelled this task."""
        return isinstance(error, asyncio.CancelledError) and self._task.cancelling() > 0

    @property
    def is_current(self) -> bool:
        """Whether the calling code runs in this task."""
        task = self._task
        return task is not None and running_loop() is self._loop and asyncio.current_task() is task

    @property
    def destroyed(self) -> bool:
        """Whether the task is collected as garbage, not run."""
        return running_loop() is not self._loop

    @property
    def may_raise(self) -> bool:
        """Whether what stops a program may be raised out of this task."""
        return True


_tasks: Final[set[asyncio.Task[None]]] = set()
