"""Errors as OpenAI's server words them: a body that its clients show."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any, Final

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fastapi import FastAPI
    from starlette.requests import Request

_FIRST_STATUS_OF_SERVERS: Final = 500
_WITHOUT_BODY: Final = (204, 304)
_FIELDS: Final = ("message", "type", "param", "code")

# OpenAI's codes, by pydantic's types of errors.
_CODES: Final = {
    "missing": "missing_required_parameter",
    "greater_than_equal": "integer_below_min_value",
    "less_than_equal": "integer_above_max_value",
    "too_short": "empty_array",
    "literal_error": "invalid_value",
    "enum": "invalid_value",
    "value_error": "invalid_value",
}


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
    if error.status_code in _WITHOUT_BODY:
        return Response(None, error.status_code, headers)
    return JSONResponse(error_of(error), error.status_code, headers)


def refusal(message: str, param: str | None, code: str | None) -> HTTPException:
    """Return the error for a request that cannot be served as it is."""
    detail: Any = {"message": message, "param": param, "code": code}
    return HTTPException(400, detail)


def invalid_request_response(error: RequestValidationError) -> Response:
    """Return the response to a body that is no request. Like OpenAI's it names one fault."""
    fault = error.errors()[0]
    kind, rule, got = fault["type"], fault["msg"].removeprefix("Value error, "), fault.get("input")
    if kind == "json_invalid":
        reason = fault.get("ctx", {}).get("error", rule)
        return error_response(refusal(f"the body of the request is not JSON: {reason}", None, None))
    param = _param_of(fault["loc"][1:], error.body, missing=kind == "missing")
    code = _CODES.get(kind, "invalid_type")
    bounds = fault.get("ctx", {})  # in the type of the field: pydantic has converted them
    if isinstance(bounds.get("ge", bounds.get("le")), float):
        code = code.replace("integer", "decimal")
    if param is None:
        text = rule
    elif kind == "missing":
        text = f"Missing required parameter: {param!r}."
    else:
        text = f"Invalid {param!r}: {rule}, got {got!r:.80}"
    return error_response(refusal(text, param, code))


def _param_of(location: Sequence[int | str], body: Any, *, missing: bool) -> str | None:
    """Return the place of a fault in a body, as `messages[0].content`.

    Pydantic names the members of a union on the way, too: what is not in the body is left out.
    """
    path = ""
    for position, name in enumerate(location, 1):
        if isinstance(name, int):
            if isinstance(body, list):
                path, body = f"{path}[{name}]", body[name]
        elif isinstance(body, dict) and (name in body or (missing and position == len(location))):
            path, body = (f"{path}.{name}" if path else name), body.get(name)
    return path or None


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
