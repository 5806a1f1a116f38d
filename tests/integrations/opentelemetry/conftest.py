"""OpenTelemetry in memory: spans and metrics as the SDK would export them."""

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Spans:
    """The spans that have ended.

    Attributes:
        provider: To be passed as `tracer_provider`.
    """

    def __init__(self, **options):
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def all(self):
        return self._exporter.get_finished_spans()

    @property
    def requests(self):
        """The spans of requests, by the ids of the requests."""
        found = [span for span in self.all if "batchstream.request.id" in span.attributes]
        by_id = {span.attributes["batchstream.request.id"]: span for span in found}
        assert len(by_id) == len(found)
        return by_id

    @property
    def batches(self):
        """The spans of batches, in the order in which they started."""
        found = [span for span in self.all if "batchstream.batch.size" in span.attributes]
        return sorted(found, key=lambda span: span.start_time)

    def named(self, name):
        (span,) = [span for span in self.all if span.name == name]
        return span


class Figures:
    """What was measured.

    Attributes:
        provider: To be passed as `meter_provider`.
    """

    def __init__(self):
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader], shutdown_on_exit=False)

    @property
    def metrics(self):
        """All metrics, by their names."""
        data = self._reader.get_metrics_data()
        return {
            metric.name: metric
            for resource in ([] if data is None else data.resource_metrics)
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name, *labels):
        """Return the points of a metric by the values of these attributes."""
        return {
            tuple(point.attributes.get(label) for label in labels): point
            for point in self.metrics[name].data.data_points
        }


@pytest.fixture
def spans():
    return Spans()


@pytest.fixture
def figures():
    return Figures()
