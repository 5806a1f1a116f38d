"""Where a request stands in the queue of an API whose loop orders the requests that wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from batchstream._batching.waiting.places import PlaceRules, check_tenant_bound
from batchstream._core.arguments import check_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream.integrations.litserve._link.received import ReceivedRequest

Tenant: TypeAlias = "str | bytes | int | None"
"""What stands for a tenant: it crosses processes, and has to be equal to itself in all of them."""

_TENANTS: Final = (str, bytes, int, type(None))


class Standing(NamedTuple):
    """Where a request stands: plain data, for the queue's process.

    Attributes:
        priority: Its band; lower is earlier.
        tenant: Whose it is.
        share: The weight of its tenant; infinite if requests have none.
        cost: What it takes of its tenant's share, and of `max_pending_cost`.
    """

    priority: int = 0
    tenant: Tenant = None
    share: float = 1.0
    cost: float = 1.0


class Ordering:
    """The options of a loop that say where each request stands.

    Args:
        priority: A function of a `ReceivedRequest` that returns its band, lower first.
        tenant: A function of it that returns whose it is.
        share: A function of it that returns the weight of its tenant.
        cost: A function of it that returns what it takes of its tenant's share, and of
            `max_pending_cost`; 1 without one.
        max_pending_per_tenant: How many requests of one tenant may wait.
        max_pending_cost: What the requests that wait may cost together.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or needs another.
    """

    def __init__(
        self,
        priority: Callable[[ReceivedRequest], int] | None = None,
        tenant: Callable[[ReceivedRequest], Tenant] | None = None,
        share: Callable[[ReceivedRequest], float] | None = None,
        cost: Callable[[ReceivedRequest], float] | None = None,
        *,
        max_pending_per_tenant: int | None = None,
        max_pending_cost: float | None = None,
    ) -> None:
        self._places = PlaceRules(priority, tenant, share)
        if cost is not None and not callable(cost):
            raise TypeError(f"cost takes a function of one request, got {cost!r}")
        if cost is not None and tenant is None and max_pending_cost is None:
            raise TypeError(
                "cost is what a request takes of its tenant's share and of max_pending_cost, and "
                "there is neither: pass a function of one request as tenant, or max_pending_cost, "
                "or leave cost out"
            )
        if max_pending_cost is not None:
            _check_max_pending_cost(max_pending_cost, cost)
        self._cost = cost
        self.max_pending_cost = max_pending_cost
        self.max_pending_per_tenant = check_tenant_bound(max_pending_per_tenant, tenant)

    def standing_of(self, request: ReceivedRequest) -> Standing:
        """Return where a request stands.

        Raises:
            TypeError, ValueError: A function has returned what it may not.
            Exception: What a function raises.
        """
        place = self._places.place_of(request)
        tenant: Any = place.tenant
        if not isinstance(tenant, _TENANTS):
            raise TypeError(
                f"tenant returns text, bytes, a whole number or None, which are the same in all "
                f"processes, got {tenant!r}: return its name"
            )
        cost = 1.0 if self._cost is None else _check_cost(self._cost(request))
        return Standing(place.priority, tenant, place.share, cost)


def _check_max_pending_cost(value: object, cost: object) -> None:
    if cost is None:
        raise TypeError(
            "max_pending_cost needs cost, which says what a request costs: pass a function of one "
            "request, or bound the number of requests with max_pending"
        )
    if not check_number("max_pending_cost", value) > 0:
        raise ValueError(f"max_pending_cost must be more than 0, got {value!r}")


def _check_cost(value: object) -> float:
    cost = check_number("what cost returns", value)
    if not 0 < cost < float("inf"):
        raise ValueError(
            f"what cost returns must be more than 0 and finite, got {value!r}: requests that cost "
            f"nothing would hold up all others, and any number of them could wait"
        )
    return cost
