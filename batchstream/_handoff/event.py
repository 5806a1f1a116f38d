"""What is set once, and waited for in threads and in event loops."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream._eventloops.base import EventLoop
    from batchstream._handoff.parking import ParkingLot


class Event:
    """An event that happens once. Setting it takes no lock, so that a signal's handler may do it.

    Args:
        parking: Where its waiters are parked.

    Attributes:
        is_set: Whether it has happened.
    """

    __slots__ = ("_keys", "_parking", "is_set")

    def __init__(self, parking: ParkingLot) -> None:
        self.is_set = False
        self._parking = parking
        self._keys: list[_Wait] = []  # one for each waiter: a lot has one waiter for a key

    def set(self) -> None:
        """Make it happen, and wake all waiters; from any thread."""
        self.is_set = True  # first: a waiter that is not parked yet checks it behind the parking
        self._parking.wake(self._keys.copy())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait in a thread, for so many seconds at most, and return whether it has happened."""
        until = None if timeout is None else time.monotonic() + timeout
        key = _Wait(self)
        self._keys.append(key)
        try:
            while not self.is_set:
                if not self._parking.wait_in_thread(key, until):
                    break
        finally:
            self._keys.remove(key)
        return self.is_set

    async def wait_in_loop(
        self, loop: EventLoop, poll_after: Callable[[], float | None], poll: Callable[[], None]
    ) -> None:
        """Wait in an event loop; from within that loop.

        Args:
            loop: The loop.
            poll_after: Returns after how many seconds to poll, if ever.
            poll: Sets the event where no other code will: its event loop was closed, for example.
        """
        key, lot, waiter = _Wait(self), self._parking.in_loop(loop), loop.new_waiter()
        self._keys.append(key)
        try:
            while not self.is_set:
                lot.waiting[key] = waiter
                if not self.is_set:
                    await loop.wait(waiter, poll_after())
                    poll()
        finally:
            lot.waiting.pop(key, None)
            self._keys.remove(key)


class _Wait:
    """One waiter's key."""

    __slots__ = ("_event",)

    def __init__(self, event: Event) -> None:
        self._event = event

    @property
    def ready(self) -> bool:
        return self._event.is_set
