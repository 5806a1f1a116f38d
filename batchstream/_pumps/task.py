"""The pump in a task of an event loop, for a source that is asynchronous itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._core.errors import INTERRUPTS, ClosedError
from batchstream._core.records import Delivery
from batchstream._eventloops.base import InterruptedStep, LoopClosedError
from batchstream._eventloops.current import current_loop
from batchstream._handoff.parking import PAUSE
from batchstream._pumps.background import RunningPump

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchstream._core.arguments import OnOverflow
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._eventloops.base import EventLoop, PumpTask
    from batchstream._handoff.buffer import Buffer
    from batchstream._handoff.parking import Places
    from batchstream._pumps.source import AnyAsyncSource

T = TypeVar("T")


class TaskPump(RunningPump[T]):
    """A pump that a task moves, in the event loop in which the first consumer waits.

    Args:
        source: Advanced and closed in that task alone.
        core: Tells what a step gives to whom.
        max_buffered: How many outputs a live stream may hold.
        on_overflow: Whether the pump waits for one that holds so many, or ends it.
        places: Where its consumers wait, if not in places of its own.
        buffers: One for each slot, where they were made before.
    """

    def __init__(
        self,
        source: AnyAsyncSource,
        core: Demultiplexer[T],
        *,
        max_buffered: int,
        on_overflow: OnOverflow,
        places: Places | None = None,
        buffers: Iterable[Buffer[T]] | None = None,
    ) -> None:
        super().__init__(
            core,
            max_buffered=max_buffered,
            on_overflow=on_overflow,
            places=places,
            buffers=buffers,
        )
        self._source = source
        self._loop: EventLoop | None = None
        self._task: PumpTask | None = None
        self._stint: object = None
        self._in_task = False
        # Whether the loop has not gone round since a step.
        self._turn_due = False
        if not core.size:
            self._after_departure()

    def begin(self, loop: EventLoop | None) -> None:
        """Start the task, if nobody has; from within the loop."""
        self._refuse_to_wait_for_itself()
        if self._begun.acquire(False):  # noqa: FBT003 - by keyword it takes four times as long
            assert loop is not None, "an asynchronous source has no consumers in threads"  # noqa: S101
            self._start(loop)
        self.look_after(None)

    def _start(self, loop: EventLoop) -> None:
        self._loop = loop
        try:
            self._task = loop.spawn(self.run, self._settle_if_not_ended, self._source.context)
        except BaseException as error:
            self._break_off(error)
            self._settle_if_not_ended()
            if isinstance(error, INTERRUPTS):
                raise

    def patience(self, buffer: Buffer[Any] | None, loop: EventLoop) -> float | None:
        """Do not wait for ever in another loop than the pump's, which may be closed any time."""
        del buffer
        return None if self._is_ours(loop) else PAUSE

    def look_after(self, buffer: Buffer[Any] | None) -> None:
        """Settle everybody if the loop was closed with the pump in it."""
        del buffer
        if self._loop is not None and not self.ended and self._loop.closed:
            self._settle_if_not_ended()

    def _never_ends_before_this(self) -> bool:
        """Whether the source is being closed, and this is its clean-up; a step is broken off."""
        return self._over and super()._never_ends_before_this()

    @property
    def _runs_here(self) -> bool:
        return self._task is not None and self._task.is_current

    # ---- the task

    async def run(self, task: PumpTask) -> None:
        """Make every step, and close the source, in the calling task."""
        with task.stint() as self._stint:
            await self._run(task)

    async def _run(self, task: PumpTask) -> None:
        stopping: BaseException | None = None
        try:
            while self._goes_on():
                await self._move(task)
        except InterruptedStep:
            pass  # nobody is left
        except BaseException as error:  # told to all streams, and raised on if need be
            if task.destroyed:  # nothing can be awaited any more
                self._settle_if_not_ended()
                raise
            stopping = self._stop_for(error, task)
        self._end()
        failure = None
        try:
            await task.uninterrupted(self._source.aclose)
        except BaseException as error:  # noqa: BLE001 - handed on
            if task.was_cancelled(error):
                stopping = error
            else:
                failure = error
        self._closed(failure)
        if stopping is not None:
            try:
                raise stopping
            finally:
                del stopping  # it holds this frame

    def _stop_for(self, error: BaseException, task: PumpTask) -> BaseException | None:
        """Settle the streams, and return what is to be raised out of the task."""
        if task.was_cancelled(error):
            self._loop_gone()
            return error
        self._break_off(error)
        passes = task.may_raise and isinstance(error, KeyboardInterrupt | SystemExit)
        return error if passes else None

    async def _move(self, task: PumpTask) -> None:
        assert self._loop is not None  # noqa: S101 - for the type checker
        if full := self._without_room():
            await self._pause(full)
            return
        live = self._core.live
        try:
            step = await task.interruptible(self._source.advance, live)
        except StopAsyncIteration:
            self._finish()
            return
        self._in_task = True
        try:
            self._give(step, live)
        finally:
            self._in_task = False
        # A source that never has to wait leaves the others in the loop their turn. One that does
        # has been asked for its next step before they take it.
        if self._turn_due:
            await self._loop.checkpoint()
        else:
            self._turn_due = True
            self._loop.soon(self._note_turn)

    def _note_turn(self) -> None:
        self._turn_due = False

    async def _pause(self, full: Sequence[Buffer[Any]]) -> None:
        loop = self._loop
        assert loop is not None  # noqa: S101 - for the type checker
        waiter = loop.new_waiter()
        try:
            if self._has_to_wait(full, waiter):
                seconds = self._patience_in_pause(PAUSE if self._places.loops > 1 else None)
                await loop.wait(waiter, seconds)
                self._places.leave_closed_loops()
        finally:
            self._go_on_from(full)

    def _unpark(self, waiter: Any) -> None:
        assert self._loop is not None  # noqa: S101 - for the type checker
        try:
            self._loop.resume([waiter])
        except LoopClosedError:
            return  # and the task with it

    def _interrupt(self) -> None:
        task = self._task
        if task is not None:  # and at work, or it will see for itself that nobody is left
            try:
                task.interrupt(self._stint)
            except LoopClosedError:
                self._settle_if_not_ended()

    def _end_unbegun(self) -> None:
        try:
            loop = current_loop()
        except RuntimeError:
            # Nothing can be awaited here, and nothing of the source has run that needs it.
            self._end()
            self._closed(None)
        else:
            self._start(loop)

    def _wake(self, keys: Sequence[object]) -> None:
        here = self._loop.key if self._in_task and self._loop is not None else None
        self._places.wake(keys, here)

    def _is_ours(self, loop: EventLoop) -> bool:
        return self._loop is not None and self._loop.key is loop.key

    def _loop_gone(self) -> None:
        """Settle everybody when the task was cancelled, or the loop closed around it."""
        if self._loop is not None and self._loop.closed:
            self._places.leave_closed_loops()
        error = ClosedError(
            "the task that ran the source was cancelled, as at the end of its event loop"
        )
        self._tell(Delivery((), (), self._settle_with(error)))

    def _settle_if_not_ended(self) -> None:
        """Settle everybody where the source can no longer be closed, or need not be."""
        self._task = None  # which holds this pump
        if not self.ended:
            self._loop_gone()
            self._end()
            self._closed(None)
