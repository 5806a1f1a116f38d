"""The deadlines of a request, in the server process: it alone has a clock that no step holds up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from batchstream import DeadlineError

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How many seconds a request may take; None for any time.

    Attributes:
        total: From its submission to its end, as the client asks.
        wait: From its submission until a worker takes it.
        first: From its submission to its first output.
        gap: Between two outputs, and between the last one and the end.
    """

    total: float | None = None
    first: float | None = None
    gap: float | None = None
    wait: float | None = None

    def __bool__(self) -> bool:
        return any(it is not None for it in (self.total, self.first, self.gap, self.wait))


class _Deadline(NamedTuple):
    """When a request is late, and what its client is told then."""

    when: float
    timeout: float
    text: str
    is_of_wait: bool = False  # in the queue, out of which it has to be taken first


class Clock(Protocol):
    """What a timer needs of an event loop."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object]) -> TimerHandle: ...


class RequestTimer:
    """Fails a request that is late.

    Args:
        timeouts: How long it may take.
        fail: Called with the error; it does nothing if the request has ended.
        clock: The event loop.
        take_back: Called when the request has waited for too long: takes it out of the queue, and
            returns whether it was still there.
    """

    def __init__(
        self,
        timeouts: Timeouts,
        fail: Callable[[DeadlineError], object],
        clock: Clock,
        take_back: Callable[[], bool] = lambda: False,
    ) -> None:
        self._timeouts = timeouts
        self._take_back = take_back
        self._waits = timeouts.wait is not None
        self._fail = fail
        self._clock = clock
        self._submitted = clock.time()
        self._last_output: float | None = None
        self._handle: TimerHandle | None = None
        self._wait()

    def note_output(self) -> None:
        """Note that an output has come."""
        is_first = self._last_output is None
        self._last_output = self._clock.time()
        if is_first:  # later ones only put the deadline off, which the check finds out
            self._wait()

    def close(self) -> None:
        """Fail the request no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _wait(self) -> None:
        """Check again when the next deadline passes."""
        self.close()
        deadlines = self._deadlines()
        if deadlines:
            self._handle = self._clock.call_at(min(deadlines).when, self._check)

    def _check(self) -> None:
        deadlines = self._deadlines()
        if not deadlines:
            return
        deadline = min(deadlines)
        if self._clock.time() < deadline.when:  # an output has come meanwhile
            self._wait()
            return
        if deadline.is_of_wait:
            # First: the others hold also if the request cannot be taken back.
            self._waits = False
            self._wait()
            if not self._take_back():
                return  # a worker has it
        self._fail(DeadlineError(deadline.text, timeout=deadline.timeout))

    def _deadlines(self) -> list[_Deadline]:
        timeouts, deadlines = self._timeouts, []
        if timeouts.total is not None:
            text = f"the request has not ended within {timeouts.total} seconds, as asked for"
            deadlines.append(_Deadline(self._submitted + timeouts.total, timeouts.total, text))
        if self._last_output is None:
            if timeouts.wait is not None and self._waits:
                text = f"no worker has taken the request within {timeouts.wait} seconds"
                text += " (wait_timeout)"
                when = self._submitted + timeouts.wait
                deadlines.append(_Deadline(when, timeouts.wait, text, is_of_wait=True))
            if timeouts.first is not None:
                text = f"no output has come within {timeouts.first} seconds (first_timeout)"
                deadlines.append(_Deadline(self._submitted + timeouts.first, timeouts.first, text))
        elif timeouts.gap is not None:
            text = f"no output has come for {timeouts.gap} seconds (gap_timeout)"
            deadlines.append(_Deadline(self._last_output + timeouts.gap, timeouts.gap, text))
        return deadlines
