"""What is noted of each step of a batch of requests: first outputs, gaps, wasted slots.

Theory of operation
-------------------

`statistics()` needs two things of a step that the core does not count: which requests had their
first output in it, and which had left before it was done. Both are rare. A request whose first
output is still to come stands in `awaiting`; one that has left stands in the fan-out's departures.
While both are empty, and no metrics want to hear of steps, a step costs two looks at empty lists.

Metrics that only count are not called for each step: it is kept for them, see `kept_steps.py`.
Mostly it is like the one before, and one append to a list.

The times between outputs go by steps: all slots that had an output before get the next one after
the same time. So a step is one reading of the clock, whatever it is made for.

Not safe for threads: a batch's steps are made by one thread or task. `statistics()` reads numbers.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from batchstream._batching import clock
from batchstream._batching.kept_steps import MOST_KEPT, KeptSteps, StepKind, StepRun
from batchstream._batching.limits import slots_of_step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.request import Request
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._handoff.buffer import Buffer
    from batchstream._pumps.fanout import Fanout

_NEVER_KEPT: Final = KeptSteps(int)


class StepLog:
    """The figures of one batch that go by its steps.

    Args:
        options: What the batcher was made with.
        count_first_outputs: Is told which requests had their first output in a step, and when.

    Attributes:
        awaiting: Requests in the batch whose first output is to come; also some that have ended.
        departures: The fan-out's `departures`: streams that ended otherwise than by a step.
        stepped: The method of the metrics that hears of steps, if there is one.
        wasted: Live slots whose request had left before the step was done, over all steps.
    """

    def __init__(
        self,
        options: BatcherOptions[Any, Any],
        count_first_outputs: Callable[[Sequence[Request[Any]], float], object],
    ) -> None:
        self._count_first_outputs = count_first_outputs
        self._metrics = options.metrics
        self._limits = options.limits
        self.awaiting: dict[Request[Any], None] = {}
        self.departures: deque[Buffer[Any]] = deque()
        methods = {} if options.metrics is None else options.metrics.methods
        self.stepped = methods.get("stepped")
        self.wasted = 0
        kept_steps = None if options.metrics is None else options.metrics.kept_steps
        self._keeps = kept_steps is not None
        self._kept_steps = kept_steps or _NEVER_KEPT
        self._run: StepRun | None = None
        self._gaps: deque[float | None] = deque()  # of the run
        # The slots of the last step, the core's own tuple, if another one that is made for them
        # without anything happening is like it.
        self._alike: tuple[int, ...] = ()
        self._limits_then = self._limits.now  # at the last step
        self._last_step = -math.inf  # before the first
        self._outputs = 0
        self._fanout: Fanout[Any]
        self._core: Demultiplexer[Any]

    def follow(self, fanout: Fanout[Any]) -> None:
        """Note the steps of this fan-out; before the first."""
        self._fanout, self._core = fanout, fanout.core
        self.departures = fanout.departures

    def note(self, live: tuple[int, ...]) -> None:
        """Note a step that was made for these slots, before any of them has another occupant."""
        now = clock.monotonic()
        is_alike = live is self._alike and self._limits.now is self._limits_then
        if is_alike and not (self.awaiting or self.departures):
            self._gaps.append(now - self._last_step)
            self._last_step = now
            if len(self._gaps) >= MOST_KEPT or now >= self._kept_steps.write_at:
                self._call(self._kept_steps.write)
            return
        going_on = size = len(live)
        if self.awaiting:
            going_on -= self._look_for_first_outputs(live, now)
        wasted = self._count_wasted(live) if self.departures else 0
        if self.stepped is None:
            return
        self._limits_then = limits = self._limits.now
        capacity = slots_of_step(limits, size, len(self._fanout.buffers))
        kind = StepKind(size, capacity, going_on, len(self.awaiting), wasted)
        gap = None if self._last_step == -math.inf else now - self._last_step
        self._last_step = now
        if self._keeps:
            self._keep(kind, gap)
            self._alike = live if going_on == size and not (self.awaiting or wasted) else ()
            if len(self._gaps) >= MOST_KEPT or now >= self._kept_steps.write_at:
                self._call(self._kept_steps.write)
        else:
            before, self._outputs = self._outputs, self._core.outputs
            self._call(self.stepped, size, capacity, self._outputs - before, gap, *kind[2:])

    def _keep(self, kind: StepKind, gap: float | None) -> None:
        """Keep a step that is not like the one before, or may not be."""
        run = self._run
        if run is None or run.kind != kind:
            before = self._end_run()
            self._run = self._kept_steps.begin(kind, self._core, before)
            self._gaps = self._run.gaps
        self._gaps.append(gap)

    def _end_run(self) -> int:
        """End the run that is under way, and return how many outputs were given up to now.

        A step unlike the steps before ends their run. Its outputs count with that run: the metrics
        add up all runs.
        """
        if self._run is None:
            return 0
        self._run.outputs_at_end = outputs = self._core.outputs
        return outputs

    def end(self) -> None:
        """Keep no step any more: the batch has ended."""
        self._end_run()
        self._run, self._alike = None, ()

    def __del__(self) -> None:
        """Do so for a batch whose end an interrupt has skipped: or its run, and core, stay kept."""
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
        self.wasted += wasted
        return wasted
