"""Where consumers wait for outputs, and how they are woken: in threads and in event loops.

Theory of operation
-------------------

Across threads go wake-ups, never values. A consumer that finds its buffer empty puts a *waiter*
into its *place* (that of all threads, or that of one event loop), by the buffer that it waits for,
looks once more, and waits. A pump adds to the buffers first, and then takes out of each place the
waiters of those it gave something to, to resume them with one call per place. Whichever comes
first, no wake-up is lost; one that is late or needless does no harm, because the woken consumer
looks at its buffer again.

The places belong to one batch, or to a batcher and all batches that it forms: who waits for a
request need not know whether it has joined a batch yet, or which.
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
    from batchstream._handoff.buffer import Buffer


PAUSE: Final = 0.5
"""After how long somebody looks whether an event loop was closed without a word, in seconds."""


class Resident(Protocol):
    """A consumer's end of a stream, which belongs to an event loop."""

    def _leave(self) -> None:
        """Give the stream up if it has not ended: its event loop was closed."""


class Ending(Protocol):
    """What comes to an end that can be waited for.

    Attributes:
        awaiting_end: The keys to be woken when it has.
    """

    awaiting_end: list[object]

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""

    def patience(self, buffer: None, loop: EventLoop, /) -> float | None:
        """Return after how many seconds whoever waits in this loop is to `look_after`, if ever."""

    def look_after(self, buffer: None, /) -> None:
        """Bring the end about if nobody else will."""


class Place:
    """Where consumers wait: all threads together, or one event loop.

    Args:
        resume: Lets waiters go on, from any thread.
        loop: The event loop, unless this is for threads.

    Attributes:
        waiting: The waiters, by what they wait for: a buffer, or an object of their own.
        failed: Waiters whose wake-up has failed.
        residents: Those that belong to the loop.
    """

    __slots__ = ("failed", "loop", "residents", "resume", "waiting")

    def __init__(self, resume: Callable[[list[Any]], None], loop: EventLoop | None = None) -> None:
        self.resume = resume
        self.loop = loop
        self.waiting: dict[object, Any] = {}
        self.failed: list[Any] = []
        self.residents: weakref.WeakSet[Resident] = weakref.WeakSet()

    def take(self, keys: Iterable[object]) -> list[Any]:
        """Take out who waits for one of the keys, or has failed; each waiter is taken once."""
        waiters = [*filter(None, map(self.waiting.pop, keys, repeat(None)))]
        if self.failed:
            failed, self.failed = self.failed, []
            waiters += failed
        return waiters


class Places:
    """All places of one batch, or of one batcher."""

    def __init__(self) -> None:
        self._threads = Place(_release_all)
        self._by_loop: dict[object, Place] = {}
        # Replaced and never changed, so that whoever goes through it misses nobody.
        self._all: tuple[Place, ...] = (self._threads,)
        self._adding = Lock()

    @property
    def loops(self) -> int:
        """In how many event loops consumers have waited."""
        return len(self._all) - 1

    # ---- from a consumer

    def in_loop(self, loop: EventLoop) -> Place:
        """Return where the consumers of a loop wait; from within that loop."""
        place = self._by_loop.get(loop.key)
        if place is None:
            self.leave_closed_loops()
            place = Place(loop.resume, loop)
            with self._adding:
                known = [it for it in self._by_loop.values() if it.loop and not it.loop.closed]
                self._all = (self._threads, *known, place)
                self._by_loop = {it.loop.key: it for it in self._all if it.loop}
        return place

    def wait_in_thread(self, buffer: Buffer[Any], until: float | None) -> bool:
        """Wait until the buffer may hold something, or its stream has ended.

        Returns:
            False if that time on the monotonic clock came first.
        """
        waiter = Lock()
        waiter.acquire()
        waiting = self._threads.waiting
        # Of a receive that this one interrupted, in a signal's handler; or left over, no matter.
        interrupted = waiting.get(buffer)
        waiting[buffer] = waiter
        try:
            return bool(buffer.buffered or buffer.ends) or _acquire(waiter, until)
        finally:
            waiting.pop(buffer, None)
            if interrupted is not None:
                waiting[buffer] = interrupted
                if buffer.buffered or buffer.ends:
                    self.wake((buffer,))

    async def wait_for_end(self, loop: EventLoop, ending: Ending) -> None:
        """Wait until something has ended; from within the loop."""
        key, place, waiter = object(), self.in_loop(loop), loop.new_waiter()
        ending.awaiting_end.append(key)
        try:
            while not ending.ended:
                place.waiting[key] = waiter
                if not ending.ended:
                    await loop.wait(waiter, ending.patience(None, loop))
                    ending.look_after(None)
        finally:
            place.waiting.pop(key, None)
            ending.awaiting_end.remove(key)

    # ---- from any thread

    def wake(self, keys: Sequence[object], here: object = None) -> None:
        """Let those go on that wait for one of the keys.

        Args:
            keys: What they wait for.
            here: The key of the event loop in a task of which this is called, if it is one.
        """
        for place in self._all:
            if (place.waiting or place.failed) and (waiters := place.take(keys)):
                loop = place.loop
                try:
                    if loop is not None and loop.key is here:
                        loop.resume_here(waiters)
                    else:
                        place.resume(waiters)
                except LoopClosedError:
                    self.leave(place)
                except BaseException:
                    place.failed.extend(waiters)  # for the next time
                    raise

    def leave(self, place: Place) -> None:
        """Give up the streams of an event loop that was closed."""
        place.waiting.clear()
        for resident in list(place.residents):
            resident._leave()  # noqa: SLF001 - no name of a stream that users see

    def leave_closed_loops(self) -> None:
        """Give up the streams of all loops that were closed."""
        for place in self._all:
            if place.loop is not None and place.loop.closed:
                self.leave(place)


def _acquire(waiter: Any, until: float | None) -> bool:
    if until is None:
        acquired: bool = waiter.acquire()
    else:
        seconds = min(max(until - time.monotonic(), 0), threading.TIMEOUT_MAX)
        acquired = waiter.acquire(True, seconds)  # noqa: FBT003 - quicker than by keyword
    return acquired


def _release_all(waiters: list[Any]) -> None:
    for waiter in waiters:
        waiter.release()
