"""How a pump serves a batch of a dispatcher: requests for buffers, with deadlines, and counted."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import TypeVar

from batchstream._batching.totals import Tally
from batchstream._core.errors import ClosedError
from batchstream._pumps.background import RunningPump

if TYPE_CHECKING:
    from batchstream._batching.options import Terms
    from batchstream._batching.request import Request

T = TypeVar("T")


def closed_error() -> ClosedError:
    """Return what the requests of a batcher that is closed fail with."""
    return ClosedError("the batcher was closed")


class RunOwner(Protocol[T]):
    """Whose requests a batch serves.

    Attributes:
        terms: By which.
        closed: Whether they are all to fail.
    """

    terms: Terms[Any, T]
    closed: bool

    def take_note(self) -> None:
        """Count those who have ended since the last time."""


class BatchRun(RunningPump[T]):
    """One batch of a dispatcher while it runs; mixed into the pump of a thread or of a task."""

    _owner: RunOwner[T]
    _live_slots = 0
    _next_deadline: float | None = None

    def _serve(self, owner: RunOwner[T], requests: list[Request[T]]) -> None:
        """Belong to somebody, with these requests in the first slots."""
        self._begun.acquire()
        self.read_by("by slot")
        self._owner = owner
        for slot, request in enumerate(requests):
            self._seat(slot, request)

    def _seat(self, slot: int, request: Request[T]) -> None:
        """Let a request know that it has joined this batch; its slot is open, and its buffer in."""
        request.slot = slot
        request.content = None
        deadlines = [time for time in (self._next_deadline, request.until) if time is not None]
        self._next_deadline = min(deadlines, default=None)
        request.pump = self
        # Whoever ended it, or closed the batcher, a moment ago may not have found it here.
        if request.ends:
            self.note_departure(request)
        elif self._owner.closed:
            self.break_off(request, closed_error())

    @property
    def runs_here(self) -> bool:
        """Whether the calling code is the source's."""
        return self._runs_here

    @property
    def free_slots(self) -> int:
        """How many requests may join it."""
        return 0

    @property
    def buffered(self) -> int:
        """How many outputs wait in live streams."""
        return sum(buffer.buffered for buffer in list(self._endless))

    def tally(self) -> Tally:
        """Return what was done up to now."""
        live_slots = self._live_slots
        core = self._core.statistics()
        return Tally(core.steps, live_slots, core.outputs, core.dropped)

    def _goes_on(self) -> bool:
        if self._next_deadline is not None and self._next_deadline <= (now := monotonic()):
            self._let_go_of_overdue(now)
        goes_on = super()._goes_on()
        self._owner.take_note()
        return goes_on

    def _patience_in_pause(self, seconds: float | None) -> float | None:
        times = [] if seconds is None else [seconds]
        if self._next_deadline is not None:
            times.append(max(self._next_deadline - monotonic(), 0.0))
        return min(times, default=None)

    def _let_go_of_overdue(self, now: float) -> None:
        endless: list[Any] = list(self._endless)
        for request in endless:
            if (error := request.overdue(now)) is not None:
                self.break_off(request, error)
        left = [request.until for request in endless if not request.ends and request.until]
        self._next_deadline = min(left, default=None)

    def _give(self, step: object, live: tuple[int, ...]) -> None:
        super()._give(step, live)
        self._live_slots += len(live)  # after the step was counted, and read before: never too much
        reports = self._owner.terms.reports
        if reports.wanted:
            reports("stepped", len(live), self._owner.terms.max_batch_size)
