"""What the steps of one batch add up to, for the statistics and for metrics that read it."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final, Protocol

from batchstream._batching.telemetry.step_sums import GAPS, NUMBERS

if TYPE_CHECKING:
    from collections.abc import Callable

_numbers_of: Final[Callable[[StepCounts], tuple[float, ...]]] = attrgetter(*NUMBERS)


class OutputCount(Protocol):
    """What is read of a core: how many outputs it has given."""

    @property
    def outputs(self) -> int: ...


class StepCounts:
    """What the steps of one batch add up to; see `StepSums` for what is not said here.

    The code that moves the batch's pump writes it, and any thread reads it.

    Args:
        core: Knows how many outputs were given.

    Attributes:
        live, slot_steps, wasted: Counted for the statistics, with or without metrics.
        steps, prefilling, seconds, gaps, capacity: Counted for metrics that read them.
        is_over: Whether no step follows.
    """

    __slots__ = (
        "_core",
        "_outputs_at_end",
        "capacity",
        "gaps",
        "is_over",
        "live",
        "prefilling",
        "seconds",
        "slot_steps",
        "steps",
        "wasted",
    )

    def __init__(self, core: OutputCount) -> None:
        self._core: OutputCount | None = core
        self._outputs_at_end = 0
        self.live = self.slot_steps = self.wasted = self.prefilling = self.capacity = 0
        # What each step adds to is a float, as in the registry: with integers a step of 64 slots
        # took 100 ns more, of 500.
        self.steps = self.seconds = 0.0
        self.gaps = [0.0] * (len(GAPS) + 1)
        self.is_over = False

    @property
    def outputs(self) -> int:
        """How many outputs were given."""
        core = self._core  # once: the batch may end meanwhile
        return self._outputs_at_end if core is None else core.outputs

    def end(self) -> None:
        """Refer to the core no longer: no step follows."""
        if (core := self._core) is not None:
            self._outputs_at_end = core.outputs
            self._core = None
        self.is_over = True  # last: what a reader finds then is all

    def read(self) -> list[float]:
        """Return all sums: those of `NUMBERS`, and then those of the gaps."""
        return [*_numbers_of(self), *self.gaps]
