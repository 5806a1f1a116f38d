"""What is noted of each step of a batch of requests: first outputs, gaps, wasted slots.

Theory of operation
-------------------

`statistics()` needs two things of a step that the core does not count: which requests had their
first output in it, and which had left before it was done. Both are rare. A request whose first
output is still to come stands in `awaiting`; one that has left stands in the fan-out's departures.
While both are empty, and no metrics want to hear of steps, a step costs two looks at empty lists.

Metrics that only count are not called for each step: they read what steps add up to, see
`step_sums.py`. Mostly a step is like the one before, and `add` is all there is to do.

The times between outputs go by steps: all slots that had an output before get the next one after
the same time. So a step is one reading of the clock, whatever it is made for.

Not safe for threads: a batch's steps are made by one thread or task. `statistics()` reads numbers.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, Any

from batchstream._batching import clock
from batchstream._batching.reporting.step_counts import StepCounts
from batchstream._batching.telemetry.step_sums import GAPS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.requests.request import Request
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._handoff.buffer import Buffer
    from batchstream._pumps.fanout import Fanout


class StepLog:
    """The figures of one batch that go by its steps.

    Args:
        options: What the batcher was made with.
        count_first_outputs: Is told which requests had their first output in a step, and when.

    Attributes:
        awaiting: Requests in the batch whose first output is to come; also some that have ended.
        departures: The fan-out's `departures`: streams that ended otherwise than by a step.
        counts: What the steps add up to; set by `follow`.
        wants_all: Whether metrics want to hear of each step, or to read the counts.
        alike: The slots of the last step, the core's own tuple, if another one that is made for
            them without anything happening is like it, and `add` is enough for it.
    """

    counts: StepCounts

    def __init__(
        self,
        options: BatcherOptions[Any, Any],
        count_first_outputs: Callable[[Sequence[Request[Any]], float], object],
    ) -> None:
        self._count_first_outputs = count_first_outputs
        self._metrics = metrics = options.metrics
        self.awaiting: dict[Request[Any], None] = {}
        self.departures: deque[Buffer[Any]] = deque()
        self._stepped = None if metrics is None else metrics.stepped
        self._readers = () if metrics is None else metrics.counts_readers
        self.wants_all = bool(self._stepped or self._readers)
        self._write_at = -math.inf  # when the readers are to write
        self.alike: tuple[int, ...] = ()
        self._last_step = -math.inf  # when it was made; before the first
        self._going_on = 0.0  # of the last step; see `Metrics.stepped`
        self._outputs = 0
        self._fanout: Fanout[Any]
        self._core: Demultiplexer[Any]

    def follow(self, fanout: Fanout[Any]) -> None:
        """Note the steps of this fan-out; before the first."""
        self._fanout, self._core = fanout, fanout.core
        self.departures = fanout.departures
        self.counts = StepCounts(fanout.core)

    def add(self, now: float, capacity: int) -> None:
        """Count a step for metrics that read what steps add up to.

        Args:
            now: When it was made.
            capacity: How many slots it could have filled.
        """
        gap = now - self._last_step
        self._last_step = now
        counts, going_on = self.counts, self._going_on
        counts.steps += 1.0
        counts.seconds += gap * going_on
        counts.gaps[bisect_left(GAPS, gap)] += going_on
        counts.capacity = capacity
        if now >= self._write_at:
            self._write(now)

    def note(self, live: tuple[int, ...], capacity: int) -> None:
        """Note a step that was made for these slots, before any of them has another occupant.

        Args:
            live: The slots.
            capacity: How many slots it could have filled.
        """
        now = clock.monotonic()
        going_on = len(live)
        if self.awaiting:
            going_on -= self._look_for_first_outputs(live, now)
        wasted = self._count_wasted(live) if self.departures else 0
        if not self.wants_all:
            return
        gap = None if self._last_step == -math.inf else now - self._last_step
        if self._readers:
            self._count(live, capacity, now, going_on)
        self._last_step = now
        if self._stepped is not None:
            before, self._outputs = self._outputs, self._core.outputs
            given, prefilling = self._outputs - before, len(self.awaiting)
            self._call(
                *(self._stepped, len(live), capacity, given, gap, going_on, prefilling, wasted)
            )

    def _count(self, live: tuple[int, ...], capacity: int, now: float, going_on: int) -> None:
        """Count a step that is not like the one before, or may not be."""
        if self._last_step == -math.inf:
            for reader in self._readers:
                reader.add(self.counts)
            self._last_step, going_on = now, 0  # there is no time from a step before
        self._going_on = float(going_on)
        self.counts.prefilling += len(self.awaiting)
        self.add(now, capacity)
        is_like_next = going_on == len(live) and not (self.awaiting or self._stepped)
        self.alike = live if is_like_next else ()

    def _write(self, now: float) -> None:
        """Let metrics be written for which it is time."""
        for reader in self._readers:
            if now >= reader.write_at:
                self._call(reader.write)
        self._write_at = min(reader.write_at for reader in self._readers)

    def end(self) -> None:
        """Note no step any more: the batch has ended."""
        self.alike = ()
        self.counts.end()

    def __del__(self) -> None:
        """Do so for a batch whose end an interrupt has skipped: or metrics keep it."""
        if hasattr(self, "counts"):
            self.end()

    def _call(self, method: Callable[..., object], *args: object) -> None:
        """Call a method of the metrics, and let no error of theirs out."""
        try:
            method(*args)
        except BaseException as error:  # noqa: BLE001 - see `MetricsCaller.failed`
            assert self._metrics is not None  # noqa: S101 - for the type checker
            self._metrics.failed(error)

    def _look_for_first_outputs(self, live: tuple[int, ...], now: float) -> int:
        """Note the requests that had their first output in a step.

        Returns:
            For how many requests the step was made that had had none before it.
        """
        fanout, slots = self._fanout, set(live)
        # Others have ended before the step, and been removed.
        awaiting = [
            it for it in self.awaiting if it.slot in slots and fanout.buffers[it.slot] is it
        ]
        given = [it for it in awaiting if self._core.given(it.slot)]
        self.awaiting = {it: None for it in awaiting if not (it in given or it.ends)}
        # What a step gives for one that has left meanwhile is no output of it: its end says so.
        if first := [it for it in given if not it.ends or it.ends[0].outputs]:
            self._count_first_outputs(first, now)
        return len(awaiting)

    def _count_wasted(self, live: tuple[int, ...]) -> int:
        """Count the slots of a step whose requests had left before it was done."""
        buffers = self._fanout.buffers
        # A list at once: other threads append meanwhile.
        slots = {it.slot for it in list(self.departures) if buffers[it.slot] is it}
        wasted = len(slots.intersection(live))
        self.counts.wasted += wasted
        return wasted
