"""One request, from its arrival to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._core.errors import DeadlineError
from batchstream._handoff.buffer import Buffer

if TYPE_CHECKING:
    from collections import deque

    from batchstream._core.records import StreamEnd
    from batchstream._pumps.background import RunningPump

T = TypeVar("T")

NO_SLOT = -1


class Request(Buffer[T]):
    """What a caller asked for and when, and what it gets: the buffer of its stream.

    Args:
        number: A number of its own, for error texts.
        content: What the caller submitted.
        told: Where it puts itself when it has ended, more than once if several end it.

    Attributes:
        content: What the caller submitted, until it has joined a batch.
        group: With whom it may share a batch.
        cost: What it takes of `max_batch_cost`.
        max_outputs: How many outputs it gets at most.
        arrived: When it came, on the monotonic clock, as the other times.
        joined: When it joined a batch.
        wait_until: When it has to have joined a batch.
        until: When it has to have ended.
        pump: What runs the batch that it has joined.
    """

    __slots__ = (
        "_number",
        "_told",
        "arrived",
        "content",
        "cost",
        "group",
        "joined",
        "max_outputs",
        "pump",
        "timeout",
        "until",
        "wait_timeout",
        "wait_until",
    )

    def __init__(self, number: int, content: Any, told: deque[Request[T]]) -> None:
        super().__init__(NO_SLOT)
        self._number = number
        self._told = told
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
        self.pump: RunningPump[T] | None = None

    def arrive(self, now: float) -> None:
        """Let its time begin to run."""
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
        """Until when it may go on as it is."""
        return self.wait_until if self.joined is None else self.until

    def overdue(self, now: float) -> DeadlineError | None:
        """Return the error that says which time is over, if one is and it has not ended."""
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
        """Set the end, unless there is one, and tell that there is."""
        super().finish(end)
        self._told.append(self)
