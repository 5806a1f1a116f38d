"""The loop of LitServe's hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from batchstream._core.arguments import DEFAULT_MAX_BUFFERED
from batchstream._core.rules import EndRules
from batchstream.integrations.litserve._link.link import DEFAULT_GRACE_PERIOD
from batchstream.integrations.litserve._loop import AnyLoop
from batchstream.integrations.litserve._options import (
    Decode,
    Hook,
    Limit,
    LoopOptions,
    OnOverflow,
    bound_of,
    ordering_of,
)
from batchstream.integrations.litserve._worker.batch import Batch
from batchstream.integrations.litserve._worker.context import WorkerContext
from batchstream.integrations.litserve._worker.queue import (
    Arrivals,
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

    from batchstream import Metrics, Traces, per_request
    from batchstream.integrations.litserve._link.ordering import Tenant
    from batchstream.integrations.litserve._link.received import ReceivedRequest


class BatchedStreamLoop(AnyLoop):
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
        max_buffered: How many outputs may wait for their client in the server process. None for any
            number, as in LitServe.
        on_overflow: What happens if there are as many when a step has another. `"cancel"` fails the
            request: its client is cut off. `"merge"` merges what comes with the last one that
            waits: nothing is lost, and no other request waits.
        merge: For `"merge"`, a function of two neighbouring outputs that returns one, such as
            `operator.add`. The server process calls it, in its event loop, with what
            `encode_response` has yielded: text, bytes, or a dict as JSON has it, also for a
            pydantic model; with text where the API has a `format_encoded_response` of its own. It
            has to pickle, as has `size_of`. What it raises fails that request alone.
        max_buffered_bytes: How many bytes may wait for a client, besides; a request with more than
            that when a step has another fails, with `"merge"` too. None for any number.
        size_of: A function of an output, as `merge` gets it, that returns how many bytes it has;
            without it, the bytes that are sent count.
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
        traces: What is called for each single request, such as `OpenTelemetryTraces()`, in the
            worker, to which the server process sends the caller's trace context; and in the server
            process for a request that no worker reports. It has to pickle.
        name: What metrics call this API; its path without one.
        priority: A function of a `ReceivedRequest`, called in the server process, that returns its
            priority, a whole number; lower is earlier. No request goes to a worker while one of a
            lower number waits. It has to pickle, as the next three.
        tenant: A function of a `ReceivedRequest` that returns whose it is: text, bytes, a whole
            number or None. Tenants of one priority take turns by their shares, and the requests of
            one tenant keep their order.
        share: A function of a `ReceivedRequest` that returns the weight of its tenant; 1 without
            one.
        cost: A function of a `ReceivedRequest` that returns what it costs, more than 0: its tenant
            is charged that, and it counts in `max_pending_cost`; 1 without one.
        max_pending_per_tenant: How many requests of one tenant may wait; the next is answered with
            503. None for any number.
        max_pending_cost: What the requests that wait may cost together; one that would be too much
            is answered with 503, and with 422 if it costs more by itself. None for any cost.
        wait_timeout: After how many seconds from its submission a worker has to have taken a
            request; it is answered with 504. None for any time.

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
        lit_api, arrivals = context.lit_api, Arrivals(request_queue)
        found, late = self.get_batch_requests(
            lit_api,
            arrivals,  # type: ignore[arg-type]
            context.transport,
        )
        unknown = None, None  # of a `get_batch_requests` that takes requests from elsewhere
        for server, uid in late:
            submitted, content = arrivals.of.get(uid, unknown)
            ServedRequest(context, server, uid, content, submitted).time_out()
        requests = [
            ServedRequest(context, server, uid, content, arrivals.of.get(uid, unknown)[0])
            for server, uid, content in found
        ]
        for request in requests:
            if request.uid in context.disconnects:
                request.abandon()
        return [request for request in requests if not request.ended]
