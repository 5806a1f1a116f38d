"""What is noted of each step of a batch of requests: first outputs, gaps, wasted slots.

Theory of operation
-------------------

`statistics()` needs two things of a step that the core does not count: which requests had their
first output in it, and which had left before it was done. Both are rare. A request whose first
output is still to come stands in `awaiting`; one that has left stands in the fan-out's departures.
While both are empty, and no metrics want to hear of steps, a step costs two looks at empty lists.

The times between outputs go by steps: all slots that had an output before get the next one after
the same time. So a step is one reading of the clock, whatever it is made for.

Not safe for threads: a batch's steps are made by one thread or task. `statistics()` reads numbers.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from batchstream._batching import clock

if TYPE_CHECKING:
    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.request import Request
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._handoff.buffer import Buffer
    from batchstream._pumps.fanout import Fanout


class StepLog:
    """The figures of one batch that go by its steps.

    Args:
        options: What the batcher was made with.

    Attributes:
        awaiting: Requests in the batch whose first output is to come; also some that have ended.
        departures: Those of the fan-out: streams that ended otherwise than by a step.
        stepped: The method of the metrics that hears of steps, if there is one.
        first_outputs: How many requests have had their first output here.
        first_output_time: How long these waited for it since they were submitted, in seconds.
        wasted: Live slots whose request had left before the step was done, over all steps.
    """

    def __init__(self, options: BatcherOptions[Any, Any]) -> None:
        self._metrics = options.metrics
        self._limits = options.limits
        self.awaiting: dict[Request[Any], None] = {}
        self.departures: deque[Buffer[Any]] = deque()
        methods = {} if options.metrics is None else options.metrics.methods
        self.stepped = methods.get("stepped")
        self.first_outputs = 0
        self.first_output_time = 0.0
        self.wasted = 0
        self._last_step: float | None = None
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
        going_on = len(live)
        if self.awaiting:
            going_on -= self._look_for_first_outputs(live, now)
        wasted = self._count_wasted(live) if self.departures else 0
        if (stepped := self.stepped) is None:
            return
        gap = None if self._last_step is None else now - self._last_step
        self._last_step = now
        outputs, before = self._core.outputs, self._outputs
        self._outputs = outputs
        try:
            stepped(
                len(live),
                max(len(live), self._limits.now.max_batch_size),
                outputs - before,
                gap,
                going_on,
                len(self.awaiting),
                wasted,
            )
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
        self.awaiting = {}
        for request in awaiting:
            if self._core.given(request.slot):
                seconds = now - request.arrived
                request.first_output_at = now
                self.first_outputs += 1
                self.first_output_time += seconds
                if self._metrics is not None:
                    self._metrics("first_output", seconds, tenant=request.tenant)
                if (trace := request.trace) is not None:
                    trace.first_output()
            elif not request.ends:
                self.awaiting[request] = None
        return len(awaiting)

    def _count_wasted(self, live: tuple[int, ...]) -> int:
        """Count the slots of a step whose requests had left before it was done."""
        buffers = self._fanout.buffers
        # A list at once: other threads append meanwhile.
        slots = {it.slot for it in list(self.departures) if buffers[it.slot] is it}
        wasted = len(slots.intersection(live))
        self.wasted += wasted
        return wasted
