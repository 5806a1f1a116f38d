"""HTTP, for every framework: which status an error of a batcher has, and how long a client waits.

It needs no framework. The integration with Starlette answers errors by itself; for another one this
is what an error handler returns, such as Flask's:

    @app.errorhandler(BatchStreamError)
    def answer(error):
        status = status_of(error)
        return {"detail": status.detail}, status.code, status.headers
"""

from __future__ import annotations

from typing import NamedTuple

from batchstream._core.errors import (
    ClosedError,
    DeadlineError,
    OverloadedError,
    RequestError,
    error_text,
)
from batchstream.integrations._headers import retry_after
from batchstream.integrations._timeouts import HeaderError as HeaderError
from batchstream.integrations._timeouts import timeout_of as timeout_of

__all__ = ["HeaderError", "Status", "status_of", "timeout_of"]


class Status(NamedTuple):
    """How a server answers an error, as long as it has sent nothing.

    Attributes:
        code: The number.
        detail: What the client may know: nothing about the server, but its own fault.
        headers: `Retry-After`, in whole seconds, where the client may try again; else none.
    """

    code: int
    detail: str
    headers: dict[str, str]


def status_of(error: BaseException) -> Status:
    """Return the status with which a server answers an error, or raise the error.

    `OverloadedError` and `ClosedError` have 503 and `Retry-After`, `DeadlineError` has 504,
    `HeaderError`, of `timeout_of`, has 400 and any other `RequestError` 422, both with the text of
    the error.

    Args:
        error: What `stream`, `astream`, `begin` or reading a stream has raised.

    Raises:
        BaseException: The error itself, if it is none of these: the fault is the server's, which
            logs it and answers with 500.
    """
    status = known_status(error)
    if status is None:
        raise error
    return status


def known_status(error: BaseException) -> Status | None:
    """Return the status of an error that a client may know of, or None."""
    if isinstance(error, (OverloadedError, ClosedError)):
        seconds = error.retry_after if isinstance(error, OverloadedError) else None
        return Status(503, "Service Unavailable", {"Retry-After": retry_after(seconds)})
    if isinstance(error, DeadlineError):
        return Status(504, "Gateway Timeout", {})
    if isinstance(error, RequestError):
        return Status(400 if isinstance(error, HeaderError) else 422, error_text(error), {})
    return None
