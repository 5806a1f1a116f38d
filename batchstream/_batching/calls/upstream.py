"""What a consumer asks of a batcher: the upstream of a request's stream.

A consumer waits in a parking lot that all batches of the batcher share, so it need not know where
its request is. None of this takes the batcher's lock.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Generic

from typing_extensions import TypeVar

from batchstream._batching import clock
from batchstream._core.errors import warn_user
from batchstream._eventloops.current import loop_if_any
from batchstream._handoff.parking import earliest
from batchstream._pumps.process import forkable

if TYPE_CHECKING:
    from batchstream._batching.dispatching.dispatcher import Dispatcher
    from batchstream._batching.requests.notice import AnyFlight
    from batchstream._batching.requests.request import Request
    from batchstream._eventloops.base import EventLoop
    from batchstream._handoff.parking import Lot

T = TypeVar("T")


class RequestUpstream(Generic[T]):
    """The upstream of all streams of one batcher; see `_handoff/upstream.py`.

    It refers to the dispatcher, and the dispatcher not to it, so that both are freed at once with
    the last stream.

    Args:
        dispatcher: The batcher's requests and workers.

    Attributes:
        dispatcher: The same.
        consumers: Which thread waits for which buffer.
        times_out: Whether a receive can have a timeout.
    """

    times_out = True

    def __init__(self, dispatcher: Dispatcher[T]) -> None:
        self.dispatcher = dispatcher
        self.consumers: dict[Request[T], int] = {}
        self._has_warned = False  # see `_warn_if_a_loop_stops`
        forkable.add(self)

    def after_fork(self) -> None:
        """Forget the consumers in other threads, which are not in this process."""
        self.consumers = {}

    def cancel(self, request: Request[T]) -> None:
        """Cancel a request, wherever it is."""
        if not self.dispatcher.forked:
            self.dispatcher.ends.cancel(request)

    def waits_for(self, request: Request[T]) -> bool:
        """Whether the batch of a request waits until its stream is read."""
        pump = request.pump
        return pump is not None and pump.waits_for(request)

    def given(self, request: Request[T]) -> int:
        """How many outputs a request was given."""
        pump = request.pump  # in a local: it is reset when the request is reaped, behind its end
        if pump is not None:
            return pump.given(request)
        end = request.end
        return request.given_before if end is None else end.outputs

    def wait(self, request: Request[T], deadline: float | None) -> None:
        """Wait until the buffer may hold something, or its stream has ended.

        Raises:
            TimeoutError: The deadline has passed.
            RuntimeError, ForkedError: See `Dispatcher.check_waitable`.
        """
        self.dispatcher.check_waitable(None)
        self._warn_if_a_loop_stops()
        poll_after = self.poll_after(request, None)
        poll_at = None if poll_after is None else clock.monotonic() + poll_after
        if self.dispatcher.parking.wait_in_thread(request, earliest(poll_at, deadline)):
            return
        self.poll(request)
        if deadline is not None and deadline <= clock.monotonic():
            raise TimeoutError("no output came within the timeout; the stream is unchanged")

    def wait_for_any(self, flight: AnyFlight[T], deadline: float | None = None) -> None:
        """Wait in a thread until a request of a flight has ended, or there may be room.

        Args:
            flight: The flight; or a notice, until it is woken.
            deadline: Until when at most.

        Raises:
            RuntimeError, ClosedError: See `Dispatcher.check_waitable`.
        """
        self.dispatcher.check_waitable(None)
        self._warn_if_a_loop_stops()
        seconds = self._poll_any_after(flight, None)
        until = None if seconds is None else clock.monotonic() + seconds
        if not self.dispatcher.parking.wait_in_thread(flight, earliest(until, deadline)):
            self._poll_any(flight)

    async def wait_for_any_in_loop(
        self, flight: AnyFlight[T], loop: EventLoop, deadline: float | None = None
    ) -> None:
        """Do the same in an event loop; from within the loop."""
        self.dispatcher.check_waitable(loop)
        lot, waiter = self.dispatcher.parking.in_loop(loop), loop.new_waiter()
        lot.streams.add(flight)
        lot.waiting[flight] = waiter
        try:
            if not flight.ready:  # once more: what came before the parking wakes no waiter
                seconds = self._poll_any_after(flight, loop)
                if deadline is not None:
                    seconds = earliest(seconds, max(deadline - clock.monotonic(), 0.0))
                await loop.wait(waiter, seconds)
        finally:
            lot.waiting.pop(flight, None)
        if not flight.ready:
            self._poll_any(flight)

    def _poll_any_after(self, flight: AnyFlight[T], loop: EventLoop | None) -> float | None:
        requests: list[Request[T] | None] = [None, *flight.live]
        return earliest(*[self.poll_after(request, loop) for request in requests])

    def _poll_any(self, flight: AnyFlight[T]) -> None:
        requests: list[Request[T] | None] = [None, *flight.live]
        for request in requests:
            self.poll(request)

    def attach(self, request: Request[T], loop: EventLoop) -> Lot:
        """Return the lot in which the consumers of a loop wait; from within that loop.

        Raises:
            RuntimeError, ForkedError: See `Dispatcher.check_waitable`.
        """
        del request
        self.dispatcher.check_waitable(loop)
        return self.dispatcher.parking.in_loop(loop)

    def _warn_if_a_loop_stops(self) -> None:
        """Warn once of a wait in a thread whose event loop cannot go on meanwhile."""
        # In a notebook every cell runs in an event loop, and what it waits for is all there is. The
        # package alone may be imported by a program that starts notebooks.
        if self._has_warned or "ipykernel.kernelapp" in sys.modules or loop_if_any() is None:
            return
        self._has_warned = True
        warn_user(
            "a stream or result of a batcher is waited for in a thread whose event loop stands "
            "still meanwhile, so that no other request comes and no batch fills: use astream, "
            "acall or amap there, or wait in another thread"
        )

    def poll_after(self, request: Request[T] | None, loop: EventLoop | None) -> float | None:
        """Return after how many seconds a consumer that waits in this loop or a thread polls."""
        seconds = None
        if request is not None and request.deadlines is not None:
            seconds = request.look_after(clock.monotonic())
        dispatcher = self.dispatcher
        return dispatcher.poll_after(seconds, loop) if dispatcher.needs_loop else seconds

    def poll(self, request: Request[T] | None = None) -> None:
        """Fail a request whose deadline has passed, even if its worker is in a long step."""
        self.dispatcher.poll()
        if request is not None:
            error = request.deadline_error(clock.monotonic())
            if error is not None:
                self.dispatcher.ends.fail(request, error)

    async def wait_closed_if_idle(self, loop: EventLoop) -> None:
        """Wait for nothing: other requests keep the model busy."""
