"""In the server process: an endpoint whose clients see that their request has failed."""

from __future__ import annotations

import inspect
import json
import logging
from typing import TYPE_CHECKING, Any

import litserve.server
from fastapi import HTTPException, Request, Response
from litserve.specs.base import LitSpec

from batchstream.integrations._response import Body, StreamResponse
from batchstream.integrations.litserve._exchange import Exchange, FailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from litserve import LitAPI

    from batchstream.integrations.litserve._exchange import Answers

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


class StreamingEndpoint(LitSpec):
    """LitServe's own streaming endpoint, but its responses begin late and fail visibly.

    It is a spec because that is how LitServe lets an API bring its endpoint. As LitServe's hooks
    ask the spec where the user has not written them, it passes on what it is given.

    Args:
        lit_api: The API, whose path it takes over.
        exchange: The way to the workers.
    """

    def __init__(self, lit_api: LitAPI, exchange: Exchange) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.api_path = lit_api.api_path
        self.exchange = exchange
        self._lit_api = lit_api

    @property
    def stream(self) -> bool:
        """Whether the API streams; LitServe asks."""
        return True

    def setup(self, server: Any) -> None:
        """Get ready for the workers, which are started next."""
        self.exchange.connect(server, self.api_path)  # type: ignore[arg-type]

    def decode_request(self, request: Any, context_kwargs: object = None) -> Any:  # noqa: ARG002
        """Return the request as it is."""
        return request

    def encode_response(self, output: Any, context_kwargs: object = None) -> Any:  # noqa: ARG002
        """Return the output as it is."""
        return output

    @property
    def endpoints(self) -> list[tuple[str | None, Callable[..., Any], list[str]]]:
        """The route, made for the server that has just introduced itself."""
        request_type = _request_type(self._lit_api)
        if self.exchange.suits(self._server):

            async def stream(request: Any) -> Response:
                payload = await _payload_of(request) if request_type is Request else request
                return StreamResponse(TextBody(self.exchange.submit(self, [payload])))
        else:
            handler = litserve.server.StreamingRequestHandler(self._lit_api, self._server)

            async def stream(request: Any) -> Response:
                return await handler.handle_request(request, request_type)

        stream.__annotations__ = {"request": request_type, "return": Response}
        return [(self.api_path, stream, ["POST"])]


def _request_type(lit_api: LitAPI) -> Any:
    """Return what `decode_request` says that it takes: FastAPI reads the request as that."""
    try:
        signature = inspect.signature(lit_api.decode_request, eval_str=True)
    except NameError:  # a name that exists for type checkers only
        signature = inspect.signature(lit_api.decode_request)
    annotation = signature.parameters["request"].annotation
    return Request if annotation is inspect.Parameter.empty else annotation


async def _payload_of(request: Request) -> Any:
    """Read the body of a request as LitServe does, by its type.

    Raises:
        HTTPException: 400, it is no JSON.
    """
    if request.headers.get("content-type", "").startswith(_FORMS):
        return await request.form()
    try:
        return await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HTTPException(400, "the body of the request is not JSON") from error


class TextBody(Body):
    """The outputs of one request, put together as they come.

    Args:
        answers: From the workers, with a single inbox.
    """

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._answers = answers
        [self._inbox] = answers.inboxes
        self._begun = False

    def cancel(self) -> None:
        """Tell the workers that nobody reads it any more."""
        self._answers.close()

    async def _next(self) -> bytes | None:
        while not (outputs := self._take()):
            if self._inbox.over:
                return None
            await self._answers.wait()
        self._begun = True
        return b"".join([text.encode() if isinstance(text, str) else text for text in outputs])

    def _take(self) -> list[str | bytes]:
        try:
            return self._inbox.take()
        except FailedError as error:
            if not self._begun:
                raise
            raise CutError from error


class CutError(Exception):
    """Leaves the application to make the server close a connection in mid-response."""

    def __init__(self) -> None:
        super().__init__("a stream has failed: its connection is cut")


def keep_cuts_out_of_the_log() -> None:
    """Let uvicorn not log a `CutError`: the worker has logged the reason, with its traceback."""
    logging.getLogger("uvicorn.error").addFilter(_is_no_cut)


def _is_no_cut(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], CutError))
