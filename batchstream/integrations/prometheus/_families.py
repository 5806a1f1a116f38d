"""All series of an object that a user passes as `metrics`, as one collector of its registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge
from prometheus_client.registry import Collector

from batchstream.integrations.prometheus._figures import SEPARATORS, TABLES, Names
from batchstream.integrations.prometheus._steps import WeightedHistogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client import Metric


class Families(Collector):
    """The figures of one table, as one collector.

    A registry asks its collectors one by one; if it is asked for some names only, in no fixed
    order. So one collector has all names, and writes what is gathered before any figure is read.

    Args:
        name: What their names begin with.
        names: Which table.
        labels: Labels with values that all series have besides.
        write: Writes what is gathered.
    """

    def __init__(
        self, name: str, names: Names, labels: Mapping[str, str], write: Callable[[], None]
    ) -> None:
        self._labels = labels
        self._write = write
        self._families: dict[str, list[tuple[tuple[str, ...], Any]]] = {}
        for figure in TABLES[names]:
            own = tuple(label for label in figure.labels if label not in labels)
            full = f"{name}{SEPARATORS[names]}{figure.name}"
            options: dict[str, Any] = {"labelnames": (*own, *labels), "registry": None}
            family: Any
            if figure.kind == "counter":
                family = Counter(full, figure.meaning, **options)
            elif figure.kind == "gauge":
                # A part of a cache is none of a sum; all else is added up over processes.
                mode = "livemax" if figure.unit == "ratio" else "livesum"
                family = Gauge(full, figure.meaning, multiprocess_mode=mode, **options)  # type: ignore[arg-type]
            else:
                family = WeightedHistogram(full, figure.meaning, buckets=figure.buckets, **options)
            self._families.setdefault(figure.key, []).append((own, family))

    def series(self, key: str, labels: Mapping[str, str]) -> tuple[Any, ...]:
        """Return the series of a figure with these labels.

        Args:
            key: The figure; there may be none in this table, or several.
            labels: Values by label; labels that the figure does not have are left out.
        """
        return tuple(
            family.labels(**{label: labels[label] for label in own}, **self._labels)
            for own, family in self._families.get(key, ())
        )

    def describe(self) -> Iterable[Metric]:
        """Return what the registry has to know of the names."""
        return [metric for family in self._all() for metric in family.describe()]

    def collect(self) -> Iterable[Metric]:
        """Write what is gathered, and return all figures."""
        self._write()
        return [metric for family in self._all() for metric in family.collect()]

    def _all(self) -> Iterator[Any]:
        return (family for group in self._families.values() for _, family in group)
