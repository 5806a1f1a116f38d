"""What is sampled, whose children spans are, and what else the integration promises."""

import pickle

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from batchstream import (
    ContinuousBatcher,
    DynamicBatcher,
    Last,
    Many,
    Requeue,
    StreamEnd,
)
from batchstream.integrations.opentelemetry import OpenTelemetryMetrics, OpenTelemetryTraces
from batchstream.integrations.starlette import NDJSONResponse
from support.engines import Model, echo, every_batcher
from support.sources import TIMEOUT

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_span_is_the_child_of_the_http_request_and_that_of_its_client(spans):
    """The client says `traceparent`, as any instrumented client does."""
    batcher = DynamicBatcher(
        echo, max_batch_size=4, traces=OpenTelemetryTraces(tracer_provider=spans.provider)
    )

    async def generate(request):
        return NDJSONResponse(batcher.astream("hello", request_id="r-1"))

    app = OpenTelemetryMiddleware(
        Starlette(routes=[Route("/generate", generate)]), tracer_provider=spans.provider
    )
    headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
    with batcher, TestClient(app) as client:
        assert client.get("/generate", headers=headers).text == '"hello"\n'
    request, server = spans.requests["r-1"], spans.named("GET /generate")
    assert f"{server.context.trace_id:032x}" == TRACE_ID
    assert f"{server.parent.span_id:016x}" == SPAN_ID
    assert request.context.trace_id == server.context.trace_id
    assert request.parent.span_id == server.context.span_id
    (batch,) = spans.batches
    assert batch.context.trace_id != server.context.trace_id
    assert batch.links[0].context.span_id == request.context.span_id


@every_batcher
async def test_spans_are_children_of_what_is_current_where_requests_are_submitted(form, spans):
    traces = OpenTelemetryTraces(tracer_provider=spans.provider)
    tracer = trace.get_tracer("test", tracer_provider=spans.provider)
    with tracer.start_as_current_span("where the batcher was made"):
        batcher = form.batcher(max_batch_size=2, traces=traces)
    streams, parents = [], {}
    for name in ("0", "1"):
        with tracer.start_as_current_span(name) as parent:
            streams.append(form.submit(batcher, "abc"))
            parents[name] = parent.get_span_context().span_id
    for stream in streams:
        await form.rest(stream)
    await form.close(batcher)
    found = {name: span.parent.span_id for name, span in spans.requests.items()}
    assert found == parents
    assert {span.parent for span in spans.batches} == {None}


def test_what_is_not_sampled_costs_no_span_and_no_attribute(spans):
    asked = []
    off = type(spans)(sampler=ALWAYS_OFF)
    traces = OpenTelemetryTraces(
        tracer_provider=off.provider, attributes=lambda request: asked.append(request) or {}
    )
    with DynamicBatcher(echo, max_batch_size=4, traces=traces) as batcher:
        assert list(batcher.stream("a")) == ["a"]
    assert off.all == ()
    assert asked == ["a"]  # a sampler may go by them


def test_without_the_sdk_nothing_happens():
    traces, metrics = OpenTelemetryTraces(), OpenTelemetryMetrics()
    with DynamicBatcher(echo, max_batch_size=4, traces=traces, metrics=metrics) as batcher:
        assert list(batcher.stream("a")) == ["a"]


def test_batches_need_have_no_spans(spans):
    traces = OpenTelemetryTraces(tracer_provider=spans.provider, batches=False)
    with DynamicBatcher(echo, max_batch_size=4, traces=traces) as batcher:
        list(batcher.stream("a"))
    assert spans.batches == []
    assert spans.requests["0"].links == ()
    assert [event.name for event in spans.requests["0"].events] == [
        *("batchstream.joined", "batchstream.first_output")
    ]


def test_the_model_is_called_as_the_batcher_if_it_has_no_name(spans, figures):
    class Limited(Model):
        def step(self):
            return {
                slot: Last(output, info={"prompt_tokens": 7})
                for slot, output in super().step().items()
            }

    with ContinuousBatcher(
        Limited(),
        max_batch_size=1,
        max_outputs=5,
        name="tiny",
        traces=OpenTelemetryTraces(tracer_provider=spans.provider),
        metrics=OpenTelemetryMetrics(meter_provider=figures.provider),
    ) as batcher:
        list(batcher.stream("a"))
    span = spans.requests["0"]
    assert span.name == "text_completion tiny"
    assert span.attributes["gen_ai.request.model"] == "tiny"
    assert span.attributes["gen_ai.request.max_tokens"] == 5
    assert span.attributes["gen_ai.usage.input_tokens"] == 7
    assert figures.points("gen_ai.server.request.duration", "gen_ai.request.model").keys() == {
        ("tiny",)
    }


def test_a_slot_that_is_given_back_is_an_event_and_the_request_links_to_both_batches(
    spans, figures
):
    class Preempted(Model):
        def step(self):
            return {
                slot: Many([output, Requeue("".join(self.seats[slot][1]))])
                if output == "a"
                else output
                for slot, output in super().step().items()
            }

    traces = OpenTelemetryTraces(tracer_provider=spans.provider)
    metrics = OpenTelemetryMetrics(meter_provider=figures.provider)
    with ContinuousBatcher(
        Preempted(), max_batch_size=1, traces=traces, metrics=metrics
    ) as batcher:
        assert list(batcher.stream("abc")) == ["a", "b", "c"]
    span = spans.requests["0"]
    assert [event.name.removeprefix("batchstream.") for event in span.events] == [
        *("joined", "first_output", "requeued", "joined")
    ]
    assert [link.context.span_id for link in span.links] == [
        batch.context.span_id for batch in spans.batches
    ]
    for name in ("waiting", "running"):
        (gauge,) = figures.points(f"batchstream.requests.{name}").values()
        assert gauge.value == 0


def test_an_error_without_a_text_ends_its_span_all_the_same(spans):
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    def failing(requests):
        yield [*requests]
        raise Unprintable

    traces = OpenTelemetryTraces(tracer_provider=spans.provider)
    with DynamicBatcher(failing, max_batch_size=1, traces=traces) as batcher:
        stream = batcher.stream("a")
        assert stream.receive(timeout=TIMEOUT) == "a"
        with pytest.raises(Exception):  # noqa: B017 - whatever it is copied to
            next(stream)
    span = spans.requests["0"]
    assert span.attributes["error.type"] == "Unprintable"
    assert span.status.description == "an error that has no text: RuntimeError"


def test_attributes_that_raise_leave_a_request_without_a_span(spans, unheard):
    traces = OpenTelemetryTraces(
        tracer_provider=spans.provider, attributes=lambda request: request.user
    )
    with DynamicBatcher(echo, max_batch_size=1, traces=traces) as batcher:
        assert list(batcher.stream("a")) == ["a"]
    assert [type(error) for error in unheard] == [AttributeError]
    assert spans.all == ()


def test_they_are_made_in_one_process_and_used_in_another():
    pickled = pickle.dumps(OpenTelemetryTraces(model="tiny"))
    traces = pickle.loads(pickled)  # noqa: S301 - of this test's own
    with DynamicBatcher(echo, max_batch_size=1, traces=traces) as batcher:
        assert list(batcher.stream("a")) == ["a"]


def test_a_response_of_one_output_or_that_failed_has_no_time_per_output(figures):
    recorder = OpenTelemetryMetrics(meter_provider=figures.provider).for_batcher("chat")
    timing = {"joined": True, "lasted": 3.0, "in_slot": 2.0}
    for reason, outputs, first in (
        *(("eos", 1, 1.0), ("eos", 0, None), ("eos", 5, None)),
        *(("cancelled", 5, 1.0), ("error", 5, 1.0)),
    ):
        recorder.finished(StreamEnd(reason, outputs), first_output=first, **timing)
    assert "gen_ai.server.time_per_output_token" not in figures.metrics
    recorder.finished(StreamEnd("length", 5), first_output=1.0, **timing)
    (point,) = figures.points("gen_ai.server.time_per_output_token").values()
    assert (point.count, point.sum) == (1, 0.5)


def test_a_request_that_a_model_in_another_process_refuses_is_counted_as_that_alone(figures):
    recorder = OpenTelemetryMetrics(meter_provider=figures.provider).for_batcher("chat")
    recorder.submitted()
    recorder.joined([1.0])
    recorder.refused("pending")
    recorder.finished(StreamEnd("error", 0), joined=True, lasted=2.0, in_slot=1.0, refused=True)
    (refused,) = figures.points("batchstream.requests.refused").values()
    (running,) = figures.points("batchstream.requests.running").values()
    assert (refused.value, running.value) == (1, 0)
    assert "gen_ai.server.request.duration" not in figures.metrics


@pytest.mark.parametrize("kind", [OpenTelemetryTraces, OpenTelemetryMetrics])
@pytest.mark.parametrize("argument", ["operation", "model", "provider"])
def test_names_are_checked(kind, argument):
    with pytest.raises(ValueError, match=argument):
        kind(**{argument: ""})
    with pytest.raises(TypeError, match=argument):
        kind(**{argument: 3})


def test_attributes_take_a_function():
    with pytest.raises(TypeError, match="attributes takes a function of one request"):
        OpenTelemetryTraces(attributes={"a": 1})
