"""The life of a batcher, as a table, and whether its model is warm."""

from __future__ import annotations

from threading import current_thread
from typing import Final, Literal, TypeAlias

from batchstream._batching import clock
from batchstream._core.arguments import check_number
from batchstream._core.errors import ClosedError, ForkedError

BatcherState: TypeAlias = Literal["accepting", "draining", "closed"]
BatcherEvent: TypeAlias = Literal["drain", "close"]

BATCHER_LIFE: Final[dict[tuple[BatcherState, BatcherEvent], BatcherState]] = {
    ("accepting", "drain"): "draining",
    ("accepting", "close"): "closed",
    ("draining", "close"): "closed",
}
"""A batcher that is draining accepts no request, and lets those that it has end. It is closed when
all have ended, when the time of its drain is over, or when it is closed without a drain."""


def state_text(state: BatcherState) -> str:
    """Return what a text calls a state."""
    return "open" if state == "accepting" else state


def check_drain(drain: object) -> float | None:
    """Return how many seconds a drain may take, infinity for any time; None for no drain.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or NaN.
    """
    return None if drain is None else check_number("drain", drain)


def draining_error(closing: str) -> ClosedError:
    """Return what a request is refused with by a batcher that is draining.

    Args:
        closing: By what and when the drain was begun; see `Scheduler.closing`.
    """
    return ClosedError(
        f"the batcher is draining, as asked for{closing}: it lets its requests end and accepts no "
        f"other, so submit the request to another server, or again when this one is back"
    )


def said_of(by: str) -> str:
    """Return by what and when a batcher is closed, for the text of errors."""
    return f" by {by} in thread {current_thread().name!r} at {clock.time_of_day()}"


def forked_error() -> ForkedError:
    """Return the error of every use of a batcher in a forked child, if it had requests."""
    return ForkedError(
        "this batcher had requests when its process was forked, and cannot be used in the fork: "
        "fork before the first request, or when all have ended; or make a batcher in each process"
    )


class Readiness:
    """Whether a batcher is warm: no warm-up is under way, and the last one has not failed."""

    __slots__ = ("_failed", "_running")

    def __init__(self) -> None:
        self._running: set[object] = set()  # changed in single calls, from any thread
        self._failed = False

    @property
    def is_warm(self) -> bool:
        """Whether it is."""
        return not (self._running or self._failed)

    def begin(self, warm_up: object) -> None:
        """Take note that a warm-up begins."""
        self._running.add(warm_up)

    def end(self, warm_up: object, *, has_failed: bool) -> None:
        """Take note of how one has ended."""
        self._failed = has_failed
        self._running.discard(warm_up)

    def after_fork(self) -> None:
        """Forget the warm-ups of other threads, which are not in this process."""
        self._failed = self._failed or bool(self._running)
        self._running.clear()
