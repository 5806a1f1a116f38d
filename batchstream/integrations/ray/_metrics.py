"""The figures of batchers in `ray.serve.metrics`, by the names that Prometheus gets.

Ray costs about 10 microseconds for each figure that is written. What goes by requests is written at
once. Steps are gathered and written every 50 milliseconds, but for the time between two of them:
that is written for each step, since Ray's histograms take one at a time.
"""

from __future__ import annotations

from functools import cache
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from ray.serve import metrics as ray_metrics

from batchstream import Metrics
from batchstream._batching import clock
from batchstream._core.arguments import check_name

# Ray Serve needs prometheus-client itself, so what is counted has to stand in one place only.
from batchstream.integrations.prometheus._figures import OWN, Figure
from batchstream.integrations.prometheus._recorder import Recorder
from batchstream.integrations.prometheus._steps import WRITE_AFTER
from batchstream.integrations.prometheus._tenants import MAX_TENANTS, TenantLabels

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

LEFT_OUT: Final = frozenset({"cache_usage", "state"})
"""Figures that a batcher does not tell of: they are asked for when a registry is read."""

BY_STEP: Final = "gap"
"""The figure that is written for each step."""


class _Series:
    """One figure with its tags, with the methods that a series of prometheus-client has.

    Args:
        metric: The figure, as Ray has it.
        tags: Its tags. Ray adds the deployment, the replica and the application.
    """

    def __init__(self, metric: Any, tags: dict[str, str]) -> None:
        self._metric = metric
        self._tags = tags

    def inc(self, amount: float) -> None:
        """Add to a counter."""
        if amount:  # Ray refuses to add 0
            self._metric.inc(amount, tags=self._tags)

    def observe(self, amount: float) -> None:
        """Add an observation to a histogram."""
        self._metric.observe(amount, tags=self._tags)


class _GaugeSeries(_Series):
    """A gauge: Ray's own can be set, and no more."""

    def __init__(self, metric: Any, tags: dict[str, str]) -> None:
        super().__init__(metric, tags)
        self._value = 0.0
        self._lock = RLock()  # re-entrant: a signal's handler may submit a request

    def inc(self, amount: float) -> None:
        """Add to the gauge."""
        with self._lock:
            self._value += amount
            self.set(self._value)

    def set(self, value: float) -> None:
        """Set the gauge."""
        self._metric.set(value, tags=self._tags)


class Families:
    """All figures of batchers whose names begin alike, as Ray has them.

    Args:
        name: What their names begin with.
    """

    def __init__(self, name: str) -> None:
        self._families: dict[str, tuple[Figure, Any]] = {
            figure.key: (figure, _made(figure, f"{name}_{figure.name}"))
            for figure in OWN
            if figure.key not in LEFT_OUT
        }
        self._series: dict[tuple[str, ...], _Series] = {}

    def series(self, key: str, labels: Mapping[str, str]) -> tuple[_Series, ...]:
        """Return the series of a figure with these labels.

        Args:
            key: The figure; there may be none.
            labels: Values by label; labels that the figure does not have are left out.
        """
        if key not in self._families or key == BY_STEP:
            return ()
        return (self.one(key, labels),)

    def one(self, key: str, labels: Mapping[str, str]) -> _Series:
        """Return the series of a figure that there is."""
        figure, metric = self._families[key]
        tags = {label: labels[label] for label in figure.labels}
        kind = _GaugeSeries if figure.kind == "gauge" else _Series
        # One for all batchers of a name: a gauge is their sum.
        return self._series.setdefault((key, *tags.values()), kind(metric, tags))


def _made(figure: Figure, name: str) -> Any:
    """Return a figure as Ray has it; Ray adds `_total` to the name of a counter."""
    if figure.kind == "histogram":
        return ray_metrics.Histogram(
            name, figure.meaning, boundaries=list(figure.buckets), tag_keys=figure.labels
        )
    kind = ray_metrics.Counter if figure.kind == "counter" else ray_metrics.Gauge
    return kind(name, figure.meaning, tag_keys=figure.labels)


families = cache(Families)
"""Return the figures of this process whose names begin so: all batchers in it have the same."""


class RayMetrics(Metrics):
    """The figures of batchers in `ray.serve.metrics`; pass it as `metrics`.

    The names are as in `PrometheusMetrics`, with what Ray adds: `ray_` in front of all, and the
    tags `deployment`, `replica` and `application`. [Metrics](metrics.md) lists them. The time
    between two outputs, `gap_seconds`, counts once for each step; `cache_usage_ratio` and `state`
    are left out.

    `metrics=RayMetrics`, without a call, will do. An object is pickled as what it was made of, so
    that a decorated function which has one among its options can be in a deployment.

    Args:
        name: What the names of the metrics begin with, behind `ray_`.
        tenants: Which tenants have a tag of their own, all others being `"other"`; see
            `PrometheusMetrics`.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind.

    Threads: any thread.
    """

    def __init__(
        self,
        name: str = "batchstream",
        *,
        tenants: int | Callable[[Hashable], str | None] = MAX_TENANTS,
    ) -> None:
        self._name = check_name("name", name)
        self._tenants = tenants
        self._label_of = TenantLabels(tenants)

    def __reduce__(self) -> tuple[Callable[..., RayMetrics], tuple[object, ...]]:
        return _remade, (self._name, self._tenants)

    def for_batcher(self, name: str) -> Metrics:
        """Return what the batcher of this name calls."""
        figures = families(self._name)
        labels = {"batcher": name}
        recorder = Recorder(figures, labels, self._label_of, None)  # type: ignore[arg-type] # the same methods
        # Called for each step, in place of reading their sums: Ray does not say when it reads.
        recorder.stepped = _Steps(recorder, figures.one(BY_STEP, labels))  # type: ignore[method-assign] # as there
        recorder.counts_reader = None  # type: ignore[assignment]
        return recorder


class _Steps:
    """Hears of each step of a batcher.

    Args:
        recorder: What the steps are counted by.
        gaps: The times between them.
    """

    def __init__(self, recorder: Recorder, gaps: _Series) -> None:
        self._gather = recorder.stepped
        self._write = recorder.write
        self._gaps = gaps
        self._write_at = 0.0

    def __call__(  # noqa: PLR0917 - see `Metrics.stepped`
        self,
        live: int,
        capacity: int,
        outputs: int,
        gap: float | None,
        going_on: int,
        prefilling: int,
        wasted: int,
    ) -> None:
        self._gather(live, capacity, outputs, gap, going_on, prefilling, wasted)
        if gap is not None and going_on:
            self._gaps.observe(gap)
        now = clock.monotonic()
        if now >= self._write_at:
            self._write_at = now + WRITE_AFTER
            self._write()


def _remade(name: str, tenants: Any) -> RayMetrics:
    return RayMetrics(name, tenants=tenants)
