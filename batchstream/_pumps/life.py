"""The life of a pump that runs by itself, as a table."""

from __future__ import annotations

from threading import Lock
from typing import Final, Literal, TypeAlias

LifeState: TypeAlias = Literal["new", "running", "drained", "closed"]
LifeEvent: TypeAlias = Literal["start", "drop", "drain", "close"]

PUMP_LIFE: Final[dict[tuple[LifeState, LifeEvent], LifeState]] = {
    ("new", "start"): "running",
    ("new", "drop"): "drained",
    ("running", "drain"): "drained",
    ("drained", "close"): "closed",
}
"""Started by the first receive, or dropped if all streams ended before; drained when no stream is
live; closed when the source is."""


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
        self._claim = Lock()  # taken by what starts or drops the pump, and never released
        if started:
            self._claim.acquire()

    def leave_new(self, event: Literal["start", "drop"]) -> bool:
        """Start or drop a pump; False if another thread has done either."""
        if not self._claim.acquire(False):  # noqa: FBT003 - by keyword it takes four times as long
            return False
        self.state = PUMP_LIFE[self.state, event]
        return True

    def advance(self, event: LifeEvent) -> None:
        """Go on to the state to which an event leads, unless another thread has been there."""
        self.state = PUMP_LIFE.get((self.state, event), self.state)
