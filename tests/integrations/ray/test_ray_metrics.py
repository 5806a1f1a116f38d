"""Figures of batchers in `ray.serve.metrics`, as Prometheus reads them from Ray."""

import time

import cloudpickle
import httpx
import pytest

pytest.importorskip("ray", reason="there is no Ray: make ray-test brings one")

from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from batchstream import EOS, ContinuousBatcher
from batchstream.integrations.prometheus._figures import OWN
from batchstream.integrations.ray import RayMetrics
from batchstream.integrations.ray._metrics import Families, families
from support import knobs
from support.serving import SECONDS


class Countdown:
    def __init__(self):
        self.left = {}

    def add(self, slot, request):
        self.left[slot] = request

    def step(self):
        step = {slot: count or EOS for slot, count in self.left.items()}
        self.left = {slot: count - 1 for slot, count in self.left.items()}
        return step

    def remove(self, slot):
        del self.left[slot]


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Measured:
    def __init__(self):
        self.batcher = ContinuousBatcher(
            Countdown,
            max_batch_size=4,
            metrics=RayMetrics,
            name="countdown",
            tenant=lambda count: "short" if count < 5 else "long",
        )

    async def lengths(self, counts):
        streams = [self.batcher.astream(count) for count in counts]
        return [len([output async for output in stream]) for stream in streams]


def figures(cluster):
    """Return what Ray exports of the batcher, once it does."""
    deadline = time.monotonic() + SECONDS
    while "ray_batchstream_steps_total" not in (
        page := httpx.get(cluster.metrics, timeout=SECONDS).text
    ):
        assert time.monotonic() < deadline, page
        time.sleep(0.2)
    return [
        sample
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.labels.get("batcher") == "countdown"
    ]


def test_a_batcher_in_a_replica_is_seen_by_the_names_that_prometheus_gets(deploy, ray_cluster):
    handle = deploy(measured=Measured.bind())
    assert handle.lengths.remote([3, 3, 9]).result() == [3, 3, 9]
    samples = figures(ray_cluster)
    by_tenant = {
        (sample.name.removeprefix("ray_batchstream_"), sample.labels["tenant"]): sample.value
        for sample in samples
        if "tenant" in sample.labels and "le" not in sample.labels
    }
    assert by_tenant["requests_submitted_total", "short"] == 2
    assert by_tenant["requests_finished_total", "long"] == 1
    assert by_tenant["requests_waiting", "short"] == by_tenant["requests_running", "long"] == 0
    assert by_tenant["request_outputs_sum", "short"] == 6
    assert by_tenant["wait_seconds_count", "short"] == 2
    by_step = {
        sample.name.removeprefix("ray_batchstream_"): sample.value
        for sample in samples
        if "tenant" not in sample.labels and "le" not in sample.labels
    }
    assert by_step["outputs_total"] == 15
    assert by_step["slot_steps_total"] == 4 * by_step["steps_total"]
    assert by_step["slot_steps_live_total"] == 15 + 3  # an end takes a step of its own
    assert 0 < by_step["gap_seconds_count"] < by_step["steps_total"]
    assert by_step["slots"] == 4
    tags = samples[0].labels
    assert (tags["deployment"], tags["application"]) == ("Measured", "measured")
    assert {sample.labels["replica"] for sample in samples} == {tags["replica"]}


def test_the_names_are_the_same_as_in_prometheus_but_for_what_a_batcher_does_not_tell():
    names = {figure.name for figure in OWN} - {"cache_usage_ratio", "state"}
    made = Families("checked")
    for figure in OWN:
        found = made.series(figure.key, dict.fromkeys(figure.labels, "x"))
        assert len(found) == (figure.key not in {"cache_usage", "state", "gap"})
    assert {metric.info["name"] for _, metric in made._families.values()} == {
        f"checked_{name}" for name in names
    }


def test_metrics_are_pickled_as_what_they_are_made_of():
    metrics = cloudpickle.loads(cloudpickle.dumps(RayMetrics("mine", tenants=0)))
    assert metrics._name == "mine"
    assert metrics._label_of("any") == "other"


def test_two_batchers_of_one_name_are_added_up():
    labels = {"batcher": "one", "tenant": ""}
    first, second = Families("added").series("waiting", labels) * 2
    first.inc(2)
    second.inc(1)
    assert first._value == 3


class Noted:
    """A figure of Ray's that notes what is done to it."""

    def __init__(self):
        self.amounts = []

    def inc(self, amount, tags):
        self.amounts.append(amount)

    observe = set = inc


def test_steps_are_written_together_and_the_time_between_two_for_each(monkeypatch):
    now = [100.0]
    knobs.set_clock(monkeypatch, lambda: now[0])
    monkeypatch.setattr("batchstream.integrations.ray._metrics._made", lambda *_: Noted())
    metrics = RayMetrics("noted").for_batcher("one")
    noted = {key: metric.amounts for key, (_, metric) in families("noted")._families.items()}
    for gap in (None, 0.02, 0.02, 0.02):
        metrics.stepped(3, 4, 3, gap, 0 if gap is None else 3, 0, 0)
        now[0] += 0.02
    assert noted["gap"] == [0.02, 0.02, 0.02]
    assert noted["steps"] == [1, 3]  # at once, and when 50 ms are over
    assert noted["live"] == [3, 9]
    assert noted["wasted"] == []  # Ray refuses to add 0


@pytest.mark.parametrize(("wrong", "says"), [({"name": ""}, "name"), ({"tenants": -1}, "tenants")])
def test_wrong_arguments_are_refused_where_the_metrics_are_made(wrong, says):
    with pytest.raises(ValueError, match=says):
        RayMetrics(**wrong)
