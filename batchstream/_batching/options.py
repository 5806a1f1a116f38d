"""What a batcher was made with: the arguments, checked, and what each request is worth by them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from batchstream._batching.metrics import Reports
from batchstream._batching.queue import Admission
from batchstream._batching.request import Request
from batchstream._core.arguments import (
    OnOverflow,
    check_count,
    check_number,
    check_on_overflow,
    check_seconds,
)
from batchstream._core.demultiplexer import Demultiplexer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from batchstream._batching.metrics import Metrics

T = TypeVar("T")
RequestT = TypeVar("RequestT")


class Terms(Generic[RequestT, T]):
    """The arguments of a batcher; see `DynamicBatcher` and `ContinuousBatcher` for their meaning.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.
    """

    def __init__(
        self,
        *,
        max_batch_size: int,
        batch_timeout: float,
        max_pending: int,
        workers: int,
        key: Callable[[RequestT], Hashable] | None,
        cost: Callable[[RequestT], float] | None,
        max_batch_cost: float | None,
        eos: object,
        is_eos: Callable[[T], object] | None,
        include_eos: bool,
        max_outputs: int | Callable[[RequestT], int | None] | None,
        require_eos: bool,
        max_buffered: int,
        on_overflow: OnOverflow,
        metrics: Metrics | None,
    ) -> None:
        self.max_batch_size = check_count("max_batch_size", max_batch_size, at_least=1)
        self.workers = check_count("workers", workers, at_least=1)
        self.max_buffered = check_count("max_buffered", max_buffered, at_least=1)
        self.on_overflow = check_on_overflow(on_overflow)
        self.reports = Reports(metrics)
        self._batch_timeout = check_seconds("batch_timeout", batch_timeout)
        self._max_pending = check_count("max_pending", max_pending, at_least=1)
        if (cost is None) != (max_batch_cost is None):
            raise TypeError("cost and max_batch_cost go together: one was given without the other")
        for name, function in {"key": key, "cost": cost}.items():
            if function is not None and not callable(function):
                raise TypeError(f"{name} takes a function of one request, got {function!r}")
        self._key = key
        self._cost = cost
        self._max_batch_cost = max_batch_cost
        if max_batch_cost is not None:
            check_number("max_batch_cost", max_batch_cost)
        if isinstance(max_outputs, Sequence):
            raise TypeError(
                f"max_outputs takes a whole number, or a function of one request, "
                f"got {max_outputs!r}"
            )
        self._max_outputs = max_outputs
        self._core_of: Callable[..., Demultiplexer[T]] = partial(
            Demultiplexer, eos=eos, is_eos=is_eos, include_eos=include_eos, require_eos=require_eos
        )
        self._core_of(1, max_outputs=None if callable(max_outputs) else max_outputs)

    def admission(self) -> Admission[Request[T]]:
        """Make who decides."""
        return Admission(
            max_batch_size=self.max_batch_size,
            batch_timeout=self._batch_timeout,
            max_batch_cost=self._max_batch_cost,
            max_pending=self._max_pending,
        )

    def core(self, limits: Sequence[int | None]) -> Demultiplexer[T]:
        """Make the core of a batch with so many slots, and such limits."""
        limited = any(limit is not None for limit in limits)
        return self._core_of(len(limits), max_outputs=limits if limited else None)

    def vacant_core(self) -> Demultiplexer[T]:
        """Make a core with `max_batch_size` slots, none of which is occupied."""
        return self._core_of(self.max_batch_size, vacant=True)

    def key_of(self, content: RequestT) -> Hashable:
        """Ask for the request's key."""
        return None if self._key is None else self._key(content)

    def cost_of(self, content: RequestT) -> float:
        """Ask what the request costs."""
        if self._cost is None:
            return 1.0
        return check_number("what cost returns", self._cost(content))

    def limit_of(self, content: RequestT) -> int | None:
        """Ask how many outputs the request gets at most."""
        limit: Any = self._max_outputs
        if callable(limit):
            limit = limit(content)
        return None if limit is None else check_count("max_outputs", limit, at_least=1)
