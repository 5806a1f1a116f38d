"""The life of a batcher, as a table, and whether its model is warm."""

from __future__ import annotations

from threading import current_thread
from typing import Final, Literal, TypeAlias
from weakref import WeakSet

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
"""A draining batcher accepts no request, and lets the requests that it has end. It is closed when
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


class WarmUps:
    """Whether a model is warm: no warm-up is under way, and the last one has not failed.

    Attributes:
        under_way: The warm-ups that have not ended. One that a signal's exception has broken off in
            its end is in nothing else, and goes by itself.
        last_has_failed: Whether the last one has failed, or was broken off.
    """

    __slots__ = ("last_has_failed", "under_way")

    def __init__(self) -> None:
        self.under_way: WeakSet[object] = WeakSet()
        self.last_has_failed = False

    @property
    def is_warm(self) -> bool:
        """Whether it is."""
        return not (self.under_way or self.last_has_failed)

    def after_fork(self) -> None:
        """Forget the warm-ups of other threads, which are not in this process."""
        self.last_has_failed = self.last_has_failed or bool(self.under_way)
        self.under_way.clear()
