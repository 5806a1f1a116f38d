"""The core of batching: who joins which batch, and when. No clock, lock or thread.

Theory of operation
-------------------

Whoever waits is in one *group*, of which alone a batch is made, in the order of arrival. A group is
*ready* when it fills a batch already, or when one of those who would join has waited for others as
long as it should: for `batch_timeout`, or for half of the time that it may wait at all. Of several
ready groups the one with the oldest request goes first, so that none starves.

A shell calls `take` whenever a worker or a slot is free, and not before: what arrives meanwhile
makes the batch larger. If that gives nobody it waits until `wake_at`, or until a request arrives.

In continuous batching there is one group, no timeout, and `take` is asked for as many as there are
free slots, before each step.

Not safe for threads: a shell makes at most one call at a time. Groups are told apart by identity;
nothing of the caller's is compared, hashed or called.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from itertools import count, islice
from typing import TYPE_CHECKING, Final, Generic, Protocol

from typing_extensions import TypeVar

from batchstream._core.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import Iterable

_MANY: Final = 64  # entries, that need not be tidied up


class Ticket(Protocol):
    """What a request looks like while it waits.

    Attributes:
        group: With whom it may share a batch; told by identity.
        cost: What it takes of `max_batch_cost`.
        arrived: When it came.
        wait_until: Until when it may wait, if not for ever.
    """

    group: object
    cost: float
    arrived: float
    wait_until: float | None


TicketT = TypeVar("TicketT", bound=Ticket)


class Admission(Generic[TicketT]):
    """Decides, at times that the caller tells it, who joins a batch. Times are in seconds.

    Args:
        max_batch_size: How many requests a batch has at most.
        batch_timeout: For how long a request waits for others at most, while a worker is free.
        max_batch_cost: What the requests of a batch may cost together.
        max_pending: How many may wait.
    """

    def __init__(
        self,
        *,
        max_batch_size: int,
        batch_timeout: float = 0.0,
        max_batch_cost: float | None = None,
        max_pending: int,
    ) -> None:
        self._max_batch_size = max_batch_size
        self._batch_timeout = batch_timeout
        self._max_batch_cost = max_batch_cost
        self._max_pending = max_pending
        # In the order of arrival. Not a dict, whose first key is the farther the more were deleted.
        self._groups: dict[object, OrderedDict[TicketT, None]] = {}
        self._expiries: list[tuple[float, int, TicketT]] = []
        self._number = count()
        # Whoever waits is here; in its group it may be a moment earlier or later, if a signal's
        # exception comes between.
        self._all: set[TicketT] = set()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._all)

    @property
    def is_full(self) -> bool:
        """Whether as many requests wait as may, unless there is room for some of them."""
        return len(self._all) >= self._max_pending

    def submit(self, ticket: TicketT, *, room: int = 0) -> None:
        """Let a request wait. It has not arrived before any that came earlier.

        Args:
            ticket: The request.
            room: For how many there is room at once, who do not count as waiting.

        Raises:
            OverloadedError: As many as may wait do.
            ValueError: It costs more than a batch may, and would wait for ever.
        """
        if self._max_batch_cost is not None and ticket.cost > self._max_batch_cost:
            raise ValueError(
                f"the request costs {ticket.cost!r}, more than a batch may cost: "
                f"{self._max_batch_cost!r} (max_batch_cost)"
            )
        if self.waiting >= self._max_pending + room:
            raise OverloadedError(
                f"{self.waiting} requests are waiting, as many as may (max_pending)",
                pending=self.waiting,
                max_pending=self._max_pending,
            )
        self._all.add(ticket)
        self._groups.setdefault(ticket.group, OrderedDict())[ticket] = None
        if ticket.wait_until is not None:
            heappush(self._expiries, (ticket.wait_until, next(self._number), ticket))

    def waits(self, ticket: TicketT) -> bool:
        """Whether a request has neither joined a batch nor been taken out otherwise."""
        return ticket in self._all

    def has_waiting(self, group: object) -> bool:
        """Whether requests of this group wait."""
        return group in self._groups

    def withdraw(self, ticket: TicketT) -> bool:
        """Take a request out, and tell whether it was still waiting."""
        if not self.waits(ticket):
            return False
        self._remove((ticket,))
        return True

    def expire(self, now: float) -> list[TicketT]:
        """Take out those that have waited for as long as they may, the earliest first."""
        expired: list[TicketT] = []
        while self._expiries and self._expiries[0][0] <= now:
            ticket = heappop(self._expiries)[2]
            if self.waits(ticket):
                self._remove((ticket,))
                expired.append(ticket)
        return expired

    def take(self, now: float, *, slots: int, spent: float = 0.0) -> list[TicketT]:
        """Take out those that join a batch now; nobody, if it is better to wait, or nobody fits.

        Nobody jumps the queue: where the oldest does not fit, those behind it wait with it.

        Args:
            now: What time it is.
            slots: How many there is room for.
            spent: What those already in the batch cost.
        """
        ready = [group for group in self._groups if self._ready_at(group, slots, spent) <= now]
        if not ready or slots < 1:
            return []
        oldest = min(ready, key=self._arrival)
        joining = self._fitting(oldest, slots, spent)
        self._remove(joining)
        return joining

    def take_all(self) -> list[TicketT]:
        """Take out everybody, the oldest first."""
        tickets = sorted(self._all, key=lambda ticket: ticket.arrived)
        self._remove(tickets)
        return tickets

    def wake_at(self) -> float | None:
        """Return when `take` or `expire` will have somebody to give, if nobody else arrives.

        A time that has passed if a batch is ready; None if nobody waits.
        """
        times = [self._ready_at(group, self._max_batch_size, 0.0) for group in self._groups]
        while self._expiries and not self.waits(self._expiries[0][2]):
            heappop(self._expiries)
        if self._expiries:
            times.append(self._expiries[0][0])
        return min(times, default=None)

    def _arrival(self, group: object) -> float:
        return next(iter(self._groups[group])).arrived

    def _ready_at(self, group: object, slots: int, spent: float) -> float:
        """Return when nobody needs to wait for others any more: at once if a batch is full."""
        arrived = self._arrival(group)
        if not self._batch_timeout:
            return arrived
        fitting = self._fitting(group, slots, spent)
        if len(fitting) == slots or len(fitting) < len(self._groups[group]):
            return arrived
        return min(map(self._patient_until, fitting))

    def _patient_until(self, ticket: TicketT) -> float:
        until = ticket.arrived + self._batch_timeout
        if ticket.wait_until is not None:
            until = min(until, (ticket.arrived + ticket.wait_until) / 2)
        return until

    def _fitting(self, group: object, slots: int, spent: float) -> list[TicketT]:
        first = list(islice(self._groups[group], slots))
        if self._max_batch_cost is not None:
            for position, ticket in enumerate(first):
                spent += ticket.cost
                if spent > self._max_batch_cost:
                    return first[:position]
        return first

    def _remove(self, tickets: Iterable[TicketT]) -> None:
        for ticket in tickets:
            self._all.discard(ticket)
            group = self._groups.get(ticket.group)
            if group is not None:
                group.pop(ticket, None)
                if not group:
                    del self._groups[ticket.group]
        # What has joined may take long, and its entry would be kept until it had expired.
        if len(self._expiries) > 2 * self.waiting + _MANY:
            self._expiries = [entry for entry in self._expiries if self.waits(entry[2])]
            heapify(self._expiries)
