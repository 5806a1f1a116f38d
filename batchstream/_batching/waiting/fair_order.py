"""Which of the requests that wait is next: bands, and in each the tenants by their shares.

Theory of operation
-------------------

The order of a queue whose batcher has a `priority` or a `tenant`. Without both there is one tenant
in one band, whose requests go in the order of arrival: then there is no object of this module.

A *band* is what has one priority. While a request of a lower one waits, none of a higher one is
taken. Within a band this is *self-clocked fair queueing* (S. J. Golestani, "A Self-Clocked Fair
Queueing Scheme for Broadband Applications", INFOCOM 1994), where a flow is a tenant, and the length
of a packet is the cost of a request:

- The first request of each tenant that waits has a *finish tag*: the tag up to which the tenant has
  been served, and the cost of the request divided by the tenant's share.
- The request with the least tag is taken. Its tenant has been served up to this tag; the *clock* of
  the band is the greatest tag that was taken.
- A tenant that comes when none of its requests waits has been served up to the clock.

So a tenant is charged for what is taken, and not for what waits: what is cancelled costs nothing.
None has been served further than the clock. So one that has nothing waiting can be forgotten: when
it comes again it begins at the clock, without a credit for the time when it was idle, and what it
had is paid for. For the same reason tenants that come once each hold no other up for ever: each
begins at the clock, and the clock goes on with each request.

A bound follows. Let a request wait, whose tenant has the share `w` and, up to that request, a
backlog that costs `C`. Its own tag is at most the clock and `C / w`. What is taken before it has no
greater tag. A tenant that waits has been served up to the clock at least, but for one request of
its own: when the clock was set, the tenant's first request had no lesser tag. So the requests of
other tenants that go first cost at most `W * C / w + L` together: `W` is the sum of the shares of
other tenants that wait at one time, at the most, and `L` is the dearest request of each tenant that
waited when the request came, added up.

A request that costs nothing counts like the cheapest other that has come; else a tenant with such
requests would be served for ever.

Requests that were put back stand in front of all of their group, and were charged before.

A group (see `queue`) has the first requests of its tenants in a heap, by their tags. As in the
queue the entries are hints: one may be too early, and is then put right or dropped; none is too
late. So what makes a tag less adds its hint first, and then makes the change. An exception that
breaks off a change leaves a request that is found, or that `discard` removes entirely.

Not safe for threads, as the queue. Tenants are compared by identity.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count, islice
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeAlias

from typing_extensions import TypeVar

if TYPE_CHECKING:
    from batchstream._batching.waiting.places import Place

_TIDY_ABOVE: Final = 64
"""How many stale hints a group may have before they are dropped."""

Rank: TypeAlias = tuple[float, float, float]
"""The band, the tag and the arrival of a request: the least is the next."""

_PUT_BACK: Final = -math.inf
_LAST: Final = math.inf


class Placed(Protocol):
    """What the order reads of a request."""

    group: object
    arrived: float
    place: Place | None

    @property
    def cost(self) -> float: ...


RequestT = TypeVar("RequestT", bound=Placed)


class _Tenant(Generic[RequestT]):
    """A tenant in one band, of which requests wait.

    Attributes:
        served: The tag up to which it has been served.
        flows: Its requests in the order of arrival, by group.
    """

    __slots__ = ("flows", "priority", "served")

    def __init__(self, priority: int, served: float) -> None:
        self.priority = priority
        self.served = served
        self.flows: dict[object, OrderedDict[RequestT, None]] = {}


class _Band(Generic[RequestT]):
    """The tenants with one priority; gone when none of them waits.

    Attributes:
        clock: The greatest tag that was taken.
        tenants: The tenants of which requests wait, by what stands for them.
    """

    __slots__ = ("clock", "tenants")

    def __init__(self) -> None:
        self.clock = 0.0
        self.tenants: dict[object, _Tenant[RequestT]] = {}


class _Line(Generic[RequestT]):
    """The requests of one group.

    Attributes:
        put_back: The requests that were put back, the next one first.
        flows: The others, in the order of arrival for each tenant.
        hints: A heap of what may be the first of a flow: its rank, a number, and the two.
    """

    __slots__ = ("flows", "hints", "put_back")

    def __init__(self) -> None:
        self.put_back: OrderedDict[RequestT, None] = OrderedDict()
        self.flows: dict[_Tenant[RequestT], OrderedDict[RequestT, None]] = {}
        self.hints: list[tuple[Rank, int, _Tenant[RequestT], OrderedDict[RequestT, None]]] = []


class FairOrder(Generic[RequestT]):
    """The order of the requests that wait."""

    def __init__(self) -> None:
        self._least_cost = math.inf  # of all that came, but for such as cost nothing
        self._bands: dict[int, _Band[RequestT]] = {}
        self._lines: dict[object, _Line[RequestT]] = {}
        self._by_account: dict[object, dict[RequestT, None]] = {}
        self._numbers = count()

    def waiting_of(self, account: object) -> int:
        """Return how many requests of a tenant wait, in all bands."""
        return len(self._by_account.get(account, ()))

    def add(self, request: RequestT, *, put_back: bool = False) -> None:
        """Add a request behind the others of its tenant, or put it back in front of its group."""
        place = _place_of(request)
        self._by_account.setdefault(place.account, {})[request] = None
        line = self._lines.get(request.group)
        if line is None:
            line = self._lines[request.group] = _Line()
        if put_back:
            line.put_back[request] = None
            line.put_back.move_to_end(request, last=False)
            return
        place.charge = self._charged_cost(request.cost) / place.share
        band = self._bands.get(place.priority)
        if band is None:
            band = self._bands[place.priority] = _Band()
        tenant = band.tenants.get(place.account)
        if tenant is None:
            tenant = band.tenants[place.account] = _Tenant(place.priority, band.clock)
        flow = line.flows.get(tenant)
        if flow is None:
            flow = tenant.flows[request.group] = line.flows[tenant] = OrderedDict()
        if not flow:
            self._add_hint(line, self._rank(tenant, request), tenant, flow)
        flow[request] = None

    def discard(self, request: RequestT) -> None:
        """Take a request out, wherever it is; also one whose adding was broken off."""
        place, group = _place_of(request), request.group
        line, band = self._lines.get(group), self._bands.get(place.priority)
        tenant = None if band is None else band.tenants.get(place.account)
        if tenant is not None:
            flow = None if line is None else line.flows.get(tenant)
            if line is None or flow is None or not self._stays(flow, request, line, tenant):
                tenant.flows.pop(group, None)
        if line is not None:
            line.put_back.pop(request, None)
            if not (line.flows or line.put_back):
                self._lines.pop(group, None)
        if band is not None:
            if tenant is not None and not tenant.flows:
                band.tenants.pop(place.account, None)
            if not band.tenants:
                self._bands.pop(place.priority, None)
        if (waiting := self._by_account.get(place.account)) is not None:
            waiting.pop(request, None)
            if not waiting:
                self._by_account.pop(place.account, None)

    def _stays(
        self,
        flow: OrderedDict[RequestT, None],
        request: RequestT,
        line: _Line[RequestT],
        tenant: _Tenant[RequestT],
    ) -> bool:
        """Take a request out of a flow, and return whether others are in it."""
        if not len(flow) - (request in flow):
            line.flows.pop(tenant, None)
            flow.clear()  # a hint may hold it
            return False
        if next(iter(flow)) is request:
            second = next(islice(flow, 1, None))
            rank = self._rank(tenant, second)
            if rank < self._rank(tenant, request):
                self._add_hint(line, rank, tenant, flow)
        flow.pop(request, None)
        return True

    def has(self, request: RequestT) -> bool:
        """Whether `first` will give a request: not while its removal has been broken off."""
        place, line = _place_of(request), self._lines.get(request.group)
        band = self._bands.get(place.priority)
        if line is None or band is None:
            return line is not None and request in line.put_back
        tenant = band.tenants.get(place.account)
        flow = None if tenant is None else line.flows.get(tenant)
        return request in line.put_back or (flow is not None and request in flow)

    def first(self, group: object) -> RequestT | None:
        """Return the next request of a group; None if none waits."""
        line = self._lines.get(group)
        if line is None:
            return None
        if line.put_back:
            return next(iter(line.put_back), None)
        hints = line.hints
        try:
            while True:
                rank, _, tenant, flow = hints[0]
                head = next(iter(flow), None)
                if head is None or line.flows.get(tenant) is not flow:
                    heappop(hints)
                elif rank == (now := self._rank(tenant, head)):
                    return head
                else:
                    heapreplace(hints, (now, next(self._numbers), tenant, flow))
        except IndexError:  # none waits; or a signal's handler has just closed the batcher
            return None

    def rank(self, group: object) -> Rank:
        """Return the rank of the next request of a group; the last of all if none waits."""
        request, line = self.first(group), self._lines.get(group)
        if request is None or line is None:
            return _LAST, _LAST, _LAST
        if request in line.put_back:
            return _PUT_BACK, _PUT_BACK, request.arrived
        place = _place_of(request)
        band = self._bands.get(place.priority)
        tenant = None if band is None else band.tenants.get(place.account)
        return (_LAST, _LAST, _LAST) if tenant is None else self._rank(tenant, request)

    def charge(self, request: RequestT) -> None:
        """Charge a tenant for its first request, which is about to be taken out.

        One that was put back costs nothing: it was charged when it was taken before.
        """
        place, line = _place_of(request), self._lines.get(request.group)
        band = self._bands.get(place.priority)
        if band is None or line is None or request in line.put_back:
            return
        if (tenant := band.tenants.get(place.account)) is not None:
            tenant.served = self._tag(tenant, request)
            band.clock = max(band.clock, tenant.served)

    def _charged_cost(self, cost: float) -> float:
        """Return a cost; for nothing the least there was: else it would go first for ever."""
        if cost > 0:
            self._least_cost = min(cost, self._least_cost)
            return cost
        return 1.0 if math.isinf(self._least_cost) else self._least_cost

    def _tag(self, tenant: _Tenant[RequestT], head: RequestT) -> float:
        """Return the finish tag of the first request of a tenant."""
        return tenant.served + _place_of(head).charge

    def _rank(self, tenant: _Tenant[RequestT], head: RequestT) -> Rank:
        return tenant.priority, self._tag(tenant, head), head.arrived

    def _add_hint(
        self,
        line: _Line[RequestT],
        rank: Rank,
        tenant: _Tenant[RequestT],
        flow: OrderedDict[RequestT, None],
    ) -> None:
        if len(line.hints) > 2 * len(line.flows) + _TIDY_ABOVE:
            hints = [
                (self._rank(owner, head), next(self._numbers), owner, each)
                for owner, each in line.flows.items()
                if (head := next(iter(each), None)) is not None
            ]
            heapify(hints)
            line.hints = hints
        heappush(line.hints, (rank, next(self._numbers), tenant, flow))


def _place_of(request: Placed) -> Place:
    place = request.place
    assert place is not None  # noqa: S101 - for the type checker
    return place
