"""In the server process: an endpoint whose clients see that their request has failed."""

from __future__ import annotations

import inspect
import logging
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

import litserve.server
from fastapi import HTTPException, Request, Response
from litserve.specs.base import LitSpec
from starlette.responses import StreamingResponse

from batchstream.integrations._cut import Tripwire
from batchstream.integrations.litserve._failure import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from litserve import LitAPI
    from starlette.types import Send


class StreamingEndpoint(LitSpec):
    """LitServe's own streaming endpoint, but its responses begin late and fail visibly.

    It is a spec because that is how LitServe lets an API bring its endpoint. As LitServe's hooks
    ask the spec where the user has not written them, it passes on what it is given.
    """

    def __init__(self, lit_api: LitAPI) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.api_path = lit_api.api_path
        self._lit_api = lit_api

    @property
    def stream(self) -> bool:
        """Whether the API streams; LitServe asks."""
        return True

    def setup(self, server: Any) -> None:
        """Take nothing from the server before it runs: LitServe's handler finds what it needs."""

    def decode_request(self, request: Any, context_kwargs: object = None) -> Any:  # noqa: ARG002
        """Return the request as it is."""
        return request

    def encode_response(self, output: Any, context_kwargs: object = None) -> Any:  # noqa: ARG002
        """Return the output as it is."""
        return output

    @property
    def endpoints(self) -> list[tuple[str | None, Callable[..., Any], list[str]]]:
        """The route, made for the server that has just introduced itself."""
        handler = litserve.server.StreamingRequestHandler(self._lit_api, self._server)
        request_type = _request_type(self._lit_api)

        async def stream(request: Any) -> Response:
            return LateResponse.of(await handler.handle_request(request, request_type))

        stream.__annotations__ = {"request": request_type, "return": Response}
        return [(self.api_path, stream, ["POST"])]


def install_endpoint(lit_api: LitAPI) -> None:
    """Give the API its endpoint, where this version of LitServe has what it takes."""
    if not hasattr(litserve.server, "StreamingRequestHandler"):
        warnings.warn(
            "this LitServe has no StreamingRequestHandler: a client whose stream fails will not "
            "see it, but get status 200 and a response that ends early",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    lit_api.spec = None  # type: ignore[assignment]  # it may be an earlier server's, with its path
    lit_api.spec = StreamingEndpoint(lit_api)
    logging.getLogger("uvicorn.error").addFilter(_is_no_cut)


def _request_type(lit_api: LitAPI) -> Any:
    """Return what `decode_request` says that it takes: FastAPI reads the request as that."""
    try:
        signature = inspect.signature(lit_api.decode_request, eval_str=True)
    except NameError:  # a name that exists for type checkers only
        signature = inspect.signature(lit_api.decode_request)
    annotation = signature.parameters["request"].annotation
    return Request if annotation is inspect.Parameter.empty else annotation


class LateResponse(StreamingResponse):
    """A streaming response that begins when there is something to send.

    Until then a failure has a status of its own: it is raised, and answered by FastAPI's handler
    or the user's. From then on all that can tell of one is a body that visibly lacks its end.
    """

    @classmethod
    def of(cls, response: StreamingResponse) -> LateResponse:
        """Take over a response that has not been sent."""
        late = cls(response.body_iterator, response.status_code, background=response.background)
        late.raw_headers = response.raw_headers
        return late

    async def stream_response(self, send: Send) -> None:
        """Send all of the response.

        Raises:
            HTTPException: The stream failed before its first output; nothing has been sent.
            CutError: The stream failed later.
        """
        begun = False
        async for chunk in self.body_iterator:
            if isinstance(chunk, Failure):
                await self.body_iterator.aclose()
                await _raise(chunk, send, begun=begun)
            if not begun:
                begun = True
                await self._begin(send)
            body = chunk.encode(self.charset) if isinstance(chunk, str) else chunk
            await send({"type": "http.response.body", "body": body, "more_body": True})
        if not begun:
            await self._begin(send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})


class CutError(Exception):
    """Leaves the application to make the server close a connection in mid-response."""

    def __init__(self) -> None:
        super().__init__("a stream has failed: its connection is cut")


async def _raise(failure: Failure, send: Send, *, begun: bool) -> NoReturn:
    """Tell the client of a failure, by a status or by cutting the connection."""
    if begun:
        error = CutError()
        await send({"type": "http.response.body", "body": Tripwire(error), "more_body": True})
        raise error
    raise HTTPException(failure.status_code, failure.detail, failure.headers)


def _is_no_cut(record: logging.LogRecord) -> bool:
    """Keep cuts out of uvicorn's log: the worker has logged the reason, with its traceback."""
    return not (record.exc_info and isinstance(record.exc_info[1], CutError))
