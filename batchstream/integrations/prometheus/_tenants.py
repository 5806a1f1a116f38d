"""Which tenants have a label of their own: their number needs a bound, as each has many series."""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING, Final

from batchstream._core.arguments import check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

OTHER: Final = "other"
"""The label of all tenants that have none of their own."""

MAX_TENANTS: Final = 20


class TenantLabels:
    """Returns the label of a tenant.

    Args:
        tenants: How many tenants have a label of their own, the first that come; or a function of a
            tenant that returns its label, or None for one of the others.

    Raises:
        TypeError, ValueError: `tenants` is neither.
    """

    def __init__(self, tenants: int | Callable[[Hashable], str | None]) -> None:
        self._max_tenants = (
            tenants if callable(tenants) else check_count("tenants", tenants, at_least=0)
        )
        self._known: dict[Hashable, str] = {}
        self._lock = RLock()  # re-entrant: a tenant's `__str__` is the user's code

    def __call__(self, tenant: Hashable) -> str:
        """Return the label of a tenant; that of None is empty."""
        if tenant is None:
            return ""
        if callable(self._max_tenants):
            return self._max_tenants(tenant) or OTHER
        label = self._known.get(tenant)
        if label is None:
            with self._lock:
                if len(self._known) >= self._max_tenants:
                    return OTHER  # not kept: there may be any number of them
                label = self._known.setdefault(tenant, str(tenant))
        return label
