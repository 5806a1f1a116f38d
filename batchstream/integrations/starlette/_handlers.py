"""Which errors get a status of their own, as long as nothing has been sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

from batchstream._core.errors import (
    ClosedError,
    DeadlineError,
    OverloadedError,
    RequestError,
    SlowConsumerError,
)
from batchstream.integrations._http import SendTimeoutError
from batchstream.integrations.http import known_status, status_of
from batchstream.integrations.starlette._closing import close_for, refuse

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.responses import Response
    from starlette.types import Scope

    from batchstream.integrations._http import Handler


async def _answer(connection: HTTPConnection, error: Exception) -> Response:
    status = status_of(error)
    response = JSONResponse(detail_of(error), status.code, status.headers)
    if not isinstance(connection, WebSocket):
        return response
    await refuse(connection, response)
    await close_for(connection, error)
    return None  # type: ignore[return-value]  # Starlette would send a response over the socket


# The keys have the type that FastAPI declares, in which a status can be a key too.
exception_handlers: Final[dict[int | type[Exception], Handler]] = {
    OverloadedError: _answer,
    ClosedError: _answer,
    DeadlineError: _answer,
    RequestError: _answer,
}
"""Responses to the errors of batchers: `FastAPI(exception_handlers=exception_handlers)`.

`OverloadedError` and `ClosedError` get status 503 and `Retry-After`, which is the error's
`retry_after` if that was measured, rounded up, and else 1. `DeadlineError` gets 504. Each comes
with a `{"detail": ...}` that says nothing about the server. `RequestError` and its subclasses get
422, and the text of the error is the detail; `HeaderError`, of `timeout_of`, gets 400. An endpoint
that calls `astream`, or reads a stream itself, raises these errors, and the handlers respond. The
responses of this module
send the same by themselves, unless the application has a handler of its own for the error: then
they raise it.

An endpoint of a WebSocket that raises one closes the socket: with code 1013, which is to try again
later, for the errors that get 503, with 1008 for a `RequestError`, and else with 1011. One that was
not accepted yet is answered with the status, where the server can.

A `ForkedError` has no handler: no later try will succeed, and the server has to log
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
    status = known_status(error)
    return {"detail": "Internal Server Error" if status is None else status.detail}
