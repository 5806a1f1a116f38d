"""The loops that LitServe runs in each worker."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from litserve.loops.base import LitLoop
from litserve.utils import LitAPIStatus

from batchstream._batching.engine import check_factory
from batchstream._core.arguments import DEFAULT_MAX_BUFFERED, DEFAULT_MAX_PENDING
from batchstream._core.rules import EndRules
from batchstream.integrations.litserve._link.link import DEFAULT_GRACE_PERIOD, Link
from batchstream.integrations.litserve._openai.spec import OpenAISpec, is_stock
from batchstream.integrations.litserve._options import (
    Decode,
    Hook,
    Limit,
    LoopOptions,
    check_pickles,
    ordering_of,
)
from batchstream.integrations.litserve._server.cuts import keep_cuts_out_of_the_log
from batchstream.integrations.litserve._server.endpoint import StreamingEndpoint
from batchstream.integrations.litserve._server.readiness import watch_health
from batchstream.integrations.litserve._worker.batch import Batch
from batchstream.integrations.litserve._worker.context import WorkerContext
from batchstream.integrations.litserve._worker.continuous import ContinuousBatch
from batchstream.integrations.litserve._worker.queue import (
    ArrivalTimes,
    PushbackQueue,
    wait_for_request,
)
from batchstream.integrations.litserve._worker.request import ServedRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import Queue

    from litserve import LitAPI
    from litserve.callbacks import CallbackRunner
    from litserve.specs.base import LitSpec
    from litserve.transport.base import MessageTransport
    from litserve.utils import LoopResponseType

    from batchstream import Metrics, StepEngine, per_request
    from batchstream.integrations.litserve._link.ordering import Tenant
    from batchstream.integrations.litserve._link.received import ReceivedRequest


class _AnyLoop(LitLoop):
    """A LitServe loop that gives its API an endpoint, and serves it in each worker.

    Attributes:
        calls_predict: Whether the API has to have a `predict`; `OpenAISpec` asks.
    """

    calls_predict = True
    _worker_context: WorkerContext | None = None

    def __init__(self, options: LoopOptions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._options = options

    def pre_setup(
        self,
        lit_api: LitAPI = None,  # type: ignore[assignment] # where `self` is the API
        spec: LitSpec | None = None,
    ) -> None:
        """Prepare an API for this loop; LitServe calls it once, in the main process.

        Raises:
            TypeError: The API was given the class of the loop.
            ValueError: The API does not stream, or is asynchronous.
        """
        if not isinstance(self, _AnyLoop):
            raise TypeError(
                "loop takes a loop, and was given its class: call it, loop=BatchedStreamLoop(...) "
                "for example"
            )
        super().pre_setup(lit_api, spec)
        name = type(self).__name__
        if not lit_api.stream:
            raise ValueError(f"{name} serves streams only: pass stream=True to the LitAPI")
        if lit_api.enable_async:
            raise ValueError(f"{name} runs synchronous hooks only: leave enable_async out")
        options = self._options
        make_link = partial(
            Link,
            options.max_pending,
            options.max_buffered,
            grace_period=options.grace_period,
            first_timeout=options.first_timeout,
            gap_timeout=options.gap_timeout,
            metrics=options.metrics,
            name=options.name or lit_api.api_path,
            ordering=options.ordering,
        )
        spec = lit_api.spec
        if spec is None or isinstance(spec, StreamingEndpoint):
            lit_api.spec = None  # type: ignore[assignment]  # an earlier server's has its path
            lit_api.spec = StreamingEndpoint(lit_api, make_link())
            keep_cuts_out_of_the_log()
        elif is_stock(spec):
            lit_api.spec = OpenAISpec.instead_of(spec, lit_api)
        watch_health(lit_api)
        if isinstance(lit_api.spec, OpenAISpec):
            lit_api.spec.link = make_link(sends_ends=True, decodes=options.decode is not None)

    def __call__(  # noqa: PLR0917 - LitServe's signature
        self,
        lit_api: LitAPI,
        device: str,  # noqa: ARG002
        worker_id: int,
        request_queue: Queue[Any],
        transport: MessageTransport,
        workers_setup_status: dict[int, str],  # noqa: ARG002
        callback_runner: CallbackRunner,
    ) -> None:
        """Serve requests until the worker is stopped; LitServe calls it in each worker."""
        self._run(lit_api, request_queue, transport, callback_runner, worker_id)

    def _run(
        self,
        lit_api: LitAPI,
        request_queue: Queue[Any],
        transport: MessageTransport,
        callbacks: CallbackRunner,
        worker_id: int | None = None,
    ) -> None:
        context = WorkerContext(
            self, lit_api, self._options, transport=transport, callbacks=callbacks, worker=worker_id
        )
        self._worker_context = context
        try:
            self._serve(context, request_queue)
        except KeyboardInterrupt:
            self.kill()  # type: ignore[no-untyped-call]

    def put_response(  # noqa: PLR0917 - LitServe's signature
        self,
        transport: MessageTransport,
        response_queue_id: int,
        uid: str,
        response_data: Any,
        status: Any,
        response_type: LoopResponseType,
    ) -> None:
        """Send a message; LitServe calls it with START for each request that it takes."""
        if status == LitAPIStatus.START and self._worker_context is not None:
            self._worker_context.claim(response_queue_id, uid)
        super().put_response(
            transport, response_queue_id, uid, response_data, status, response_type
        )

    @abstractmethod
    def _serve(self, context: WorkerContext, request_queue: Queue[Any]) -> None:
        """Serve requests until the loop is stopped."""


class BatchedStreamLoop(_AnyLoop):
    """A LitServe loop in which each request of a batch ends, or fails, on its own.

    Pass it to the API, `LitAPI(stream=True, max_batch_size=4, loop=BatchedStreamLoop())`; nothing
    else changes. The loop calls the hooks and callbacks of LitServe's batched streaming loop, in
    the same order. Each time `encode_response` yields is a step of the batch: one element for each
    request, in the order of the requests. None, or any other end mark, ends its request in that
    step. As soon as the last request of a batch has ended, the batch's generators are closed, each
    before the one that it reads.

    A request whose client leaves is dropped from the batch before the next step. The generator that
    makes the steps receives the live slots: `live = yield step`. A hook that has a `context` can
    read the same from it: `context[i].live`.

    An error fails as few requests as it can. An error in `decode_request`, a `Fail`, and an output
    that cannot be sent fail their own request; every other error fails all requests of the
    batch that are still live. Before its first output a client gets the status of an
    `HTTPException`, and 500 for any other error; later its connection is cut. The worker logs the
    error once and goes on.

    The status and headers of a response are sent together with its first output, not before.

    At LitServe's default, `max_batch_size=1`, there are no batches. Then each hook takes one
    request, as LitServe calls it, and an element is what `encode_response` yields. A generator
    receives nothing; it is closed when its request is not live any more.

    Args:
        eos_in: The hook whose steps hold the ends. With `"predict"`, a step is what `predict`
            yields (or `unbatch`, if the API has its own), and `encode_response` need not know of
            ends, nor of the batch: it is called for each request, as LitServe calls it without
            batches, with an iterator of the outputs and the context of this request. An API
            without `encode_response` is always read so.
        eos: The end mark, recognised by identity: None, or an object that keeps its identity when
            it is pickled.
        is_eos: A predicate on outputs that is true of the last output of a request; or
            `per_request` of a function that is given the request's context, as `max_outputs` is,
            and returns the request's own. It has to pickle, as has `max_outputs` if it is a
            function: LitServe spawns its workers.
        include_eos: Deliver the output that `is_eos` recognised, before the end.
        max_outputs: How many outputs a request gets at most: a number, or a function of the
            request's context that returns one or None. `populate_context` of a spec has filled the
            context by then, and `decode_request` may have.
        decode: A function of the API and of the request's context, such as a method of the API's
            class, that returns the decoder of the request's outputs: a `TextDecoder` of
            `batchstream.text`, or None for a request whose outputs stay as they are. It needs
            `eos_in="predict"`: `encode_response` gets text. `eos`,
            `is_eos` and `max_outputs` are about the outputs before, such as token ids. It has to
            pickle.
        require_eos: Fail the requests that are live when `predict` ends, instead of ending them.
        max_pending: How many requests may wait for a worker; the next is answered with 503. None
            for any number, as in LitServe's own loops.
        max_buffered: How many outputs may wait for their client in the server process before a step
            that has another. A request with more than that fails. None for any number, as in
            LitServe.
        grace_period: How many seconds open responses, and requests that wait, may go on when the
            server is told to end; then they are cut. Until all have ended the server drains: it
            answers new requests with 503.
        first_timeout: After how many seconds from its submission a request has to have an output;
            it is answered with 504. None for any time.
        gap_timeout: How many seconds there may be between two outputs, and between the last one and
            the end; then the connection is cut. None for any time.
        metrics: A function without arguments that makes a `Metrics`, or its class, such as
            `PrometheusMetrics`. Each worker calls it once, and each server process. It has to
            pickle.
        name: What metrics call this API; its path without one.
        priority: A function of a `ReceivedRequest`, called in the server process, that returns its
            priority, a whole number; lower is earlier. No request goes to a worker while one of a
            lower number waits. It has to pickle, as the next three.
        tenant: A function of a `ReceivedRequest` that returns whose it is: text, bytes, a whole
            number or None. Tenants of one priority take turns by their shares, and the requests of
            one tenant keep their order.
        share: A function of a `ReceivedRequest` that returns the weight of its tenant; 1 without
            one.
        cost: A function of a `ReceivedRequest` that returns what its tenant is charged for it, more
            than 0; 1 without one.
        max_pending_per_tenant: How many requests of one tenant may wait; the next is answered with
            503. None for any number.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or would not reach a worker.

    Example:
        >>> import litserve
        >>> from batchstream.integrations.litserve import BatchedStreamLoop
        >>> class Countdown(litserve.LitAPI):
        ...     def decode_request(self, request):
        ...         return request["start"]
        ...
        ...     def predict(self, starts):
        ...         for passed in range(max(starts) + 1):
        ...             yield [start - passed for start in starts]
        ...
        ...     def encode_response(self, steps):
        ...         for step in steps:
        ...             yield [{"count": count} if count > 0 else None for count in step]
        >>> api = Countdown(stream=True, max_batch_size=4, loop=BatchedStreamLoop())
        >>> server = litserve.LitServer(api, accelerator="cpu")  # server.run(host="127.0.0.1")
    """

    def __init__(
        self,
        *,
        eos_in: Hook = "encode_response",
        eos: object = None,
        is_eos: Callable[[Any], object] | per_request[Any, Any] | None = None,
        include_eos: bool = False,
        max_outputs: Limit = None,
        decode: Decode = None,
        require_eos: bool = False,
        max_pending: int | None = None,
        max_buffered: int | None = DEFAULT_MAX_BUFFERED,
        grace_period: float = DEFAULT_GRACE_PERIOD,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
        metrics: Callable[[], Metrics] | None = None,
        name: str | None = None,
        priority: Callable[[ReceivedRequest], int] | None = None,
        tenant: Callable[[ReceivedRequest], Tenant] | None = None,
        share: Callable[[ReceivedRequest], float] | None = None,
        cost: Callable[[ReceivedRequest], float] | None = None,
        max_pending_per_tenant: int | None = None,
    ) -> None:
        if eos_in not in get_args(Hook):
            hooks = " or ".join(map(repr, get_args(Hook)))
            raise ValueError(f"eos_in must be {hooks}, got {eos_in!r}")
        if decode is not None and eos_in != "predict":
            raise ValueError(
                f"decode takes what predict yields, and eos_in={eos_in!r} reads the steps behind "
                f"encode_response: pass eos_in='predict'"
            )
        rules: EndRules[Any] = EndRules(
            eos=eos,
            is_eos=is_eos,
            include_eos=include_eos,
            require_eos=require_eos,
            has_requests=True,
        )
        super().__init__(
            LoopOptions(
                rules,
                max_outputs,
                max_pending,
                max_buffered,
                grace_period,
                decode,
                first_timeout=first_timeout,
                gap_timeout=gap_timeout,
                metrics=metrics,
                name=name,
                ordering=ordering_of(priority, tenant, share, cost, max_pending_per_tenant),
            )
        )
        self._eos_in = eos_in

    def run_batched_streaming_loop(
        self,
        lit_api: LitAPI,
        request_queue: Queue[Any],
        transport: MessageTransport,
        callback_runner: CallbackRunner,
        lit_spec: LitSpec | None = None,  # noqa: ARG002 - LitServe's own loop has it as well
    ) -> None:
        """Take batches from the queue and serve them, one after another.

        Raises:
            Exception: LitServe's own, with which its loops stop at the sentinel in their queue.

        Blocking: until the loop is stopped.
        """
        self._run(lit_api, request_queue, transport, callback_runner)

    def get_batch_requests(
        self, lit_api: LitAPI, request_queue: Queue[Any], transport: MessageTransport
    ) -> tuple[list[Any], list[Any]]:
        """Wait for a request, and then up to `batch_timeout` seconds for others to join it.

        In a loop of LitServe's own the wait starts before there is any request. A request that
        comes when it is nearly over goes alone, and a `batch_timeout` of 0 keeps an idle worker
        busy.

        Returns:
            The requests to be served, as `(response_queue_id, uid, request)`, and the requests that
            have waited for longer than the server's `timeout`, as `(response_queue_id, uid)`.

        Raises:
            Exception: LitServe's own, at the sentinel.

        Blocking: until there is a request.
        """
        waiting = PushbackQueue(wait_for_request(request_queue), request_queue)
        while True:
            # LitServe reads the clock before the queue. If the time is over by then, it returns
            # nothing, and the request is still in front.
            found = super().get_batch_requests(lit_api, waiting, transport)  # type: ignore[arg-type]
            if any(found):
                return found

    def _serve(self, context: WorkerContext, request_queue: Queue[Any]) -> None:
        splits_at_predict = self._eos_in == "predict" or not context.overrides("encode_response")
        while True:
            # No variable here: nothing of a batch is kept while the loop waits for the next.
            Batch(
                context,
                self._next_requests(context, request_queue),
                splits_at_predict=splits_at_predict,
            ).serve()

    def _next_requests(
        self, context: WorkerContext, request_queue: Queue[Any]
    ) -> list[ServedRequest]:
        lit_api, arrivals = context.lit_api, ArrivalTimes(request_queue)
        found, late = self.get_batch_requests(
            lit_api,
            arrivals,  # type: ignore[arg-type]
            context.transport,
        )
        for server, uid in late:
            ServedRequest(context, server, uid, None, arrivals.of.get(uid)).time_out()
        requests = [
            ServedRequest(context, server, uid, content, arrivals.of.get(uid))
            for server, uid, content in found
        ]
        for request in requests:
            if request.uid in context.disconnects:
                request.abandon()
        return [request for request in requests if not request.ended]


class ContinuousBatchLoop(_AnyLoop):
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
    another has left the engine. An error in `step` fails all requests in the engine, and the next
    request gets a new engine. An engine that has a `close` is closed then, or as the worker ends.

    Args:
        engine_factory: A function of the API that makes a `StepEngine`, or its class. It is called
            in each worker after the API's `setup`, and again for the next request after an engine
            has raised in a step. It has to pickle.
        eos: See `BatchedStreamLoop`; steps are those of the engine.
        is_eos: The same.
        include_eos: Deliver the output that `is_eos` recognised, before the end.
        max_outputs: How many outputs a request gets at most; see `BatchedStreamLoop`.
        decode: Returns the decoder of a request's outputs; see `BatchedStreamLoop`.
        max_pending: How many requests may wait for a slot; the next is answered with 503. None
            for any number.
        max_buffered: How many outputs may wait for their client; see `BatchedStreamLoop`.
        grace_period: How many seconds open responses may go on; see `BatchedStreamLoop`.
        first_timeout: How long a request may be without an output; see `BatchedStreamLoop`.
        gap_timeout: How long there may be no other output; see `BatchedStreamLoop`.
        metrics: Makes the metrics of each process; see `BatchedStreamLoop`.
        name: What metrics call this API; its path without one.
        priority: Which requests go first; see `BatchedStreamLoop`.
        tenant: Whose a request is; see `BatchedStreamLoop`.
        share: The weight of a request's tenant; see `BatchedStreamLoop`.
        cost: What a request's tenant is charged for it; see `BatchedStreamLoop`.
        max_pending_per_tenant: How many requests of one tenant may wait; see `BatchedStreamLoop`.

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
        grace_period: float = DEFAULT_GRACE_PERIOD,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
        metrics: Callable[[], Metrics] | None = None,
        name: str | None = None,
        priority: Callable[[ReceivedRequest], int] | None = None,
        tenant: Callable[[ReceivedRequest], Tenant] | None = None,
        share: Callable[[ReceivedRequest], float] | None = None,
        cost: Callable[[ReceivedRequest], float] | None = None,
        max_pending_per_tenant: int | None = None,
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
                max_buffered,
                grace_period,
                decode,
                first_timeout=first_timeout,
                gap_timeout=gap_timeout,
                metrics=metrics,
                name=name,
                ordering=ordering_of(priority, tenant, share, cost, max_pending_per_tenant),
            )
        )
        self._engine_factory = engine_factory

    def _serve(self, context: WorkerContext, request_queue: Queue[Any]) -> None:
        ContinuousBatch(context, self._engine_factory, request_queue).serve()
