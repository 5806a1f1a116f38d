"""Errors that have a status of their own, as long as nothing has been sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import JSONResponse

from batchstream._core.errors import ClosedError, DeadlineError, OverloadedError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Scope

    from batchstream.integrations._response import Handler

_RETRY_AFTER: Final = "1"
"""Seconds: which other server answers meanwhile is for a load balancer to know."""


async def _unavailable(_request: Request, _error: Exception) -> Response:
    headers = {"retry-after": _RETRY_AFTER}
    return JSONResponse({"detail": "Service Unavailable"}, 503, headers)


async def _too_late(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"detail": "Gateway Timeout"}, 504)


# The keys are as FastAPI declares them, where a status may be one.
exception_handlers: Final[dict[int | type[Exception], Handler]] = {
    OverloadedError: _unavailable,
    ClosedError: _unavailable,
    DeadlineError: _too_late,
}
"""What to answer to errors of batchers: `FastAPI(exception_handlers=exception_handlers)`.

`OverloadedError` and `ClosedError` are answered with status 503 and `Retry-After`, `DeadlineError`
with 504, each with a `{"detail": ...}` that tells nothing of the server. They are raised where an
endpoint calls `astream`, or reads a stream itself. The responses of this module give the same
answers by themselves; but where an application has a handler of its own for such an error, they
leave the error to that.
"""


def handler_of(error: Exception, scope: Scope) -> Handler | None:
    """Return what answers to an error, or None if it is to be raised."""
    of_application, _ = scope.get("starlette.exception_handlers", ({}, {}))
    for cls in type(error).__mro__:
        if cls in of_application:
            return None
        if cls in exception_handlers:
            return exception_handlers[cls]
    return None
