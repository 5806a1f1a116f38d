"""The loop of engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchstream._batching.engine import check_factory
from batchstream._core.arguments import DEFAULT_MAX_BUFFERED, DEFAULT_MAX_PENDING
from batchstream._core.rules import EndRules
from batchstream.integrations.litserve._link.link import DEFAULT_GRACE_PERIOD
from batchstream.integrations.litserve._loop import AnyLoop
from batchstream.integrations.litserve._options import (
    Decode,
    Limit,
    LoopOptions,
    OnOverflow,
    bound_of,
    check_pickles,
    ordering_of,
)
from batchstream.integrations.litserve._worker.context import WorkerContext
from batchstream.integrations.litserve._worker.continuous import ContinuousBatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import Queue

    from litserve import LitAPI

    from batchstream import Metrics, StepEngine, Traces, per_request
    from batchstream.integrations.litserve._link.ordering import Tenant
    from batchstream.integrations.litserve._link.received import ReceivedRequest


class ContinuousBatchLoop(AnyLoop):
    """A LitServe loop in which requests join a running batch between two of its steps.

    `LitAPI(stream=True, max_batch_size=16, loop=ContinuousBatchLoop(Engine))` has 16 slots, driven
    as `ContinuousBatcher` drives them. Before each step the requests that have finished, and the
    requests whose client has left, are removed from the engine, and waiting requests are added to
    the free slots. An idle worker sleeps.

    Of the API's hooks `setup` is called first. The engine is given what `decode_request` returns.
    `encode_response`, if there is one, is called for each request, as LitServe calls it without
    batches: with an iterator of the outputs that the engine has made for this request. `batch`,
    `predict` and `unbatch` are not called, and need not be there. A hook that has a `context` gets
    the context of its request.

    Errors fail requests, and clients see that, as with `BatchedStreamLoop`. An error in the
    engine's `add` fails the request that was to be added, but for `NotNow`, at which it waits until
    another has left the engine, and its worker takes none meanwhile. An error in `step` fails all
    requests in the engine, and the next request gets a new engine. An engine that has a `close` is
    closed then, or as the worker ends.

    Args:
        engine_factory: A function of the API that makes a `StepEngine`, or its class. It is called
            in each worker after the API's `setup`, and again for the next request after an engine
            has raised in a step. It has to pickle.
        eos: See `BatchedStreamLoop`; steps are the engine's.
        is_eos: The same.
        include_eos: Deliver the output that `is_eos` recognised, before the end.
        max_outputs: How many outputs a request gets at most; see `BatchedStreamLoop`.
        decode: Returns the decoder of a request's outputs; see `BatchedStreamLoop`.
        max_pending: How many requests may wait for a slot; the next is answered with 503. None
            for any number.
        max_buffered: How many outputs may wait for their client; see `BatchedStreamLoop`.
        on_overflow: What happens if there are as many; see `BatchedStreamLoop`.
        merge: Makes one output of two; see `BatchedStreamLoop`.
        max_buffered_bytes: How many bytes may wait for a client; see `BatchedStreamLoop`.
        size_of: How many bytes an output has; see `BatchedStreamLoop`.
        grace_period: How many seconds open responses may go on; see `BatchedStreamLoop`.
        first_timeout: How long a request may be without an output; see `BatchedStreamLoop`.
        gap_timeout: How long there may be no other output; see `BatchedStreamLoop`.
        metrics: Makes the metrics of each process; see `BatchedStreamLoop`.
        traces: What is called for each single request; see `BatchedStreamLoop`.
        name: What metrics call this API; its path without one.
        priority: Which requests go first; see `BatchedStreamLoop`.
        tenant: Whose a request is; see `BatchedStreamLoop`.
        share: The weight of a request's tenant; see `BatchedStreamLoop`.
        cost: What a request costs; see `BatchedStreamLoop`.
        max_pending_per_tenant: How many requests of one tenant may wait; see `BatchedStreamLoop`.
        max_pending_cost: What the requests that wait may cost; see `BatchedStreamLoop`.
        wait_timeout: How long a request may wait for a worker; see `BatchedStreamLoop`.
        step_cost: A function of what `decode_request` returns that says what its first step takes
            of `max_step_cost`, the length of its prompt for example. From its first output on a
            request takes 1; unless the engine has a method `step_cost(slot)`, which says what it
            takes in the next step. It has to pickle.
        max_step_cost: What the next step of a worker may cost at most when a request joins. The
            first that does not fit waits there, and none overtakes it; one whose first step costs
            more by itself is answered with 422.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or would not reach a worker.

    Example:
        >>> import litserve
        >>> from batchstream import Last
        >>> from batchstream.integrations.litserve import ContinuousBatchLoop
        >>> class Countdown:
        ...     def __init__(self, lit_api):
        ...         self.counts = {}
        ...
        ...     def add(self, slot, start):
        ...         self.counts[slot] = start
        ...
        ...     def step(self):
        ...         step = dict(self.counts)
        ...         self.counts = {slot: count - 1 for slot, count in step.items()}
        ...         return {slot: count if count > 1 else Last(1) for slot, count in step.items()}
        ...
        ...     def remove(self, slot):
        ...         del self.counts[slot]
        >>> class Service(litserve.LitAPI):
        ...     def decode_request(self, request):
        ...         return request["start"]
        ...
        ...     def encode_response(self, counts):
        ...         for count in counts:
        ...             yield {"count": count}
        >>> api = Service(stream=True, max_batch_size=16, loop=ContinuousBatchLoop(Countdown))
        >>> server = litserve.LitServer(api, accelerator="cpu")  # server.run(host="127.0.0.1")
    """

    calls_predict = False

    def __init__(
        self,
        engine_factory: Callable[[LitAPI], StepEngine[Any, Any]],
        *,
        eos: object = None,
        is_eos: Callable[[Any], object] | per_request[Any, Any] | None = None,
        include_eos: bool = False,
        max_outputs: Limit = None,
        decode: Decode = None,
        max_pending: int | None = DEFAULT_MAX_PENDING,
        max_buffered: int | None = DEFAULT_MAX_BUFFERED,
        on_overflow: OnOverflow = "cancel",
        merge: Callable[[Any, Any], Any] | None = None,
        max_buffered_bytes: int | None = None,
        size_of: Callable[[Any], int] | None = None,
        grace_period: float = DEFAULT_GRACE_PERIOD,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
        metrics: Callable[[], Metrics] | None = None,
        traces: Traces | None = None,
        name: str | None = None,
        priority: Callable[[ReceivedRequest], int] | None = None,
        tenant: Callable[[ReceivedRequest], Tenant] | None = None,
        share: Callable[[ReceivedRequest], float] | None = None,
        cost: Callable[[ReceivedRequest], float] | None = None,
        max_pending_per_tenant: int | None = None,
        max_pending_cost: float | None = None,
        wait_timeout: float | None = None,
        step_cost: Callable[[Any], float] | None = None,
        max_step_cost: float | None = None,
    ) -> None:
        if not callable(engine_factory):
            raise TypeError(
                f"engine_factory takes a function of the API that makes an engine, or its class, "
                f"got {engine_factory!r}"
            )
        check_factory("engine_factory", engine_factory, argument="the API")
        check_pickles("engine_factory", engine_factory)
        rules: EndRules[Any] = EndRules(
            eos=eos, is_eos=is_eos, include_eos=include_eos, has_requests=True
        )
        super().__init__(
            LoopOptions(
                rules,
                max_outputs,
                max_pending,
                bound_of(max_buffered, on_overflow, merge, max_buffered_bytes, size_of),
                grace_period,
                decode,
                first_timeout=first_timeout,
                gap_timeout=gap_timeout,
                metrics=metrics,
                traces=traces,
                name=name,
                ordering=ordering_of(
                    priority,
                    tenant,
                    share,
                    cost,
                    max_pending_per_tenant=max_pending_per_tenant,
                    max_pending_cost=max_pending_cost,
                ),
                wait_timeout=wait_timeout,
                step_cost=step_cost,
                max_step_cost=max_step_cost,
            )
        )
        self._engine_factory = engine_factory

    def _serve(self, context: WorkerContext, request_queue: Queue[Any]) -> None:
        ContinuousBatch(context, self._engine_factory, request_queue).serve()
