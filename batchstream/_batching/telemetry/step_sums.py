"""What the steps of batches add up to, and how metrics read it.

Theory of operation
-------------------

For metrics that count, a call for each step costs more than what is counted. So such metrics have
an attribute `counts_reader`, and are not called: each batch adds its steps up, and the reader keeps
what it has read of each batch, and takes what has come since. Nothing is taken out of a batch. So
several metrics read the same counts, and a batch keeps no more if none reads.

What is read is exact at any time, but for the step that is being handed out.

The code that moves a batch's pump writes its counts; any thread reads them, and none waits.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from operator import add, sub
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

# Closer where steps of language models lie: between 5 and 200 milliseconds.
GAPS: Final = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05),
    *(0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0),
)
"""The upper bounds by which the times between steps are counted."""

COUNTED: Final = ("steps", "live", "slot_steps", "outputs", "prefilling", "wasted")
"""What of steps is counted, as attributes of `StepSums`; in this order where they are a list."""

NUMBERS: Final = (*COUNTED, "seconds")
"""All attributes that are one number; in this order likewise."""

MOST_BATCHES: Final = 256
"""How many batches are kept before they are written, so that those that have ended are dropped."""


@dataclass
class StepSums:
    """What steps add up to.

    Attributes:
        steps: How many there are.
        live: Live slots that they were made for.
        slot_steps: Slots that could have been live.
        outputs: Outputs that they gave.
        prefilling: Live slots that have still had no output after the step.
        wasted: Live slots whose request had left before the step was done.
        seconds: The times from step to step, once for each slot that had an output before.
        gaps: How many of these times are in which bucket of `GAPS`.
        capacity: How many slots the last step could have filled.
    """

    steps: float
    live: float
    slot_steps: float
    outputs: float
    prefilling: float
    wasted: float
    seconds: float
    gaps: list[float]
    capacity: int

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
        self.steps += 1
        self.live += live
        self.slot_steps += capacity
        self.outputs += outputs
        self.prefilling += prefilling
        self.wasted += wasted
        self.capacity = capacity
        if gap is not None:
            self.seconds += gap * going_on
            self.gaps[bisect_left(GAPS, gap)] += going_on


class Counts(Protocol):
    """What is read of a batch.

    Attributes:
        capacity: See `StepSums`.
        is_over: Whether no step follows.
    """

    capacity: int
    is_over: bool

    def read(self) -> list[float]:
        """Return all sums: those of `NUMBERS`, and then those of the gaps."""


_NOTHING: Final[list[float]] = [0] * (len(NUMBERS) + len(GAPS) + 1)


class CountsReader:
    """Reads the counts of all batches of a batcher, each step once.

    Args:
        write: Takes what has come, and adds it to the metrics; called by a batch when it is time.
        forked: Called in a forked child, in which no batch goes on.

    Attributes:
        write: The same.
        write_at: When a batch calls it, by the batchers' clock.

    Threads: any.
    """

    def __init__(
        self, write: Callable[[], object], forked: Callable[[], object] = lambda: None
    ) -> None:
        self.write = write
        self._forked = forked
        self.write_at = math.inf
        # For each batch an element that the thread which reads on takes meanwhile, so that each
        # step is read once; and what was read of it.
        self._batches: dict[Counts, tuple[list[None], list[list[float]]]] = {}

    def add(self, counts: Counts) -> None:
        """Read the counts of one more batch."""
        self._batches[counts] = [None], [_NOTHING]
        if len(self._batches) > MOST_BATCHES:
            self.write_at = 0.0  # by this batch, with the step that it is about to count

    def after_fork(self) -> None:
        """Forget all batches: the parent reads them."""
        self._batches = {}
        self._forked()

    def take(self) -> StepSums:
        """Return what has come since this was asked last."""
        sums, capacity = _NOTHING, 0
        for counts, (free, read) in list(self._batches.items()):
            is_over = counts.is_over  # first: nothing comes behind it
            try:
                del free[0]  # no call, behind which a signal's exception may strike
            except IndexError:  # another thread reads on
                continue
            try:
                before, after = read[0], counts.read()
                sums = list(map(add, sums, map(sub, after, before)))
                read[0] = after
            finally:
                free.append(None)
            if after[0] > before[0]:
                capacity = counts.capacity
            if is_over:
                self._batches.pop(counts, None)
        numbers = dict(zip(NUMBERS, sums, strict=False))
        return StepSums(**numbers, gaps=sums[len(NUMBERS) :], capacity=capacity)
