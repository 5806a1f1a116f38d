"""The steps of one batcher, added up until they are written into the registry.

Theory of operation
-------------------

`inc` of a series takes a lock and some Python; for all figures of a step that is as long as the
step itself takes a small batcher. So batches add their steps up, without a lock, and the sums are
written: when the registry is read, when nothing runs, and when many batches have ended since. A
registry that reads the files of several processes cannot tell when that is. There sums are written
after `WRITE_AFTER` seconds as well, and the series are behind by so much at most.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import Histogram
from prometheus_client.values import MutexValue, ValueClass

from batchstream._batching import clock
from batchstream._batching.telemetry.step_sums import COUNTED, CountsReader

if TYPE_CHECKING:
    from collections.abc import Sequence

WRITE_AFTER: Final = 0.05
"""After how many seconds sums are written where the series are kept in files."""

MOST_KEPT: Final = 512
"""How many steps are kept that a batcher has told of one by one."""

IN_FILES: Final = ValueClass is not MutexValue
"""Whether the series are kept in files, which other processes read."""


class WeightedHistogram(Histogram):
    """A histogram that takes many observations at once; prometheus-client's takes one."""

    def add(self, counts: Sequence[float], total: float) -> None:
        """Add so many observations to each bucket, the sum of all of which is the total."""
        # On the attributes that `observe` itself goes by: there is no public way, and one call for
        # each of 64 slots would take longer than the step.
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


class Steps:
    """Adds up what a batcher does by steps.

    Args:
        counters: The series of what is counted, in the order of `COUNTED`.
        gaps: The histograms of the times between steps.
        slots: The gauges of how many slots a batch has.

    Attributes:
        reader: Reads what batches count, which is quicker than `add`.
        running: How many requests are in a batch; changed by `run`.
    """

    def __init__(
        self,
        counters: Sequence[Sequence[Any]],
        gaps: Sequence[WeightedHistogram],
        slots: Sequence[Any],
    ) -> None:
        self._counters = counters
        self._gap_histograms = gaps
        self._slot_gauges = slots
        self.reader = CountsReader(self.write, self._begin)
        self._begin()

    def _begin(self) -> None:
        """Begin without any request or step, as in a forked child: they are the parent's."""
        self._lock = RLock()  # re-entrant: a signal's handler may submit a request
        self.running = 0
        self.reader.write_at = 0.0 if IN_FILES else math.inf
        self._added: deque[tuple[int, int, int, float | None, int, int, int]] = deque()

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
        """Add a step that no batch counts; see `Metrics.stepped`."""
        self._added.append((live, capacity, outputs, gap, going_on, prefilling, wasted))
        if IN_FILES or len(self._added) >= MOST_KEPT:
            self.write()

    def write(self) -> None:
        """Write what has come since the last time."""
        self.reader.write_at = math.inf
        if IN_FILES:
            # Where nothing runs, the next step is written at once: no other may follow.
            self.reader.write_at = clock.monotonic() + WRITE_AFTER if self.running > 0 else 0.0
        sums = self.reader.take()
        with suppress(IndexError):  # another thread writes as well
            for _ in range(len(self._added)):
                sums.add(*self._added.popleft())
        for key, counters in zip(COUNTED, self._counters, strict=True):
            for counter in counters:
                counter.inc(getattr(sums, key))
        if sums.steps:  # else the core has counted a step that its batch has still to count
            for gauge in self._slot_gauges:
                gauge.set(sums.capacity)
        for histogram in self._gap_histograms:
            histogram.add(sums.gaps, sums.seconds)
