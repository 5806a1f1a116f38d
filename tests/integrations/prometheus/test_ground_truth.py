"""Every sample in the registry, of a run of which every figure is known."""

from collections import Counter

import pytest
from prometheus_client import CollectorRegistry

from batchstream import (
    BatchStreamError,
    DeadlineError,
    FinishReason,
    RequestError,
    SlowConsumerError,
    StreamEnd,
)
from batchstream.integrations.prometheus import PrometheusMetrics
from support.scripted import Run

CHAT = {"batcher": "chat"}


def samples_of(registry):
    """Return the samples that are not 0, by name and labels; no buckets of histograms."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.value and not sample.name.endswith(("_bucket", "_created"))
    }


def test_the_samples_of_a_run_that_is_known_are_exact(monkeypatch):
    registry = CollectorRegistry()
    run = Run(monkeypatch, PrometheusMetrics(registry=registry, tenants=2))
    expected = {
        ("state", "closed"): 1,
        ("requests_submitted_total", "x"): 3,
        ("requests_submitted_total", "y"): 3,
        ("requests_submitted_total", "other"): 1,
        ("requests_refused_total", "y", "pending"): 1,
        ("requests_refused_total", "x", "cost"): 1,
        ("requests_refused_total", "x", "closed"): 1,
        ("requests_finished_total", "x", "eos"): 1,
        ("requests_finished_total", "x", "error"): 2,
        ("requests_finished_total", "y", "cancelled"): 1,
        ("requests_finished_total", "y", "error"): 2,
        ("requests_finished_total", "other", "error"): 1,
        ("slots",): 2,
        ("steps_total",): 6,
        ("outputs_total",): 8,
        ("slot_steps_total",): 12,
        ("slot_steps_live_total",): 10,
        ("slot_steps_prefilling_total",): 1,
        ("slot_steps_wasted_total",): 2,
        ("batch_size_count",): 5,
        ("batch_size_sum",): 6,
        ("gap_seconds_count",): 3,
        ("gap_seconds_sum",): 1.25,
        **histogram("wait_seconds", x=(3, 3.5), y=(2, 2.75), other=(1, 0)),
        **histogram("first_output_seconds", x=(1, 3), y=(2, 5.75), other=(1, 1)),
        **histogram("request_seconds", x=(3, 8.5), y=(3, 7.25), other=(1, 2)),
        **histogram("slot_seconds", x=(3, 5), y=(2, 4.5), other=(1, 2)),
        **histogram("request_outputs", x=(3, 3), y=(3, 2), other=(1, 1)),
    }
    assert samples_of(registry) == {
        (f"batchstream_{name}", "chat", *labels): value
        for (name, *labels), value in expected.items()
    }
    assert len(run.refusals) == 3  # the batcher is there until here, and has a state
    states = {
        state: registry.get_sample_value("batchstream_state", CHAT | {"state": state})
        for state in ("accepting", "draining", "closed")
    }
    assert states == {"accepting": 0, "draining": 0, "closed": 1}


def histogram(name, **tenants):
    """Return count and sum of each tenant."""
    return {
        (f"{name}_{suffix}", tenant): value
        for tenant, pair in tenants.items()
        for suffix, value in zip(("count", "sum"), pair, strict=True)
        if value
    }


def test_a_gap_counts_once_for_each_slot_that_goes_on_in_its_bucket(monkeypatch):
    registry = CollectorRegistry()
    Run(monkeypatch, PrometheusMetrics(registry=registry))
    for bound, count in {"0.2": 0, "0.3": 1, "0.5": 3, "1.0": 3, "+Inf": 3}.items():
        labels = CHAT | {"le": bound}
        assert registry.get_sample_value("batchstream_gap_seconds_bucket", labels) == count


def test_the_samples_by_the_names_of_vllm_are_exact(monkeypatch):
    registry = CollectorRegistry()
    metrics = PrometheusMetrics(registry=registry, names="vllm", labels={"model_name": "tiny"})
    Run(monkeypatch, metrics)
    expected = {
        ("generation_tokens_total",): 8,
        ("request_success_total", "stop"): 1,
        ("request_success_total", "abort"): 1,
        ("request_success_total", "error"): 5,
        ("time_to_first_token_seconds_count",): 4,
        ("time_to_first_token_seconds_sum",): 9.75,
        ("inter_token_latency_seconds_count",): 3,
        ("inter_token_latency_seconds_sum",): 1.25,
        ("time_per_output_token_seconds_count",): 3,
        ("time_per_output_token_seconds_sum",): 1.25,
        ("e2e_request_latency_seconds_count",): 7,
        ("e2e_request_latency_seconds_sum",): 17.75,
        ("request_queue_time_seconds_count",): 6,
        ("request_queue_time_seconds_sum",): 6.25,
        ("request_inference_time_seconds_count",): 6,
        ("request_inference_time_seconds_sum",): 11.5,
        ("request_generation_tokens_count",): 7,
        ("request_generation_tokens_sum",): 6,
    }
    found = samples_of(registry)
    assert {name[:1] + tuple(sorted(name[1:])) for name in found} == {
        (f"vllm:{name}", *sorted(["tiny", *labels])) for name, *labels in expected
    }
    assert Counter(found.values()) == Counter(expected.values())
    for (name, *labels), value in expected.items():
        given = {"model_name": "tiny"} | dict(zip(("finished_reason",), labels, strict=False))
        assert registry.get_sample_value(f"vllm:{name}", given) == value
    for gauge in ("num_requests_running", "num_requests_waiting"):
        assert registry.get_sample_value(f"vllm:{gauge}", {"model_name": "tiny"}) == 0


class InvalidPrompt(RequestError):
    pass


REASONS = {
    "deadline": DeadlineError("late", timeout=0.3),
    "slow": SlowConsumerError("unread", slot=0, max_buffered=4),
    "request_error": InvalidPrompt("too long"),
    "error": BatchStreamError("out of memory"),
}


@pytest.mark.parametrize(("reason", "error"), REASONS.items(), ids=REASONS)
def test_an_error_that_a_client_can_bring_about_has_a_reason_of_its_own(reason, error):
    registry = CollectorRegistry()
    end = StreamEnd(FinishReason.ERROR, 0, error=error)
    for names in ("batchstream", "vllm"):
        recorder = PrometheusMetrics(registry=registry, names=names).for_batcher("chat")
        recorder.finished(end, joined=False, lasted=1.0, in_slot=0.0)
    found = {
        name: value
        for name, value in samples_of(registry).items()
        if name[0] in {"batchstream_requests_finished_total", "vllm:request_success_total"}
    }
    assert found == {
        ("batchstream_requests_finished_total", "chat", "", reason): 1,
        ("vllm:request_success_total", "chat", "error"): 1,
    }


def test_requests_that_wait_and_run_are_told_apart_and_one_that_goes_back_waits_again():
    registry = CollectorRegistry()
    recorder = PrometheusMetrics(registry=registry).for_batcher("chat")

    def gauges():
        return [
            registry.get_sample_value(f"batchstream_requests_{which}", CHAT | {"tenant": "x"})
            for which in ("waiting", "running")
        ]

    for _ in range(3):
        recorder.submitted(tenant="x")
    assert gauges() == [3, 0]
    recorder.joined([0.5, 1.5], tenants=["x", "x"])
    assert gauges() == [1, 2]
    recorder.requeued(tenant="x")
    assert gauges() == [2, 1]
    end = StreamEnd("eos", 4)
    recorder.finished(end, joined=True, lasted=2.0, in_slot=1.0, tenant="x")
    recorder.finished(end, joined=False, lasted=2.0, in_slot=0.0, tenant="x")
    assert gauges() == [1, 0]
    labels = CHAT | {"tenant": "x"}
    assert registry.get_sample_value("batchstream_requests_requeued_total", labels) == 1


def test_steps_are_written_when_nothing_runs_as_the_only_slot_was_given_back():
    registry = CollectorRegistry()
    metrics = PrometheusMetrics(registry=registry)
    recorder = metrics.for_batcher("chat")
    recorder.submitted()
    recorder.joined([0.0])
    recorder.stepped(1, 4, 1, None, 0, 0, 0)
    recorder.stepped(1, 4, 1, 0.001, 1, 0, 0)
    recorder.requeued()
    # Without a look at the registry, as of another process's: that would write them.
    [steps] = metrics._families.series("steps", CHAT)
    assert steps._value.get() == 2


def test_tenants_have_labels_by_a_function():
    registry = CollectorRegistry()
    metrics = PrometheusMetrics(registry=registry, tenants={"key-1": "paid"}.get)
    recorder = metrics.for_batcher("chat")
    for tenant in ("key-1", "key-2", "key-3", None):
        recorder.submitted(tenant=tenant)
    found = {
        label: registry.get_sample_value(
            "batchstream_requests_submitted_total", CHAT | {"tenant": label}
        )
        for label in ("paid", "other", "", "key-2")
    }
    assert found == {"paid": 1, "other": 2, "": 1, "key-2": None}


def test_however_many_tenants_there_are_no_more_than_so_many_have_series():
    registry = CollectorRegistry()
    metrics = PrometheusMetrics(registry=registry, tenants=3)
    for name in ("chat", "draft"):
        recorder = metrics.for_batcher(name)
        for tenant in range(1000):
            recorder.submitted(tenant=tenant)
    labels = {
        sample.labels["tenant"]
        for family in registry.collect()
        for sample in family.samples
        if "tenant" in sample.labels
    }
    assert labels == {"", "0", "1", "2", "other"}


def test_the_engine_is_asked_for_the_use_of_its_cache_when_the_registry_is_read():
    registry = CollectorRegistry()
    usage = [0.25]
    metrics = PrometheusMetrics(registry=registry, names="vllm", cache_usage=lambda: usage[0])
    metrics.for_batcher("chat")
    for usage[0] in (0.25, 0.75):
        shown = registry.get_sample_value("vllm:kv_cache_usage_perc", {"model_name": "chat"})
        assert shown == usage[0]


def test_the_tokens_of_prompts_are_counted_where_the_end_says_them():
    registry = CollectorRegistry()
    recorder = PrometheusMetrics(registry=registry, names="vllm").for_batcher("chat")
    for info in ({"prompt_tokens": 7}, {"prompt_tokens": 5}, {}, None, {"prompt_tokens": "many"}):
        end = StreamEnd("eos", 4, info)
        recorder.finished(end, joined=True, lasted=1.0, in_slot=1.0)
    labels = {"model_name": "chat"}
    assert registry.get_sample_value("vllm:prompt_tokens_total", labels) == 12


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"names": "triton"}, ValueError),
        ({"tenants": -1}, ValueError),
        ({"tenants": "x"}, TypeError),
        ({"cache_usage": 0.5}, TypeError),
    ],
)
def test_arguments_are_checked_before_anything_is_registered(options, error):
    registry = CollectorRegistry()
    with pytest.raises(error, match=next(iter(options))):
        PrometheusMetrics(registry=registry, **options)
    PrometheusMetrics(registry=registry)
