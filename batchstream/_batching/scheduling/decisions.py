"""What a scheduler has decided, for the holder of the lock to carry out without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple

from typing_extensions import TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchstream._batching.requests.request import Request
    from batchstream._batching.scheduling.measuring import Candidates

T = TypeVar("T")


class Reaped(NamedTuple):
    """What the lock's holder found ended, for it to follow up without the lock.

    Attributes:
        finished: Requests that were counted as finished.
        first_outputs: The requests among them whose first output was not counted before.
        overdue: Requests that were waiting, and were failed because their time is over; their
            consumers are to be woken.
        dropped: Freed without the lock: to free them may run the user's code.
        wakes: Whether workers are to be woken: a warm-up has ended, for which others waited.
    """

    finished: Sequence[Request[Any]] = ()
    first_outputs: Sequence[Request[Any]] = ()
    overdue: Sequence[Request[Any]] = ()
    dropped: object = None
    wakes: bool = False


NOTHING_REAPED: Final = Reaped()


class Decision(NamedTuple, Generic[T]):
    """What a worker does next: it measures or runs a batch, or it waits, or it is idle.

    Attributes:
        requests: The requests of the batch to run.
        wait: If there are none: for how many seconds to wait before it asks again; None if the
            worker is idle, and stops.
        candidates: What to measure, and to ask again with; then there is nothing else.
    """

    requests: list[Request[T]]
    wait: float | None = None
    candidates: Candidates[T] | None = None
