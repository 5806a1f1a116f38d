"""Spans of requests and batches in a worker, without any other process."""

import pytest
from fastapi import HTTPException
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from test_litserve_loop import ok
from test_litserve_metrics import Ends
from test_litserve_options import everywhere, ready, served

from batchstream import DeadlineError, Fail, Last, RequestError, SlowConsumerError
from batchstream.integrations.litserve._link.messages import Departure, Envelope
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
    error = HTTPException(503, "the server is shutting down")
    departure = Departure("r0", error, is_reported)
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
    failed = Departure("r0", HTTPException(503, "the server is shutting down"))
    api = ready(where, traces=InMemoryTraces())
    outputs = [Leaving(disconnects, failed), *"b" * 20, None]
    sent = []
    batches, _ = spans_of(lambda: sent.extend(served(api, outputs, ["a", "b", None])))
    assert sent[1][:2] == ok("a", "b")
    assert [span.status.status_code for span in batches if len(span.links) == 2] == [
        StatusCode.UNSET
    ]


@everywhere
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DeadlineError("late", timeout=1.0), ["deadline"]),
        (SlowConsumerError("slow", slot=-1, max_buffered=4), ["slow"]),
        (RequestError("no"), ["request_error"]),
        (HTTPException(503, "the server is shutting down"), ["error"]),
        (None, ["cancelled"]),
    ],
    ids=["late", "slow", "at fault", "cut", "left"],
)
@pytest.mark.parametrize("is_last", [False, True], ids=["before", "crosses"])
@pytest.mark.parametrize("is_reported", [False, True], ids=["", "reported"])
def test_what_the_server_process_says_of_a_request_is_how_it_ends_also_where_its_own_end_crosses(  # noqa: PLR0917
    where, error, told, is_last, is_reported, disconnects
):
    leaving = Leaving(disconnects, Departure("r0", error, is_reported))
    api = ready(where, traces=InMemoryTraces(), metrics=Ends)
    outputs = [Last(leaving)] if is_last else [leaving, *"b" * 20, None]
    _, [request] = spans_of(lambda: served(api, outputs))
    assert Ends.made.reasons == ([] if is_reported else told)
    assert request.attributes.get("error.type") == (None if error is None else type(error).__name__)


@everywhere
def test_a_request_that_the_server_process_has_reported_before_it_came_is_not_traced_again(
    where, disconnects
):
    disconnects.add("r0", Departure("r0", HTTPException(503, "no"), is_reported=True))
    api = ready(where, traces=InMemoryTraces(), metrics=Ends)
    assert spans_of(lambda: served(api, ["a", None])) == ([], [])
    assert Ends.made.told == []


@everywhere
def test_a_request_that_has_waited_for_longer_than_litserve_lets_it_counts_as_late(where):
    api = ready(where, traces=InMemoryTraces(), metrics=Ends)
    api.request_timeout = -10
    late = Envelope("a", "mine", tenant="t")
    _, [request] = spans_of(lambda: served(api, late))
    assert Ends.made.reasons == ["deadline"]
    [(_, _, figures)] = Ends.made.told
    assert (figures["tenant"], figures["joined"]) == ("t", False)
    assert request.attributes["batchstream.request.id"] == "mine"
    assert request.attributes["error.type"] == "DeadlineError"


class Pipes:
    """Keeps what a worker says of requests, beside what its metrics are told."""

    def __init__(self):
        self.said = []

    def claim(self, server, uid):
        self.said.append(("claim", server, uid))

    def note_reported(self, server, uid):
        self.said.append(("reported", server, uid, len(Ends.made.told)))


@everywhere
def test_a_worker_says_of_each_request_when_it_has_reported_its_end(where, monkeypatch):
    api = ready(where, metrics=Ends)
    pipes = Pipes()
    monkeypatch.setattr(api.spec.link, "pipes", pipes)
    monkeypatch.setattr(api.spec.link, "pipes_of", lambda _: (None, None))
    served(api, ["a", None], [Fail(ValueError("no"))])
    reported = [said for said in pipes.said if said[0] == "reported"]
    assert sorted(said[1:3] for said in reported) == [(0, "r0"), (0, "r1")]
    assert [number for *_, number in reported] == [1, 2]
