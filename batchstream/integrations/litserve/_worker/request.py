"""One request, from what the worker received to the end that its client gets."""

from __future__ import annotations

import time
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from litserve.loops.base import _inject_context
from litserve.utils import LitAPIStatus, PickleableHTTPException
from starlette.exceptions import HTTPException

from batchstream import DeadlineError, FinishReason, RequestError, StreamEnd
from batchstream._core.errors import INTERRUPTS, type_name
from batchstream.integrations.litserve._link.messages import (
    EndMessage,
    Envelope,
    Failure,
    text_of,
)
from batchstream.integrations.litserve._link.outputs import mark_json, text_or_bytes
from batchstream.integrations.litserve._log import fields, logger
from batchstream.integrations.litserve._worker.encoder import RequestEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from batchstream._batching.telemetry.metrics import MetricsCaller
    from batchstream._batching.telemetry.traces import RequestTracing
    from batchstream.integrations.litserve._link.ordering import Tenant
    from batchstream.integrations.litserve._worker.context import WorkerContext
    from batchstream.text import Decoder

_GIVEN: Final = (
    "encode_response gives each request str, bytes, a dict, a pydantic model or a marker"
)
_HINT: Final = (
    " (where it is called for each request, as with eos_in='predict' or at max_batch_size=1, it "
    "yields one element at a time)"
)


_CANCELLED: Final = StreamEnd(FinishReason.CANCELLED, 0)


class Context(dict[str, Any]):
    """What LitServe hands to the hooks as a request's `context`: a dict.

    Attributes:
        live: Whether the request can still use outputs: it has neither finished nor failed, and its
            client has not disconnected.
        request_id: The client's name for the request, as its `X-Request-ID` says; LitServe's uid
            without one.
    """

    live = True
    request_id = ""


class ServedRequest:
    """A request that a worker serves, and the way back to its client.

    The client is sent any number of outputs, then exactly one end. What comes after the end is
    ignored. The methods that send an end raise what the transport raises.

    Args:
        worker: What its loop works with.
        server: LitServe's number for the server process that waits for its messages.
        uid: LitServe's name for it, text or a UUID.
        content: What was received, perhaps in an `Envelope`.
        submitted: When the server process put it into the queue; None if that is not known.

    Attributes:
        uid: LitServe's name for it.
        name: The client's name for it, for the log; the same without one.
        content: What was received, and what it becomes on its way to the model.
        context: Its context for the hooks.
        limit: How many outputs it gets at most.
        is_eos: Its own predicate on outputs, if it has one.
        decoder: What its outputs go through, if anything.
        encoder: Its own `encode_response`, if it has one.
        begun: Whether an output has been sent.
        tenant: Whose it is.
        has_output: Whether the model has given it an output.
        step_cost: What its first step in a slot takes of the loop's `max_step_cost`.
        number: Which of its worker's that join an engine it is; -1 before.
        given: How many outputs it had been given when its slot was given back, if it was.
        is_kept: Whether the engine that has given its slot back alone knows how to go on with it.
        stalls: How often in a row that was without an output, although no other was in the engine.
        ended: Whether an end has been sent, or nothing more is to be.
        trace: What to tell of it, if it is traced.
    """

    def __init__(
        self,
        worker: WorkerContext,
        server: int,
        uid: object,
        content: object = None,
        submitted: float | None = None,
    ) -> None:
        self._worker = worker
        self._server = server
        self._submitted = submitted
        self._outputs = 0
        self._first_output: float | None = None  # after how many seconds
        self.tenant: Tenant = None
        self._joined_at: float | None = None
        self._waits_since: float | None = None  # once its slot was given back
        self.step_cost = 0.0
        self.number = -1
        self.given = 0
        self.is_kept = False
        self.stalls = 0
        self.uid = uid
        self.name = str(uid)
        carrier = None
        if isinstance(content, Envelope):
            self.name, self.tenant = content.request_id, content.tenant
            carrier = content.carrier
            content = content.payload
        self.content = content
        self.context = Context()
        self.context.request_id = self.name
        self.limit: int | None = None
        self.is_eos: Callable[[Any], object] | None = None
        self.decoder: Decoder[Any, Any] | None = None
        self.encoder: RequestEncoder | None = None
        self.begun = False
        self.has_output = False
        self.ended = False
        self.trace: RequestTracing | None = None
        # What the server process has reported, it has traced as well.
        if worker.traces is not None and not worker.disconnects.departure_of(uid).is_reported:
            self.trace = worker.traces.submitted(
                content,
                request_id=self.name,
                tenant=self.tenant,
                max_outputs=None,
                carrier=carrier,
                waited=self.age,
            )

    def attempt(self, action: Callable[[ServedRequest], None]) -> bool:
        """Do something for this request, and fail it, and no other, if that raises.

        Returns:
            Whether it did not raise.
        """
        try:
            action(self)
        except INTERRUPTS:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, the other requests go on
            fail_all([self], error)
            self.release()
            return False
        return True

    def release(self) -> None:
        """Drop what the request needed: it gets no more outputs."""
        self.context.live = False
        self.content = None
        if self.encoder is not None:
            self.encoder.close()
            self.encoder = None

    # ---- hooks

    def populate(self) -> None:
        """Let the spec fill the context, if it has a method for that."""
        populate = getattr(self._worker.lit_api.spec, "populate_context", None)
        if populate is not None:
            # In a context of its own: what it sets is seen by no batch, and no other request.
            copy_context().run(populate, self.context, self.content)

    def decode(self) -> None:
        """Call `decode_request`, and ask for the limit, the predicate and the decoder."""
        decode = self._worker.lit_api.decode_request
        self.content = copy_context().run(_inject_context, self.context, decode, self.content)
        options = self._worker.options
        self.limit = options.limit_of(self.context)
        self.is_eos = options.rules.is_eos_of(self.context)
        self.decoder = options.decoder_of(self._worker.lit_api, self.context)
        link, spec = self._worker.link, cast("Any", self._worker.lit_api.spec)
        if link is not None and link.decodes and not spec.handles_stop:
            _check_stop(self.decoder, self.context)

    def begin_encoding(self, look_ahead: Callable[[ServedRequest], bool]) -> None:
        """Call `encode_response` for this request, unless it would only pass outputs on."""
        if self._worker.encodes:
            encode = self._worker.lit_api.encode_response
            self.encoder = RequestEncoder(
                partial(_inject_context, self.context, encode), partial(look_ahead, self)
            )

    # ---- messages

    def put(self, output: object) -> None:
        """Send an output.

        Raises:
            Exception: It cannot be formatted or sent.
        """
        if self.ended:
            return
        worker = self._worker
        data: Any = worker.format_output(output)
        if worker.sends_text and not (type(data) is str and data.isascii()):
            data = text_or_bytes(data, _GIVEN, _HINT)
        if worker.marks_json:
            data = mark_json(data, output)
        worker.outbox.put(self._server, self.uid, data, LitAPIStatus.OK)
        if self.trace is not None and not self.begun:
            self.trace.first_output()
        self.begun = True
        self._outputs += 1

    def finish(self, end: StreamEnd) -> None:
        """End the response as complete."""
        if not self.ended:
            link = self._worker.link
            message = EndMessage.of(end) if link is not None and link.sends_ends else ""
            self._send_end(message, LitAPIStatus.FINISH_STREAMING, end)

    def fail(self, error: BaseException, failure: Failure | None = None) -> None:
        """End the response as failed.

        Args:
            error: Why.
            failure: The answer, if the error does not say it.
        """
        if self.ended:
            return
        failure = failure or Failure.of(error)
        if self._worker.link is not None:
            self._send_end(failure, LitAPIStatus.OK, _failed(error))
        else:
            exception = PickleableHTTPException(failure.status_code, failure.detail)
            self._send_end(exception, LitAPIStatus.ERROR, _failed(error))

    def abandon(self) -> None:
        """Send nothing more: the client has disconnected, or the server process has failed it."""
        if not self.ended:
            self.ended = True
            self._report_end(_CANCELLED)

    def time_out(self) -> None:
        """Fail, as no worker has taken the request in time."""
        limit = self._worker.lit_api.request_timeout
        assert limit is not None  # noqa: S101 - for the type checker
        logger.error(
            "request %s waited for a worker longer than %s seconds",
            self.name,
            limit,
            extra=fields("overdue", self.batcher, [self.name]),
        )
        error = DeadlineError(
            f"no worker has taken the request within {limit} seconds", timeout=limit
        )
        self.fail(error, Failure(504, "Request timed out", None))

    def _send_end(self, data: object, status: str, end: StreamEnd) -> None:
        # An end that cannot be sent does not count: the request fails instead. If the failure
        # cannot be sent either, the transport's error stops the worker, as in LitServe's loop.
        self._worker.outbox.put(self._server, self.uid, data, status)
        self.ended = True
        self._report_end(end)

    @property
    def batcher(self) -> str:
        """What metrics and the log call the API."""
        return self._worker.name

    # ---- metrics and traces

    @property
    def age(self) -> float:
        """How many seconds ago the server process put it into the queue."""
        return 0.0 if self._submitted is None else time.monotonic() - self._submitted

    def join(self) -> None:
        """Note that it has joined a batch."""
        self._joined_at = time.monotonic()

    def give_back(self, given: int, *, alone: bool) -> None:
        """Note that an engine has given its slot back, behind so many outputs."""
        self.stalls = self.stalls + 1 if alone and given == self.given else 0
        self.given = given
        self._joined_at = None
        self._waits_since = time.monotonic()
        if self._worker.metrics is not None:
            self._worker.metrics("requeued", tenant=self.tenant)
        if self.trace is not None:
            self.trace.requeued()

    @property
    def waited(self) -> float:
        """How many seconds it waits by now, since it was submitted or its slot was given back."""
        since = self._waits_since
        return self.age if since is None else time.monotonic() - since

    def note_output(self, metrics: MetricsCaller) -> None:
        """Report the model's first output for it."""
        self.has_output = True
        self._first_output = self.age
        metrics("first_output", self._first_output, tenant=self.tenant)

    def _report_end(self, end: StreamEnd) -> None:
        """Tell metrics and the trace of the end; the trace alone, if metrics know of it."""
        _, error, is_reported = self._worker.disconnects.departure_of(self.uid)
        if self.uid in self._worker.disconnects:  # it has ended otherwise, for its client
            end = _CANCELLED if error is None else _failed(error)
        metrics = None if is_reported else self._worker.metrics
        joined_at = self._joined_at
        end = replace(end, outputs=self._outputs)  # the outputs that were sent
        if self.trace is not None:
            self.trace.ended(end)
        if metrics is not None:
            metrics(
                "finished",
                end,
                joined=joined_at is not None,
                lasted=self.age,
                in_slot=0.0 if joined_at is None else time.monotonic() - joined_at,
                first_output=self._first_output,
                tenant=self.tenant,
            )
        self._worker.note_reported(self._server, self.uid)


def _failed(error: BaseException) -> StreamEnd:
    return StreamEnd(FinishReason.ERROR, 0, error=error)


def report_joined(requests: Sequence[ServedRequest], worker: WorkerContext) -> None:
    """Report requests that have joined a batch together."""
    metrics, traces = worker.metrics, worker.traces
    if traces is not None:
        traces.joined([request.trace for request in requests if request.trace is not None])
    for request in requests:
        request.join()
    if metrics is not None and requests:
        waited = [request.waited for request in requests]
        metrics("joined", waited, tenants=[request.tenant for request in requests])


def _check_stop(decoder: Any, context: Context) -> None:
    """Refuse a decoder, or None, that would pass over the stop strings that a client asks for.

    Raises:
        TypeError: It has none.
    """
    stop = context.get("stop")
    if stop and (decoder is None or getattr(decoder, "stops", None) == ()):
        returned = "None" if decoder is None else "a decoder without stop strings"
        raise TypeError(
            f"a client asks for stop={stop!r}, and decode returns {returned}: let it return "
            f"TextDecoder(..., stop=context['stop']), or pass OpenAISpec(handles_stop=True) if the "
            f"API itself ends the request there"
        )


def fail_all(requests: Iterable[ServedRequest], error: BaseException) -> None:
    """Fail the requests that have not ended, and log the error once for all of them.

    Raises:
        Exception: What the transport raised first, after every request has been tried.
    """
    failing = [request for request in requests if not request.ended]
    if failing:
        _log(error, failing)
    transport_errors: list[Exception] = []
    for request in failing:
        try:
            request.fail(error)
        except Exception as transport_error:  # noqa: BLE001 - raised below
            transport_errors.append(transport_error)
    if transport_errors:
        raise transport_errors[0]


def _log(error: BaseException, requests: list[ServedRequest]) -> None:
    names = [request.name for request in requests]
    listed, reason = ", ".join(names), type_name(error)
    if not isinstance(error, HTTPException | KeyboardInterrupt | RequestError):
        logger.error(
            "an error has failed these requests: %s",
            listed,
            exc_info=error,
            extra=fields("failed", requests[0].batcher, names, reason=reason),
        )
    elif any(request.begun for request in requests):
        # Before the first output it is an answer like any other; now its client cannot see it.
        logger.warning(
            "requests cut off in mid-stream by %s: %s",
            text_of(error),
            listed,
            extra=fields("cut_short", requests[0].batcher, names, reason=reason),
        )
