"""Statistics and metrics against a run of which every figure is known."""

import importlib
import sys
import threading
from collections import deque
from contextvars import copy_context
from functools import partial

import pytest

from batchstream import (
    EOS,
    SKIP,
    ContinuousBatcher,
    DynamicBatcher,
    FinishReason,
    Last,
    Metrics,
)
from batchstream._batching.telemetry import step_sums
from batchstream._batching.telemetry.metrics import MetricsCaller
from support import knobs
from support.engines import Model, Turnstile, echo
from support.scripted import Run
from support.sources import TIMEOUT


class Calls(Metrics):
    """Records every call, by method."""

    def __init__(self):
        self.names = []
        self.calls = {}

    def for_batcher(self, name):
        self.names.append(name)
        return self

    def _record(self, method, *args, **kwargs):
        self.calls.setdefault(method, []).append((*args, *kwargs.values()))


def _recording(method):
    return lambda self, *args, **kwargs: self._record(method, *args, **kwargs)


for _method in (
    *("submitted", "refused", "joined", "requeued", "first_output", "stepped", "finished"),
):
    setattr(Calls, _method, _recording(_method))


@pytest.mark.rule(30)
def test_the_statistics_of_a_run_that_is_known_are_exact(monkeypatch):
    figures = Run(monkeypatch).statistics
    assert (figures.opened, figures.live, figures.running, figures.waiting) == (7, 0, 0, 0)
    assert figures.finished == {
        FinishReason.EOS: 1,
        FinishReason.CANCELLED: 1,
        FinishReason.ERROR: 5,
    }
    assert (figures.refused, figures.refusals) == (1, {"pending": 1, "cost": 1, "closed": 1})
    assert (figures.batches, figures.batch_sizes) == (5, {1: 4, 2: 1})
    assert (figures.waited, figures.longest_wait) == (6.25, 2.75)
    assert (figures.steps, figures.occupancy) == (6, 10 / 12)
    assert (figures.outputs, figures.dropped, figures.wasted) == (8, 0, 2)
    assert (figures.first_outputs, figures.first_output_time) == (4, 9.75)
    assert (figures.output_time, figures.slot_time) == (3.25, 11.5)
    assert (figures.prefilling, figures.buffered) == (0, 0)


def test_the_calls_of_metrics_in_a_run_that_is_known_are_exact(monkeypatch):
    metrics = Calls()
    run = Run(monkeypatch, metrics)
    assert metrics.names == ["chat"]
    calls = metrics.calls
    assert calls["submitted"] == [("x",), ("y",), ("x",), ("y",), ("z",), ("x",), ("y",)]
    assert calls["refused"] == [("pending", "y"), ("cost", "x"), ("closed", "x")]
    assert calls["joined"] == [
        ([0.0], ["x"]),
        ([0.0], ["y"]),
        ([2.5], ["x"]),
        ([2.75, 0.0], ["y", "z"]),
        ([1.0], ["x"]),
    ]
    assert "requeued" not in calls
    assert calls["first_output"] == [(3.0, "x"), (2.0, "y"), (3.75, "y"), (1.0, "z")]
    # live, capacity, outputs, gap, going_on, prefilling, wasted
    assert calls["stepped"] == [
        (1, 2, 0, None, 0, 1, 0),
        (2, 2, 2, 2.0, 0, 0, 0),
        (2, 2, 2, 0.5, 2, 0, 1),
        (2, 2, 1, 0.25, 1, 0, 0),
        (2, 2, 2, 1.0, 0, 0, 0),
        (1, 2, 1, None, 0, 0, 1),
    ]
    # joined, lasted, in_slot, first output, tenant
    finished = {call[0]: call[1:] for call in calls["finished"]}
    assert {name: finished[stream.end] for name, stream in run.streams.items()} == {
        "a": (True, 3.75, 3.75, 3.0, "x"),
        "b": (True, 2.5, 2.5, 2.0, "y"),
        "c": (True, 2.75, 0.25, None, "x"),
        "d": (True, 4.75, 2.0, 3.75, "y"),
        "g": (True, 2.0, 2.0, 1.0, "z"),
        "h": (True, 2.0, 1.0, None, "x"),
        "i": (False, 0.0, 0.0, None, "y"),
    }
    assert len(calls["finished"]) == 7


def test_a_refusal_of_a_batcher_with_a_name_says_it(monkeypatch):
    for error in Run(monkeypatch).refusals:
        assert error.__notes__ == ["This came from the batcher 'chat'."]
    with DynamicBatcher(echo, max_batch_size=1) as batcher:
        pass
    with pytest.raises(Exception, match="closed") as caught:
        batcher.stream("a")
    assert not hasattr(caught.value, "__notes__")


def test_requests_that_have_had_no_output_are_shown_as_prefilling():
    seen = []

    class Prefilling:
        def __init__(self):
            self.slots = {}

        def add(self, slot, request):
            self.slots[slot] = request

        def step(self):
            figures = batcher.statistics()
            seen.append((figures.running, figures.prefilling, figures.first_outputs))
            self.slots = {slot: left - 1 for slot, left in self.slots.items()}
            return {
                slot: {1: "first", 0: EOS}[left] for slot, left in self.slots.items() if left < 2
            }

        def remove(self, slot):
            del self.slots[slot]

    with ContinuousBatcher(Prefilling, max_batch_size=1) as batcher:
        assert list(batcher.stream(4)) == ["first"]
    assert seen == [(1, 1, 0), (1, 1, 0), (1, 1, 0), (1, 0, 1)]


def test_a_request_that_left_before_its_first_output_has_none_by_the_next_in_its_slot():
    class Leaving(Metrics):
        firsts = 0

        def stepped(self, live, capacity, *_):
            first.cancel()  # between two steps: its slot is taken before the next

        def first_output(self, seconds, **_):
            self.firsts += 1

    class SkipsFirst:
        def add(self, slot, request):
            self.left = request

        def step(self):
            assert submitted.wait(TIMEOUT)
            self.left -= 1
            return {0: {1: SKIP, 0: Last("output")}[self.left]}

        def remove(self, slot):
            pass

    submitted = threading.Event()
    with ContinuousBatcher(SkipsFirst, max_batch_size=1, metrics=Leaving()) as batcher:
        first, second = batcher.stream(2), batcher.stream(1)
        submitted.set()
        assert list(second) == ["output"]
        assert list(first) == []
    figures = batcher.statistics()
    assert figures.first_outputs == knobs.metrics_of(batcher).firsts == 1


@pytest.mark.parametrize("metrics", [None, Metrics()], ids=["none", "none that does anything"])
def test_steps_that_only_metrics_want_read_no_clock_without_them(monkeypatch, metrics):
    """After the first outputs a step is no reading of the clock, unless it is asked for."""
    readings = []

    def clock():
        readings.append(None)
        return 0.0

    monkeypatch.setattr("batchstream._batching.reporting.step_log.clock.monotonic", clock)
    with DynamicBatcher(Model().generate, max_batch_size=1, metrics=metrics) as batcher:
        short, long = "ab", "ab" * 20
        counts = []
        for text in (short, long):
            readings.clear()
            stream = batcher.stream(text)
            assert "".join(stream.receive(TIMEOUT) for _ in text) == text
            assert list(stream) == []
            counts.append(len(readings))
        # A consumer may read it as it waits; each step would have added 38.
        assert abs(counts[1] - counts[0]) < 38


class Broken(Calls):
    """Records nothing, and raises at everything."""

    def _record(self, method, *_, **__):
        raise ValueError(method)


def told(metrics):
    """Return how many times each method was called."""
    return {method: len(calls) for method, calls in metrics.calls.items()}


def counted(registry, name, **labels):
    """Return a figure of the registry; 0 if it is not there."""
    return registry.get_sample_value(name, labels) or 0


def test_each_of_several_metrics_hears_all_and_an_error_of_one_keeps_no_other_from_it(monkeypatch):
    errors = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: errors.append(str(event.exc_value)))
    alone, first, last = Calls(), Calls(), Calls()
    Run(monkeypatch, alone)
    Run(monkeypatch, [first, Broken(), last])
    assert alone.calls["stepped"]
    assert first.calls == last.calls
    assert told(first) == told(alone)
    assert first.names == last.names == ["chat"]
    assert set(errors) == set(alone.calls)


@pytest.fixture
def prometheus():
    """Return a registry, and what makes metrics for it."""
    registry = pytest.importorskip("prometheus_client").CollectorRegistry()
    module = importlib.import_module("batchstream.integrations.prometheus")
    return registry, partial(module.PrometheusMetrics, registry=registry)


def test_several_metrics_count_what_each_counts_alone(prometheus, monkeypatch):
    """Two that read what steps add up to."""
    registry, make = prometheus
    own, vllm = make(names="batchstream"), make(names="vllm")
    Run(monkeypatch, (own, vllm))
    assert counted(registry, "batchstream_steps_total", batcher="chat") == 6
    assert counted(registry, "batchstream_outputs_total", batcher="chat") == 8
    assert counted(registry, "batchstream_gap_seconds_sum", batcher="chat") == 1.25
    assert counted(registry, "vllm:generation_tokens_total", model_name="chat") == 8
    assert counted(registry, "vllm:inter_token_latency_seconds_sum", model_name="chat") == 1.25


def test_of_several_metrics_some_are_called_for_each_step_and_others_count_the_same(
    prometheus, monkeypatch
):
    registry, make = prometheus
    alone, first, last = Calls(), Calls(), Calls()
    Run(monkeypatch, alone)
    Run(monkeypatch, [first, make(), last])
    assert first.calls == last.calls
    assert first.calls["stepped"] == alone.calls["stepped"]
    assert counted(registry, "batchstream_steps_total", batcher="chat") == 6
    assert counted(registry, "batchstream_outputs_total", batcher="chat") == 8
    assert counted(registry, "batchstream_gap_seconds_sum", batcher="chat") == 1.25


def test_metrics_beside_others_that_count_are_called_for_steps_like_the_one_before(prometheus):
    registry, make = prometheus
    called = Calls()
    with DynamicBatcher(
        Model().generate, max_batch_size=1, metrics=[make(), called], name="chat"
    ) as batcher:
        assert "".join(batcher.stream("x" * 20)) == "x" * 20
    steps = counted(registry, "batchstream_steps_total", batcher="chat")
    assert len(called.calls["stepped"]) == steps > 20


def test_a_batch_that_is_never_idle_keeps_no_more_for_metrics_that_are_not_read(prometheus):
    """Each of its steps is unlike the one before."""
    _, make = prometheus
    metrics = make()
    with ContinuousBatcher(Model(), max_batch_size=2, metrics=metrics, name="chat") as batcher:
        first = batcher.stream("x" * 200)
        kept = set()
        for _ in range(20):
            assert "".join(batcher.stream("ab")) == "ab"
            kept.add(len(metrics.for_batcher("chat").counts_reader._batches))
        first.cancel()
    assert kept == {1}


def test_batches_that_end_while_others_run_are_not_kept_for_metrics_that_are_not_read(
    prometheus, monkeypatch
):
    monkeypatch.setattr(step_sums, "MOST_BATCHES", 4)
    registry, make = prometheus
    metrics, gate = make(), Turnstile()
    with DynamicBatcher(
        Model(gates={0: gate}).generate,
        max_batch_size=1,
        workers=2,
        metrics=metrics,
        name="chat",
    ) as batcher:
        held = batcher.stream("a")
        gate.wait_until(lambda: gate.holds)
        kept = []
        for _ in range(20):
            assert list(batcher.stream("b")) == ["b"]
            kept.append(len(metrics.for_batcher("chat").counts_reader._batches))
        gate.open()
        assert list(held) == ["a"]
    assert max(kept) <= 5
    assert counted(registry, "batchstream_steps_total", batcher="chat") == 2 * 21
    assert counted(registry, "batchstream_outputs_total", batcher="chat") == 21


class Ends(Metrics):
    """Counts ends alone."""

    def __init__(self):
        self.count = 0

    def finished(self, *_, **__):
        self.count += 1


def test_the_only_one_of_several_that_counts_steps_reads_them_and_is_not_called(
    prometheus, monkeypatch
):
    registry, make = prometheus
    metrics, ends = make(), Ends()
    caller = MetricsCaller([ends, metrics], "chat")
    assert caller.counts_readers == [metrics.for_batcher("chat").counts_reader]
    assert caller.stepped is None
    Run(monkeypatch, [ends, metrics])
    assert counted(registry, "batchstream_steps_total", batcher="chat") == 6
    assert ends.count == 7


def test_no_metrics_in_a_list_are_none(monkeypatch):
    assert Run(monkeypatch, []).statistics.steps == 6


def test_functions_that_make_metrics_may_be_among_several_and_each_is_called_once(monkeypatch):
    made = []

    def make():
        made.append(Calls())
        return made[-1]

    def fail_once():
        if len(made) == 1:
            made.append(None)
            raise OSError("no registry")
        return make()

    given = Calls()
    caller = MetricsCaller([make, given, fail_once], "chat")
    assert caller.unmade
    with pytest.raises(OSError, match="no registry"):
        caller.make(copy_context())
    assert caller.unmade
    for _ in range(2):
        caller.make(copy_context())
    first, nothing, last = made
    assert (nothing, caller.unmade) == (None, False)
    caller("submitted", tenant="x")
    assert first.calls == given.calls == last.calls == {"submitted": [("x",)]}


def test_a_function_may_return_several_metrics():
    made = [Calls(), Calls()]
    caller = MetricsCaller(lambda: made, "chat")
    caller.make(copy_context())
    caller("refused", "cost", tenant="x")
    assert [each.calls for each in made] == [{"refused": [("cost", "x")]}] * 2


def test_what_is_no_metrics_among_several_is_refused_where_the_batcher_is_made():
    with pytest.raises(TypeError, match=r"metrics must have one of the methods .*, got 5"):
        DynamicBatcher(echo, max_batch_size=1, metrics=[Calls(), 5])


def test_several_metrics_are_any_sequence_but_a_text():
    made = [Calls(), Calls()]
    MetricsCaller(deque(made))("refused", "cost", tenant="x")
    assert [each.calls for each in made] == [{"refused": [("cost", "x")]}] * 2
    with pytest.raises(
        TypeError, match=r"got 'prometheus': .* several such objects go into a list"
    ):
        MetricsCaller("prometheus")


def test_a_list_that_has_the_methods_itself_is_no_list_of_metrics():
    class Names(list):
        def refused(self, reason, **_):
            self.append(reason)

    names = Names()
    MetricsCaller(names)("refused", "cost")
    assert names == ["cost"]


def test_a_request_that_left_between_two_steps_does_not_count_with_the_next_in_its_slot():
    may_step, streams, told = threading.Event(), [], []

    class Told(Metrics):
        def stepped(self, *figures):
            live, _, outputs, _, going_on, prefilling, _ = figures
            told.append((live, outputs, going_on, prefilling))
            if len(told) == 1:
                streams[0].cancel()

    class Engine:
        def add(self, slot, request):
            self.outputs = iter([SKIP if request == "leaves" else "output", EOS])

        def step(self):
            assert may_step.wait(TIMEOUT)
            return [next(self.outputs)]

        def remove(self, slot):
            pass

    with ContinuousBatcher(Engine, max_batch_size=1, metrics=Told()) as batcher:
        streams += [batcher.stream("leaves"), batcher.stream("stays")]
        may_step.set()
        assert list(streams[1]) == ["output"]
    # Of the second request: its first output, before which it had none, and its end.
    assert told == [(1, 0, 0, 1), (1, 1, 0, 0), (1, 0, 1, 0)]
