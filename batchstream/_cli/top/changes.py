"""What happened between two readings of a page."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchstream._cli.top.page import Figures, Labels, Reading

WINDOW: Final = 10.0
"""The seconds that a rate is of."""


class History:
    """The readings of the last seconds."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._readings: deque[Reading] = deque()

    def add(self, reading: Reading) -> None:
        """Keep a reading, and forget readings that are too old to be compared with it."""
        self._readings.append(reading)
        while len(self._readings) > 2 and self._readings[1].time <= reading.time - self._window:  # noqa: PLR2004 - two are compared
            self._readings.popleft()

    def last(self) -> Reading:
        """Return the reading that was added last."""
        return self._readings[-1]

    def changes(self, batcher: str) -> Changes:
        """Return what a batcher did within the window."""
        known = [each for each in self._readings if batcher in each.batchers]
        return Changes(
            known[-1].time - known[0].time,
            [reading.batchers[batcher] for reading in known],
        )


class Changes:
    """What a batcher did, by its readings one after the other.

    A counter that has become less has begun anew, with its server: it counts from 0. So each
    reading is compared with the one before it, as Prometheus does.
    """

    def __init__(self, seconds: float, readings: list[Figures]) -> None:
        self.seconds = seconds
        self.now = readings[-1]
        self._readings = readings

    def has(self, figure: str) -> bool:
        """Return whether the page has a figure."""
        return figure in self.now

    def grown(self, figure: str) -> Mapping[Labels, float]:
        """Return by how much each series of a counter has grown."""
        total: dict[Labels, float] = defaultdict(float)
        for earlier, later in zip(self._readings, self._readings[1:], strict=False):
            before = earlier.get(figure, {})
            for labels, value in later.get(figure, {}).items():
                start = before.get(labels, 0.0)
                total[labels] += value if value < start else value - start
        return total

    def growth(self, figure: str) -> float:
        """Return by how much a counter has grown, all its series together."""
        return sum(self.grown(figure).values())

    def rate(self, figure: str) -> float | None:
        """Return a counter's growth for each second; None if it is not known."""
        if not self.seconds or not self.has(figure):
            return None
        return self.growth(figure) / self.seconds

    def value(self, figure: str) -> float | None:
        """Return the sum of a figure's series at the last reading; None if it has none."""
        if not self.has(figure):
            return None
        return sum(self.now[figure].values())


def buckets(series: Mapping[Labels, float]) -> dict[float, float]:
    """Return the counts of a histogram by their upper bounds, its series added up."""
    counts: dict[float, float] = defaultdict(float)
    for labels, count in series.items():
        counts[float(dict(labels)["le"])] += count
    return dict(counts)


def quantile(share: float, counts: Mapping[float, float]) -> float | None:
    """Estimate below which value a share of the observations lies.

    It is what `histogram_quantile` of Prometheus gives: within a bucket the observations count as
    evenly spread, and beyond the last bound that is finite the bound is all that is known.

    Args:
        share: From 0 to 1.
        counts: How many observations are at most as large as each bound; the last bound is
            infinite.

    Returns:
        The value, or None where nothing was observed.
    """
    bounds = sorted(counts)
    if not bounds or counts[bounds[-1]] <= 0:
        return None
    rank = share * counts[bounds[-1]]
    low, below = 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= rank and counts[bound] > below:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (rank - below) / (counts[bound] - below)
        low, below = bound, counts[bound]
    return low
