"""The pump in a task of an event loop, for a source that is asynchronous itself."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._core.errors import INTERRUPTS, ClosedError, report_or_raise
from batchstream._eventloops.base import InterruptedStep, LoopClosedError
from batchstream._eventloops.current import current_loop
from batchstream._handoff.parking import LOOP_POLL_SECONDS
from batchstream._pumps.background import BackgroundPump

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchstream._core.arguments import Bound
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._eventloops.base import EventLoop, PumpTask, Waiter
    from batchstream._handoff.buffer import Buffer
    from batchstream._handoff.parking import ParkingLot
    from batchstream._pumps.background import Hooks
    from batchstream._pumps.source import AsyncStepSource

T = TypeVar("T")


class TaskPump(BackgroundPump[T]):
    """A pump that a task moves, in the event loop in which the first consumer waits.

    Args:
        source: Advanced and closed in that task alone.
        core: Decides what a step gives to which slot.
        bound: How many outputs a live stream may hold.
        hooks: What happens between two steps, if anything.
        parking: Where its consumers wait, if not in a lot of its own.
        buffers: One for each slot, where they exist already.
    """

    def __init__(
        self,
        source: AsyncStepSource,
        core: Demultiplexer[T],
        bound: Bound,
        *,
        hooks: Hooks | None = None,
        parking: ParkingLot | None = None,
        buffers: Iterable[Buffer[T]] | None = None,
    ) -> None:
        super().__init__(core, bound, hooks=hooks, parking=parking, buffers=buffers)
        self._source = source
        self._loop: EventLoop | None = None
        self._task: PumpTask | None = None
        self._work: object = None
        if not self.fanout.buffers:
            self._after_departure()

    # ---- from a consumer

    def start(self, loop: EventLoop | None) -> None:
        """Start the task, if the pump is new; from within the loop."""
        if self._life.state == "new":
            assert loop is not None, "an asynchronous source has no consumers in threads"  # noqa: S101
            self._life.leave_new(partial(self._spawn, loop))
        self.poll()

    def _spawn(self, loop: EventLoop) -> None:
        self._loop = loop
        if self._task is None:
            try:
                self._task = loop.spawn(self._run, self._end_if_not_closed, self._source.context)
            except INTERRUPTS as error:
                if self.fanout.live_buffers:  # there may be a task, and another is spawned next
                    self._fail(error)
                raise
            except BaseException as error:  # noqa: BLE001 - goes to all streams
                self._fail(error)
                self._end_if_not_closed()
                return
        self._life.advance("start")

    def poll_after(self, buffer: Buffer[Any] | None, loop: EventLoop) -> float | None:
        """Poll in another loop than the pump's, which may be closed any time."""
        del buffer
        ours = self._loop is not None and self._loop.key is loop.key
        return None if ours else LOOP_POLL_SECONDS

    def poll(self, buffer: Buffer[Any] | None = None) -> None:
        """End all streams if the loop was closed with the pump in it."""
        del buffer
        if self._loop is not None and not self.closed.is_set and self._loop.closed:
            self._end_if_not_closed()

    @property
    def _waits_for_caller(self) -> bool:
        """Whether the source is being closed, and this is its clean-up; a step is broken off."""
        return self._life.state == "drained" and self.runs_here

    @property
    def runs_here(self) -> bool:
        """Whether the calling code is the source's."""
        return self._task is not None and self._task.is_current

    # ---- in the task

    async def run(self, loop: EventLoop, task: PumpTask) -> None:
        """Make every step, and close the source, in the calling task: that of a worker."""
        self._loop, self._task = loop, task
        try:
            await self._run(task)
        finally:
            self._end_if_not_closed()

    async def _run(self, task: PumpTask) -> None:
        with task.begin_work() as self._work:
            stopping: BaseException | None = None
            try:
                await self._make_steps(task)
            except InterruptedStep:
                pass  # no stream is live
            except BaseException as error:  # goes to all streams, and is raised if need be
                if task.destroyed:  # nothing can be awaited any more
                    self._end_if_not_closed()
                    raise
                stopping = self._stop_for(error, task)
            self._drain()
            failure = None
            try:
                await task.uninterrupted(self._source.aclose)
            except BaseException as error:  # noqa: BLE001 - raised by aclose, or reported
                if task.was_cancelled(error):
                    stopping = error
                else:
                    failure = error
            self._close(failure)
            if stopping is not None:
                try:
                    raise stopping
                finally:
                    del stopping  # it holds this frame

    async def _make_steps(self, task: PumpTask) -> None:
        fanout, loop = self.fanout, self._loop
        assert loop is not None  # noqa: S101 - for the type checker
        here, hooks = loop.key, self._hooks
        turns_due: list[None] = []  # not empty until the other tasks of the loop had a turn
        while live := self._prepare_step():
            if fanout.free_steps:  # for a plain step in every live stream, as is mostly known
                fanout.free_steps -= 1
            elif full := self._without_room():
                await self._pause(full)
                continue
            try:
                step = await task.interruptible(self._source.advance, live)
            except StopAsyncIteration:
                self._wake(fanout.hand_out(fanout.core.finish()))
                continue
            self._parking.wake(fanout.take(step, live), here)
            if hooks is not None:
                hooks.after_step(live)
            # A source that never has to wait leaves the others in the loop their turn. One that
            # does has been asked for its next step before they take it.
            if turns_due:
                await loop.checkpoint()
            else:
                turns_due.append(None)
                loop.soon(turns_due.clear)

    def _stop_for(self, error: BaseException, task: PumpTask) -> BaseException | None:
        """Fail the streams, and return what is to be raised out of the task."""
        if task.was_cancelled(error):
            self._loop_gone()
            return error
        self._fail(error)
        passes = task.may_raise and isinstance(error, KeyboardInterrupt | SystemExit)
        return error if passes else None

    async def _pause(self, full: Sequence[Buffer[Any]]) -> None:
        loop = self._loop
        assert loop is not None  # noqa: S101 - for the type checker
        waiter = loop.new_waiter()
        try:
            if self._has_to_wait(full, partial(self._resume, waiter)):
                seconds = self._pause_limit(LOOP_POLL_SECONDS if self._parking.loops > 1 else None)
                await loop.wait(waiter, seconds)
                self._look_around()
        finally:
            self._room.stop_asking(full)

    def _resume(self, waiter: Waiter) -> None:
        assert self._loop is not None  # noqa: S101 - for the type checker
        try:
            self._loop.resume([waiter])
        except LoopClosedError:
            return  # and the task with it

    def _interrupt(self) -> None:
        task = self._task
        if task is not None:  # and at work, or it will see for itself that no stream is live
            try:
                task.interrupt(self._work)
            except LoopClosedError:
                self._end_if_not_closed()

    def _drop(self) -> None:
        # The source may have to be closed in a loop: that of the stream that was cancelled last.
        try:
            loop = current_loop()
        except RuntimeError:
            # Nothing can be awaited here, and nothing of the source has run that needs it.
            errors = self._drain_surely()
            self._close(None)
            report_or_raise(errors)
        else:
            self._spawn(loop)

    def _loop_gone(self) -> None:
        """Fail all streams: the task was cancelled, or the loop closed around it."""
        if self._loop is not None and self._loop.closed:
            self._parking.cancel_closed_loops()
        error = ClosedError(
            "the task that ran the source was cancelled, as at the end of its event loop: "
            "read the streams to their ends before the loop ends"
        )
        self._wake(self.fanout.fail(error))

    def _end_if_not_closed(self) -> None:
        """End all streams where the source can no longer be closed, or need not be."""
        self._task = None  # which holds this pump
        if not self.closed.is_set:
            self._loop_gone()
            self._drain()
            self._close(None)
