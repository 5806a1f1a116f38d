"""Which errors get a status of their own, as long as nothing has been sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import JSONResponse

from batchstream._core.errors import ClosedError, DeadlineError, OverloadedError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Scope

    from batchstream.integrations._http import Handler

_RETRY_AFTER: Final = "1"
"""Seconds. A load balancer knows better than this server which other one is free meanwhile."""


async def _unavailable(_request: Request, _error: Exception) -> Response:
    headers = {"retry-after": _RETRY_AFTER}
    return JSONResponse({"detail": "Service Unavailable"}, 503, headers)


async def _too_late(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"detail": "Gateway Timeout"}, 504)


# The keys have the type that FastAPI declares, in which a status can be a key too.
exception_handlers: Final[dict[int | type[Exception], Handler]] = {
    OverloadedError: _unavailable,
    ClosedError: _unavailable,
    DeadlineError: _too_late,
}
"""Responses to the errors of batchers: `FastAPI(exception_handlers=exception_handlers)`.

`OverloadedError` and `ClosedError` get status 503 and `Retry-After`, `DeadlineError` gets 504, each
with a `{"detail": ...}` that says nothing about the server. An endpoint that calls `astream`, or
reads a stream itself, raises these errors, and the handlers respond. The responses of this module
send the same by themselves, unless the application has a handler of its own for the error: then
they raise it. A `ForkedError` has no handler: no later try will succeed, and the server has to log
it.
"""


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
