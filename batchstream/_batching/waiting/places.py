"""Where a request stands in the queue: its band, its tenant, and the tenant's share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from batchstream._core.arguments import check_count, check_number, check_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

LEAST_SHARE: Final = 1e-6
GREATEST_SHARE: Final = 1e6
"""Beyond these a sum of costs by shares would lose the smaller ones, as floats do."""

ALONE: Final = math.inf
"""The share of a tenant that is the only one: it is charged nothing, so that its requests are in
the order of arrival between keys, too."""


class Place:
    """Where a request stands.

    Args:
        priority: Its band; lower is earlier.
        tenant: Whose it is, as the user's function has said.
        share: The weight of its tenant.

    Attributes:
        account: Stands for the tenant: compared by identity, and none of the user's.
        charge: What the tenant is charged for it: its cost by the share; set when it comes.
    """

    __slots__ = ("account", "charge", "priority", "share", "tenant")

    def __init__(self, priority: int = 0, tenant: Hashable = None, share: float = 1.0) -> None:
        self.priority = priority
        self.tenant = tenant
        self.share = share
        self.account: object = None
        self.charge = 0.0


class PlaceRules:
    """The arguments of a batcher that say where each request stands.

    Args:
        priority: A function of a request that returns its band, lower first.
        tenant: A function of a request that returns whose it is.
        share: A function of a request that returns the weight of its tenant.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or needs another.
    """

    def __init__(
        self,
        priority: Callable[[Any], int] | None,
        tenant: Callable[[Any], Hashable] | None,
        share: Callable[[Any], float] | None,
    ) -> None:
        functions = {"priority": priority, "tenant": tenant, "share": share}
        for name, function in functions.items():
            if function is not None and not callable(function):
                raise TypeError(f"{name} takes a function of one request, got {function!r}")
        _check_needs_tenant("share", share, tenant)
        self.tenant = tenant
        self._priority = priority
        self._share = share

    def check_max_batch_cost(self, max_batch_cost: float | None) -> None:
        """Check the cost of a batch, by which tenants share.

        Raises:
            ValueError: It has no bound, and so a request has none that could be charged.
        """
        if self.tenant is not None and max_batch_cost is not None and math.isinf(max_batch_cost):
            raise ValueError(
                f"max_batch_cost must be finite where tenants share by cost, got "
                f"{max_batch_cost!r}: pass the cost of a batch that is full"
            )

    def place_of(self, content: Any) -> Place:
        """Return where a request stands.

        Raises:
            TypeError, ValueError: A function has returned what it may not.
            Exception: What a function raises.
        """
        priority, tenant, share = self._priority, self.tenant, self._share
        if tenant is None:
            return Place(_priority_of(priority, content), share=ALONE)
        return Place(
            _priority_of(priority, content),
            tenant(content),
            1.0 if share is None else _check_share(share(content)),
        )


def check_tenant_bound(
    max_pending_per_tenant: int | None, tenant: Callable[[Any], Hashable] | None
) -> int | None:
    """Return how many requests of one tenant may wait.

    Raises:
        TypeError: It is no whole number, or there are no tenants.
        ValueError: It is less than 1.
    """
    _check_needs_tenant("max_pending_per_tenant", max_pending_per_tenant, tenant)
    if max_pending_per_tenant is None:
        return None
    return check_count("max_pending_per_tenant", max_pending_per_tenant, at_least=1)


def _check_needs_tenant(name: str, value: object, tenant: object) -> None:
    if value is not None and tenant is None:
        raise TypeError(
            f"{name} is about tenants, and there is no tenant: pass a function of one "
            f"request as tenant, or leave {name} out"
        )


def _priority_of(priority: Callable[[Any], int] | None, content: Any) -> int:
    return 0 if priority is None else check_whole("what priority returns", priority(content))


def _check_share(value: object) -> float:
    share = check_number("what share returns", value)
    if not LEAST_SHARE <= share <= GREATEST_SHARE:
        raise ValueError(
            f"what share returns must be between {LEAST_SHARE:g} and {GREATEST_SHARE:g}, "
            f"got {value!r}: shares count in proportion to each other, so 1 for most and 3 for a "
            f"tenant that gets three times as much"
        )
    return share
