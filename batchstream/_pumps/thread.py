"""The pump in a thread of its own."""

from __future__ import annotations

import threading
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from batchstream._core.errors import INTERRUPTS, report_or_raise, report_unraisable
from batchstream._eventloops.current import result_of
from batchstream._handoff.parking import LOOP_POLL_SECONDS, release
from batchstream._pumps.background import BackgroundPump
from batchstream._pumps.process import running
from batchstream._pumps.worker_thread import WorkerThread

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchstream._core.arguments import Bound
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._core.rules import EndRules
    from batchstream._eventloops.base import EventLoop
    from batchstream._handoff.buffer import Buffer
    from batchstream._handoff.parking import ParkingLot
    from batchstream._pumps.background import Hooks
    from batchstream._pumps.source import Source, StepSource

T = TypeVar("T")


class ThreadPump(BackgroundPump[T]):
    """A pump that a thread moves, for consumers in threads and event loops alike.

    Args:
        source: Advanced and closed in that thread alone, if it is ever advanced.
        core: Decides what a step gives to which slot.
        bound: How many outputs a live stream may hold.
        thread: The thread, where the source's first step was made in it already.
        hooks: What happens between two steps, if anything.
        parking: Where its consumers wait, if not in a lot of its own.
        buffers: One for each slot, where they exist already.
    """

    def __init__(
        self,
        source: StepSource,
        core: Demultiplexer[T],
        bound: Bound,
        *,
        thread: WorkerThread | None = None,
        hooks: Hooks | None = None,
        parking: ParkingLot | None = None,
        buffers: Iterable[Buffer[T]] | None = None,
    ) -> None:
        super().__init__(core, bound, hooks=hooks, parking=parking, buffers=buffers)
        self._source = source
        self._thread = thread
        if not self.fanout.buffers:
            self._after_departure()

    # ---- from a consumer

    def start(self, loop: EventLoop | None) -> None:
        """Start the thread, if the pump is new, wherever its first consumer is."""
        del loop
        if self._life.state == "new":
            self._life.leave_new(self._start)

    def _start(self) -> None:
        if self._thread is None:
            try:
                self._thread = WorkerThread()
            except Exception as error:  # noqa: BLE001 - of the system, which has no thread to give
                self._fail(error)
                self._end_in_caller()
                return
        running.add(self)
        self._thread.end_after(self._work)
        self._life.advance("start")

    def collect(self) -> None:
        """Let all streams end, whatever they hold, and wait for it.

        Raises:
            RuntimeError, ClosedError: See `wait`.
        """
        self._check_collectable()
        self.start(None)
        with self._without_bound():
            self.closed.wait()
        self._check_collected()

    def close(self) -> None:
        """Fail what is live, and wait until the source is closed and the thread has ended.

        Raises:
            BaseException: What the source raises when it is closed here.
        """
        if not self.forked:
            self.close_streams()
            if not self.runs_here:  # a source that closes its own batch
                self.closed.wait()
                self.join()
            self.raise_close_error()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended, if there was one."""
        if self._thread is not None:
            self._thread.join(timeout)

    @property
    def runs_here(self) -> bool:
        """Whether the calling code is the source's."""
        return self._thread is not None and self._thread.is_current

    # ---- in the thread

    def _work(self) -> None:
        """Do all that the pump does; the second time nothing."""
        self._life.advance("start")  # the thread that started this one may not have got to it
        self.run()

    def run(self) -> None:
        """Make every step, and close the source, in the calling thread."""
        fanout, hooks = self.fanout, self._hooks
        try:
            while live := self._prepare_step():
                if fanout.free_steps:  # for a plain step in every live stream, as is mostly known
                    fanout.free_steps -= 1
                elif full := self._without_room():
                    self._pause(full)
                    continue
                try:
                    step = self._source.advance(live)
                except StopIteration:
                    self._wake(fanout.hand_out(fanout.core.finish()))
                    continue
                self._wake(fanout.take(step, live))
                if hooks is not None:
                    hooks.after_step(live)
        except BaseException as error:  # noqa: BLE001 - goes to all streams: the thread has no caller
            self._fail(error)
        finally:
            self._end()

    def _pause(self, full: Sequence[Buffer[Any]]) -> None:
        waiter = Lock()
        waiter.acquire()
        try:
            if self._has_to_wait(full, partial(release, waiter)):
                seconds = self._pause_limit(LOOP_POLL_SECONDS if self._parking.loops else None)
                capped = -1 if seconds is None else min(seconds, threading.TIMEOUT_MAX)
                waiter.acquire(True, capped)  # noqa: FBT003
                self._look_around()
        finally:
            self._room.stop_asking(full)

    def _interrupt(self) -> None:
        """Do nothing: a source that is in a step comes back by itself, or never."""

    def _drop(self) -> None:
        if self._thread is None:
            self._end_in_caller()
        else:
            self._start()  # which makes no step

    def _end(self) -> None:
        for error in self._drain_and_close():
            report_unraisable(error)

    def _end_in_caller(self) -> None:
        """Do the same in the thread of a caller, in which an interrupt is meant.

        Raises:
            BaseException: One of `INTERRUPTS`.
        """
        report_or_raise(self._drain_and_close())

    def _drain_and_close(self) -> list[BaseException]:
        """End all streams and close the source, and return what has broken that off."""
        errors = self._drain_surely()
        failure: BaseException | None = None
        try:
            for _ in range(2):  # once more: an interrupt may strike before the source is closed
                try:
                    self._source.close()
                    break
                except INTERRUPTS as error:
                    if self._thread is None:
                        errors.append(error)
                    else:
                        failure = error
                except BaseException as error:  # noqa: BLE001 - raised by close, or reported
                    failure = error
            self._close(failure)
        except BaseException as error:  # noqa: BLE001 - of ours, out of memory perhaps
            errors.append(error)
        finally:
            running.discard(self)
            self.closed.set()
        return errors


class FirstStep(Generic[T]):
    """A source's first step, made in the thread that goes on with the source, to learn the size.

    Args:
        source: The source; closed in the thread if there is no core.
        rules: How slots end.
        max_outputs: Their limits.

    Attributes:
        thread: The thread.
    """

    def __init__(
        self,
        source: Source,
        rules: EndRules[T],
        max_outputs: int | Sequence[int | None] | None,
    ) -> None:
        self._source = source
        self._learn_core = partial(source.learn_core, rules, max_outputs)
        self.thread = WorkerThread()

    def core(self) -> Demultiplexer[T]:
        """Wait in a thread for the core that is as wide as the step.

        Raises:
            BaseException: See `Source.learn_core`.
        """
        try:
            return self.thread.call(self._learn_core).result()
        except BaseException:
            self.thread.end_after(self._source.close_quietly)
            raise

    async def acore(self) -> Demultiplexer[T]:
        """Do the same in an event loop."""
        try:
            return await result_of(self.thread.call(self._learn_core))
        except BaseException:
            self.thread.end_after(self._source.close_quietly)
            raise
