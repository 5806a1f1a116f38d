"""The life of a pump that runs by itself, as a table."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

LifeState: TypeAlias = Literal["new", "running", "drained", "closed"]
LifeEvent: TypeAlias = Literal["start", "drain", "close"]

PUMP_LIFE: Final[dict[tuple[LifeState, LifeEvent], LifeState]] = {
    ("new", "start"): "running",
    ("new", "close"): "closed",
    ("running", "drain"): "drained",
    ("drained", "close"): "closed",
}
"""Started by the first receive; drained when no stream is live; closed when the source is: without
a start, if all streams ended before."""


class Life:
    """Where a pump is in its life.

    Args:
        started: Whether it is made to be started at once.

    Attributes:
        state: The state.
    """

    __slots__ = ("_claim", "state")

    def __init__(self, *, started: bool) -> None:
        self.state: LifeState = PUMP_LIFE["new", "start"] if started else "new"
        self._claim = Lock()  # held by the thread that starts or drops the pump

    def leave_new(self, leave: Callable[[], None]) -> None:
        """Start or drop a pump that is new, unless another thread is doing so.

        Args:
            leave: Starts or drops it, and advances this life last: what breaks it off leaves a new
                pump, for the next call. To make it again does no harm.
        """
        taken: list[bool] = []
        try:
            # One call in C takes the lock and records that: a signal's exception finds it.
            taken.extend(filter(None, map(self._claim.acquire, (False,))))
            if taken and self.state == "new":
                leave()
        except BaseException:
            if taken and self.state == "new":
                leave()  # for a thread that found the lock taken, and waits
            raise
        finally:
            if taken:
                self._claim.release()

    def advance(self, event: LifeEvent) -> None:
        """Go on to the state to which an event leads, unless another thread has been there."""
        self.state = PUMP_LIFE.get((self.state, event), self.state)
