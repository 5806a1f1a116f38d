"""Spans of requests and batches: the object that a user passes as `traces`.

Spans are started and ended without being made the current one: a request's outlives the call that
submits it, and is told of in the worker's thread. Times are read here, once for each event, and
handed to OpenTelemetry.
"""

from __future__ import annotations

from contextlib import suppress
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import (
    Link,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    get_current_span,
    get_tracer,
)

from batchstream import BatchTrace, RequestTrace, Traces
from batchstream._core.errors import type_name
from batchstream.integrations.opentelemetry._names import (
    BATCH_SIZE,
    BATCHER,
    ERROR_TYPE,
    FINISH_REASON_OF,
    FINISH_REASONS,
    FIRST_CHUNK,
    FIRST_OUTPUT,
    INPUT_TOKENS,
    JOINED,
    MAX_TOKENS,
    OUTPUT_TOKENS,
    REQUEST_ID,
    REQUEUED,
    SCOPE,
    VERSION,
    Operation,
    error_type,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from opentelemetry.trace import Span, Tracer

    from batchstream import StreamEnd

_NANOSECONDS: Final = 1e9


class OpenTelemetryTraces(Traces):
    """Spans of a batcher's requests and batches; pass it as `traces`.

    Each request has a span, from the call that submits it to its end, below the span that is
    current in that call: that of the HTTP request, where the web framework is instrumented. It has
    an event as the request joins a batch, gets its first output, and gives its slot back. A request
    that fails or is refused has the status of an error; one that is cancelled has none.

    The requests that join a batch together have one span as well, from then until the last of them
    has left the batch. It is the root of a trace of its own, with links to the spans of its
    requests, which have a link back. It has the status of an error if all of them have failed.

    An object serves any number of batchers, whose `name` is an attribute. It can be made before
    OpenTelemetry is set up, which it looks for with the first span. Where a request is not sampled,
    nothing is done for it.

    Args:
        operation: What is done for a request, by the conventions: `"text_completion"`, `"chat"`,
            `"embeddings"` and so on, or a word of your own.
        model: The model's name; that of the batcher if it is None.
        provider: What serves it.
        attributes: A function of a request that returns attributes for its span besides, for
            example `{"gen_ai.request.temperature": 0.7}`. It is called in the call that submits;
            what it raises goes to `sys.unraisablehook`, and the request is not traced.
        batches: Whether batches have spans.
        tracer_provider: OpenTelemetry's; the global one if it is None.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind.

    Threads: any.

    Example:
        >>> import batchstream
        >>> def double(numbers):
        ...     return [2 * number for number in numbers]
        >>> with batchstream.DynamicBatcher(
        ...     double, max_batch_size=8, single=True, traces=OpenTelemetryTraces()
        ... ) as batcher:
        ...     batcher.call(21)
        42
    """

    def __init__(
        self,
        *,
        operation: str = "text_completion",
        model: str | None = None,
        provider: str = "batchstream",
        attributes: Callable[[Any], Mapping[str, Any]] | None = None,
        batches: bool = True,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        if attributes is not None and not callable(attributes):
            raise TypeError(f"attributes takes a function of one request, got {attributes!r}")
        self._operation = Operation(operation, model, provider)
        self._attributes = attributes
        self._batches = batches
        self._provider = tracer_provider

    def for_batcher(self, name: str) -> Traces:
        """Return what the batcher of this name calls."""
        tracer = get_tracer(SCOPE, VERSION, tracer_provider=self._provider)
        return _BatcherTraces(tracer, name, self._operation, self._attributes, self._batches)

    def carrier(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return the headers that carry the current trace context; the client's if there is none.

        There is none where the web framework is not instrumented.
        """
        carrier: dict[str, str] = {}
        is_current = get_current_span().get_span_context().is_valid
        inject(carrier, None if is_current else extract(headers))
        return carrier


class _BatcherTraces(Traces):
    """What one batcher calls."""

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        operation: Operation,
        attributes_of: Callable[[Any], Mapping[str, Any]] | None,
        batches: bool,  # noqa: FBT001 - private
    ) -> None:
        self._tracer = tracer
        self._batcher = name
        self._span_name = f"{operation.name} {operation.model(name)}"
        self._attributes = operation.attributes(name)
        self._attributes_of = attributes_of
        self._batches = batches

    def submitted(
        self,
        request: Any,
        *,
        request_id: str,
        tenant: Hashable,
        max_outputs: int | None,
        carrier: Mapping[str, str] | None = None,
        waited: float = 0.0,
        **_: object,
    ) -> RequestTrace | None:
        """Start the span of a request; None if it is not sampled."""
        del tenant  # it may be a secret, such as an API key: `attributes` says what is none
        attributes = {**self._attributes, REQUEST_ID: request_id}
        if max_outputs is not None:
            attributes[MAX_TOKENS] = max_outputs
        if self._attributes_of is not None:
            attributes.update(self._attributes_of(request))
        started = time_ns() - round(waited * _NANOSECONDS)
        span = self._tracer.start_span(
            self._span_name,
            context=None if carrier is None else extract(carrier, Context()),
            kind=SpanKind.INTERNAL,
            attributes=attributes,
            start_time=started,
        )
        return _RequestSpan(span, started) if span.is_recording() else None

    def joined(self, requests: Sequence[RequestTrace], **_: object) -> BatchTrace | None:
        """Start the span of requests that join a batch together."""
        spans = [request.span for request in requests if isinstance(request, _RequestSpan)]
        if not self._batches:
            return None
        span = self._tracer.start_span(
            f"batch {self._batcher}",
            context=Context(),  # whatever is current in the worker's thread is no parent of it
            kind=SpanKind.INTERNAL,
            attributes={BATCHER: self._batcher, BATCH_SIZE: len(spans)},
            links=[Link(each.get_span_context()) for each in spans],
            start_time=time_ns(),
        )
        return _BatchSpan(span) if span.is_recording() else None


class _RequestSpan(RequestTrace):
    """The span of one request.

    Args:
        span: The span.
        started: When it started, in nanoseconds.
    """

    def __init__(self, span: Span, started: int) -> None:
        self.span = span
        self._started = started

    def joined(self, batch: BatchTrace | None) -> None:
        now = time_ns()
        if isinstance(batch, _BatchSpan):
            self.span.add_link(batch.span.get_span_context())
        self.span.add_event(JOINED, timestamp=now)

    def first_output(self) -> None:
        now = time_ns()
        self.span.add_event(FIRST_OUTPUT, timestamp=now)
        self.span.set_attribute(FIRST_CHUNK, (now - self._started) / _NANOSECONDS)

    def requeued(self) -> None:
        self.span.add_event(REQUEUED, timestamp=time_ns())

    def ended(self, end: StreamEnd) -> None:
        now = time_ns()
        try:
            self.span.set_attribute(FINISH_REASONS, (FINISH_REASON_OF[end.reason],))
            self.span.set_attribute(OUTPUT_TOKENS, end.outputs)
            tokens = None if end.info is None else end.info.get("prompt_tokens")
            if isinstance(tokens, int):
                self.span.set_attribute(INPUT_TOKENS, tokens)
            _fail(self.span, end)
        finally:
            self.span.end(now)


class _BatchSpan(BatchTrace):
    """The span of requests that joined a batch together."""

    def __init__(self, span: Span) -> None:
        self.span = span

    def ended(self, ends: Sequence[StreamEnd]) -> None:
        now = time_ns()
        try:
            error = ends[-1].error if ends else None
            if error is not None and all(end.error is not None for end in ends):
                _fail(self.span, ends[-1])
                # Once, and not for each of its requests: a traceback is long.
                with suppress(Exception):  # the class is the user's, and so is its `str`
                    self.span.record_exception(error, timestamp=now)
        finally:
            self.span.end(now)


def _fail(span: Span, end: StreamEnd) -> None:
    """Give a span the error of an end, if it is one."""
    kind = error_type(end)
    if kind is None:
        return
    span.set_attribute(ERROR_TYPE, kind)
    try:
        text = None if end.error is None else str(end.error)
    except Exception as error:  # noqa: BLE001 - the class is the user's
        text = f"an error that has no text: {type_name(error)}"
    span.set_status(Status(StatusCode.ERROR, text))
