"""What a loop is made with: checked in the process that makes it, used in the workers."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from batchstream._batching.telemetry.traces import check_traces
from batchstream._batching.waiting.step_budget import check_step_budget, first_step_cost
from batchstream._core.arguments import (
    UNLIMITED,
    Bound,
    call_text,
    check_count,
    check_limit,
    check_seconds,
    takes,
)
from batchstream._core.rules import EndRules
from batchstream._text.decoder import check_decode, check_decoder
from batchstream.integrations.litserve._link.ordering import Ordering

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchstream import Metrics, Traces
    from batchstream.integrations.litserve._link.ordering import Tenant
    from batchstream.integrations.litserve._link.received import ReceivedRequest
    from batchstream.text import Decoder

Hook: TypeAlias = Literal["encode_response", "predict"]
"""The hooks whose steps can hold the ends."""

Limit: TypeAlias = "int | Callable[[Mapping[str, Any]], int | None] | None"
"""How many outputs a request gets at most: a number, or a function of the request's context."""

Decode: TypeAlias = "Callable[[Any, dict[str, Any]], Decoder[Any, Any] | None] | None"
"""A function of the API and of the request's context that returns the decoder of its outputs."""

OnOverflow: TypeAlias = Literal["cancel", "merge"]
"""What happens to a client that has left too much unread, or to what comes for it."""


@dataclass(frozen=True)
class LoopOptions:
    """The options of a loop. LitServe spawns its workers, so all of them have to pickle.

    Attributes:
        rules: How the ends of streams are recognised.
        max_outputs: The limit of each request.
        max_pending: How many requests may wait; None for any number.
        bound: How much may wait for a client, and what happens to what comes then.
        grace_period: How many seconds open responses may take when the server is told to end.
        decode: Returns the decoder of each request.
        first_timeout: After how many seconds a request has to have an output; None for any time.
        gap_timeout: How many seconds there may be between two outputs; None for any time.
        metrics: Makes the metrics of a process; None for no metrics.
        traces: What is called for each single request; None for no traces.
        name: What metrics call the API; its path without one.
        ordering: Says where each request stands among the waiting requests; None for the order of
            arrival.
        wait_timeout: After how many seconds a request has to have reached a worker; None for any
            time.
        step_cost: What a request's first step takes of `max_step_cost`; None where that is None.
        max_step_cost: What the next step may cost when a request joins; None for any.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or would not reach a worker.
    """

    rules: EndRules[Any]
    max_outputs: Limit
    max_pending: int | None
    bound: Bound
    grace_period: float
    decode: Decode = None
    first_timeout: float | None = None
    gap_timeout: float | None = None
    metrics: Callable[[], Metrics] | None = None
    traces: Traces | None = None
    name: str | None = None
    ordering: Ordering | None = None
    wait_timeout: float | None = None
    step_cost: Callable[[Any], float] | None = None
    max_step_cost: float | None = None

    def __post_init__(self) -> None:
        check_step_budget(self.step_cost, self.max_step_cost)
        if self.step_cost is not None:
            _check_function("step_cost", self.step_cost, "what decode_request returns")
        eos = self.rules.eos
        check_pickles("is_eos", self.rules.per_request or self.rules.is_eos)
        check_pickles("eos", eos)
        if pickle.loads(ForkingPickler.dumps(eos)) is not eos:  # noqa: S301 - just pickled
            raise ValueError(
                f"eos is compared by identity, which {eos!r} loses on its way into a worker "
                f"process: pass None, EOS, a class or a member of an enum"
            )
        if callable(self.max_outputs):
            check_pickles("max_outputs", self.max_outputs)
        else:
            check_limit(self.max_outputs)
        if self.max_pending is not None:
            check_count("max_pending", self.max_pending, at_least=1)
        for name in ("merge", "size_of"):
            check_pickles(name, getattr(self.bound, name))
        check_seconds("grace_period", self.grace_period)
        for name in ("wait_timeout", "first_timeout", "gap_timeout"):
            if getattr(self, name) is not None:
                check_seconds(name, getattr(self, name))
        _check_observers(self.metrics, self.traces)
        if self.decode is not None:
            _check_decode(self.decode)

    def limit_of(self, context: Mapping[str, Any]) -> int | None:
        """Return how many outputs a request gets at most.

        Raises:
            TypeError, ValueError: The function returned something else.
            Exception: What the function raises.
        """
        limit = self.max_outputs
        return check_limit(limit(context) if callable(limit) else limit)

    def step_cost_of(self, content: Any, *, joins_again: bool = False) -> float:
        """Return what a request's first step costs; 0 if no step has a bound.

        Raises:
            CostError: It is more than a step may cost, and would wait for ever. One that joins
                again does so when no other is in the engine.
            TypeError, ValueError: The function returned something else.
            Exception: What the function raises.
        """
        if self.step_cost is None:
            return 0.0
        most = None if joins_again else self.max_step_cost
        return first_step_cost(self.step_cost, content, most)

    def decoder_of(self, lit_api: object, context: dict[str, Any]) -> Decoder[Any, Any] | None:
        """Return what decodes a request's outputs, None if they stay as they are.

        Raises:
            TypeError: The function returned something else.
            Exception: What the function raises.
        """
        decoder = None if self.decode is None else self.decode(lit_api, context)
        check_decoder(decoder, "what decode returns")
        return decoder


def _check_observers(metrics: Any, traces: Traces | None) -> None:
    """Check what is told of requests, if anything is.

    Raises:
        TypeError: It is something else, or does not pickle.
    """
    if metrics is not None:
        _check_metrics(metrics)
    if traces is not None:
        check_pickles("traces", check_traces(traces))


def _check_function(name: str, function: Callable[..., Any], argument: str) -> None:
    """Check a function of one argument.

    Raises:
        TypeError: It does not take that, or does not pickle.
    """
    if not takes(function, 1):
        raise TypeError(
            f"{name} is called with {argument}, which {call_text(function)} does not take: let it "
            f"take one argument"
        )
    check_pickles(name, function)


def _check_decode(decode: Any) -> None:
    """Check a function of the API and of a request's context.

    Raises:
        TypeError: It does not take both, or does not pickle.
    """
    check_decode(decode, "the API and of the context of a request")
    if not takes(decode, 2):
        raise TypeError(
            f"decode is called with the API and the context of a request, which "
            f"{call_text(decode)} does not take: let it take both"
        )
    check_pickles("decode", decode)


def _check_metrics(metrics: Any) -> None:
    """Check what makes the metrics of each process.

    Raises:
        TypeError: It is no function without arguments, or does not pickle.
    """
    if not callable(metrics) or (hasattr(metrics, "submitted") and not isinstance(metrics, type)):
        raise TypeError(
            f"metrics takes a function without arguments that makes the metrics, as each worker "
            f"and each server process has its own, got {metrics!r}: pass PrometheusMetrics itself, "
            f"or functools.partial(PrometheusMetrics, 'chat')"
        )
    if not takes(metrics, 0):
        raise TypeError(
            f"metrics is called without arguments, which {call_text(metrics)} does not take"
        )
    check_pickles("metrics", metrics)


def bound_of(
    max_buffered: int | None,
    on_overflow: OnOverflow,
    merge: Callable[[Any, Any], Any] | None,
    max_buffered_bytes: int | None,
    size_of: Callable[[Any], int] | None,
) -> Bound:
    """Return how much may wait for a client.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or does not go with another.
    """
    bound = Bound.checked(
        UNLIMITED if max_buffered is None else max_buffered,
        on_overflow,
        merge=merge,
        max_buffered_bytes=max_buffered_bytes,
        size_of=size_of,
    )
    if bound.on_overflow == "wait":
        raise ValueError(
            "on_overflow='wait' is not for these loops: one client would hold up all requests of "
            "its worker. Pass 'cancel', or 'merge'"
        )
    if bound.on_overflow == "merge" and max_buffered is None:
        raise ValueError(
            "on_overflow='merge' merges what comes for a client that has left max_buffered outputs "
            "unread, and max_buffered=None is any number: pass a number"
        )
    return bound


def ordering_of(
    priority: Callable[[ReceivedRequest], int] | None,
    tenant: Callable[[ReceivedRequest], Tenant] | None,
    share: Callable[[ReceivedRequest], float] | None,
    cost: Callable[[ReceivedRequest], float] | None,
    *,
    max_pending_per_tenant: int | None,
    max_pending_cost: float | None,
) -> Ordering | None:
    """Return what says where each request stands, if anything does.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, needs another, or does not pickle.
    """
    functions = {"priority": priority, "tenant": tenant, "share": share, "cost": cost}
    bounds = (max_pending_per_tenant, max_pending_cost)
    if not any(functions.values()) and all(bound is None for bound in bounds):
        return None
    ordering = Ordering(
        priority,
        tenant,
        share,
        cost,
        max_pending_per_tenant=max_pending_per_tenant,
        max_pending_cost=max_pending_cost,
    )
    for name, function in functions.items():
        if function is not None:
            _check_function(name, function, "a ReceivedRequest")
    return ordering


def check_pickles(name: str, value: object) -> None:
    """Refuse what cannot be sent to a spawned process.

    Raises:
        TypeError: It does not pickle.
    """
    try:
        ForkingPickler.dumps(value)
    except Exception as error:
        raise TypeError(
            f"{name} has to be known by its name in LitServe's workers, which are spawned: pass a "
            f"function or class of a module, got {value!r}"
        ) from error
