"""Requests that end from outside: by their consumer, their deadline or the batcher that closes.

None of this takes the batcher's lock: a cancel may come from a signal's handler.

A thread that ends a request which has not joined a batch sets its end, and then checks whether it
has joined one since: `Ends._ended_outside`. A worker that lets it join sets its pump, and then
checks whether it has ended: `RequestBatch._seat`. So at least one of the two reaches the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

from typing_extensions import TypeVar

from batchstream._core.errors import call_quietly
from batchstream._core.records import FinishReason, StreamEnd

if TYPE_CHECKING:
    from batchstream._batching.engine import Model
    from batchstream._batching.requests.notice import AnyFlight, Notice
    from batchstream._batching.requests.request import Request
    from batchstream._handoff.parking import ParkingLot
    from batchstream._pumps.background import BackgroundPump

T = TypeVar("T")


class Ends(Generic[T]):
    """Ends requests wherever they are, and wakes what waits for ends and for room.

    Args:
        parking: Where consumers wait.
        model: What all batches share, if they share anything: an engine, whose step may wait.

    Attributes:
        room_waiters: What is to be woken by room in the queue, in the order in which it came:
            flights with a request for which there was none, and other callers. See `room.py`.
        closers: What is to be woken when the last request has ended, in a drain. See `closing.py`.
    """

    def __init__(self, parking: ParkingLot, model: Model | None = None) -> None:
        self._parking = parking
        self._model = model
        self.room_waiters: dict[AnyFlight[T], None] = {}
        self.closers: dict[Notice, None] = {}

    def cancel(self, request: Request[T]) -> None:
        """Cancel a request, wherever it is."""
        while True:
            pump = request.pump  # in a local: it is reset when the request is reaped
            if pump is not None:
                pump.cancel(request)
            elif request.ends:
                request.shut()
                return
            else:
                request.cancel(StreamEnd(FinishReason.CANCELLED, request.given_before))
            if request.ends:  # or else its slot was given back meanwhile
                break
        if pump is None or request.pump is not pump:
            self._ended_outside(request, pump)

    def fail(self, request: Request[T], error: BaseException) -> None:
        """Fail a request, wherever it is."""
        while True:
            pump = request.pump
            if pump is not None:
                pump.fail_stream(request, error)
            else:
                request.finish(StreamEnd(FinishReason.ERROR, request.given_before, error=error))
            if request.ends:  # or else its slot was given back meanwhile
                break
        if pump is None or request.pump is not pump:
            self._ended_outside(request, pump)

    def _ended_outside(self, request: Request[T], pump: BackgroundPump[T] | None) -> None:
        """Follow up the end of a request that was set outside of any batch, or by way of this one.

        Wake its consumer, unless the batch has.
        """
        if pump is None:
            self._parking.wake((request,))
        if self.room_waiters:  # with the lock they see that it waits no longer
            self.tell_of_room()
        if self.closers:
            self.tell_closers()
        # Behind the end: it may have joined a batch meanwhile, which then has to know.
        joined = request.pump
        if joined is not None and joined is not pump:
            joined.depart(request)
        if pump is None:
            self.wake_model()  # others may have waited behind it; last, as it is code of the user's

    def wake_model(self) -> None:
        """Let a step return that waits for something, so that the batch looks at the queue."""
        # Read once: the batch may end meanwhile.
        if self._model is not None and (wake := self._model.waker) is not None:
            call_quietly(wake, "wake() of the engine")

    def tell_of_room(self) -> None:
        """Wake what waits for room, up to the first waiter that wakes the next itself.

        A waiter is passed over while its own tenant's bound holds it up.
        """
        for waiter in list(self.room_waiters):
            if waiter.is_held_up():
                continue
            waiter.note_room()
            if waiter.passes_on:
                return

    def tell_closers(self) -> None:
        """Let callers that wait for the end of a drain look whether it has come."""
        for closer in list(self.closers):
            closer.wake()
