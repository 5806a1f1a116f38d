"""What the metrics of a worker are told of a request's end."""

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from test_litserve_options import everywhere, ready, served

from batchstream import Fail, Metrics
from batchstream.integrations.opentelemetry import OpenTelemetryMetrics
from batchstream.integrations.prometheus._recorder import _reason_of


class Ends(Metrics):
    """Keeps what is told of ends."""

    made = None

    def __init__(self):
        type(self).made = self
        self.told = []
        self.reasons = []  # as Prometheus has them

    def finished(self, end, **figures):
        self.told.append((end.reason, end.outputs, figures))
        self.reasons.append(_reason_of(end))


@everywhere
def test_an_end_tells_after_how_many_seconds_the_first_output_came(where):
    served(ready(where, metrics=Ends), ["a", "b", "c", None], [Fail(ValueError("no"))])
    without, whole = sorted(Ends.made.told, key=lambda told: told[1])
    assert (without[:2], without[2]["first_output"]) == (("error", 0), None)
    assert whole[:2] == ("eos", 3)
    assert 0 < whole[2]["first_output"] < whole[2]["lasted"]


class ReadMetrics(OpenTelemetryMetrics):
    """With a reader of its own in each process."""

    reader = None

    def __init__(self):
        type(self).reader = InMemoryMetricReader()
        super().__init__(meter_provider=MeterProvider([self.reader]))

    def points(self, name):
        """The points of an instrument."""
        [resource] = self.reader.get_metrics_data().resource_metrics
        return [
            point
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@everywhere
def test_opentelemetry_gets_the_time_per_output_of_a_worker(where, monkeypatch):
    made = []
    for_batcher = ReadMetrics.for_batcher
    monkeypatch.setattr(
        ReadMetrics, "for_batcher", lambda own, name: made.append(own) or for_batcher(own, name)
    )
    served(ready(where, metrics=ReadMetrics), ["a", "b", "c", None], ["x", None])
    [metrics] = made
    [first] = metrics.points("gen_ai.server.time_to_first_token")
    [per_output] = metrics.points("gen_ai.server.time_per_output_token")
    assert (first.count, per_output.count) == (2, 1)
    assert per_output.sum > 0
