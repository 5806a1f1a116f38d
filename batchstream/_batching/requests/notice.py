"""How waiters of a batcher are woken, as something may have changed for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import TypeVar

from batchstream._handoff.parking import LoopBound

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream._batching.requests.request import Request
    from batchstream._handoff.parking import ParkingLot

T = TypeVar("T")


class AnyFlight(LoopBound, Protocol[T]):
    """What a batcher needs of a `Flight`, the requests of one `map`; or of a `Notice`.

    Attributes:
        ready: Whether there is something to do for a consumer that waits.
        live: The requests that have not ended.
        passes_on: Whether it wakes the next itself, as it leaves. See `room.py`.
        is_held_up: Whether room is of no use to it now, for its tenant has as many as it may.
    """

    passes_on: bool

    def is_held_up(self) -> bool: ...
    @property
    def ready(self) -> bool: ...
    @property
    def live(self) -> list[Request[T]]: ...
    def note_room(self) -> None:
        """Take note that the queue has room again, and wake the consumer."""


class Notice:
    """What one thread or task waits for, again and again, to look then at what has changed.

    It clears `ready`, looks, and waits: so what comes after the look is not missed.

    Args:
        parking: Where the waiter is parked.
        passes_on: See `AnyFlight`.
        is_held_up: See there, too.

    Attributes:
        ready: Whether it was woken since it looked last.
        live: No requests: what it waits for are other clients' requests.
        passes_on: The same.
        is_held_up: The same.
    """

    __slots__ = ("__weakref__", "_parking", "is_held_up", "live", "passes_on", "ready")

    def __init__(
        self,
        parking: ParkingLot,
        *,
        passes_on: bool = False,
        is_held_up: Callable[[], bool] = bool,
    ) -> None:
        self._parking = parking
        self.ready = False
        self.live: list[Any] = []
        self.passes_on = passes_on
        self.is_held_up = is_held_up

    def wake(self) -> None:
        """Wake the waiter; from any thread, in a signal's handler or a finalizer too."""
        self.ready = True
        self._parking.wake((self,))

    note_room = wake

    def _cancel_with_loop(self) -> None:
        """Do nothing: the waiter's task was gone with its event loop."""
