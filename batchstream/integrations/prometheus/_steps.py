"""The steps of one batcher, kept until they are written into the registry.

Theory of operation
-------------------

`inc` of a series takes a lock and some Python; for all figures of a step that is as long as the
step itself takes a small batcher. So steps are kept as they come, in a list without a lock, and
written together: when the registry is read, after `WRITE_AFTER` seconds of steps, or when nothing
runs. A registry that reads the files of several processes is not told when that is: then the series
are behind by so many seconds of steps at most.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from contextlib import suppress
from itertools import repeat
from math import inf
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from prometheus_client import Histogram

from batchstream.integrations.prometheus._figures import GAPS

if TYPE_CHECKING:
    from collections.abc import Sequence

WRITE_AFTER: Final = 0.05
"""Seconds of steps after which these are written, at the latest."""

STEP_COUNTS: Final = WRITE_AFTER / 250
"""What each step counts besides the seconds that it took: so no more are kept than that many."""

_Step: TypeAlias = tuple[int, int, int, float | None, int, int, int]
"""What `add` was given."""


class WeightedHistogram(Histogram):
    """A histogram that takes many observations at once; prometheus-client's takes one."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add so many observations to each bucket, the sum of all of which is the total."""
        # On the attributes that `observe` itself goes by: there is no public way, and one call for
        # each of 64 slots would take longer than the step.
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


class Steps:
    """Keeps what a batcher tells of its steps.

    Args:
        counters: The series of what is counted, in the order of `COUNTED`.
        gaps: The histograms of the times between steps.
        slots: The gauges of how many slots a batch has.

    Attributes:
        running: How many requests are in a batch; changed by `run`.
    """

    COUNTED: Final = ("steps", "live", "slot_steps", "outputs", "prefilling", "wasted")

    def __init__(
        self,
        counters: Sequence[Sequence[Any]],
        gaps: Sequence[WeightedHistogram],
        slots: Sequence[Any],
    ) -> None:
        self._counters = counters
        self._gap_histograms = gaps
        self._slot_gauges = slots
        self._lock = RLock()  # re-entrant: a signal's handler may submit a request
        self.running = 0
        # Appending is atomic, and takes a third of what adding up under a lock does.
        self._steps: deque[_Step] = deque()
        self._left = 0.0  # seconds of steps until these are written, about

    def run(self, requests: int) -> int:
        """Count requests that joined a batch, or that left theirs; return how many run."""
        with self._lock:
            self.running += requests
            return self.running

    def add(  # noqa: PLR0917 - see `Metrics.stepped`
        self,
        live: int,
        capacity: int,
        outputs: int,
        gap: float | None,
        going_on: int,
        prefilling: int,
        wasted: int,
    ) -> None:
        """Add a step; see `Metrics.stepped`."""
        self._steps.append((live, capacity, outputs, gap, going_on, prefilling, wasted))
        self._left -= STEP_COUNTS if gap is None else gap + STEP_COUNTS
        if self._left < 0:
            self.write()

    def write(self) -> None:
        """Write the steps that were added."""
        # Where nothing runs, the next step is written at once: no other may follow.
        self._left = WRITE_AFTER if self.running > 0 else 0.0
        steps: list[_Step] = []
        with suppress(IndexError):  # another thread writes as well
            steps.extend(map(deque.popleft, repeat(self._steps, len(self._steps))))
        if not steps:
            return
        live, capacity, outputs, gaps, going_on, prefilling, wasted = zip(*steps, strict=True)
        sums = (len(steps), *map(sum, (live, capacity, outputs, prefilling, wasted)))
        for counters, amount in zip(self._counters, sums, strict=True):
            for counter in counters:
                counter.inc(amount)
        for gauge in self._slot_gauges:
            gauge.set(capacity[-1])
        counts, total = _count_gaps(gaps, going_on)
        for histogram in self._gap_histograms:
            histogram.add(counts, total)


def _count_gaps(gaps: Sequence[float | None], weights: Sequence[int]) -> tuple[list[int], float]:
    """Return how many slots each bucket gets, and the sum of their gaps.

    Steps of the same weight are sorted and counted together: mostly all of them have one weight,
    and to look for the bucket of each takes a third of what there is to pay for a step.
    """
    counts, total = [0] * (len(GAPS) + 1), 0.0
    for weight in set(weights):
        of_weight = [gap for gap, its in zip(gaps, weights, strict=True) if its == weight]
        found = sorted(gap for gap in of_weight if gap is not None)
        total += sum(found) * weight
        below = 0
        for bucket, bound in enumerate((*GAPS, inf)):
            up_to = bisect_right(found, bound)
            counts[bucket] += (up_to - below) * weight
            below = up_to
    return counts, total
