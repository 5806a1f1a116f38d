"""Errors as OpenAI's server words them: a body that its clients show."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any, Final

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from batchstream.integrations.litserve._openai.faults import fault_of
from batchstream.integrations.litserve._server.response_queue import FailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastapi import FastAPI
    from starlette.requests import Request

_FIRST_STATUS_OF_SERVERS: Final = 500
_WITHOUT_BODY: Final = (204, 304)
_FIELDS: Final = ("message", "type", "param", "code")


def error_of(error: HTTPException) -> dict[str, Any]:
    """Return the body of an error. A detail with a `message` may have the other fields, too."""
    of_client = error.status_code < _FIRST_STATUS_OF_SERVERS
    detail: Any = error.detail
    fields: dict[str, Any] = {
        "message": detail if isinstance(detail, str) else json.dumps(detail),
        "type": "invalid_request_error" if of_client else "server_error",
        "param": None,
        "code": None,
    }
    if isinstance(detail, dict) and isinstance(detail.get("message"), str):
        fields |= {name: detail[name] for name in _FIELDS if name in detail}
    return {"error": fields}


def error_response(error: HTTPException) -> Response:
    """Return the response to an error that comes before any output."""
    headers = None if error.headers is None else dict(error.headers)
    if isinstance(error, FailedError) and error.rejects:
        error = refusal(error.detail, None, None)  # as one that the spec itself rejects
    if error.status_code in _WITHOUT_BODY:
        return Response(None, error.status_code, headers)
    return JSONResponse(error_of(error), error.status_code, headers)


def refusal(message: str, param: str | None, code: str | None) -> HTTPException:
    """Return the error for a request that cannot be served as it is."""
    detail: Any = {"message": message, "param": param, "code": code}
    return HTTPException(400, detail)


def invalid_request_response(error: RequestValidationError) -> Response:
    """Return the response to a body that is no request. Like OpenAI's it names one fault."""
    fault = fault_of(error.errors(), error.body)
    return error_response(refusal(fault.message, fault.param, fault.code))


def answer_errors_of(app: FastAPI, endpoints: Iterable[Callable[..., Any]]) -> None:
    """Make an app answer the errors of these endpoints in OpenAI's form, and others as before."""
    answers: dict[type[Exception], Callable[[Any], Response]] = {
        HTTPException: error_response,
        RequestValidationError: invalid_request_response,
    }
    for kind, answer in answers.items():
        handler = app.exception_handlers.get(kind)
        if not isinstance(handler, EndpointErrorHandler):
            handler = EndpointErrorHandler(answer, handler)
            app.add_exception_handler(kind, handler)
        handler.endpoints.extend(endpoints)


class EndpointErrorHandler:
    """An app's handler of one kind of errors, with an answer of their own for some endpoints.

    Args:
        answer: Makes the response for these.
        others: The handler for all other endpoints.

    Attributes:
        endpoints: These.
    """

    def __init__(self, answer: Callable[[Any], Response], others: Any) -> None:
        self.endpoints: list[Callable[..., Any]] = []
        self._answer = answer
        self._others = others

    async def __call__(self, request: Request, error: Exception) -> Response:
        """Return the response to an error."""
        if request.scope.get("endpoint") in self.endpoints:
            return self._answer(error)
        if self._others is None:
            raise error
        response = self._others(request, error)
        return await response if inspect.isawaitable(response) else response  # type: ignore[no-any-return]
