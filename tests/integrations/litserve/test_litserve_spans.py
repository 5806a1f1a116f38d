"""Spans of requests and batches in a worker, without any other process."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from test_litserve_loop import ok
from test_litserve_metrics import Ends
from test_litserve_options import everywhere, ready, served

from batchstream.integrations.litserve._link.messages import Departure, Failure
from batchstream.integrations.litserve._worker import context as worker_context
from batchstream.integrations.litserve._worker.disconnects import Disconnects
from batchstream.integrations.opentelemetry import OpenTelemetryTraces

SPANS = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(SPANS))


class InMemoryTraces(OpenTelemetryTraces):
    """Pickles, as that of a program does which sets OpenTelemetry up in each process."""

    def for_batcher(self, name):
        return OpenTelemetryTraces(tracer_provider=PROVIDER).for_batcher(name)


@pytest.fixture
def disconnects(monkeypatch):
    """What a worker knows of departures."""
    disconnects = Disconnects()
    monkeypatch.setattr(worker_context, "Disconnects", lambda *_: disconnects)
    return disconnects


def spans_of(served):
    """Call a function, and return the spans of batches and of requests that have ended in it."""
    SPANS.clear()
    served()
    spans = SPANS.get_finished_spans()
    batches = [span for span in spans if span.name.startswith("batch ")]
    return batches, [span for span in spans if span not in batches]


class Leaving:
    """An output at which a server process tells the worker of a request."""

    def __init__(self, disconnects, departure):
        self._disconnects = disconnects
        self._departure = departure

    def __str__(self):
        self._disconnects.add(self._departure.uid, self._departure)
        return "a"


@everywhere
@pytest.mark.parametrize("is_reported", [False, True])
def test_a_request_that_the_server_process_has_failed_fails_its_span_and_that_of_its_batch(
    where, is_reported, disconnects
):
    failure = Failure(503, "the server is shutting down", None)
    departure = Departure("r0", failure, is_reported)
    api = ready(where, traces=InMemoryTraces(), metrics=Ends)
    outputs = [Leaving(disconnects, departure), *"b" * 20, None]
    [batch], [request] = spans_of(lambda: served(api, outputs))
    for span in (batch, request):
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "503: the server is shutting down"
        assert span.attributes["error.type"] == "HTTPException"
    assert [event.name for event in batch.events] == ["exception"]
    # What the server process has reported is not counted once more.
    assert [reason for reason, *_ in Ends.made.told] == ([] if is_reported else ["error"])


@everywhere
def test_a_request_whose_client_has_left_fails_no_span(where, disconnects):
    api = ready(where, traces=InMemoryTraces(), metrics=Ends)
    outputs = [Leaving(disconnects, Departure("r0")), *"b" * 20, None]
    [batch], [request] = spans_of(lambda: served(api, outputs))
    assert {span.status.status_code for span in (batch, request)} == {StatusCode.UNSET}
    assert [reason for reason, *_ in Ends.made.told] == ["cancelled"]


@everywhere
def test_a_batch_of_which_one_request_is_whole_has_not_failed(where, disconnects):
    failed = Departure("r0", Failure(503, "the server is shutting down", None))
    api = ready(where, traces=InMemoryTraces())
    outputs = [Leaving(disconnects, failed), *"b" * 20, None]
    sent = []
    batches, _ = spans_of(lambda: sent.extend(served(api, outputs, ["a", "b", None])))
    assert sent[1][:2] == ok("a", "b")
    assert [span.status.status_code for span in batches if len(span.links) == 2] == [
        StatusCode.UNSET
    ]
