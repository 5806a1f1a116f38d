"""Writes what one batcher does into its series of a registry.

Theory of operation
-------------------

`inc` of a series takes a lock and some Python; for all figures of a step that is as long as the
step itself takes a small batcher. So steps are kept as they come, in a list without a lock, and
written together: when the registry is read, after `WRITE_AFTER` seconds of steps, or when nothing
runs. A registry that reads the files of several processes is not told when that is: then the series
are behind by so many seconds of steps at most.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import Histogram

from batchstream import FinishReason, Metrics
from batchstream.integrations.prometheus._figures import GAPS, REFUSALS, VLLM_REASONS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from batchstream import StreamEnd
    from batchstream.integrations.prometheus._metrics import Families

WRITE_AFTER: Final = 0.05
"""Seconds of steps after which these are written, at the latest."""

WRITE_EACH: Final = 256
"""How many steps are written together at most: this takes the worker about 0.1 milliseconds."""


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


class TenantFigures:
    """The series of one tenant in one batcher, looked up once.

    Args:
        families: Those of the registry.
        labels: What the series are labelled with.
    """

    def __init__(self, families: Families, labels: Mapping[str, str]) -> None:
        self.submitted = families.series("submitted", labels)
        self.requeued = families.series("requeued", labels)
        self.waiting = families.series("waiting", labels)
        self.running = families.series("running", labels)
        self.wait = families.series("wait", labels)
        self.first_output = families.series("first_output", labels)
        self.slot = families.series("slot", labels)
        self.request = families.series("request", labels)
        self.outputs = families.series("request_outputs", labels)
        # All reasons from the beginning: a counter that first appears as 1 has had no increase, and
        # its rate would miss the first one.
        self.refused = {
            reason: families.series("refused", {**labels, "reason": reason}) for reason in REFUSALS
        }
        self.finished = {
            reason: families.series(
                "finished",
                {**labels, "reason": reason.value, "finished_reason": VLLM_REASONS[reason]},
            )
            for reason in FinishReason
        }


class Recorder(Metrics):
    """What one batcher calls.

    Args:
        families: Those of the registry.
        labels: What all series of the batcher are labelled with.
        label_of: Returns the label of a tenant.
        cache_usage: Returns which part of the engine's cache is in use.
    """

    def __init__(
        self,
        families: Families,
        labels: Mapping[str, str],
        label_of: Callable[[Hashable], str],
        cache_usage: Callable[[], float] | None,
    ) -> None:
        self._families = families
        self._labels = labels
        self._label_of = label_of
        self._usage = cache_usage
        self._tenants: dict[str, TenantFigures] = {}
        self._of(None)  # the series are there before the first request
        self._slots = families.series("slots", labels)
        self._cache_usage = () if cache_usage is None else families.series("cache_usage", labels)
        self._batch_size = families.series("batch_size", labels)
        self._gap = families.series("gap", labels)
        self._prompt_tokens = families.series("prompt_tokens", labels)
        self._counters = [
            families.series(key, labels)
            for key in ("steps", "live", "slot_steps", "outputs", "prefilling", "wasted")
        ]
        self._lock = RLock()  # re-entrant: a signal's handler may submit a request
        self._running = 0
        self._capacity = 0
        # Appending is atomic, and quicker than adding up under a lock: what `stepped` was given.
        self._steps: deque[tuple[int, int, int, float | None, int, int, int]] = deque()
        self._unwritten = 0.0  # seconds, about

    def _of(self, tenant: Hashable) -> TenantFigures:
        label = "" if tenant is None else self._label_of(tenant)
        figures = self._tenants.get(label)
        if figures is None:
            figures = TenantFigures(self._families, {**self._labels, "tenant": label})
            figures = self._tenants.setdefault(label, figures)
        return figures

    # ---- steps

    def stepped(
        self,
        live: int,
        capacity: int,
        *,
        outputs: int,
        gap: float | None,
        going_on: int,
        prefilling: int,
        wasted: int,
    ) -> None:
        """Add a step to those that are to be written."""
        self._steps.append((live, capacity, outputs, gap, going_on, prefilling, wasted))
        if gap is not None:
            self._unwritten += gap
        if (
            self._unwritten > WRITE_AFTER
            or self._running <= 0
            or self._capacity != capacity
            or len(self._steps) >= WRITE_EACH
        ):
            self._set_slots(capacity)
            self.write()

    def _set_slots(self, capacity: int) -> None:
        if self._capacity != capacity:
            self._capacity = capacity
            for gauge in self._slots:
                gauge.set(capacity)

    def write(self) -> None:
        """Write the steps that were added, and what the engine's cache holds."""
        self._unwritten = 0.0
        steps: list[tuple[int, int, int, float | None, int, int, int]] = []
        with suppress(IndexError):  # another thread writes as well
            while self._steps:
                steps.append(self._steps.popleft())
        if steps:
            live, capacity, outputs, gaps, going_on, prefilling, wasted = zip(*steps, strict=True)
            columns = (live, capacity, outputs, prefilling, wasted)
            for series, amount in zip(
                self._counters, (len(steps), *map(sum, columns)), strict=True
            ):
                _add(series, amount)
            self._write_gaps(gaps, going_on)
        if self._usage is not None:
            usage = self._usage()
            for gauge in self._cache_usage:
                gauge.set(usage)

    def _write_gaps(self, gaps: Sequence[float | None], weights: Sequence[int]) -> None:
        counts, total = [0] * (len(GAPS) + 1), 0.0
        for gap, weight in zip(gaps, weights, strict=True):
            if gap is not None:
                counts[bisect_left(GAPS, gap)] += weight
                total += gap * weight
        for histogram in self._gap:
            histogram.add(counts, total)

    # ---- requests

    def submitted(self, *, tenant: Hashable = None) -> None:
        """Count a request that was accepted and waits."""
        figures = self._of(tenant)
        _add(figures.submitted, 1)
        _add(figures.waiting, 1)

    def refused(self, reason: str, *, tenant: Hashable = None) -> None:
        """Count a request that was refused."""
        figures = self._of(tenant)
        series = figures.refused.get(reason)
        if series is None:  # a later one of the library's
            labels = {**self._labels, "tenant": self._label_of(tenant), "reason": reason}
            series = figures.refused[reason] = self._families.series("refused", labels)
        _add(series, 1)

    def joined(self, waited: Sequence[float], *, tenants: Sequence[Hashable] = ()) -> None:
        """Count requests that joined a batch together, and how long each had waited."""
        with self._lock:
            self._running += len(waited)
        for histogram in self._batch_size:
            histogram.observe(len(waited))
        for seconds, tenant in zip(waited, tenants or [None] * len(waited), strict=True):
            figures = self._of(tenant)
            _add(figures.waiting, -1)
            _add(figures.running, 1)
            _observe(figures.wait, seconds)

    def requeued(self, *, tenant: Hashable = None) -> None:
        """Count a request that gave its slot back, and waits again."""
        with self._lock:
            self._running -= 1
        figures = self._of(tenant)
        _add(figures.requeued, 1)
        _add(figures.running, -1)
        _add(figures.waiting, 1)

    def first_output(self, seconds: float, *, tenant: Hashable = None) -> None:
        """Count the first output of a request."""
        _observe(self._of(tenant).first_output, seconds)

    def finished(
        self,
        end: StreamEnd,
        *,
        joined: bool,
        lasted: float,
        in_slot: float,
        first_output: float | None = None,  # noqa: ARG002 - `first_output` was told
        tenant: Hashable = None,
    ) -> None:
        """Count a request that has ended."""
        figures = self._of(tenant)
        _add(figures.running if joined else figures.waiting, -1)
        _add(figures.finished[end.reason], 1)
        _observe(figures.outputs, end.outputs)
        _observe(figures.request, lasted)
        if joined:
            _observe(figures.slot, in_slot)
            with self._lock:
                self._running -= 1
                none_runs = self._running <= 0
            if none_runs:
                self.write()
        if self._prompt_tokens and end.info is not None:
            tokens = end.info.get("prompt_tokens")
            if isinstance(tokens, int):
                _add(self._prompt_tokens, tokens)


def _add(series: Sequence[Any], amount: float) -> None:
    for each in series:
        each.inc(amount)


def _observe(series: Sequence[Any], amount: float) -> None:
    for each in series:
        each.observe(amount)
