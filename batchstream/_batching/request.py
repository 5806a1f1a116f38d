"""One request, from its arrival to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from typing_extensions import TypeVar

from batchstream._core.errors import ClosedError, DeadlineError
from batchstream._handoff.buffer import Buffer

if TYPE_CHECKING:
    from collections import deque

    from batchstream._core.records import StreamEnd
    from batchstream._pumps.background import BackgroundPump

T = TypeVar("T")

NO_SLOT: Final = -1

RequestState: TypeAlias = Literal["new", "waiting", "joined", "finished"]
RequestEvent: TypeAlias = Literal["submit", "join", "end"]

REQUEST_LIFE: Final[dict[tuple[RequestState, RequestEvent], RequestState]] = {
    ("new", "submit"): "waiting",
    ("new", "end"): "finished",
    ("waiting", "join"): "joined",
    ("waiting", "end"): "finished",
    ("joined", "end"): "finished",
}
"""What the scheduler knows of a request. Its stream may have ended a moment before: it is queued in
`Scheduler.ended_requests` then, and the scheduler counts it as finished when it reaps it."""


def closed_error() -> ClosedError:
    """Return what the requests of a batcher that is closed fail with."""
    return ClosedError("the batcher was closed")


class Request(Buffer[T]):
    """What a caller submitted and when, and the buffer of its stream.

    Args:
        number: A number of its own, for error texts.
        content: What the caller submitted.
        ended_requests: Where it queues itself when it has ended; twice if two threads end it.

    Attributes:
        state: Where it is in its life; changed under the batcher's lock.
        content: What the caller submitted, until it has joined a batch.
        group: Stands for its key: requests with the same object may share a batch.
        cost: What it takes of `max_batch_cost`.
        max_outputs: How many outputs it gets at most.
        timeout: For how long it may last, in seconds.
        wait_timeout: For how long it may wait for a batch, in seconds.
        arrived: When it came, on the batchers' clock, as the other times.
        joined: When it joined a batch.
        wait_until: When it has to have joined a batch.
        until: When it has to have ended.
        pump: What runs the batch that it has joined.
    """

    __slots__ = (
        "_ended_requests",
        "_number",
        "arrived",
        "content",
        "cost",
        "group",
        "joined",
        "max_outputs",
        "pump",
        "state",
        "timeout",
        "until",
        "wait_timeout",
        "wait_until",
    )

    def __init__(self, number: int, content: Any, ended_requests: deque[Request[T]]) -> None:
        super().__init__(NO_SLOT)
        self._number = number
        self._ended_requests = ended_requests
        self.state: RequestState = "new"
        self.content = content
        self.group: object = None
        self.cost = 1.0
        self.max_outputs: int | None = None
        self.timeout: float | None = None
        self.wait_timeout: float | None = None
        self.arrived = 0.0
        self.joined: float | None = None
        self.until: float | None = None
        self.wait_until: float | None = None
        self.pump: BackgroundPump[T] | None = None

    def arrive(self, now: float) -> None:
        """Start its timeouts."""
        self.arrived = now
        if self.timeout is not None:
            self.until = self.wait_until = now + self.timeout
        if self.wait_timeout is not None:
            wait_until = now + self.wait_timeout
            self.wait_until = wait_until if self.until is None else min(wait_until, self.until)

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return f"request {self._number}"

    @property
    def deadline(self) -> float | None:
        """When it fails if it goes on as it is."""
        return self.wait_until if self.joined is None else self.until

    def deadline_error(self, now: float) -> DeadlineError | None:
        """Return the error of the deadline that has passed, if one has and it has not ended."""
        if self.ends:
            return None
        if self.until is not None and self.until <= now:
            assert self.timeout is not None  # noqa: S101 - for the type checker
            return DeadlineError(
                f"{self.name} was not finished within {self.timeout} seconds (timeout)",
                timeout=self.timeout,
            )
        if self.joined is None and self.wait_until is not None and self.wait_until <= now:
            assert self.wait_timeout is not None  # noqa: S101 - for the type checker
            return DeadlineError(
                f"{self.name} joined no batch within {self.wait_timeout} seconds (wait_timeout)",
                timeout=self.wait_timeout,
            )
        return None

    def finish(self, end: StreamEnd) -> None:
        """Set the end, unless there is one, and queue itself to be reaped."""
        # Not `super()`: this is run for every request, and by finalizers.
        self.ends.append(end)
        self._ended_requests.append(self)
