"""What may wait besides `max_pending` requests: what they may cost, and how many one tenant has."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Generic

from typing_extensions import TypeVar

from batchstream._batching.waiting.fair_order import Placed
from batchstream._core.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from batchstream._batching.waiting.fair_order import FairOrder
    from batchstream._batching.waiting.limits import LimitsInForce

RequestT = TypeVar("RequestT", bound=Placed)


class PendingBounds(Generic[RequestT]):
    """The bounds, and what the requests that wait cost.

    What they cost is a running sum, which an exception may break off between two lines. So a change
    is announced first: one that was announced and not done has the sum made anew.

    Args:
        waiting: The requests that wait, the oldest first: the queue's own.
        limits: What they may cost together, and how many of one tenant may wait; either may be
            None, for no bound.
        order: What knows the tenants.
    """

    def __init__(
        self,
        waiting: Collection[RequestT],
        *,
        limits: LimitsInForce,
        order: FairOrder[RequestT] | None,
    ) -> None:
        self._waiting = waiting
        self._limits = limits
        self._order = order
        self._cost = 0.0
        self._announced = 1  # some may wait already

    def check(self, request: RequestT, room: Callable[[], int]) -> None:
        """Check whether a request may wait, too.

        Args:
            request: The request.
            room: Returns how many requests could join at once, and do not count as waiting.

        Raises:
            OverloadedError: It may not.
        """
        self._check_cost(request.cost, room)
        place = request.place
        self._check_tenant(None if place is None else place.account, room)

    def has_room(self, cost: float, account: object, room: Callable[[], int]) -> bool:
        """Whether a request would not be refused for its cost, or its tenant.

        Args:
            cost: What it costs.
            account: What stands for its tenant; None for any tenant with room.
            room: As in `check`.
        """
        try:
            self._check_cost(cost, room)
            if account is not None:
                self._check_tenant(account, room)
        except OverloadedError:
            return False
        return True

    def has_most_of(self, account: object, but: int, room: Callable[[], int]) -> bool:
        """Whether as many requests of a tenant wait as may; without the lock.

        Args:
            account: What stands for the tenant.
            but: How many of its waiting requests are not to be counted.
            room: As in `check`.
        """
        most = self._limits.now.max_pending_per_tenant
        return most is not None and self._pending_of(account, but, most, room) >= most

    def _pending_of(self, account: object, but: int, most: int, room: Callable[[], int]) -> int:
        """Return how many requests of a tenant wait, and could not join at once."""
        if self._order is None:
            return 0
        pending = self._order.waiting_of(account) - but
        if pending >= most:
            pending = min(pending, len(self._waiting) - but - room())
        return pending

    def _check_tenant(self, account: object, room: Callable[[], int]) -> None:
        most = self._limits.now.max_pending_per_tenant
        if most is None:
            return
        if (pending := self._pending_of(account, 0, most, room)) >= most:
            raise OverloadedError(
                f"{pending} requests of its tenant are waiting, and no more than "
                f"{most} of one tenant may (max_pending_per_tenant): submit "
                f"the request again when some of them have joined a batch",
                pending=pending,
                max_pending=most,
                reason="tenant",
            )

    def _check_cost(self, cost: float, room: Callable[[], int]) -> None:
        max_cost = self._limits.now.max_pending_cost
        if max_cost is None:
            return
        if not self._waiting or self._announced:
            self._announced = 0
            self._cost = sum(each.cost for each in tuple(self._waiting))
        pending_cost = self._cost
        if pending_cost + cost <= max_cost:
            return
        free = room()
        if len(self._waiting) < free:
            return
        pending_cost -= sum(each.cost for each in tuple(islice(self._waiting, free)))
        if pending_cost + cost > max_cost:
            raise OverloadedError(
                f"requests that cost {pending_cost!r} are waiting, and with this one, of "
                f"{cost!r}, they would cost more than {max_cost!r} (max_pending_cost): submit the "
                f"request again when some have joined a batch",
                pending=len(self._waiting) - free,
                max_pending=self._limits.now.max_pending,
                reason="pending_cost",
                pending_cost=pending_cost,
                max_pending_cost=max_cost,
            )

    def announce(self) -> None:
        """Announce that a request is about to be added or taken out."""
        self._announced += 1

    def count(self, cost: float) -> None:
        """Count what a request costs that was added; or less than nothing, if it was taken out."""
        self._cost += cost
        self._announced -= 1
