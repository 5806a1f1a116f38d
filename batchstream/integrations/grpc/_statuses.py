"""Which status the errors of batchers have, and what a client may know of them."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import grpc

from batchstream._core.errors import (
    ClosedError,
    DeadlineError,
    OverloadedError,
    RequestError,
    SlowConsumerError,
    error_text,
)
from batchstream.integrations._headers import retry_after

_PUSHBACK: Final = "grpc-retry-pushback-ms"
"""By which a server tells the retries of gRPC's clients when to come; see gRFC A6."""


class Status(NamedTuple):
    """The status that a call ends with: what `context.abort_with_status` takes.

    Attributes:
        code: A `grpc.StatusCode`.
        details: What the client may know: nothing about the server, but its own fault.
        trailing_metadata: When to try again, as `retry-after`, in whole seconds, and as
            `grpc-retry-pushback-ms`, which gRPC's clients obey; empty where trying again is of no
            use.
    """

    code: Any
    details: str
    trailing_metadata: tuple[tuple[str, str], ...] = ()


def status_of(error: BaseException) -> Status:
    """Return the status that a call ends with for an error, or raise the error.

    `OverloadedError` and `SlowConsumerError` are `RESOURCE_EXHAUSTED`, `ClosedError` is
    `UNAVAILABLE`, `DeadlineError` is `DEADLINE_EXCEEDED`, and `RequestError` is `INVALID_ARGUMENT`,
    with its text. With `OverloadedError` and `ClosedError` goes when to try again.

    Args:
        error: What a method has raised, or would raise. For a method that answers many requests in
            one call, and tells its client of each error in a message.

    Raises:
        BaseException: The error itself, if it is none of these: gRPC ends the call for it.
    """
    if isinstance(error, OverloadedError):
        metadata = _try_again(error.retry_after)
        return Status(_codes.RESOURCE_EXHAUSTED, "the server is overloaded", metadata)
    if isinstance(error, ClosedError):
        return Status(_codes.UNAVAILABLE, "the server is closing", _try_again(None))
    if isinstance(error, DeadlineError):
        return Status(_codes.DEADLINE_EXCEEDED, "the request took too long")
    if isinstance(error, RequestError):
        return Status(_codes.INVALID_ARGUMENT, error_text(error))
    if isinstance(error, SlowConsumerError):
        return Status(_codes.RESOURCE_EXHAUSTED, "the client reads too slowly")
    raise error


_codes: Final = grpc.StatusCode


def _try_again(seconds: float | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata that say when to try again.

    Args:
        seconds: After how many there may be room; None if that is unknown.
    """
    milliseconds = 1000 if seconds is None else math.ceil(seconds * 1000)
    return (("retry-after", retry_after(seconds)), (_PUSHBACK, str(milliseconds)))
