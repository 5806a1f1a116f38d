"""How fast requests leave a queue, for the clients that it has no room for. No clock."""

from __future__ import annotations

from typing import Final

_MEMORY: Final = 15 / 16
"""What a measurement counts for after the next: so about the last 16 count."""

LEAST_REQUESTS: Final = 4
LEAST_INTERVALS: Final = 2
"""What has to be measured before it is told. One interval says next to nothing: the first may be
ten times as long as the mean, if slots are free again one by one, or the model is slow at first."""


BURST_SECONDS: Final = 0.005
"""Requests that leave within this time have left together: slots are filled one by one, and then
none is free for long."""


class DepartureRate:
    """The rate at which requests leave a queue while others wait behind them.

    Theory of operation: an interval counts that begins as some requests leave and others are left,
    and ends as the next requests leave. What an idle server takes its time for says nothing of how
    fast it is, so the time in which no request waits does not count, nor do the requests that
    end it. The rate is the quotient of two sums, of requests and of seconds, in both of which a
    measurement weighs less and less (an exponentially weighted moving average): so many short
    intervals and few long ones weigh as they should. Requests that leave within milliseconds count
    as one burst, with the interval that ends as the first of them leaves. The rate is unknown until
    a few requests have left, in more than one interval.

    Attributes:
        since: When requests left last, if others were left; of a burst, when it began.
    """

    __slots__ = ("_intervals", "_left", "_requests", "_seconds", "since")

    def __init__(self) -> None:
        self.since: float | None = None
        self._left = 0.0
        self._seconds = 0.0
        self._requests = 0  # these two in all, and without weights
        self._intervals = 0

    def count(self, left: int, now: float, *, others_wait: bool) -> None:
        """Count so many requests that have left the queue together."""
        since = self.since
        if since is not None and now - since < BURST_SECONDS:
            if self._intervals:
                self._left += left
                self._requests += left
            now = since
        elif since is not None:
            self._left = _MEMORY * self._left + left
            self._seconds = _MEMORY * self._seconds + now - since
            self._requests += left
            self._intervals += 1
        self.since = now if others_wait else None

    def count_back(self, came_back: int) -> None:
        """Take requests off that did not leave after all."""
        self._left = max(self._left - came_back, 0.0)
        self._requests = max(self._requests - came_back, 0)

    def seconds_for(self, requests: int) -> float | None:
        """Return in how many seconds so many requests leave; None while that is unknown."""
        is_known = self._requests >= LEAST_REQUESTS and self._intervals >= LEAST_INTERVALS
        if not is_known or self._left <= 0 or self._seconds <= 0:
            return None
        return requests * self._seconds / self._left
