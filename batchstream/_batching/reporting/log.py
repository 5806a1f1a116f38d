"""The lines of batchers in the log `batchstream`: what an operator has to know, and no more.

Nothing is only logged: what a line says, a client or a caller got as an error as well. There is no
line for a request that ends as it should. What may come in floods has one line for all that was
noticed at once; and refusals have one line as they begin, and one when they are over.

Each line has extra fields, which formatters for JSON and structlog show: `kind` says what it is and
never changes its words; `batcher` is the batcher's name; `reason`, `requests` (how many) and
`request_id` (of the first) are there where they say something.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Final

from batchstream._core.errors import (
    ClosedError,
    DeadlineError,
    OverloadedError,
    RequestError,
    SlowConsumerError,
    error_text,
    type_name,
)
from batchstream._log import write_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchstream._batching.requests.request import Request

QUIET_SECONDS: Final = 10.0
"""For how long no request may be refused until refusals are over."""

_GROUPED: Final = (DeadlineError, SlowConsumerError, ClosedError, RequestError)
"""Errors that each request has for itself, and that share a line all the same."""


class BatcherLog:
    """Writes the lines of one batcher. Called without its lock: handlers are the user's.

    Args:
        batcher: What to call the batcher.
    """

    def __init__(self, batcher: str) -> None:
        self._batcher = batcher
        # When refusals began, and how many there were before. A dict, because setting a default and
        # popping are atomic.
        self._refusing: dict[str, tuple[float, int]] = {}
        self._last_refusal = 0.0
        self._drains_since: float | None = None

    # ---- refusals

    @property
    def is_refusing(self) -> bool:
        """Whether requests were refused, and the end of that was not logged."""
        return bool(self._refusing)

    def refused(self, error: OverloadedError, request_id: object, now: float, so_far: int) -> None:
        """Log that requests are refused, if that is news.

        Args:
            error: Why this one is.
            request_id: The request's.
            now: What time it is.
            so_far: How many were refused before.
        """
        self._last_refusal = now
        began = now, so_far
        if self._refusing.setdefault("since", began) is began:
            self._write(
                logging.WARNING,
                "refusals_started",
                f"requests are refused: {error}",
                reason=error.reason,
                request_id=request_id,
            )

    def accepted(self, now: float, so_far: int) -> None:
        """Log that requests are accepted again, if that has been so for a while."""
        if now - self._last_refusal >= QUIET_SECONDS:
            self._refusals_end("requests are accepted again", so_far)

    def accepts_no_more(self, so_far: int) -> None:
        """Log that refusals are over, as all requests will be refused for another reason."""
        self._refusals_end("the overload is over, as no more requests are accepted", so_far)

    def _refusals_end(self, why: str, so_far: int) -> None:
        began = self._refusing.pop("since", None)
        if began is not None:
            since, before = began
            count = so_far - before
            seconds = max(1, math.ceil(self._last_refusal - since))
            self._write(
                logging.INFO,
                "refusals_ended",
                f"{why}: {_counted(count)} refused within {seconds:,} s",
                requests=count,
            )

    # ---- requests that failed

    def failed(self, requests: Iterable[Request[Any]], *, closed: bool) -> None:
        """Log the requests among these that have ended with an error.

        Args:
            requests: Requests that have ended.
            closed: Whether the batcher was closed, which has had its line.
        """
        groups: dict[object, list[Request[Any]]] = {}
        for request in requests:
            error = request.ends[0].error
            if error is not None:
                kind = next((it for it in _GROUPED if isinstance(error, it)), None)
                groups.setdefault(id(error) if kind is None else kind, []).append(request)
        for group in groups.values():
            self._log_failed(group, closed=closed)

    def _log_failed(self, requests: Sequence[Request[Any]], *, closed: bool) -> None:
        error = requests[0].ends[0].error
        assert error is not None  # noqa: S101 - for the type checker
        count, text = len(requests), error_text(error)
        level, kind, trace = logging.WARNING, "failed", None
        if isinstance(error, DeadlineError):
            kind, text = "overdue", f"{_counted(count)} overdue: {text}"
        elif isinstance(error, SlowConsumerError):
            kind, text = "slow", f"{_counted(count)} ended for not being read: {text}"
        elif isinstance(error, RequestError):
            level, kind = logging.DEBUG, "request_error"
            text = f"{_counted(count)} at fault: {text}"
        elif isinstance(error, ClosedError):
            level = logging.DEBUG if closed else logging.WARNING
            kind, text = "cut_short", f"{_counted(count)} cut short: {text}"
        else:
            level, trace = logging.ERROR, error
            text = f"{_counted(count)} ended by {type_name(error)}: {text}"
        self._write(
            level,
            kind,
            text,
            error=trace,
            reason=type_name(error),
            requests=count,
            request_id=requests[0].id,
        )

    # ---- the batcher and its engine

    def engine_discarded(self) -> None:
        """Log that an engine is not used again."""
        self._write(
            logging.WARNING,
            "engine_discarded",
            "the engine was discarded, as a step of it has failed: the next request gets another",
        )

    def engine_made(self) -> None:
        """Log that an engine was made in place of one that was discarded."""
        self._write(logging.INFO, "engine_made", "another engine was made")

    def drains(
        self, closing: str, seconds: float, unfinished: int, now: float, refused: int
    ) -> None:
        """Log that a drain has begun; its end is that the batcher is closed.

        Args:
            closing: By what and when; see `Scheduler.closing`.
            seconds: For how long requests may go on.
            unfinished: How many there are.
            now: What time it is.
            refused: How many requests were refused for want of room.
        """
        self._drains_since = now
        self.accepts_no_more(refused)
        limit = "to the end" if seconds == math.inf else f"for {seconds:g} s at most"
        have = "1 request has" if unfinished == 1 else f"{unfinished:,} requests have"
        rest = (
            f"{have} not ended, and may go on {limit}" if unfinished else "all requests have ended"
        )
        self._write(
            logging.INFO,
            "draining",
            f"draining, as asked for{closing}: {rest}",
            requests=unfinished,
        )

    def closed(self, closing: str, unfinished: int, now: float, refused: int) -> None:
        """Log that the batcher was closed, and how long its drain took if there was one.

        Args:
            closing: By what and when that or the drain was asked for; see `Scheduler.closing`.
            unfinished: How many requests fail by that.
            now: What time it is.
            refused: How many requests were refused for want of room.
        """
        self.accepts_no_more(refused)
        since = self._drains_since
        drained = "" if since is None else f" after {now - since:.1f} s of draining, as asked for"
        self._write(
            logging.WARNING if unfinished else logging.INFO,
            "closed",
            f"closed{drained}{closing}"
            + (f": {_counted(unfinished)} cut short" if unfinished else ""),
            requests=unfinished,
        )

    def _write(
        self,
        level: int,
        kind: str,
        text: str,
        *,
        error: BaseException | None = None,
        **extra: object,
    ) -> None:
        write_line(
            level,
            kind,
            "%s: %s",
            self._batcher,
            text,
            error=error,
            batcher=self._batcher,
            **extra,
        )


def _counted(requests: int) -> str:
    return "1 request was" if requests == 1 else f"{requests:,} requests were"
