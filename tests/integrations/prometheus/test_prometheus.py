"""What a registry of prometheus-client shows of batchers that run."""

import contextlib
import functools
import gc
import os
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from batchstream import (
    ClosedError,
    ContinuousBatcher,
    DeadlineError,
    DynamicBatcher,
    Metrics,
    OverloadedError,
    StreamEnd,
)
from batchstream._batching.batches.request_batch import RequestBatch
from batchstream._batching.reporting.step_counts import StepCounts
from batchstream.integrations.prometheus import PrometheusMetrics, _recorder
from support import knobs
from support.engines import Model, Turnstile
from support.sources import in_forked_child, needs_fork

SECONDS = 30
ENDS = (
    *("eos", "length", "exhausted", "cancelled", "error"),
    *("deadline", "slow", "request_error"),
)
LONG = 3600.0


class Shown:
    """Metrics, and what their registry shows."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.metrics = PrometheusMetrics(registry=self.registry)

    def __call__(self, figure, **labels):
        """Return what the series of a figure with these labels add up to."""
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"batchstream_{figure}" and labels.items() <= sample.labels.items()
        )

    def finished(self):
        counts = {reason: self("requests_finished_total", reason=reason) for reason in ENDS}
        return {reason: count for reason, count in counts.items() if count}

    @property
    def gauges(self):
        return self("requests_waiting"), self("requests_running")


@pytest.fixture
def shown():
    return Shown()


@pytest.fixture
def gate():
    """Hold every step until the test lets it through; let all through when the test ends."""
    turnstile = Turnstile()
    yield turnstile
    turnstile.open()


def gated(gate):
    """Return a model each of whose steps waits at a gate."""
    return Model(gates=dict.fromkeys(range(1000), gate))


@pytest.fixture(params=["dynamic", "continuous"])
def make(request, gate):
    """Make a batcher with one slot whose steps wait at the gate."""
    with contextlib.ExitStack() as closing:

        def make(**options):
            model = gated(gate)
            if request.param == "continuous":
                batcher = ContinuousBatcher(model, max_batch_size=1, **options)
            else:
                batcher = DynamicBatcher(model.generate, max_batch_size=1, **options)
            return closing.enter_context(batcher)

        yield make
        gate.open()


def test_what_a_batcher_did_is_counted(shown):
    model = Model()
    with DynamicBatcher(
        model.generate, max_batch_size=4, batch_timeout=LONG, metrics=shown.metrics
    ) as batcher:
        streams = [batcher.stream(text) for text in ("abc", "x", "", "pq")]
        assert ["".join(stream) for stream in streams] == ["abc", "x", "", "pq"]
    assert shown("requests_submitted_total") == 4
    assert shown.finished() == {"eos": 4}
    assert shown("outputs_total") == 6
    assert shown("steps_total") == 4
    assert shown("slot_steps_live_total") == 4 + 3 + 2 + 1
    assert shown("slot_steps_total") == 4 * 4
    assert (shown("batch_size_count"), shown("batch_size_sum")) == (1, 4)
    assert shown("batch_size_bucket", le="2.0") == 0
    assert shown("batch_size_bucket", le="4.0") == 1
    assert shown("wait_seconds_count") == shown("request_seconds_count") == 4
    assert 0 <= shown("wait_seconds_sum") <= shown("request_seconds_sum") < 4 * SECONDS
    assert shown.gauges == (0, 0)


def test_a_request_that_a_model_in_another_process_refuses_is_counted_as_that_alone(shown):
    recorder = shown.metrics.for_batcher("chat")
    recorder.submitted()
    recorder.joined([1.0])
    recorder.refused("pending")
    recorder.finished(StreamEnd("error", 0), joined=True, lasted=2.0, in_slot=1.0, refused=True)
    assert shown("requests_refused_total", reason="pending") == 1
    assert shown.finished() == {}
    assert shown.gauges == (0, 0)
    assert shown("request_seconds_count") == shown("slot_seconds_count") == 0
    assert shown("request_outputs_count") == 0


def test_the_counts_are_the_same_as_in_the_statistics(shown):
    with ContinuousBatcher(Model(), max_batch_size=2, metrics=shown.metrics) as batcher:
        for stream in [batcher.stream("ab" * n) for n in range(7)]:
            list(stream)
    figures = batcher.statistics()
    assert shown("requests_submitted_total") == figures.opened
    assert shown("batch_size_count") == figures.batches
    assert shown("steps_total") == figures.steps
    assert shown("outputs_total") == figures.outputs
    assert shown("wait_seconds_sum") == pytest.approx(figures.waited)
    occupancy = shown("slot_steps_live_total") / shown("slot_steps_total")
    assert occupancy == pytest.approx(figures.occupancy)


@pytest.mark.parametrize("figure", ["steps", "outputs", "slot_steps_live"])
def test_a_figure_that_is_read_by_its_name_alone_has_all_steps_that_are_kept(shown, figure):
    """A batch that runs keeps alike steps; `name[]` of a scrape asks for some names alone."""
    counted = []

    def read(number):
        if number == 20:
            page = shown.registry.restricted_registry([f"batchstream_{figure}_total"])
            (family,) = page.collect()
            counted.append([sample.value for sample in family.samples])

    model = Model(on_step=read)
    with DynamicBatcher(model.generate, max_batch_size=1, metrics=shown.metrics) as batcher:
        assert len(list(batcher.stream("a" * 30))) == 30
    assert counted == [[20.0]]


def test_a_scrape_between_the_count_of_a_step_s_outputs_and_that_of_the_step_finds_the_slots(
    shown, monkeypatch
):
    seen = []

    def after_step(batch, live, count=RequestBatch.after_step):
        seen.append((shown("outputs_total"), shown("slots")))
        count(batch, live)
        seen.append((shown("outputs_total"), shown("slots")))

    monkeypatch.setattr(RequestBatch, "after_step", after_step)
    with DynamicBatcher(Model().generate, max_batch_size=8, metrics=shown.metrics) as batcher:
        assert list(batcher.stream("abc")) == ["a", "b", "c"]
    # A batch is known from its first step on.
    assert seen[:5] == [(0, 0), (1, 8), (2, 8), (2, 8), (3, 8)]


def test_a_scrape_amid_the_count_of_a_step_leaves_the_rest_of_it_to_the_next(shown):
    counts = StepCounts(SimpleNamespace(outputs=1))
    shown.metrics.for_batcher("chat").counts_reader.add(counts)
    counts.steps = 1.0
    assert (shown("steps_total"), shown("gap_seconds_count")) == (1, 0)
    counts.seconds, counts.gaps[0] = 0.0005, 1.0
    assert (shown("steps_total"), shown("gap_seconds_count")) == (1, 1)


def test_what_prometheus_reads_has_a_type_and_a_meaning_for_everything(shown):
    families = list(text_string_to_metric_families(generate_latest(shown.registry).decode()))
    assert all(family.name.startswith("batchstream_") for family in families)
    types = {
        family.name.removeprefix("batchstream_"): family.type
        for family in families
        if not family.name.endswith("_created")
    }
    assert types == {
        "requests_submitted": "counter",
        "requests_refused": "counter",
        "requests_finished": "counter",
        "requests_requeued": "counter",
        "requests_waiting": "gauge",
        "requests_running": "gauge",
        "state": "gauge",
        "slots": "gauge",
        "cache_usage_ratio": "gauge",
        "steps": "counter",
        "outputs": "counter",
        "slot_steps": "counter",
        "slot_steps_live": "counter",
        "slot_steps_prefilling": "counter",
        "slot_steps_wasted": "counter",
        "batch_size": "histogram",
        "wait_seconds": "histogram",
        "first_output_seconds": "histogram",
        "gap_seconds": "histogram",
        "slot_seconds": "histogram",
        "request_seconds": "histogram",
        "request_outputs": "histogram",
    }
    assert all(family.documentation for family in families)


def test_every_reason_is_there_before_its_first_request(shown):
    shown.metrics.for_batcher("new")
    for figure, reasons in {
        "finished": ENDS,
        "refused": ("pending", "pending_cost", "tenant", "cost", "closed", "draining"),
    }.items():
        for reason in reasons:
            labels = {"batcher": "new", "tenant": "", "reason": reason}
            name = f"batchstream_requests_{figure}_total"
            assert shown.registry.get_sample_value(name, labels) == 0


# ---- gauges


def test_the_gauges_show_waiting_and_running_requests(shown, gate, make):
    batcher = make(metrics=shown.metrics)
    streams = [batcher.stream("ab") for _ in range(3)]
    gate.wait_until(lambda: gate.holds)
    assert shown.gauges == (2, 1)
    gate.open()
    assert ["".join(stream) for stream in streams] == ["ab"] * 3
    batcher.close()
    assert shown.gauges == (0, 0)


def test_no_request_is_left_after_a_close(shown, gate, make):
    batcher = make(metrics=shown.metrics)
    streams = [batcher.stream("ab") for _ in range(3)]
    gate.wait_until(lambda: gate.holds)
    closer = threading.Thread(target=batcher.close)
    closer.start()
    for stream in streams:
        with pytest.raises(ClosedError):
            stream.receive(SECONDS)
    gate.open()
    closer.join(SECONDS)
    assert not closer.is_alive()
    assert shown.gauges == (0, 0)
    assert shown.finished() == {"error": 3}


def test_no_request_is_left_after_cancels(shown, gate, make):
    batcher = make(metrics=shown.metrics)
    joined, waiting, dropped = (batcher.stream("ab") for _ in range(3))
    gate.wait_until(lambda: gate.holds)
    joined.cancel()
    waiting.cancel()
    del dropped
    gate.open()
    assert list(batcher.stream("z")) == ["z"]
    batcher.close()
    assert shown.gauges == (0, 0)
    assert shown.finished() == {"cancelled": 3, "eos": 1}
    assert shown("wait_seconds_count") == 2  # of the requests that joined a batch


def test_no_request_is_left_after_deadlines(shown, gate, make):
    batcher = make(metrics=shown.metrics)
    joined = batcher.stream("ab", timeout=LONG)
    gate.wait_until(lambda: gate.holds)
    waiting = [batcher.stream("ab", wait_timeout=LONG), batcher.stream("ab", timeout=LONG)]
    for stream in waiting:
        knobs.let_deadline_pass(stream)
        with pytest.raises(DeadlineError):
            stream.receive(SECONDS)
    gate.open()
    assert list(joined) == ["a", "b"]
    batcher.close()
    assert shown.gauges == (0, 0)
    assert shown.finished() == {"deadline": 2, "eos": 1}


def test_the_refused_are_counted_and_are_not_live(shown, gate, make):
    batcher = make(metrics=shown.metrics, max_pending=1)
    joined = batcher.stream("ab")
    gate.wait_until(lambda: gate.holds)
    waiting = batcher.stream("ab")
    for _ in range(2):
        with pytest.raises(OverloadedError):
            batcher.stream("ab")
    assert shown("requests_refused_total") == 2
    assert shown("requests_submitted_total") == 2
    assert shown.gauges == (1, 1)
    gate.open()
    assert list(joined) == list(waiting) == ["a", "b"]
    batcher.close()
    assert shown.gauges == (0, 0)


# ---- the state


@pytest.fixture
def state_of(shown):
    """Return what is shown of the states of batchers with a name: a number for each."""

    def state_of(name="Model"):
        states = {
            sample.labels["state"]: sample.value
            for family in shown.registry.collect()
            for sample in family.samples
            if sample.name == "batchstream_state" and sample.labels["batcher"] == name
        }
        assert set(states) in (set(), {"accepting", "draining", "closed"})
        return {state: value for state, value in states.items() if value}

    return state_of


def test_a_batcher_has_a_state_before_its_first_request_and_when_it_is_closed(shown, state_of):
    batcher = ContinuousBatcher(Model(), max_batch_size=1, metrics=shown.metrics)
    assert state_of() == {batcher.state: 1} == {"accepting": 1}
    batcher.close()
    assert state_of() == {batcher.state: 1} == {"closed": 1}


def test_a_batcher_that_drains_is_seen_as_no_request_comes(shown, gate, state_of):
    batcher = ContinuousBatcher(gated(gate), max_batch_size=1, metrics=shown.metrics)
    stream = batcher.stream("ab")
    gate.wait_until(lambda: gate.holds)
    closer = threading.Thread(target=batcher.close, kwargs={"drain": LONG})
    closer.start()
    gate.wait_until(lambda: batcher.state == "draining")
    assert state_of() == {"draining": 1}
    gate.open()
    assert list(stream) == ["a", "b"]
    closer.join(SECONDS)
    assert state_of() == {"closed": 1}


def test_the_states_of_batchers_with_one_name_are_added_up_and_a_dropped_one_has_none(
    shown, state_of
):
    batchers = [
        DynamicBatcher(Model().generate, max_batch_size=1, metrics=shown.metrics, name="chat")
        for _ in range(3)
    ]
    other = ContinuousBatcher(Model(), max_batch_size=1, metrics=shown.metrics)
    batchers[0].close()
    assert state_of("chat") == {"accepting": 2, "closed": 1}
    del batchers[0]
    gc.collect()
    assert state_of("chat") == {"accepting": 2}
    batchers.clear()
    gc.collect()
    assert state_of("chat") == {}
    assert state_of() == {"accepting": 1}
    other.close()


def test_metrics_that_are_one_of_several_and_are_made_late_show_the_state(shown, state_of):
    late = []

    def make():
        late.append(shown.metrics)
        return late

    for metrics in ([Metrics(), shown.metrics], make, [Metrics(), make]):
        with ContinuousBatcher(Model(), max_batch_size=1, metrics=metrics) as batcher:
            assert list(batcher.stream("a")) == ["a"]
            assert state_of() == {"accepting": 1}
        assert state_of() == {"closed": 1}
        del batcher
        gc.collect()
        assert state_of() == {}


@needs_fork
def test_a_forked_child_shows_a_batcher_that_it_can_use_and_no_other(shown, gate, state_of):
    idle = ContinuousBatcher(Model(), max_batch_size=1, metrics=shown.metrics)
    assert state_of() == {"accepting": 1}

    def close():
        before = state_of()
        idle.close()
        return [before, state_of()]

    assert in_forked_child(close) == str([{"accepting": 1.0}, {"closed": 1.0}])
    assert state_of() == {"accepting": 1}
    busy = ContinuousBatcher(gated(gate), max_batch_size=1, metrics=shown.metrics, name="busy")
    stream = busy.stream("ab")
    gate.wait_until(lambda: gate.holds)
    assert in_forked_child(lambda: [state_of("busy"), state_of()]) == str([{}, {"accepting": 1.0}])
    gate.open()
    assert list(stream) == ["a", "b"]
    busy.close()
    idle.close()


def test_what_a_registry_raises_for_a_state_breaks_off_no_close(shown, monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: reported.append(event.exc_value))
    recorder = shown.metrics.for_batcher("chat")
    monkeypatch.setattr(recorder.states, "_added", lambda: 1 / 0)
    monkeypatch.setattr(recorder.states, "changed", lambda: 1 / 0)
    with ContinuousBatcher(
        Model(), max_batch_size=1, metrics=shown.metrics, name="chat"
    ) as batcher:
        assert list(batcher.stream("a")) == ["a"]
    assert batcher.state == "closed"
    assert [type(error) for error in reported] == [ZeroDivisionError] * 2


def test_a_state_is_written_as_the_interpreter_exits_and_no_thread_can_start(shown, monkeypatch):
    def refuse():
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(_recorder, "IN_FILES", True)
    monkeypatch.setattr(_recorder, "WorkerThread", refuse)
    batcher = DynamicBatcher(Model().generate, max_batch_size=1, metrics=shown.metrics, name="chat")
    batcher.close()
    _, written = shown.metrics.for_batcher("chat")._written
    assert written == {"accepting": 0, "draining": 0, "closed": 1}


# ---- several batchers


def test_batchers_that_share_an_object_are_added_up(shown, gate):
    batchers = [
        ContinuousBatcher(gated(gate), max_batch_size=1, metrics=shown.metrics) for _ in range(2)
    ]
    streams = [batcher.stream("ab") for batcher in batchers for _ in range(2)]
    gate.wait_until(lambda: gate.arrived == 2)
    assert shown.gauges == (2, 2)
    gate.open()
    assert ["".join(stream) for stream in streams] == ["ab"] * 4
    for batcher in batchers:
        batcher.close()
    assert shown.gauges == (0, 0)
    assert shown("requests_submitted_total") == 4


def test_batchers_are_distinguished_by_their_names_and_without_by_what_they_run(shown):
    for name in ("short", "long", None):
        with DynamicBatcher(
            Model().generate, max_batch_size=1, metrics=shown.metrics, name=name
        ) as batcher:
            list(batcher.stream(name or "x"))
    assert shown("outputs_total", batcher="short") == len("short")
    assert shown("outputs_total", batcher="long") == len("long")
    assert shown("outputs_total", batcher="Model.generate") == len("x")


def test_metrics_are_distinguished_by_their_names():
    registry = CollectorRegistry()
    for name in ("short", "long"):
        metrics = PrometheusMetrics(name, registry=registry)
        with DynamicBatcher(
            Model().generate, max_batch_size=1, metrics=metrics, name="b"
        ) as batcher:
            list(batcher.stream(name))
    for name in ("short", "long"):
        shown = registry.get_sample_value(f"{name}_outputs_total", {"batcher": "b"})
        assert shown == len(name)


def test_one_name_is_registered_once():
    registry = CollectorRegistry()
    PrometheusMetrics(registry=registry)
    with pytest.raises(ValueError, match="'batchstream_' already: pass one") as raised:
        PrometheusMetrics(registry=registry)
    assert "Duplicated timeseries" in str(raised.value.__cause__)
    assert len(str(raised.value)) < 300  # and not all the names


SERVED_BY_TWO = """
import os, sys, threading
from batchstream import DynamicBatcher
from batchstream.integrations.prometheus import PrometheusMetrics
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
metrics = PrometheusMetrics()
def once(requests):
    yield requests
    yield requests
if len(sys.argv) > 1:
    (drained := DynamicBatcher(once, max_batch_size=2, metrics=metrics)).close(drain=1)
    for thread in set(threading.enumerate()) - {threading.main_thread()}:
        thread.join()  # they write the states
    (kept := DynamicBatcher(once, max_batch_size=2, batch_timeout=3600, metrics=metrics))
    stream = kept.stream("waits")
    print("ready", flush=True)
    sys.stdin.read()
else:
    with DynamicBatcher(once, max_batch_size=1, metrics=metrics) as batcher:
        list(batcher.stream("served"))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        print(generate_latest(registry).decode())
        if (child := os.fork()) == 0:
            list(batcher.stream("served"))
            os._exit(0)
        os.waitpid(child, 0)
        print(generate_latest(registry).decode().replace("batchstream_", "with_child_"))
"""


def test_a_factory_registers_the_metrics_with_the_first_request():
    registry = CollectorRegistry()
    batcher = DynamicBatcher(
        Model().generate,
        max_batch_size=1,
        metrics=functools.partial(PrometheusMetrics, registry=registry),
    )
    assert list(registry.collect()) == []
    with batcher:
        assert list(batcher.stream("ab")) == ["a", "b"]
    labels = {"batcher": "Model.generate", "tenant": ""}
    assert registry.get_sample_value("batchstream_requests_submitted_total", labels) == 1
    assert registry.get_sample_value("batchstream_requests_running", labels) == 0


def test_processes_of_one_server_are_added_up(tmp_path):
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SERVED_BY_TWO]
    with subprocess.Popen(  # noqa: S603
        [*command, "other"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        try:
            assert other.stdout.readline() == "ready\n"
            shown = subprocess.run(  # noqa: S603
                command, env=environment, capture_output=True, text=True, timeout=30, check=True
            ).stdout
        finally:
            other.kill()
    labels = '{batcher="once",tenant=""}'
    assert f"batchstream_requests_submitted_total{labels} 2.0" in shown
    assert f"batchstream_requests_waiting{labels} 1.0" in shown
    assert f"batchstream_requests_running{labels} 0.0" in shown
    # What is gathered was written as nothing ran any more: no one reads this process's registry.
    assert 'batchstream_steps_total{batcher="once"} 2.0' in shown
    assert 'batchstream_slots{batcher="once"} 1.0' in shown
    # The closed one is drained, and nothing has happened in its process since then.
    for state, count in {"accepting": 2, "draining": 0, "closed": 1}.items():
        assert f'batchstream_state{{batcher="once",state="{state}"}} {count}.0' in shown
    assert 'with_child_state{batcher="once",state="accepting"} 3.0' in shown


CLOSED_BY_A_SIGNAL = """
import signal, threading
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from batchstream import DynamicBatcher
from batchstream.integrations.prometheus import PrometheusMetrics
def once(requests):
    yield requests
batcher = DynamicBatcher(once, max_batch_size=1, metrics=PrometheusMetrics())
signal.signal(signal.SIGTERM, lambda *_: batcher.close(drain=1))
counter = Counter("mine", "One of the program's own")
write_value = MmapedDict.write_value
def interrupted(*args):
    MmapedDict.write_value = write_value
    signal.raise_signal(signal.SIGTERM)
    write_value(*args)
MmapedDict.write_value = interrupted
counter.inc()
for thread in set(threading.enumerate()) - {threading.main_thread()}:
    thread.join()
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def test_a_signal_s_handler_closes_a_batcher_amid_the_lock_of_all_series_in_files(tmp_path):
    shown = subprocess.run(  # noqa: S603
        [sys.executable, "-c", CLOSED_BY_A_SIGNAL],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    ).stdout
    assert "mine_total 1.0" in shown
    for state, count in {"accepting": 0, "draining": 0, "closed": 1}.items():
        assert f'batchstream_state{{batcher="once",state="{state}"}} {count}.0' in shown


FORKED_AMID_A_BATCH = """
import os, threading
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from batchstream import DynamicBatcher
from batchstream.integrations.prometheus import PrometheusMetrics
gate = threading.Event()
def many(requests):
    for _ in range(40):
        yield requests
    gate.wait()
    yield requests
def once(requests):
    yield requests
metrics = PrometheusMetrics()
with DynamicBatcher(many, max_batch_size=1, metrics=metrics, name="chat") as batcher:
    stream = batcher.stream("parent")
    for _ in range(40):
        next(stream)
    if (child := os.fork()) == 0:
        with DynamicBatcher(once, max_batch_size=1, metrics=metrics, name="chat") as batcher:
            for _ in range(3):
                list(batcher.stream("child"))
        os._exit(0)
    os.waitpid(child, 0)
    gate.set()
    list(stream)
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


@needs_fork
def test_a_child_that_was_forked_amid_a_batch_counts_its_own_steps_and_not_the_parent_s(tmp_path):
    shown = subprocess.run(  # noqa: S603
        [sys.executable, "-c", FORKED_AMID_A_BATCH],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    ).stdout
    assert f'batchstream_steps_total{{batcher="chat"}} {41 + 3}.0' in shown
    assert f'batchstream_outputs_total{{batcher="chat"}} {41 + 3}.0' in shown


# ---- metrics that raise


class Broken(PrometheusMetrics):
    """Metrics that raise at everything, like a registry that lost its disk."""

    def for_batcher(self, name):
        return self

    def submitted(self, **_):
        raise OSError("no metrics")

    refused = joined = first_output = stepped = finished = lambda *_, **__: 1 / 0


def test_metrics_that_raise_fail_no_request(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: reported.append(event.exc_value))
    metrics = Broken(registry=CollectorRegistry())
    with ContinuousBatcher(Model(), max_batch_size=2, metrics=metrics) as batcher:
        streams = [batcher.stream("ab") for _ in range(3)]
        assert ["".join(stream) for stream in streams] == ["ab"] * 3
    assert {type(error) for error in reported} == {OSError, ZeroDivisionError}


def test_a_batch_whose_end_was_skipped_is_not_kept_when_its_batcher_is_gone():
    """By an interrupt, where the worker is a task in the main thread."""
    registry = CollectorRegistry()
    batcher = DynamicBatcher(
        Model().generate, max_batch_size=1, metrics=PrometheusMetrics(registry=registry), name="m"
    )
    knobs.skip_ends_of_batches(batcher)
    assert len(list(batcher.stream("abcd"))) == 4
    batcher.close()
    reader = knobs.metrics_of(batcher).counts_reader
    batches = [weakref.ref(batch.fanout) for batch in knobs.runs_of(batcher)]
    del batcher
    gc.collect()
    assert registry.get_sample_value("batchstream_steps_total", {"batcher": "m"}) == 5.0
    assert registry.get_sample_value("batchstream_outputs_total", {"batcher": "m"}) == 4.0
    assert (len(reader._batches), [batch() for batch in batches]) == (0, [None])
