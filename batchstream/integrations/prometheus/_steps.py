"""The steps of one batcher, kept until they are written into the registry.

Theory of operation
-------------------

`inc` of a series takes a lock and some Python; for all figures of a step that is as long as the
step itself takes a small batcher. So steps are kept as they come, without a lock, and written
together: when the registry is read, when there are many, or when nothing runs. A registry that
reads the files of several processes cannot tell when that is. There steps are written after
`WRITE_AFTER` seconds as well, and the series are behind by so much at most.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from contextlib import suppress
from itertools import repeat
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import Histogram
from prometheus_client.values import MutexValue, ValueClass

from batchstream._batching import clock
from batchstream._batching.kept_steps import MOST_KEPT, KeptSteps, StepKind
from batchstream.integrations.prometheus._figures import GAPS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WRITE_AFTER: Final = 0.05
"""After how many seconds steps are written where the series are kept in files."""

IN_FILES: Final = ValueClass is not MutexValue
"""Whether the series are kept in files, which other processes read."""


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
        kept: Where batches keep their steps, which is quicker than `add`.
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
        self.kept = KeptSteps(self.write)
        self._added: deque[tuple[StepKind, list[float | None], int]] = deque()
        if IN_FILES:
            self.kept.write_at = 0.0

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
        self._added.append((StepKind(live, capacity, going_on, prefilling, wasted), [gap], outputs))
        if IN_FILES or len(self._added) >= MOST_KEPT:
            self.write()

    def write(self) -> None:
        """Write the steps that were added."""
        if IN_FILES:
            # Where nothing runs, the next step is written at once: no other may follow.
            self.kept.write_at = clock.monotonic() + WRITE_AFTER if self.running > 0 else 0.0
        runs = self.kept.take()
        with suppress(IndexError):  # another thread writes as well
            runs.extend(map(deque.popleft, repeat(self._added, len(self._added))))
        if not runs:
            return
        steps = live = slots = outputs = prefilling = wasted = 0
        gaps_by_weight: defaultdict[int, list[float]] = defaultdict(list)
        for kind, gaps, given in runs:
            made = len(gaps)
            steps += made
            live += kind.live * made
            slots += kind.capacity * made
            outputs += given
            prefilling += kind.prefilling * made
            wasted += kind.wasted * made
            if gaps and gaps[0] is None:  # the first step of a batch
                del gaps[0]
            gaps_by_weight[kind.going_on] += gaps  # type: ignore[arg-type] # no other is None
        sums = (steps, live, slots, outputs, prefilling, wasted)
        for counters, amount in zip(self._counters, sums, strict=True):
            for counter in counters:
                counter.inc(amount)
        for gauge in self._slot_gauges:
            gauge.set(kind.capacity)
        buckets, total = _count_gaps(gaps_by_weight)
        for histogram in self._gap_histograms:
            histogram.add(buckets, total)


def _count_gaps(gaps_by_weight: Mapping[int, list[float]]) -> tuple[list[int], float]:
    """Return how many slots each bucket gets, and the sum of their gaps.

    Gaps of one weight are sorted and counted together: mostly all of them have one weight, and to
    look for the bucket of each takes a third of what there is to pay for a step.
    """
    counts, total = [0] * (len(GAPS) + 1), 0.0
    for weight, gaps in gaps_by_weight.items():
        found = sorted(gaps)
        total += sum(found) * weight
        below = 0
        for bucket, bound in enumerate(GAPS):
            up_to = bisect_right(found, bound, below)
            counts[bucket] += (up_to - below) * weight
            below = up_to
        counts[-1] += (len(found) - below) * weight
    return counts, total
