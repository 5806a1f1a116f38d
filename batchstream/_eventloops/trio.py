"""trio's side of the seam to event loops; imported where trio runs, and nowhere else."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from batchstream._eventloops.base import InterruptedStep, LoopClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence
    from contextvars import Context

    from batchstream._eventloops.base import Main


def runs_here() -> bool:
    """Whether the calling code runs in a trio task."""
    return trio.lowlevel.in_trio_task()


class TrioWaiter:
    """What a task awaits until it is woken, as often as need be, one task at a time."""

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
        """Let the task go on, unless it was cancelled."""
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)


class TrioEventLoop:
    """The trio run that runs the calling code."""

    def __init__(self) -> None:
        token = trio.lowlevel.current_trio_token()
        self.key: object = token
        self._token = token

    def new_waiter(self) -> TrioWaiter:
        """Make a waiter."""
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
        """Whether the run has not finished; it cannot be stopped otherwise."""
        return not self.closed

    @property
    def is_here(self) -> bool:
        """Whether the calling code runs in a task of this run."""
        return runs_here() and trio.lowlevel.current_trio_token() is self._token

    def resume(self, waiters: Sequence[TrioWaiter]) -> None:
        """Let these waiters go on, with one call into the loop."""
        self._call(_resume, waiters)

    def call(self, function: Callable[[], object]) -> None:
        """Call this in the loop, soon."""
        self._call(function)

    def soon(self, function: Callable[[], object]) -> None:
        """Call this in the loop's next turn."""
        self._token.run_sync_soon(function)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._token.run_sync_soon(function, *args)
        except trio.RunFinishedError:
            raise LoopClosedError from None

    def resume_here(self, waiters: Sequence[TrioWaiter]) -> None:
        """Let these waiters go on."""
        _resume(waiters)

    async def wait(self, waiter: TrioWaiter, seconds: float | None) -> None:
        """Wait until woken, or until so many seconds have passed."""
        with trio.move_on_after(math.inf if seconds is None else seconds):
            await waiter

    @staticmethod
    async def checkpoint() -> None:
        """Let everything else in the loop have its turn."""
        await trio.lowlevel.checkpoint()

    def spawn(self, main: Main, at_end: Callable[[], None], context: Context) -> TrioPumpTask:
        """Run a system task, which belongs to no nursery of the user's."""
        return TrioPumpTask(self._token, main, at_end, context)


def _do_nothing() -> None:
    pass


def _resume(waiters: Sequence[TrioWaiter]) -> None:
    for waiter in waiters:
        waiter.wake()


class TrioPumpTask:
    """A system task in a trio run."""

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
    def stint(self) -> Generator[object, None, None]:
        """Begin what can be interrupted by itself."""
        # One scope for the whole of it: the source may have entered others when it yields, and left
        # them when it is closed, and scopes are left in the reverse order.
        with trio.CancelScope() as self._scope:
            self._asked = False
            yield self._scope

    def interrupt(self, stint: object) -> None:
        """Break off what is being waited for."""
        try:
            self._token.run_sync_soon(self._interrupt, stint)
        except trio.RunFinishedError:
            raise LoopClosedError from None

    def _interrupt(self, stint: object) -> None:
        if stint is self._scope:
            self._asked = True
            if self._waits:
                self._scope.cancel()

    async def interruptible(self, function: Callable[..., Awaitable[Any]], *args: object) -> Any:
        """Await what the function returns."""
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
        """Await what the function returns."""
        if self._scope.cancel_called:
            # A source that was broken off has left its own scopes, so that there may be another.
            with trio.CancelScope(shield=True):
                await function()
        else:
            await function()

    def forget(self) -> None:
        """Do nothing: trio lets no task survive its run."""

    def was_cancelled(self, error: BaseException) -> bool:
        """Whether the run is about to finish."""
        return isinstance(error, trio.Cancelled)

    @property
    def is_current(self) -> bool:
        """Whether the calling code runs in this task."""
        return runs_here() and trio.lowlevel.current_task() is self._task

    @property
    def destroyed(self) -> bool:
        """Whether the task is collected as garbage, not run."""
        return not runs_here()

    @property
    def may_raise(self) -> bool:
        """Never out of a system task: it would crash trio."""
        return False
