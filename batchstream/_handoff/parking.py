"""Where consumers wait for outputs, and how they are woken: in threads and in event loops.

Theory of operation
-------------------

Across threads go wake-ups, never values. A consumer that finds its buffer empty parks a *waiter* in
its *lot* (that of all threads, or that of one event loop) under its buffer as a key, checks the
buffer once more, and waits. A pump adds to the buffers first; then it takes the waiters of these
buffers out of each lot and resumes them, with one call per lot. Whichever comes first, no wake-up
is lost. A late or needless one does no harm: the woken consumer checks its buffer again.

A parking lot belongs to one batch, or to a batcher and all batches that it forms: a consumer need
not know whether its request has joined a batch yet, or which.
"""

from __future__ import annotations

import threading
import time
import weakref
from itertools import repeat
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Protocol

from batchstream._eventloops.base import LoopClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from batchstream._eventloops.base import EventLoop


LOOP_POLL_SECONDS: Final = 0.5
"""How often a waiter in another loop or thread checks whether an event loop was closed silently."""


class Waitable(Protocol):
    """What a thread waits for."""

    @property
    def ready(self) -> bool:
        """Whether it has come."""


class LoopBound(Protocol):
    """A stream that belongs to an event loop."""

    def _cancel_with_loop(self) -> None:
        """Cancel the stream if it has not ended: its event loop was closed."""


class Lot:
    """Where waiters are parked: the waiters of all threads, or of one event loop.

    Args:
        resume: Resumes waiters, from any thread.
        loop: The event loop, unless this is for threads.

    Attributes:
        waiting: The waiters, by their key: a buffer, or an object of their own.
        failed: Waiters whose wake-up has failed.
        streams: The streams that belong to the loop.
    """

    __slots__ = ("failed", "loop", "resume", "streams", "waiting")

    def __init__(self, resume: Callable[[list[Any]], None], loop: EventLoop | None = None) -> None:
        self.resume = resume
        self.loop = loop
        self.waiting: dict[object, Any] = {}
        self.failed: list[Any] = []
        self.streams: weakref.WeakSet[LoopBound] = weakref.WeakSet()


class ParkingLot:
    """All lots of one batch, or of one batcher."""

    def __init__(self) -> None:
        self._threads = Lot(_release_all)
        self._by_loop: dict[object, Lot] = {}
        # Replaced and never changed: a thread that iterates over it misses no lot.
        self._all: tuple[Lot, ...] = (self._threads,)
        self._adding = Lock()

    @property
    def loops(self) -> int:
        """In how many event loops consumers have waited."""
        return len(self._all) - 1

    # ---- from a consumer

    def in_loop(self, loop: EventLoop) -> Lot:
        """Return the lot of an event loop; from within that loop."""
        lot = self._by_loop.get(loop.key)
        if lot is None:
            self.cancel_closed_loops()
            lot = Lot(loop.resume, loop)
            with self._adding:
                known = [it for it in self._by_loop.values() if it.loop and not it.loop.closed]
                self._all = (self._threads, *known, lot)
                self._by_loop = {it.loop.key: it for it in self._all if it.loop}
        return lot

    def wait_in_thread(self, key: Waitable, until: float | None) -> bool:
        """Wait until the key is woken or ready.

        Args:
            key: What is waited for.
            until: For how long at most, on the monotonic clock; None for ever.

        Returns:
            False if that time came first.
        """
        waiter = Lock()
        waiter.acquire()
        waiting = self._threads.waiting
        # Parked by a receive that this one interrupted, in a signal's handler.
        interrupted = waiting.get(key)
        waiting[key] = waiter
        try:
            # Checked behind the parking: what came before that wakes no waiter.
            return key.ready or _acquire(waiter, until)
        finally:
            waiting.pop(key, None)
            if interrupted is not None:
                waiting[key] = interrupted
                if key.ready:
                    self.wake((key,))

    # ---- from any thread

    def waited_for(self) -> list[object]:
        """Return the keys that consumers wait for at the moment."""
        return [key for lot in self._all for key in list(lot.waiting)]

    def wake(self, keys: Sequence[object], here: object = None) -> None:
        """Resume the waiters that are parked under one of the keys, each once.

        Args:
            keys: What they wait for.
            here: The key of the event loop in a task of which this is called, if it is one.
        """
        for lot in self._all:
            if not (lot.waiting or lot.failed):
                continue
            waiters = [*filter(None, map(lot.waiting.pop, keys, repeat(None)))]
            if lot.failed:
                failed, lot.failed = lot.failed, []
                waiters += failed
            if waiters:
                loop = lot.loop
                try:
                    if loop is not None and loop.key is here:
                        loop.resume_here(waiters)
                    else:
                        lot.resume(waiters)
                except LoopClosedError:
                    self._cancel_streams_of(lot)
                except BaseException:
                    lot.failed.extend(waiters)  # for the next time
                    raise

    def cancel_closed_loops(self) -> None:
        """Cancel the streams of all event loops that were closed."""
        for lot in self._all:
            if lot.loop is not None and lot.loop.closed:
                self._cancel_streams_of(lot)

    def _cancel_streams_of(self, lot: Lot) -> None:
        lot.waiting.clear()
        for stream in list(lot.streams):
            stream._cancel_with_loop()  # noqa: SLF001 - no name of a stream that users see


def earliest(*times: float | None) -> float | None:
    """Return the least of the times that are given; None if none is."""
    return min((time for time in times if time is not None), default=None)


def _acquire(waiter: Any, until: float | None) -> bool:
    if until is None:
        acquired: bool = waiter.acquire()
    else:
        seconds = min(max(until - time.monotonic(), 0), threading.TIMEOUT_MAX)
        acquired = waiter.acquire(True, seconds)  # noqa: FBT003 - quicker than by keyword
    return acquired


def release(waiter: Any) -> None:
    """Resume a thread that waits in a lock; harmless if it was resumed already."""
    try:
        waiter.release()
    except RuntimeError:  # it is not locked any more
        pass


def _release_all(waiters: Iterable[Any]) -> None:
    for waiter in waiters:
        waiter.release()
