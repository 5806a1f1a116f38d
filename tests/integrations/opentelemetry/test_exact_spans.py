"""Every span, event, link, attribute and metric of a run of which every figure is known."""

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from batchstream.integrations.opentelemetry import (
    OpenTelemetryMetrics,
    OpenTelemetryTraces,
)
from support import knobs
from support.scripted import Run

SECOND = 10**9
DESCRIBED = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "acme",
    "gen_ai.request.model": "tiny",
    "batchstream.batcher": "chat",
}
NAMES = {"operation": "chat", "model": "tiny", "provider": "acme"}


@pytest.fixture
def run(monkeypatch, spans, figures):
    """Return a run that is over, whose spans and metrics are by the run's own clock."""
    knobs.set_span_clock(monkeypatch)
    return Run(
        monkeypatch,
        OpenTelemetryMetrics(meter_provider=figures.provider, **NAMES),
        OpenTelemetryTraces(
            tracer_provider=spans.provider,
            attributes=lambda request: {"test.cost": request.cost},
            **NAMES,
        ),
    )


def seconds(nanoseconds):
    return nanoseconds / SECOND


def events(span):
    return {event.name: seconds(event.timestamp) for event in span.events}


def joined(at, first_output=None):
    """Return the events of a request that joined a batch at this time."""
    found = {"batchstream.joined": at}
    return found if first_output is None else found | {"batchstream.first_output": first_output}


def test_the_span_of_each_request_is_exact(run, spans):
    # from, to, events, outputs, finish reason, error
    expected = {
        "a": (100, 103.75, joined(100, 103), 3, "stop", None),
        "b": (101, 103.5, joined(101, 103), 1, "cancelled", None),
        "c": (101, 103.75, joined(103.5), 0, "error", "ValueError"),
        "d": (101, 105.75, joined(103.75, 104.75), 1, "error", "RuntimeError"),
        "e": (101, 101, {}, 0, "error", "OverloadedError"),
        "f": (101, 101, {}, 0, "error", "CostError"),
        "g": (103.75, 105.75, joined(103.75, 104.75), 1, "error", "RuntimeError"),
        "h": (104.75, 106.75, joined(105.75), 0, "error", "ClosedError"),
        "i": (106.75, 106.75, {}, 0, "error", "ClosedError"),
        "j": (106.75, 106.75, {}, 0, "error", "ClosedError"),
    }
    assert set(spans.requests) == set(expected)
    for request, (start, end, happened, outputs, reason, error) in expected.items():
        span = spans.requests[request]
        assert (span.name, span.kind, span.parent) == ("chat tiny", SpanKind.INTERNAL, None)
        assert (seconds(span.start_time), seconds(span.end_time)) == (start, end), request
        assert events(span) == happened, request
        first = happened.get("batchstream.first_output")
        attributes = {
            **DESCRIBED,
            "batchstream.request.id": request,
            "test.cost": 11.0 if request == "f" else 1.0,
            "gen_ai.response.finish_reasons": (reason,),
            "gen_ai.usage.output_tokens": outputs,
            "gen_ai.response.time_to_first_chunk": None if first is None else first - start,
            "error.type": error,
        }
        given = {name: value for name, value in attributes.items() if value is not None}
        assert dict(span.attributes) == given, request
        status = StatusCode.UNSET if error is None else StatusCode.ERROR
        assert span.status.status_code == status, request
    texts = {request: spans.requests[request].status.description for request in "bcdg"}
    assert texts == {
        "b": None,
        "c": "c cannot be served",
        "d": "out of memory",
        "g": "out of memory",
    }
    ends = {request: str(stream.end.error) for request, stream in run.streams.items()}
    for request in "hi":
        assert spans.requests[request].status.description == ends[request]
    refused = [spans.requests[request].status.description for request in "efj"]
    assert refused == [str(error) for error in run.refusals]


def test_the_span_of_each_batch_is_exact_and_links_to_its_requests(run, spans):
    expected = [
        (100, 103.75, "a", None),
        (101, 103.5, "b", None),
        (103.5, 103.75, "c", "ValueError"),
        (103.75, 105.75, "dg", "RuntimeError"),
        (105.75, 106.75, "h", "ClosedError"),
    ]
    assert len(run.streams) == 7
    for span, (start, end, members, error) in zip(spans.batches, expected, strict=True):
        assert (span.name, span.kind, span.parent) == ("batch chat", SpanKind.INTERNAL, None)
        assert (seconds(span.start_time), seconds(span.end_time)) == (start, end)
        attributes = {"batchstream.batcher": "chat", "batchstream.batch.size": len(members)}
        if error is not None:
            attributes["error.type"] = error
        assert dict(span.attributes) == attributes
        assert [event.name for event in span.events] == ["exception"] * (error is not None)
        for event in span.events:
            assert event.attributes["exception.type"].endswith(error)
            assert seconds(event.timestamp) == end
        assert [link.context.span_id for link in span.links] == [
            spans.requests[member].context.span_id for member in members
        ]
        for member in members:
            (link,) = spans.requests[member].links
            assert link.context.span_id == span.context.span_id
    assert len({span.context.trace_id for span in spans.all}) == 15
    assert [request for request in "efij" if spans.requests[request].links] == []


def test_every_metric_is_exact(run, figures):
    assert len(run.streams) == 7
    found = {metric.name: metric.unit for metric in figures.metrics.values()}
    assert found == {
        "gen_ai.server.request.duration": "s",
        "gen_ai.server.time_to_first_token": "s",
        "gen_ai.server.time_per_output_token": "s",
        "batchstream.requests.waiting": "{request}",
        "batchstream.requests.running": "{request}",
        "batchstream.requests.refused": "{request}",
    }
    durations = figures.points("gen_ai.server.request.duration", "error.type")
    assert {labels: (point.count, point.sum) for labels, point in durations.items()} == {
        (None,): (2, 3.75 + 2.5),
        ("ValueError",): (1, 2.75),
        ("RuntimeError",): (2, 4.75 + 2),
        ("ClosedError",): (2, 2),
    }
    for (error,), point in durations.items():
        given = DESCRIBED if error is None else DESCRIBED | {"error.type": error}
        assert dict(point.attributes) == given
    (first,) = figures.points("gen_ai.server.time_to_first_token").values()
    assert (first.count, first.sum) == (4, 3 + 2 + 3.75 + 1)
    assert dict(first.attributes) == DESCRIBED
    (per_output,) = figures.points("gen_ai.server.time_per_output_token").values()
    assert (per_output.count, per_output.sum) == (1, 0.375)  # of a: 0.75 s for two outputs
    assert dict(per_output.attributes) == DESCRIBED
    refused = figures.points("batchstream.requests.refused", "batchstream.reason")
    assert {labels: point.value for labels, point in refused.items()} == {
        ("pending",): 1,
        ("cost",): 1,
        ("closed",): 1,
    }
    for name in ("waiting", "running"):
        (gauge,) = figures.points(f"batchstream.requests.{name}").values()
        assert gauge.value == 0


def test_histograms_have_the_buckets_of_the_conventions(run, figures):
    assert len(run.streams) == 7

    def bounds(name):
        (point, *_) = figures.points(f"gen_ai.server.{name}").values()
        return point.explicit_bounds

    assert bounds("request.duration") == (
        *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
        *(1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    )
    assert bounds("time_to_first_token") == (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
        *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    )
    assert bounds("time_per_output_token") == (
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    )
