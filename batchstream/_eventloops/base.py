"""The seam to event loops: what a pump and its consumers need of one, in every framework.

A consumer *waits until it is woken*, and a pump *wakes consumers from any thread*: streams ask no
more of an event loop. A waiter carries no data and may be awaited many times; a consumer that has
been woken reads its buffer. A pump that runs as a task needs a little more, see `PumpTask`.

The modules `asyncio` and `trio` implement these protocols, each for the framework that it is named
after; `current` finds out which of the two runs, and imports its module only then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVarTuple

from typing_extensions import TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
    from contextlib import AbstractContextManager
    from contextvars import Context

T = TypeVar("T")
Args = TypeVarTuple("Args")

OUTPUTS_PER_TURN: Final = 64
"""How many outputs a consumer receives without a wait before the loop's other tasks run."""

WAITERS_PER_TURN: Final = 64
"""How many waiting tasks one callback of a loop resumes before the loop runs anything else."""

Main: TypeAlias = "Callable[[PumpTask], Coroutine[Any, Any, None]]"


class LoopClosedError(Exception):
    """The event loop was closed; no task in it will ever run again."""


class InterruptedStep(Exception):  # noqa: N818 - it is a signal between pump and task, no error
    """`PumpTask.interrupt` has ended a wait in `PumpTask.interruptible`."""


class Waiter(Protocol):
    """Awaited in the loop that made it, by one task at a time, many times: until it is resumed.

    Awaiting it returns when `EventLoop.resume` is called with it. A `resume` while no task awaits
    it does nothing; in particular it is not remembered for the next await.
    """

    def __await__(self) -> Generator[Any, Any, None]: ...


class EventLoop(Protocol):
    """An event loop in which consumers wait, and in which a pump may run."""

    @property
    def key(self) -> object:
        """The framework's own object for the loop, which identifies it."""

    def new_waiter(self) -> Waiter:
        """Make a waiter for this loop."""

    @property
    def closed(self) -> bool:
        """Whether nothing will ever run here again. From any thread."""

    @property
    def runs(self) -> bool:
        """Whether the loop runs at the moment. From any thread."""

    @property
    def is_here(self) -> bool:
        """Whether the calling code runs in this loop."""

    def resume(self, waiters: Sequence[Waiter]) -> None:
        """Resume the tasks that await these waiters. From any thread.

        Raises:
            LoopClosedError: The loop was closed.
        """

    def resume_here(self, waiters: Sequence[Waiter]) -> None:
        """Resume the tasks that await these waiters; from within this loop."""

    def call(self, function: Callable[[], object]) -> None:
        """Call the function in the loop, soon. From any thread.

        Raises:
            LoopClosedError: The loop was closed.
        """

    def soon(self, function: Callable[[], object], /) -> object:
        """Call the function in the loop's next turn; from within the loop."""

    def now(self) -> float:
        """Return the seconds of the loop's own clock; from within this loop."""

    async def wait(self, waiter: Waiter, seconds: float | None) -> None:
        """Await the waiter, for at most so many seconds; None for any time."""

    @staticmethod
    def checkpoint() -> Awaitable[None]:
        """Let the loop's other tasks run."""

    def spawn(self, main: Main, at_end: Callable[[], None], context: Context) -> PumpTask:
        """Spawn a task outside of any nursery or task group; from within this loop.

        Args:
            main: Called with the task; what it returns is awaited in the task.
            at_end: Called when the task has ended, even if it was ended before it began.
            context: The context to run in.
        """


class PumpTask(Protocol):
    """The task of a pump, or of several pumps one after another."""

    def begin_work(self) -> AbstractContextManager[object]:
        """Begin the work of one pump, from its start to its end; `interrupt` ends no other.

        Returns:
            A context manager whose value names this work for `interrupt`.
        """

    def interrupt(self, work: object) -> None:
        """End the wait in `interruptible`, the present one or else the next. From any thread.

        Args:
            work: The work to interrupt; if the task is at another, nothing happens.

        Raises:
            LoopClosedError: The loop was closed, and the task will never go on.
        """

    async def interruptible(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """Await what the function returns.

        Raises:
            InterruptedStep: `interrupt` was called, before or during the wait.
        """

    async def uninterrupted(self, function: Callable[[], Awaitable[None]]) -> None:
        """Await what the function returns to its end, also after `interrupt`."""

    def forget(self) -> None:
        """Drop the references that keep the task alive: its loop was closed around it."""

    def was_cancelled(self, error: BaseException) -> bool:
        """Whether the error is a cancellation of this task from outside, not by `interrupt`."""

    @property
    def is_current(self) -> bool:
        """Whether the calling code runs in this task."""

    @property
    def destroyed(self) -> bool:
        """Whether the task is collected as garbage, and its code runs for that alone."""

    @property
    def may_raise(self) -> bool:
        """Whether an error that stops a program, such as KeyboardInterrupt, may leave this task."""
