"""The seam to event loops: what a pump and its consumers need of one, whatever framework it is of.

A consumer *waits until it is woken*, and a pump *wakes from any thread*: that is all that streams
ask of an event loop. A waiter carries no data, and is awaited as often as need be; whoever wakes up
looks at the stream's buffer. A pump that runs as a task itself needs a little more, see `PumpTask`.

What serves it for asyncio is in `_asyncio`, for trio in `_trio`. Which of them runs is told by
`_current_loop`, which imports each where it runs, and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from contextlib import AbstractContextManager
    from contextvars import Context

TURN: Final = 64
"""How many outputs a consumer receives, and how many consumers are resumed, in one go."""

Main: TypeAlias = "Callable[[PumpTask], Coroutine[Any, Any, None]]"


class LoopClosedError(Exception):
    """The event loop was closed, and with it whoever waited there has gone."""


class InterruptedStep(Exception):  # noqa: N818 - it is a signal between pump and task, no error
    """What a pump waited for was broken off by `PumpTask.interrupt`."""


class EventLoop(Protocol):
    """An event loop in which consumers wait, and in which a pump may run."""

    @property
    def key(self) -> object:
        """The framework's own object for the loop, which identifies it."""

    def new_waiter(self) -> Any:
        """Make a waiter, which is awaited in this loop, by one task at a time and many times."""

    @property
    def closed(self) -> bool:
        """Whether nothing will ever run here again. From any thread."""

    @property
    def runs(self) -> bool:
        """Whether anything runs here, at the moment. From any thread."""

    @property
    def is_here(self) -> bool:
        """Whether the calling code runs in this loop."""

    def resume(self, waiters: Sequence[Any]) -> None:
        """Let these waiters go on, and those that were cancelled be. From any thread.

        Raises:
            LoopClosedError: The loop was closed.
        """

    def resume_here(self, waiters: Sequence[Any]) -> None:
        """Do the same from within this loop."""

    def call(self, function: Callable[[], object]) -> None:
        """Call this in the loop, soon. From any thread.

        Raises:
            LoopClosedError: The loop was closed.
        """

    def soon(self, function: Callable[[], object]) -> None:
        """Call this in the loop's next turn; from within the loop."""

    async def wait(self, waiter: Any, seconds: float | None) -> None:
        """Wait until woken, or until so many seconds have passed."""

    @staticmethod
    def checkpoint() -> Awaitable[None]:
        """Let everything else in the loop have its turn."""

    def spawn(self, main: Main, at_end: Callable[[], None], context: Context) -> PumpTask:
        """Run a task of nobody's but its own, from within this loop.

        Args:
            main: Called with the task, before it is awaited in it.
            at_end: Called when the task has ended, if it never began as well.
            context: The context to run in.
        """


class PumpTask(Protocol):
    """A pump's own task, or that of several pumps one after another."""

    def stint(self) -> AbstractContextManager[object]:
        """Begin what can be interrupted by itself: the work of one pump, from its start to its end.

        Returns:
            A context manager, which gives a name for `interrupt`.
        """

    def interrupt(self, stint: object) -> None:
        """Break off what is being waited for in `interruptible`, now or later. From any thread.

        Args:
            stint: Which work is meant; if the task is not at it any more nothing happens.

        Raises:
            LoopClosedError: The loop was closed, and the task will never go on.
        """

    async def interruptible(self, function: Callable[..., Awaitable[Any]], *args: object) -> Any:
        """Await what the function returns.

        Raises:
            InterruptedStep: It was broken off.
        """

    async def uninterrupted(self, function: Callable[[], Awaitable[None]]) -> None:
        """Await what the function returns, after an interruption too."""

    def forget(self) -> None:
        """Let go of a task that will never go on, as its loop was closed around it."""

    def was_cancelled(self, error: BaseException) -> bool:
        """Whether the error says that somebody else wants this task to end."""

    @property
    def is_current(self) -> bool:
        """Whether the calling code runs in this task."""

    @property
    def destroyed(self) -> bool:
        """Whether the calling code is the task's, thrown away by an event loop that is gone."""

    @property
    def may_raise(self) -> bool:
        """Whether what stops a program may be raised out of this task."""
