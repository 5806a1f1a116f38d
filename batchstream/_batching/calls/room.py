"""Callers that wait until the queue has room, one behind the other.

Theory of operation
-------------------

`Ends.room_waiters` has all that wait for room, in the order in which they came: the flights
that hold a request back, and the turns below. When there may be room, they are woken in this order,
up to and including the first turn. That one looks, with the lock, whether there is room; if so it
leaves, and as it leaves wakes the next. So of a thousand callers one is woken for each place, and
none waits for ever behind one that was woken and left without submitting anything. A flight is not
waited for in this way: its consumer may be busy with a reply.

A turn that names its request waits for room for that one. If its tenant has as many requests
waiting as it may, it is in no other's way: it is passed over by wake-ups and by the turns behind
it, until one of these requests has left. It may be held up again before it has looked: then it
passes the wake-up on.
"""

from __future__ import annotations

import enum
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, Literal

from batchstream._batching import clock
from batchstream._batching.requests.notice import Notice
from batchstream._batching.waiting.queue import cost_error
from batchstream._batching.waiting.step_budget import check_first_step
from batchstream._core.arguments import check_number, check_seconds
from batchstream._eventloops.current import current_loop

if TYPE_CHECKING:
    from batchstream._batching.calls.upstream import RequestUpstream
    from batchstream._batching.dispatching.dispatcher import Dispatcher
    from batchstream._batching.waiting.places import Place


class AnyRequest(enum.Enum):
    """Stands for no request in particular."""

    ANY_REQUEST = "any request"

    def __repr__(self) -> str:
        return self.name


ANY_REQUEST: Final[Literal[AnyRequest.ANY_REQUEST]] = AnyRequest.ANY_REQUEST


class _Turn:
    """One caller that waits.

    Args:
        dispatcher: Whose queue has to have room.
        timeout: For how many seconds to wait; None for any time.
        cost: For a request of which cost there has to be room.
        request: For which request, if there is a certain one; its cost and tenant are asked for.

    Raises:
        TypeError, ValueError: The timeout is no duration, or the cost no number; or both a cost and
            a request are given.
        CostError: A batch, or the first step of the request, may not cost as much, and there is
            never room.
        ForkedError: The batcher had requests when this process was forked.
        Exception: What the batcher's functions of a request raise.

    Attributes:
        until: Until when.
        notice: Wakes it.
    """

    def __init__(
        self, dispatcher: Dispatcher[Any], timeout: float | None, cost: float, request: Any
    ) -> None:
        seconds = None if timeout is None else check_seconds("timeout", timeout)
        dispatcher.check_not_forked()
        self._dispatcher = dispatcher
        self._timeout = timeout
        self._cost = check_number("cost", cost)
        self._step_cost = 0.0
        self._place: Place | None = None
        options = dispatcher.options
        if request is not ANY_REQUEST:
            if self._cost:
                raise TypeError(
                    f"wait_for_room takes a request or a cost, got both, and {cost!r} as cost: "
                    f"leave cost out, it is asked for the request"
                )
            self._cost = options.cost_of(request) if options.has_cost else 1.0
            if options.step_cost is not None:
                self._step_cost = options.first_step_of(request)
            if options.places is not None and options.places.tenant is not None:
                self._place = options.places.place_of(request)
        self._check_cost()
        self.until = None if seconds is None else clock.monotonic() + seconds
        self.notice = Notice(dispatcher.parking, passes_on=True, is_held_up=self._is_held_up)

    def _check_cost(self) -> None:
        limits = self._dispatcher.options.limits.now
        most = limits.max_batch_cost
        if most is not None and self._cost > most:
            raise cost_error(self._cost, most)
        check_first_step(self._step_cost, limits.max_step_cost)

    def _is_held_up(self) -> bool:
        """Whether as many requests of its tenant wait as may; from any thread, without the lock."""
        place = self._place
        return place is not None and self._dispatcher.scheduler.has_most_of(place.account)

    def has_come(self) -> bool:
        """Whether there is room, and no other waits for it.

        Raises:
            ClosedError: The batcher accepts no request any more.
            CostError: A batch, or a step, may not cost as much any more.
            TimeoutError: The time is over.
        """
        self.notice.ready = False
        self._check_cost()
        is_there = has_room(self._dispatcher, self._cost, self._place)
        waiters = list(self._dispatcher.ends.room_waiters)
        ahead = takewhile(lambda it: it is not self.notice, waiters)
        if is_there and all(it.is_held_up() or not it.passes_on for it in ahead):
            return True
        if self.until is not None and self.until <= clock.monotonic():
            raise TimeoutError(
                f"the batcher had no room for another request within {self._timeout} seconds "
                f"(timeout): refuse the caller's own client, or wait for longer"
            )
        if not is_there and self._is_held_up():
            self._dispatcher.ends.tell_of_room()  # to the next turn that is not
        return False


def has_room(dispatcher: Dispatcher[Any], cost: float, place: Place | None = None) -> bool:
    """Whether a request of this cost, with this place, would not be refused at the moment.

    Raises:
        ClosedError: It would be, as the batcher was closed or is draining.
    """
    while True:
        tenants = None if place is None else dispatcher.keys.intern_tenant(place)
        with dispatcher.lock:
            if not dispatcher.keys.are_current(None, tenants):
                continue
            now = clock.monotonic()
            reaped = dispatcher.scheduler.reap(now)
            accepts = dispatcher.scheduler.state == "accepting"
            refusal = None if accepts else dispatcher.scheduler.refusal()
            has_room = dispatcher.scheduler.has_room(cost, None if place is None else place.account)
        break
    dispatcher.follow_up(reaped, now)
    if refusal is not None:
        raise refusal
    return has_room


def wait_for_room(
    upstream: RequestUpstream[Any], timeout: float | None, cost: float, request: Any
) -> None:
    """Wait in a thread until a request would not be refused."""
    turn = _Turn(upstream.dispatcher, timeout, cost, request)
    waiters, notice = upstream.dispatcher.ends.room_waiters, turn.notice
    waiters[notice] = None  # not in a `with`: its calls may be broken off by a signal's exception
    try:
        while not turn.has_come():
            upstream.wait_for_any(notice, turn.until)
    finally:
        del waiters[notice]
        upstream.dispatcher.ends.tell_of_room()


async def wait_for_room_in_loop(
    upstream: RequestUpstream[Any],
    timeout: float | None,  # noqa: ASYNC109 - as in a thread
    cost: float,
    request: Any,
) -> None:
    """Do the same in an event loop."""
    loop = current_loop()
    await loop.checkpoint()
    turn = _Turn(upstream.dispatcher, timeout, cost, request)
    waiters, notice = upstream.dispatcher.ends.room_waiters, turn.notice
    waiters[notice] = None
    try:
        while not turn.has_come():
            await upstream.wait_for_any_in_loop(notice, loop, turn.until)
    finally:
        del waiters[notice]
        upstream.dispatcher.ends.tell_of_room()
