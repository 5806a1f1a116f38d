"""One request, from its arrival to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from typing_extensions import TypeVar

from batchstream._core.arguments import check_name, check_seconds
from batchstream._core.errors import ClosedError, CostError, DeadlineError, OverloadedError
from batchstream._handoff.buffer import Buffer
from batchstream._handoff.parking import earliest

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Hashable

    from batchstream._batching.telemetry.traces import RequestTracing
    from batchstream._batching.waiting.places import Place
    from batchstream._core.records import StreamEnd
    from batchstream._pumps.background import BackgroundPump
    from batchstream._text.decoder import Decoder

T = TypeVar("T")

NO_SLOT: Final = -1

_SHORTEST_LOOK: Final = 0.01
"""Seconds. A consumer that waits looks no more often for a deadline that may come to be."""

RequestState: TypeAlias = Literal[
    "new",
    "waiting",
    "refused",
    "taken",
    "joined",
    "requeued",
    "retaken",
    "withdrawn",
    "finished",
]
RequestEvent: TypeAlias = Literal["submit", "refuse", "take", "put back", "join", "requeue", "end"]

REQUEST_LIFE: Final[dict[tuple[RequestState, RequestEvent], RequestState]] = {
    ("new", "submit"): "waiting",
    ("waiting", "refuse"): "refused",
    ("waiting", "take"): "taken",
    ("waiting", "end"): "withdrawn",
    ("taken", "put back"): "waiting",
    ("taken", "join"): "joined",
    ("taken", "end"): "withdrawn",
    ("joined", "requeue"): "requeued",
    ("joined", "end"): "finished",
    ("requeued", "take"): "retaken",
    ("requeued", "end"): "withdrawn",
    ("retaken", "put back"): "requeued",
    ("retaken", "join"): "joined",
    ("retaken", "end"): "withdrawn",
}
"""What the scheduler knows of a request. A worker takes it from the queue, and lets it join a batch
or puts it back; one that ended while it waited is withdrawn. An engine may give back the slot of
one that has joined: it waits again, and has outputs already. Its stream may have ended a
moment before: then it is queued in `Scheduler.ended_requests`, and counted as ended when the
scheduler reaps it."""


def refusal_reason(refusal: Exception) -> str:
    """Return for which reason the batcher of another process has refused a request."""
    if isinstance(refusal, OverloadedError):
        return refusal.reason
    return "cost" if isinstance(refusal, CostError) else "draining"


def closed_error(closing: str = "") -> ClosedError:
    """Return what the requests of a batcher that is closed fail with.

    Args:
        closing: By what and when it was closed; see `Scheduler.closing`.
    """
    return ClosedError(
        f"the batcher was closed{closing}: let its requests end before, or make another batcher"
    )


class Submission(NamedTuple):
    """What a caller submitted.

    Attributes:
        content: The request, as the model takes it.
        cost: What it takes of `max_batch_cost`.
        max_outputs: How many outputs it gets at most.
        is_eos: Its own predicate on outputs.
        decoder: What its outputs go through.
        step_cost: What its first step takes of `max_step_cost`.
    """

    content: Any
    cost: float = 1.0
    max_outputs: int | None = None
    is_eos: Callable[[Any], object] | None = None
    decoder: Decoder[Any, Any] | None = None
    step_cost: float = 0.0


FREED: Final = Submission(None)
"""In place of a submission that is needed no more."""


class Deadlines:
    """Until when a request may wait, last, and be without an output; on the batchers' clock.

    What the model gives counts as an output when its step has given it, whether it is read or not.
    Only the pump of the request's batch moves `next_output`, and other threads read it at any time.

    Args:
        timeout: For how long it may last, in seconds.
        wait_timeout: For how long it may wait for a batch, in seconds.
        first_timeout: For how long it may be without its first output, in seconds.
        gap_timeout: For how long it may be without another, from the first on; more than 0.

    Attributes:
        wait_until: When it has to have joined a batch.
        until: When it has to have ended, if ever.
        next_output: How many outputs it had been given when this was set, and when it has to have
            been given another, if ever; a pair, so that both are read at once.
    """

    __slots__ = (
        "first_timeout",
        "gap_timeout",
        "next_output",
        "timeout",
        "until",
        "wait_timeout",
        "wait_until",
    )

    def __init__(
        self,
        timeout: float | None,
        wait_timeout: float | None,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
    ) -> None:
        self.timeout = timeout
        self.wait_timeout = wait_timeout
        self.first_timeout = first_timeout
        self.gap_timeout = gap_timeout
        self.until: float | None = None
        self.wait_until: float | None = None
        self.next_output: tuple[int, float | None] = 0, None

    @classmethod
    def checked(
        cls, timeout: object, wait_timeout: object, first_timeout: object, gap_timeout: object
    ) -> Deadlines | None:
        """Return deadlines by these arguments if there are any, and all are right.

        Raises:
            TypeError, ValueError: One is no duration.
        """
        given = {
            "timeout": timeout,
            "wait_timeout": wait_timeout,
            "first_timeout": first_timeout,
            "gap_timeout": gap_timeout,
        }
        seconds = {
            name: check_seconds(name, value) for name, value in given.items() if value is not None
        }
        if seconds.get("gap_timeout") == 0:
            raise ValueError("gap_timeout must be more than 0 seconds: no two outputs come at once")
        return cls(*map(seconds.get, given)) if seconds else None

    @property
    def of_outputs(self) -> bool:
        """Whether there is a deadline for single outputs."""
        return self.first_timeout is not None or self.gap_timeout is not None

    def start(self, now: float) -> None:
        """Start the timeouts."""
        self.until = None if self.timeout is None else now + self.timeout
        wait_until = None if self.wait_timeout is None else now + self.wait_timeout
        self.wait_until = earliest(wait_until, self.until)
        if self.first_timeout is not None:
            self.next_output = 0, now + self.first_timeout

    def join(self) -> None:
        """End the wait for a batch, which the request has joined."""
        self.wait_until = self.until

    def await_next(self, given: int, now: float | None) -> None:
        """Let the time for the next output begin, or stand still.

        Args:
            given: How many outputs the request has been given.
            now: What time it is; None while no step is to be made for it.
        """
        if now is None or self.gap_timeout is None:
            self.next_output = given, None
        else:
            self.next_output = given, now + self.gap_timeout


class Request(Buffer[T]):
    """What a caller submitted and when, and the buffer of its stream.

    Args:
        number: A number of its own, for texts.
        submission: What the caller submitted.
        deadlines: Its deadlines, if it has any.
        ended_requests: Where it queues itself when it has ended; twice if two threads end it.
        on_end: What to call when it has ended, if it is a `map`'s or a warm-up's.
        is_warm_up: Whether it goes before all others and counts in no figures.
        request_id: What texts call it, if not by its number.
        batcher: The name of its batcher, if that has one, for texts.

    Raises:
        TypeError, ValueError: The id is no string, or empty.

    Attributes:
        state: Where it is in its life; changed under the batcher's lock.
        submission: What the caller submitted, until it has joined a batch.
        deadlines: Its deadlines, if it has any.
        group: Stands for its key: requests with the same object may share a batch.
        place: Its band and its tenant; None where the batcher has neither.
        arrived: When it came.
        pump: What runs the batch that it has joined.
        id: What the caller calls it, or its number as text.
        measured: The limits by which it was measured last together with others, if it was.
        taken_at: When it was taken out of the queue last, if it was.
        joined_at: When it joined its batch, if it has.
        first_output_at: When it had its first output, if it has had one.
        trace: What to tell of it, until it has ended, if it is traced.
        on_end: Called with the request when it has ended, behind its outputs, of a request that a
            `map` has submitted: it has no bound.
        is_warm_up: Whether a warm-up has submitted it.
        given_before: How many outputs it had been given when its slot was given back, if it was.
        requeued_at: When its slot was given back last, if it was.
        is_kept: Whether the engine that has given its slot back alone knows how to go on with it.
        stalled: Whether its slot was given back without an output since it had joined, although no
            other request was in the engine.
        refused_with: What the batcher of another process has refused it with, if it has.
    """

    __slots__ = (
        "_ended_requests",
        "arrived",
        "deadlines",
        "first_output_at",
        "given_before",
        "group",
        "id",
        "is_kept",
        "is_warm_up",
        "joined_at",
        "measured",
        "on_end",
        "place",
        "pump",
        "refused_with",
        "requeued_at",
        "stalled",
        "state",
        "submission",
        "taken_at",
        "trace",
    )

    def __init__(
        self,
        number: int,
        submission: Submission,
        deadlines: Deadlines | None,
        ended_requests: deque[Request[T]],
        on_end: Callable[[Request[T]], object] | None = None,
        *,
        is_warm_up: bool = False,
        request_id: str | None = None,
        batcher: str | None = None,
    ) -> None:
        name = f"request {number}"
        if request_id is not None:
            name = f"request {check_name('request_id', request_id)!r}"
        super().__init__(NO_SLOT, name if batcher is None else f"{name} of {batcher!r}")
        self._ended_requests = ended_requests
        self.state: RequestState = "new"
        self.submission = submission
        self.deadlines = deadlines
        self.group: object = None
        self.id = str(number) if request_id is None else request_id
        self.place: Place | None = None
        self.arrived = 0.0
        self.measured: object = None
        self.taken_at = 0.0
        self.joined_at: float | None = None
        self.first_output_at: float | None = None
        self.trace: RequestTracing | None = None
        self.pump: BackgroundPump[T] | None = None
        self.on_end = on_end
        self.is_warm_up = is_warm_up
        self.given_before = 0
        self.requeued_at: float | None = None
        self.is_kept = False
        self.stalled = False
        self.refused_with: Exception | None = None

    @property
    def remote_refusal(self) -> Exception | None:
        """What the batcher of another process has refused it with, if it has ended with that."""
        refused = self.refused_with is not None and self.ends[0].error is self.refused_with
        return self.refused_with if refused else None

    @property
    def is_named(self) -> bool:
        """Whether the caller has named it."""
        return self.name.startswith(f"request {self.id!r}")

    @property
    def tenant(self) -> Hashable:
        """Whose it is, if that is said."""
        return None if self.place is None else self.place.tenant

    @property
    def cost(self) -> float:
        """What it takes of `max_batch_cost`."""
        return self.submission.cost

    @property
    def step_cost(self) -> float:
        """What its first step takes of `max_step_cost`."""
        return self.submission.step_cost

    @property
    def wait_until(self) -> float | None:
        """When it fails if it still waits for a batch, if ever."""
        deadlines = self.deadlines
        if deadlines is None:
            return None
        return earliest(deadlines.wait_until, deadlines.next_output[1])

    @property
    def deadline(self) -> float | None:
        """When it fails if it goes on as it is."""
        deadlines = self.deadlines
        if deadlines is None:
            return None
        if self.state in ("new", "waiting"):
            return self.wait_until
        given, output_until = deadlines.next_output
        if output_until is None or self._was_given_more(given):
            return deadlines.until
        return earliest(deadlines.until, output_until)

    def look_after(self, now: float) -> float | None:
        """Return in how many seconds to see whether a deadline has passed, if it has any.

        A deadline for the next output may come to be meanwhile: so this is no longer than the time
        that is allowed for an output.
        """
        deadlines = self.deadlines
        if deadlines is None:
            return None
        deadline = self.deadline  # once: it changes as the request joins a batch
        left = None if deadline is None else max(deadline - now, 0.0)
        if deadlines.gap_timeout is None:
            return left
        return earliest(left, max(deadlines.gap_timeout, _SHORTEST_LOOK))

    def _was_given_more(self, given: int) -> bool:
        """Whether a step has given it more than so many outputs, which the pump notes in a moment.

        Then it is not late, though its deadline may not have been moved yet.
        """
        pump = self.pump  # in a local: it is reset when the request is reaped
        return pump is not None and pump.given(self) > given

    def deadline_error(self, now: float) -> DeadlineError | None:
        """Return the error of the deadline that has passed, if one has and it has not ended."""
        deadlines = self.deadlines
        if deadlines is None or self.ends:
            return None
        if deadlines.timeout is not None and deadlines.until is not None and deadlines.until <= now:
            return DeadlineError(
                f"{self.name} was not finished within {deadlines.timeout} seconds (timeout): "
                f"submit it again with a longer timeout, or ask for fewer outputs (max_outputs)",
                timeout=deadlines.timeout,
            )
        waits = self.state in ("new", "waiting") and deadlines.wait_timeout is not None
        if waits and deadlines.wait_until is not None and deadlines.wait_until <= now:
            assert deadlines.wait_timeout is not None  # noqa: S101 - for the type checker
            return DeadlineError(
                f"{self.name} joined no batch within {deadlines.wait_timeout} seconds "
                f"(wait_timeout): submit it again when fewer requests wait, or with a longer "
                f"wait_timeout",
                timeout=deadlines.wait_timeout,
            )
        given, until = deadlines.next_output
        if until is None or until > now or self._was_given_more(given):
            return None
        if given:
            assert deadlines.gap_timeout is not None  # noqa: S101 - for the type checker
            return DeadlineError(
                f"{self.name} was given no output within {deadlines.gap_timeout} seconds of its "
                f"last, number {given} (gap_timeout): submit it again, or with a longer "
                f"gap_timeout if its model may take longer",
                timeout=deadlines.gap_timeout,
            )
        assert deadlines.first_timeout is not None  # noqa: S101
        return DeadlineError(
            f"{self.name} was given no output within {deadlines.first_timeout} seconds "
            f"(first_timeout): submit it again when fewer requests wait, or with a longer "
            f"first_timeout",
            timeout=deadlines.first_timeout,
        )

    def finish(self, end: StreamEnd) -> None:
        """Set the end, unless there is one, and queue itself to be reaped."""
        super().finish(end)
        self._ended_requests.append(self)
        if (on_end := self.on_end) is not None:
            on_end(self)

    def finish_quietly(self, end: StreamEnd) -> None:
        """Do the same under the batcher's lock, whose holder calls `on_end` without it."""
        super().finish(end)
        self._ended_requests.append(self)

    def is_full(self, limit: int) -> bool:
        """Whether so many outputs wait, or bytes, of a request whose stream has a bound."""
        return self.cancelled or (self.on_end is None and super().is_full(limit))


def without_stream(request: Request[T], _: object) -> Request[T]:
    """Make no stream of a request, which a `map` or a warm-up owns."""
    return request
