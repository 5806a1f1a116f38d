"""The pump in a thread of its own, and how threads wait for it."""

from __future__ import annotations

import threading
from operator import length_hint, methodcaller
from threading import Lock
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._core.errors import INTERRUPTS, report_unraisable
from batchstream._handoff.buffer import GATE, NOWHERE
from batchstream._handoff.parking import PAUSE
from batchstream._pumps.background import RunningPump
from batchstream._pumps.process import running
from batchstream._pumps.worker_thread import WorkerThread

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchstream._core.arguments import OnOverflow
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._core.records import Delivery
    from batchstream._eventloops.base import EventLoop
    from batchstream._handoff.buffer import Buffer
    from batchstream._handoff.parking import Places
    from batchstream._pumps.source import SyncSource

R = TypeVar("R")
T = TypeVar("T")


class ThreadPump(RunningPump[T]):
    """A pump that a thread moves, for consumers in threads and event loops alike.

    Args:
        source: Advanced and closed in that thread alone, if it is ever advanced.
        core: Tells what a step gives to whom.
        max_buffered: How many outputs a live stream may hold.
        on_overflow: Whether the pump waits for one that holds so many, or ends it.
        worker: The thread, where the source's first step was made in it already.
        places: Where its consumers wait, if not in places of its own.
        buffers: One for each slot, where they were made before.
    """

    def __init__(
        self,
        source: SyncSource,
        core: Demultiplexer[T],
        *,
        max_buffered: int,
        on_overflow: OnOverflow,
        worker: WorkerThread | None = None,
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
        self._worker = worker
        self._ending = threading.Event()
        if not core.size:
            self._after_departure()

    # ---- from a consumer

    def check_timeouts(self) -> None:
        """Allow them: nobody waits for the source in the consumer's own thread."""

    def pull(self, buffer: Buffer[Any], moves: int, deadline: float | None) -> None:
        """Wait until the buffer holds something, or its stream has ended.

        Raises:
            TimeoutError: The deadline has passed.
            RuntimeError: The batch is read by the other view, or its source waits for itself.
            ClosedError: This is a fork of the process that opened the batch.
        """
        del moves  # the buffer itself tells whether something was missed
        self.read_by("by time" if buffer is self.steps else "by slot")
        self.begin(None)
        if not self._places.wait_in_thread(buffer, deadline):
            raise TimeoutError("no output came within the timeout; the stream is unchanged")

    def pull_by_time(self) -> Delivery[T] | None:
        """Return what the next step gives to whom, or None after the last."""
        buffer, nowhere = self.steps, NOWHERE
        while True:
            ended = bool(buffer.ends)  # before the deliveries are looked at
            deliveries, gate = buffer.first_unread()
            received = GATE - length_hint(gate)
            if received < len(deliveries):
                delivery = deliveries[received]
                for _ in gate:  # as in an inlet: no call from here on
                    watches, telling = buffer.watches, buffer.telling
                    if telling is not None:
                        nowhere += telling
                    buffer.told = watches
                    return delivery
            if ended:
                self.check_view("by time")
                buffer.conclude()
                return None
            self.pull(buffer, self.moves, None)

    def begin(self, loop: EventLoop | None) -> None:
        """Start the thread, if nobody has, wherever the first consumer is."""
        del loop
        self._refuse_to_wait_for_itself()
        if self._begun.acquire(False):  # noqa: FBT003 - by keyword it takes four times as long
            try:
                self._worker = self._worker or WorkerThread()
            except BaseException as error:
                self._break_off(error)
                self._close_source()
                if isinstance(error, INTERRUPTS):
                    raise
            else:
                running.add(self)
                self._worker.end_after(self.run)

    def close(self) -> None:
        """Cancel what is live, and wait until the source is closed and the thread has ended.

        Raises:
            BaseException: What the source raises when it is closed here.
        """
        if not self.forked:
            self.request_close()
            if not self._runs_here:  # a source that closes its own batch
                self._ending.wait()
                self.join()
            self.raise_close_error()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended, if there was one."""
        if self._worker is not None:
            self._worker.join(timeout)

    @property
    def _runs_here(self) -> bool:
        return self._worker is not None and self._worker.is_current

    # ---- the thread

    def run(self) -> None:
        """Make every step, and close the source, in the calling thread."""
        try:
            while self._goes_on():
                if full := self._without_room():
                    self._pause(full)
                    continue
                live = self._core.live
                try:
                    step = self._source.advance(live)
                except StopIteration:
                    self._finish()
                else:
                    self._give(step, live)
        except BaseException as error:  # noqa: BLE001 - told to all streams; nobody else is here
            self._break_off(error)
        finally:
            self._close_source()

    def _pause(self, full: Sequence[Buffer[Any]]) -> None:
        waiter = Lock()
        waiter.acquire()
        try:
            if self._has_to_wait(full, waiter):
                seconds = self._patience_in_pause(PAUSE if self._places.loops else None)
                capped = -1 if seconds is None else min(seconds, threading.TIMEOUT_MAX)
                waiter.acquire(True, capped)  # noqa: FBT003
                self._places.leave_closed_loops()
        finally:
            self._go_on_from(full)

    _unpark = staticmethod(methodcaller("release"))

    def _interrupt(self) -> None:
        """Do nothing: a source that is in a step comes back by itself, or never."""

    def _end_unbegun(self) -> None:
        if self._worker is None:
            self._close_source()
        else:
            self._worker.end_after(self._close_source)

    def _close_source(self) -> None:
        failure = None
        try:
            self._end()
            try:
                self._source.close()
            except BaseException as error:  # noqa: BLE001 - handed on
                failure = error
            self._closed(failure)
        except BaseException as error:  # noqa: BLE001 - of ours, out of memory perhaps
            report_unraisable(error)
        finally:
            self.ended = True
            running.discard(self)
            self._ending.set()
