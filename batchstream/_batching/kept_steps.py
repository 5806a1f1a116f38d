"""Steps that a batch keeps for its metrics, which add them up before they are read.

Theory of operation
-------------------

For metrics that count, a call for each step costs more than what is counted. Mostly a step is like
the one before: made for the same slots, all of which go on. So such metrics have an attribute
`kept_steps`, where batches leave *runs* of alike steps: what these have in common, and the time
before each. How many outputs a run gave is read from the core. A run that is under way is read as
well: so what is read is exact at any time, but for the step that is being handed out.

One thread appends to a run; any takes out of it. Each change is atomic, and none waits.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from itertools import repeat
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_KEPT: Final = 512
"""How many steps of a run are kept at most."""


class OutputCount(Protocol):
    """What is read of a core: how many outputs it has given."""

    @property
    def outputs(self) -> int: ...


class StepKind(NamedTuple):
    """What alike steps have in common; see `Metrics.stepped`."""

    live: int
    capacity: int
    going_on: int
    prefilling: int
    wasted: int


class StepRun:
    """Alike steps of one batch, made one after the other.

    Args:
        kind: What they have in common.
        core: That of the batch.
        before: How many outputs it had given before.

    Attributes:
        kind: The same.
        gaps: The seconds before each step that was not read yet; that before the first step of a
            batch is None, and the only one of its run.
        outputs_at_end: How many outputs the core had given when the run was over, if it is.
    """

    __slots__ = ("_core", "_read", "gaps", "kind", "outputs_at_end")

    def __init__(self, kind: StepKind, core: OutputCount, before: int) -> None:
        self.kind = kind
        self.gaps: deque[float | None] = deque()
        self.outputs_at_end: int | None = None
        self._core = core
        # Popped by the thread that reads it, and appended anew: so each output is read once.
        self._read = [before]

    def take_gaps(self) -> list[float | None]:
        """Take out the gaps."""
        gaps: list[float | None] = []
        with suppress(IndexError):  # another thread takes out as well
            gaps.extend(map(deque.popleft, repeat(self.gaps, len(self.gaps))))
        return gaps

    def take_outputs(self) -> int:
        """Return how many outputs were given since this was asked last."""
        try:
            before = after = self._read.pop()
        except IndexError:  # another thread is about to return them
            return 0
        try:
            at_end = self.outputs_at_end
            after = self._core.outputs if at_end is None else at_end
            return after - before
        finally:
            self._read.append(after)


class KeptSteps:
    """The runs of steps that were not read entirely, of all batches of a batcher.

    Args:
        write: Takes them out and adds them up; called by a batch when it has kept many.

    Attributes:
        write: The same.
        write_at: When a batch calls it in any case, by the batchers' clock.

    Threads: any.
    """

    def __init__(self, write: Callable[[], object]) -> None:
        self.write = write
        self.write_at = math.inf
        self._runs: dict[StepRun, None] = {}

    def begin(self, kind: StepKind, core: OutputCount, before: int) -> StepRun:
        """Begin a run of a batch; `outputs_at_end` of the one before was set."""
        run = StepRun(kind, core, before)
        self._runs[run] = None
        return run

    def take(self) -> list[tuple[StepKind, list[float | None], int]]:
        """Take out all steps: for each run its kind, the gaps, and how many outputs it gave."""
        taken = []
        for run in list(self._runs):
            is_over = run.outputs_at_end is not None  # first: nothing comes behind it
            if (gaps := run.take_gaps()) or is_over:
                taken.append((run.kind, gaps, run.take_outputs()))
            if is_over:
                self._runs.pop(run, None)
        return taken
