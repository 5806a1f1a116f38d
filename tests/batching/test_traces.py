"""What traces are told of each request and batch, in every form, and that they hurt nothing."""

from __future__ import annotations

import asyncio
import contextvars
from functools import partial

import pytest

from batchstream import (
    BatchTrace,
    ClosedError,
    ContinuousBatcher,
    DeadlineError,
    DynamicBatcher,
    FinishReason,
    Many,
    OverloadedError,
    RequestTrace,
    Requeue,
    StreamEnd,
    Traces,
)
from batchstream._batching.telemetry.traces import TracesCaller
from support.engines import ManualClock, Model, echo, every_batcher
from support.forms import InLoop
from support.scripted import Run
from support.sources import TIMEOUT, Gate, in_forked_child, needs_fork
from support.tracing import RecordedTraces

GIVEN = {"tenant": None, "max_outputs": None}


def told(calls, traces=None):
    """Return what a request was told, in short: batches by number, ends by reason and outputs."""
    short = []
    for name, *arguments in calls:
        if name == "joined":
            short.append(("joined", traces.batches.index(arguments[0])))
        elif name == "ended":
            end = arguments[0]
            error = None if end.error is None else type(end.error).__name__
            short.append(("ended", str(end.reason), end.outputs, error))
        elif name != "submitted":
            short.append(name)
    return short


def test_what_traces_are_told_in_a_run_that_is_known_is_exact(monkeypatch):
    traces = RecordedTraces()
    run = Run(monkeypatch, traces=traces)
    assert traces.names == ["chat"]
    first = "first_output"
    assert {request: told(calls, traces) for request, calls in traces.requests.items()} == {
        "a": [("joined", 0), first, ("ended", "eos", 3, None)],
        "b": [("joined", 1), first, ("ended", "cancelled", 1, None)],
        "c": [("joined", 2), ("ended", "error", 0, "ValueError")],
        "d": [("joined", 3), first, ("ended", "error", 1, "RuntimeError")],
        "e": [("ended", "error", 0, "OverloadedError")],
        "f": [("ended", "error", 0, "CostError")],
        "g": [("joined", 3), first, ("ended", "error", 1, "RuntimeError")],
        "h": [("joined", 4), ("ended", "error", 0, "ClosedError")],
        "i": [("ended", "error", 0, "ClosedError")],
        "j": [("ended", "error", 0, "ClosedError")],
    }
    assert [batch.requests for batch in traces.batches] == [["a"], ["b"], ["c"], ["d", "g"], ["h"]]
    for batch in traces.batches:
        ends = {id(run.streams[request].end) for request in batch.requests}
        assert {id(end) for end in batch.ends} == ends
    tenants = {request: calls[0][1]["tenant"] for request, calls in traces.requests.items()}
    assert tenants == dict(zip("abcdefghij", "xyxyyxzxyx", strict=True))
    traces.check(run.statistics)


@every_batcher
async def test_each_request_and_batch_is_told_of_in_every_form(form):
    traces = RecordedTraces()
    options = {"traces": traces, "max_outputs": len, "max_pending": 2}
    batcher, _, gate = form.held_batcher(0, max_batch_size=1, **options)
    streams = await form.submit_behind(batcher, gate, "abc", "d", "ef")
    with pytest.raises(OverloadedError):
        form.submit(batcher, "g")
    gate.open()
    for stream, outputs in zip(streams, ("abc", "d", "ef"), strict=True):
        assert await form.rest(stream) == list(outputs)
    await form.close(batcher)
    assert {request: told(calls, traces)[-1] for request, calls in traces.requests.items()} == {
        "0": ("ended", "length", 3, None),
        "1": ("ended", "length", 1, None),
        "2": ("ended", "length", 2, None),
        "3": ("ended", "error", 0, "OverloadedError"),
    }
    limits = [calls[0][1]["max_outputs"] for calls in traces.requests.values()]
    assert limits == [3, 1, 2, 1]
    traces.check(batcher.statistics())


@every_batcher
async def test_a_request_that_never_joins_is_told_of_its_end_alone(form):
    traces = RecordedTraces()
    batcher, _, gate = form.held_batcher(0, max_batch_size=1, traces=traces)
    running, cancelled, closed = await form.submit_behind(batcher, gate, "abc", "d", "e")
    cancelled.cancel()
    overdue = form.submit(batcher, "f", wait_timeout=0)
    with pytest.raises(DeadlineError):
        await form.rest(overdue)
    gate.open()
    assert await form.rest(running) == list("abc")
    await form.close(batcher)
    with pytest.raises(ClosedError):
        form.submit(batcher, "g")
    calls = [told(calls, traces) for calls in traces.requests.values()]
    assert calls[1] == [("ended", "cancelled", 0, None)]
    assert calls[3] == [("ended", "error", 0, "DeadlineError")]
    assert calls[4] == [("ended", "error", 0, "ClosedError")]
    traces.check(batcher.statistics())
    del closed


@every_batcher
async def test_a_warm_up_is_not_traced(form):
    traces = RecordedTraces()
    batcher = form.batcher(max_batch_size=1, traces=traces)
    if isinstance(form, InLoop):
        await batcher.awarm_up(["a", "b"])
    else:
        batcher.warm_up(["a", "b"])
    assert (traces.requests, traces.batches) == ({}, [])
    assert await form.rest(form.submit(batcher, "c")) == ["c"]
    await form.close(batcher)
    assert (len(traces.requests), len(traces.batches)) == (1, 1)
    traces.check(batcher.statistics())


def test_what_a_drain_refuses_and_what_it_lets_end_is_told_of_its_end():
    traces = RecordedTraces()
    gate = Gate()
    model = Model(on_step=lambda number: gate.pass_through() if number == 0 else None)
    batcher = ContinuousBatcher(model, max_batch_size=1, traces=traces)

    async def main():
        streams = [batcher.astream("ab"), batcher.astream("c")]
        closing = asyncio.ensure_future(batcher.aclose(drain=3600.0))
        await asyncio.sleep(0)
        assert batcher.state == "draining"
        with pytest.raises(ClosedError):
            batcher.astream("d")
        gate.opened.set()
        await closing
        return [[output async for output in stream] for stream in streams]

    assert asyncio.run(main()) == [["a", "b"], ["c"]]
    assert [told(calls[-1:])[0][1] for calls in traces.requests.values()] == ["eos", "eos", "error"]
    traces.check(batcher.statistics())


@every_batcher
async def test_a_request_is_told_of_in_the_context_of_the_call_that_submits_it(form):
    caller = contextvars.ContextVar("caller", default="none")
    seen = []

    class Seeing(Traces):
        def submitted(self, request, **_):
            seen.append((request, caller.get()))

    batcher = form.batcher(traces=Seeing())
    streams = []
    for name in ("a", "b"):
        context = contextvars.copy_context()
        context.run(caller.set, name)
        streams.append(context.run(form.submit, batcher, name))
    for stream in streams:
        await form.rest(stream)
    assert seen == [("a", "a"), ("b", "b")]


@pytest.mark.rule(24)
@every_batcher
@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit])
@pytest.mark.parametrize("where", ["submitted", "joined", "of requests", "of batches"])
async def test_traces_that_raise_fail_no_request(form, unheard, kind, where):
    def raising(name):
        def method(*_, **__):
            raise kind(name)

        return method

    request = RequestTrace()
    batch = BatchTrace()
    traces = Traces()
    traces.submitted, traces.joined = lambda *_, **__: request, lambda *_: batch
    if where == "of requests":
        request.joined, request.first_output = raising("joined"), raising("first_output")
        request.ended = raising("ended")
    elif where == "of batches":
        batch.ended = raising("ended")
    else:
        setattr(traces, where, raising(where))
    batcher = form.batcher(max_batch_size=1, traces=traces)
    streams = [form.submit(batcher, request) for request in ("abc", "d")]
    assert [await form.rest(stream) for stream in streams] == [list("abc"), ["d"]]
    await form.close(batcher)
    times = 6 if where == "of requests" else 2
    assert len(unheard) == times
    assert {type(error) for error in unheard} == {kind}


@pytest.mark.rule(14)
def test_an_interrupt_in_traces_reaches_the_caller_and_nothing_is_submitted():
    class Interrupted(Traces):
        def submitted(self, request, **_):
            raise KeyboardInterrupt

    with DynamicBatcher(echo, max_batch_size=4, traces=Interrupted()) as batcher:
        with pytest.raises(KeyboardInterrupt):
            batcher.stream("a")
        assert batcher.statistics().opened == 0


def test_a_submission_that_is_broken_off_before_it_waits_is_told_of_its_end(monkeypatch):
    traces = RecordedTraces()
    with DynamicBatcher(echo, max_batch_size=4, traces=traces) as batcher:

        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(batcher._dispatcher.scheduler, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            batcher.stream("a")
        monkeypatch.undo()
    assert told(traces.requests["0"]) == [("ended", "cancelled", 0, None)]


@every_batcher
async def test_a_request_that_is_not_traced_is_left_out(form):
    class Some(RecordedTraces):
        def submitted(self, request, **given):
            return super().submitted(request, **given) if request == "abc" else None

    traces = Some()
    batcher, _, gate = form.held_batcher(0, max_batch_size=2, traces=traces)
    streams = await form.submit_behind(batcher, gate, "abc", "d", "ef")
    gate.open()
    for stream in streams:
        await form.rest(stream)
    await form.close(batcher)
    assert list(traces.requests) == ["0"]
    assert [batch.requests for batch in traces.batches] == [["0"]]


def test_requests_end_as_they_should_where_batches_are_not_traced():
    class WithoutBatches(RecordedTraces):
        def joined(self, requests):
            return None

    traces = WithoutBatches()
    with ContinuousBatcher(Model(), max_batch_size=2, traces=traces) as batcher:
        list(batcher.stream("ab"))
    assert [call[0] for call in traces.requests["0"]] == [
        *("submitted", "joined", "first_output", "ended")
    ]
    assert traces.requests["0"][1] == ("joined", None)


def test_traces_that_derive_from_the_base_need_no_method_of_their_own():
    with DynamicBatcher(echo, max_batch_size=1, traces=Traces()) as batcher:
        assert list(batcher.stream("a")) == ["a"]


# ---- a request that ends as something else happens to it


@pytest.mark.rule(9)
def test_a_request_that_ends_while_it_joins_joins_its_batch_and_leaves_it():
    streams = []

    class Cancelling(RecordedTraces):
        def joined(self, requests):
            if len(requests) == 2:
                streams[1].cancel()
                streams.append(batcher.stream("c"))  # which reaps it, and tells of its end
                assert told(self.requests["1"]) == []  # of its end only when it was told this
            return super().joined(requests)

    traces = Cancelling()
    gate = Gate()
    model = Model(on_step=lambda number: gate.pass_through() if number == 0 else None)
    with DynamicBatcher(model.generate, max_batch_size=2, traces=traces) as batcher:
        streams.append(batcher.stream("x"))
        assert gate.reached.wait(TIMEOUT)
        streams += [batcher.stream("a"), batcher.stream("b")]
        gate.opened.set()
        assert [list(streams[number]) for number in (0, 2)] == [["x"], ["b"]]
        assert list(streams[3]) == ["c"]
    assert [call[0] for call in traces.requests["1"]] == ["submitted", "joined", "ended"]
    assert [len(batch.ends) for batch in traces.batches] == [1, 2, 1]
    traces.check(batcher.statistics())


def test_a_batch_ends_once_whichever_of_its_requests_leave_it_how():
    traces = RecordedTraces()
    caller = TracesCaller(traces, "chat")
    first, second = (
        caller.submitted("", request_id=name, tenant=None, max_outputs=None) for name in "ab"
    )
    caller.joined([first, second])
    first.requeued()
    end = StreamEnd(FinishReason.EOS, 0)
    second.ended(end)
    caller.joined([first, second])  # the second has ended
    assert [(batch.requests, batch.ends, batch.ended_times) for batch in traces.batches] == [
        (["a", "b"], [end], 1),
        (["a"], [], 0),
    ]
    first.ended(end)
    assert (traces.batches[1].ends, traces.batches[1].ended_times) == ([end], 1)


def test_a_slot_that_is_given_back_is_told_of_and_the_request_joins_again():
    class Preempted(Model):
        def step(self):
            step = super().step()
            return {
                slot: Many([output, Requeue("".join(self.seats[slot][1]))])
                if output == "a"
                else output
                for slot, output in step.items()
            }

    traces = RecordedTraces()
    with ContinuousBatcher(Preempted(), max_batch_size=1, traces=traces) as batcher:
        assert list(batcher.stream("abc")) == ["a", "b", "c"]
    expected = [
        ("joined", 0),
        "first_output",
        "requeued",
        ("joined", 1),
        ("ended", "eos", 3, None),
    ]
    assert told(traces.requests["0"], traces) == expected
    assert [len(batch.ends) for batch in traces.batches] == [0, 1]
    traces.check(batcher.statistics())


def test_what_map_holds_back_for_want_of_room_is_told_nothing_more():
    traces = RecordedTraces()
    with DynamicBatcher(echo, max_batch_size=1, max_pending=1, traces=traces) as batcher:
        replies = list(batcher.map(list("abc")))
    assert replies == [["a"], ["b"], ["c"]]
    ended = [calls for calls in traces.requests.values() if len(calls) > 1]
    assert len(ended) == 3
    assert [told(calls, traces)[-1] for calls in ended] == [("ended", "exhausted", 1, None)] * 3


# ---- forks


@pytest.mark.rule(27)
@needs_fork
def test_a_forked_child_is_told_of_no_request_of_its_parent():
    traces = RecordedTraces()
    gate = Gate()
    model = Model(on_step=lambda number: gate.pass_through() if number == 1 else None)
    batcher = DynamicBatcher(model.generate, max_batch_size=1, traces=traces)
    running = batcher.stream("abc")
    assert gate.reached.wait(TIMEOUT)
    waiting = batcher.stream("d")

    def names():
        waiting.cancel()
        running.cancel()
        batcher.close()
        return [[call[0] for call in calls] for calls in traces.requests.values()]

    assert in_forked_child(names) == "[['submitted', 'joined', 'first_output'], ['submitted']]"
    gate.opened.set()
    assert [list(running), list(waiting)] == [["a", "b", "c"], ["d"]]
    batcher.close()
    traces.check(batcher.statistics())


@pytest.mark.rule(27)
@needs_fork
def test_an_end_that_was_not_counted_before_a_fork_is_told_in_the_parent_alone(monkeypatch):
    clock = ManualClock.install(monkeypatch)
    traces = RecordedTraces()
    batcher = DynamicBatcher(echo, max_batch_size=2, batch_timeout=3600.0, traces=traces)
    stream = batcher.stream("a")
    clock.wait_for_sleeper()  # the worker waits for another request
    stream.cancel()

    def names():
        batcher.close()
        return [call[0] for call in traces.requests["0"]]

    assert in_forked_child(names) == "['submitted']"
    assert str(names()) == "['submitted', 'ended']"


@pytest.mark.rule(27)
@needs_fork
def test_a_child_of_an_idle_parent_traces_its_own_requests():
    traces = RecordedTraces()
    batcher = DynamicBatcher(echo, max_batch_size=1, traces=traces)
    list(batcher.stream("a"))
    child = partial(lambda: [list(batcher.stream("b")), batcher.close(), list(traces.requests)])
    assert in_forked_child(child) == "[['b'], None, ['0', '1']]"
    batcher.close()
    traces.check(batcher.statistics())


# ---- arguments


@pytest.mark.parametrize(
    ("traces", "text"),
    [
        (RecordedTraces, r"takes an object, got the class RecordedTraces: pass RecordedTraces\(\)"),
        (
            object(),
            "without for_batcher and submitted and joined and carrier: derive its class from",
        ),
    ],
)
def test_what_is_no_traces_is_refused(traces, text):
    with pytest.raises(TypeError, match=text):
        DynamicBatcher(echo, max_batch_size=1, traces=traces)
