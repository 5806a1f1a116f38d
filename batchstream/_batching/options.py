"""What a batcher was made with: the arguments, checked, and what they say of each request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from batchstream._batching.life import check_drain
from batchstream._batching.telemetry.metrics import MetricsCaller
from batchstream._batching.telemetry.traces import TracesCaller
from batchstream._batching.waiting.limits import Limits, LimitsInForce, check_limits
from batchstream._batching.waiting.places import PlaceRules, check_tenant_bound
from batchstream._batching.waiting.step_budget import check_step_budget, first_step_cost
from batchstream._core.arguments import (
    Bound,
    OnOverflow,
    check_count,
    check_limit,
    check_name,
    check_number,
)
from batchstream._core.cores import core_of
from batchstream._core.errors import type_name
from batchstream._core.rules import EndRules
from batchstream._text.core import decoding
from batchstream._text.decoder import check_decode, check_decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from batchstream._batching.requests.request import Submission
    from batchstream._batching.telemetry.metrics import MetricsOrFactory
    from batchstream._batching.telemetry.traces import Traces
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._core.errors import OverloadedError
    from batchstream._text.decoder import Decoder

T = TypeVar("T")
RequestT = TypeVar("RequestT")


class BatcherOptions(Generic[RequestT, T]):
    """The arguments of a batcher; see `DynamicBatcher` and `ContinuousBatcher` for their meaning.

    `runs` is its function or engine, from which a batcher without a name has its `label`: what
    metrics and logs call it. `prepare` is called with each request as it is submitted: what it
    returns is what the model takes. `overloaded` makes another `OverloadedError` of one, which
    names the limit as the caller knows it.

    Attributes:
        limits: The limits that may change while requests are served, as they are now.
        slots: How many slots an engine has, set by `engine_dispatcher`; None where there is none.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.
    """

    def __init__(
        self,
        rules: EndRules[T],
        *,
        max_batch_size: int,
        max_pending: int,
        max_buffered: int,
        on_overflow: OnOverflow,
        merge: Callable[[T, T], T] | None = None,
        max_buffered_bytes: int | None = None,
        size_of: Callable[[T], int] | None = None,
        max_outputs: int | Callable[[RequestT], int | None] | None = None,
        cost: Callable[[RequestT], float] | None = None,
        max_batch_cost: float | None = None,
        batch_cost: Callable[[list[RequestT]], float] | None = None,
        step_cost: Callable[[RequestT], float] | None = None,
        max_step_cost: float | None = None,
        batch_timeout: float = 0.0,
        workers: int = 1,
        key: Callable[[RequestT], Hashable] | None = None,
        decode: Callable[[RequestT], Decoder[Any, T] | None] | None = None,
        metrics: MetricsOrFactory | None = None,
        traces: Traces | None = None,
        name: str | None = None,
        runs: object = None,
        max_pending_cost: float | None = None,
        priority: Callable[[RequestT], int] | None = None,
        tenant: Callable[[RequestT], Hashable] | None = None,
        share: Callable[[RequestT], float] | None = None,
        max_pending_per_tenant: int | None = None,
        drain: float | None = None,
        prepare: Callable[[RequestT], object] | None = None,
        overloaded: Callable[[OverloadedError], OverloadedError] | None = None,
    ) -> None:
        self.rules = rules
        if name is not None:
            check_name("name", name)
        self.name = name
        self.label = name_of(runs) if name is None else name
        self.decode = decode
        if decode is not None:
            check_decode(decode, "one request")
        self.workers = check_count("workers", workers, at_least=1)
        self.bound = Bound.checked(
            max_buffered,
            on_overflow,
            merge=merge,
            max_buffered_bytes=max_buffered_bytes,
            size_of=size_of,
        )
        self.metrics = None if metrics is None else MetricsCaller(metrics, self.label)
        self.traces = None if traces is None else TracesCaller(traces, self.label)
        self.is_observed = metrics is not None or traces is not None
        self.drain = check_drain(drain)
        self.prepare = prepare
        self.overloaded = overloaded
        may_be_none = {
            "max_batch_cost": max_batch_cost,
            "max_pending_cost": max_pending_cost,
            "max_pending_per_tenant": check_tenant_bound(max_pending_per_tenant, tenant),
            "max_step_cost": max_step_cost,
        }
        limits = check_limits(
            max_batch_size=max_batch_size,
            batch_timeout=batch_timeout,
            max_pending=max_pending,
            **{name: it for name, it in may_be_none.items() if it is not None},
        )
        self.limits = LimitsInForce(Limits(**limits))
        self.slots: int | None = None
        if batch_cost is not None:
            check_batch_cost(
                batch_cost,
                cost=cost,
                max_pending_cost=max_pending_cost,
                priority=priority,
                tenant=tenant,
            )
        if (cost is None and batch_cost is None) != (max_batch_cost is None):
            names = "cost" if batch_cost is None else "batch_cost"
            raise TypeError(
                f"{names} and max_batch_cost go together: one was given without the other"
            )
        check_step_budget(step_cost, max_step_cost)
        for option, function in {"key": key, "cost": cost}.items():
            if function is not None and not callable(function):
                raise TypeError(f"{option} takes a function of one request, got {function!r}")
        self.key = key
        self.cost = cost
        self.batch_cost = batch_cost
        self.has_cost = max_batch_cost is not None
        self.step_cost = step_cost
        if self.max_pending_cost is not None:
            check_max_pending_cost(self.max_pending_cost, self.max_batch_cost)
        self.places: PlaceRules | None = None
        if any(it is not None for it in (priority, tenant, share)):
            self.places = PlaceRules(priority, tenant, share)
            self.places.check_max_batch_cost(self.max_batch_cost)
        # What an engine refuses is put back in front of all bands: a request that was taken with
        # it would be before a more urgent one.
        self.joins_one_by_one = self.places is not None
        if isinstance(max_outputs, Sequence):
            raise TypeError(
                f"max_outputs takes a whole number, or a function of one request, "
                f"got {max_outputs!r}"
            )
        self.max_outputs = max_outputs if callable(max_outputs) else check_limit(max_outputs)

    @property
    def max_batch_size(self) -> int:
        """How many requests a batch has at most, from now on."""
        return self.limits.now.max_batch_size

    @property
    def batch_timeout(self) -> float:
        """For how long a request waits for others, in seconds, from now on."""
        return self.limits.now.batch_timeout

    @property
    def max_pending(self) -> int:
        """How many requests may wait, from now on."""
        return self.limits.now.max_pending

    @property
    def max_batch_cost(self) -> float | None:
        """What the requests of a batch may cost together, from now on."""
        return self.limits.now.max_batch_cost

    @property
    def max_pending_cost(self) -> float | None:
        """What the requests that wait may cost together, from now on."""
        return self.limits.now.max_pending_cost

    @property
    def max_pending_per_tenant(self) -> int | None:
        """How many requests of one tenant may wait, from now on."""
        return self.limits.now.max_pending_per_tenant

    @property
    def max_step_cost(self) -> float | None:
        """What the next step may cost when a request joins, from now on."""
        return self.limits.now.max_step_cost

    def check_together(self, limits: Limits) -> None:
        """Check limits, each of which is right for itself, against the other arguments.

        Raises:
            ValueError: Together with another argument they cannot work.
        """
        if self.slots is not None and limits.max_batch_size > self.slots:
            raise ValueError(
                f"max_batch_size of a batcher that runs must be at most {self.slots}, with which "
                f"it was made, got {limits.max_batch_size}: its engine has so many slots; make "
                f"another batcher for more"
            )
        if limits.max_pending_cost is not None:
            check_max_pending_cost(limits.max_pending_cost, limits.max_batch_cost)
        if self.places is not None:
            self.places.check_max_batch_cost(limits.max_batch_cost)

    def core(self, submissions: Sequence[Submission]) -> Demultiplexer[T]:
        """Make the core of a batch with a slot for each of these requests."""
        limits = [each.max_outputs for each in submissions]
        limited = any(limit is not None for limit in limits)
        own = None if self.rules.per_request is None else [each.is_eos for each in submissions]
        core: Demultiplexer[T] = core_of(
            self.rules, len(limits), limits if limited else None, predicates=own
        )
        if self.decode is None:
            return core
        return decoding(core, [each.decoder for each in submissions])

    def decoder_of(self, content: RequestT) -> Decoder[Any, T] | None:
        """Return what decodes a request's outputs, None if they stay as they are."""
        decode: Any = self.decode
        decoder: Decoder[Any, T] | None = decode(content)
        check_decoder(decoder, "what decode returns")
        return decoder

    def cost_of(self, content: RequestT) -> float:
        """Return what a request costs alone; for batchers whose requests have a cost."""
        if self.batch_cost is not None:
            return self.batch_cost_of([content])
        cost: Any = self.cost
        return check_number("what cost returns", cost(content))

    def batch_cost_of(self, contents: list[RequestT]) -> float:
        """Return what a batch of these requests costs; for batchers with a `batch_cost`."""
        batch_cost: Any = self.batch_cost
        return check_number("what batch_cost returns", batch_cost(contents))

    def step_cost_of(self, content: RequestT) -> float:
        """Return what a request's first step costs; for batchers with a `step_cost`.

        Raises:
            CostError: More than a step may cost: it would wait for ever.
        """
        step_cost: Any = self.step_cost
        return first_step_cost(step_cost, content, self.max_step_cost)

    def first_step_of(self, content: RequestT) -> float:
        """Return what a request's first step costs, be it more than a step may cost or not."""
        step_cost: Any = self.step_cost
        return first_step_cost(step_cost, content, None)

    def limit_of(self, content: RequestT) -> int | None:
        """Return how many outputs a request gets at most."""
        limit: Any = self.max_outputs
        return check_limit(limit(content)) if callable(limit) else limit


def name_of(runs: object) -> str:
    """Return what to call a function or engine: its qualified name, or that of its class."""
    while isinstance(runs, partial):
        runs = runs.func
    name = getattr(runs, "__qualname__", None)
    return name if isinstance(name, str) and name else type_name(runs)


def check_batch_cost(batch_cost: object, **others: object) -> None:
    """Check a function that says what a whole batch costs.

    Args:
        batch_cost: The function.
        others: Arguments that exclude it, by name.

    Raises:
        TypeError: It is no function, or one of the others was given.
    """
    if not callable(batch_cost):
        raise TypeError(
            f"batch_cost takes a function of the list of a batch's requests, got {batch_cost!r}"
        )
    for name, value in others.items():
        if value is not None:
            raise TypeError(
                f"{name} and batch_cost exclude each other: batch_cost says what a whole batch "
                f"costs, and not what each request adds; pass cost without batch_cost where the "
                f"costs of requests add up, or leave {name} out"
            )


def check_max_pending_cost(max_pending_cost: float, max_batch_cost: float | None) -> None:
    """Check what the requests that wait may cost together.

    Raises:
        TypeError: It is no number, or requests have no cost.
        ValueError: It is less than one request may cost.
    """
    if max_batch_cost is None:
        raise TypeError(
            "max_pending_cost needs cost and max_batch_cost, which say what a request costs: pass "
            "both, or bound the number of requests with max_pending"
        )
    if check_number("max_pending_cost", max_pending_cost) < max_batch_cost:
        raise ValueError(
            f"max_pending_cost must be at least max_batch_cost, {max_batch_cost!r}, got "
            f"{max_pending_cost!r}: a request that costs as much could never wait"
        )
