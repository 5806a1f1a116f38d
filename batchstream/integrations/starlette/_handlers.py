"""Which errors get a status of their own, as long as nothing has been sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from batchstream._core.errors import (
    ClosedError,
    DeadlineError,
    OverloadedError,
    RequestError,
    SlowConsumerError,
    error_text,
)
from batchstream.integrations._headers import retry_after
from batchstream.integrations._http import SendTimeoutError
from batchstream.integrations._timeouts import HeaderError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Scope

    from batchstream.integrations._http import Handler


async def _unavailable(_request: Request, error: Exception) -> Response:
    seconds = error.retry_after if isinstance(error, OverloadedError) else None
    return JSONResponse(detail_of(error), 503, {"retry-after": retry_after(seconds)})


async def _too_late(_request: Request, error: Exception) -> Response:
    return JSONResponse(detail_of(error), 504)


async def _bad_request(_request: Request, error: Exception) -> Response:
    return JSONResponse(detail_of(error), 400)


async def _unprocessable(_request: Request, error: Exception) -> Response:
    return JSONResponse(detail_of(error), 422)


# The keys have the type that FastAPI declares, in which a status can be a key too.
exception_handlers: Final[dict[int | type[Exception], Handler]] = {
    OverloadedError: _unavailable,
    ClosedError: _unavailable,
    DeadlineError: _too_late,
    RequestError: _unprocessable,
    HeaderError: _bad_request,  # which is a RequestError: the nearest class counts
}
"""Responses to the errors of batchers: `FastAPI(exception_handlers=exception_handlers)`.

`OverloadedError` and `ClosedError` get status 503 and `Retry-After`, which is the error's
`retry_after` if that was measured, rounded up, and else 1. `DeadlineError` gets 504. Each comes
with a `{"detail": ...}` that says nothing about the server. `RequestError` and its subclasses get
422, and the text of the error is the detail; `HeaderError`, of `timeout_of`, gets 400. An endpoint
that calls `astream`, or reads a stream itself, raises these errors, and the handlers respond. The
responses of this module
send the same by themselves, unless the application has a handler of its own for the error: then
they raise it. A `ForkedError` has no handler: no later try will succeed, and the server has to log
it.
"""

_EXPECTED: Final = (
    OverloadedError,
    ClosedError,
    DeadlineError,
    RequestError,
    SlowConsumerError,
    SendTimeoutError,
)


def handler_of(error: Exception, scope: Scope) -> Handler | None:
    """Return the handler above for an error, or None where the error is to be raised.

    An error without a handler is raised, and so is one that the application has a handler for.
    """
    of_application, _ = scope.get("starlette.exception_handlers", ({}, {}))
    for cls in type(error).__mro__:
        if cls in of_application:
            return None
        if cls in exception_handlers:
            return exception_handlers[cls]
    return None


def is_expected(error: Exception, scope: Scope) -> bool:
    """Whether an error in mid-stream is no fault of the server's.

    A deadline has passed, the batcher was closed, the client has not read, or its request cannot be
    served; or the application has a handler for the error, which Starlette would not call any
    more, and report at length.
    """
    if isinstance(error, _EXPECTED):
        return True
    # An `HTTPException` is among them, whether or not its status has a handler.
    of_application, _ = scope.get("starlette.exception_handlers", ({}, {}))
    return any(cls in of_application for cls in type(error).__mro__)


def detail_of(error: Exception) -> dict[str, str]:
    """Return what a client may know of an error: nothing about the server, but its own fault."""
    if isinstance(error, HTTPException):
        return {"detail": error.detail}
    if isinstance(error, RequestError):
        return {"detail": error_text(error)}
    if isinstance(error, DeadlineError):
        return {"detail": "Gateway Timeout"}
    if isinstance(error, (ClosedError, OverloadedError)):
        return {"detail": "Service Unavailable"}
    return {"detail": "Internal Server Error"}
