"""The seam to event loops for trio; imported only where trio runs."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from batchstream._eventloops.base import InterruptedStep, LoopClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence
    from contextvars import Context

    from batchstream._eventloops.base import Args, Main, T, Waiter


def runs_here() -> bool:
    """Whether the calling code runs in a trio task."""
    return trio.lowlevel.in_trio_task()


class TrioWaiter:
    """What a task awaits until it is resumed, many times, one task at a time."""

    __slots__ = ("_task", "_token")

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._task: trio.lowlevel.Task | None = None

    def __await__(self) -> Generator[Any, Any, None]:
        if not runs_here() or trio.lowlevel.current_trio_token() is not self._token:
            raise RuntimeError("a waiter is awaited in the loop that it was made in")
        self._task = trio.lowlevel.current_task()
        yield from trio.lowlevel.wait_task_rescheduled(self._abort).__await__()  # noqa: ASYNC105 - awaited by hand

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        """Resume the task; does nothing if it was cancelled, or does not wait."""
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)


class TrioEventLoop:
    """The trio run that runs the calling code."""

    def __init__(self) -> None:
        token = trio.lowlevel.current_trio_token()
        self.key: object = token
        self.soon = token.run_sync_soon
        self._token = token

    def new_waiter(self) -> TrioWaiter:
        """Make a waiter for this run."""
        return TrioWaiter(self._token)

    @property
    def closed(self) -> bool:
        """Whether the run has finished."""
        try:
            self._token.run_sync_soon(_do_nothing, idempotent=True)
        except trio.RunFinishedError:
            return True
        return False

    @property
    def runs(self) -> bool:
        """Whether the run has not finished: a run cannot be stopped and started again."""
        return not self.closed

    @property
    def is_here(self) -> bool:
        """Whether the calling code runs in a task of this run."""
        return runs_here() and trio.lowlevel.current_trio_token() is self._token

    def resume(self, waiters: Sequence[Waiter]) -> None:
        """Resume the tasks that await these waiters, with one call into the loop."""
        self._call(_resume, waiters)

    def call(self, function: Callable[[], object]) -> None:
        """Call the function in the loop, soon."""
        self._call(function)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._token.run_sync_soon(function, *args)
        except trio.RunFinishedError:
            raise LoopClosedError from None

    def resume_here(self, waiters: Sequence[Waiter]) -> None:
        """Resume the tasks that await these waiters; from within this run."""
        _resume(waiters)

    def now(self) -> float:
        """Return the seconds of the run's own clock."""
        return trio.current_time()

    async def wait(self, waiter: Waiter, seconds: float | None) -> None:
        """Await the waiter, for at most so many seconds."""
        with trio.move_on_after(math.inf if seconds is None else seconds):
            await waiter

    @staticmethod
    async def checkpoint() -> None:
        """Let the run's other tasks run."""
        await trio.lowlevel.checkpoint()

    def spawn(self, main: Main, at_end: Callable[[], None], context: Context) -> TrioPumpTask:
        """Spawn a system task, which belongs to no nursery of the user's."""
        return TrioPumpTask(self._token, main, at_end, context)


def _do_nothing() -> None:
    pass


def _resume(waiters: Sequence[Any]) -> None:
    waiter: TrioWaiter
    for waiter in waiters:
        waiter.wake()


class TrioPumpTask:
    """A pump's task in a trio run: a system task."""

    def __init__(
        self,
        token: trio.lowlevel.TrioToken,
        main: Main,
        at_end: Callable[[], None],
        context: Context,
    ) -> None:
        self._token = token
        self._scope = trio.CancelScope()
        self._asked = False
        self._waits = False
        self._task = trio.lowlevel.spawn_system_task(
            self._run, main, at_end, name="batchstream pump", context=context
        )

    async def _run(self, main: Main, at_end: Callable[[], None]) -> None:
        try:
            await main(self)
        finally:
            at_end()

    @contextmanager
    def begin_work(self) -> Generator[object, None, None]:
        """Begin the work of one pump."""
        # One scope for all of this work, and not one per step: a source may yield inside a scope of
        # its own and leave that scope when it is closed, and trio wants scopes left in the reverse
        # order.
        with trio.CancelScope() as self._scope:
            self._asked = False
            yield self._scope

    def interrupt(self, work: object) -> None:
        """End the wait in `interruptible`."""
        try:
            self._token.run_sync_soon(self._interrupt, work)
        except trio.RunFinishedError:
            raise LoopClosedError from None

    def _interrupt(self, work: object) -> None:
        if work is self._scope:
            self._asked = True
            if self._waits:
                self._scope.cancel()

    async def interruptible(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """Await what the function returns, until `interrupt`."""
        if self._asked:
            raise InterruptedStep
        self._waits = True
        try:
            return await function(*args)
        except trio.Cancelled:
            if self._scope.cancel_called:
                raise InterruptedStep from None
            raise
        finally:
            self._waits = False

    async def uninterrupted(self, function: Callable[[], Awaitable[None]]) -> None:
        """Await what the function returns to its end."""
        if self._scope.cancel_called:
            # The interrupted source has left its own scopes, so that one may be entered here.
            with trio.CancelScope(shield=True):
                await function()
        else:
            await function()

    def forget(self) -> None:
        """Do nothing: no task outlives its run."""

    def was_cancelled(self, error: BaseException) -> bool:
        """Whether trio has cancelled this task, which it does when the run finishes."""
        return isinstance(error, trio.Cancelled)

    @property
    def is_current(self) -> bool:
        """Whether the calling code runs in this task."""
        return runs_here() and trio.lowlevel.current_task() is self._task

    @property
    def destroyed(self) -> bool:
        """Whether the task is collected as garbage: no run runs the calling code."""
        return not runs_here()

    @property
    def may_raise(self) -> bool:
        """No: an error that leaves a system task crashes the run."""
        return False
