"""An endpoint whose clients see that their request has failed."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import litserve.server
from fastapi import HTTPException, Request, Response
from litserve.specs.base import LitSpec
from starlette.requests import ClientDisconnect

from batchstream.integrations._headers import REQUEST_ID
from batchstream.integrations._http import Body, CutError
from batchstream.integrations.litserve._server.asked import Asked
from batchstream.integrations.litserve._server.cuts import CountedResponse
from batchstream.integrations.litserve._server.response_queue import FailedError
from batchstream.integrations.litserve._server.setup import check_server, connect
from batchstream.integrations.litserve._server.submit import errors_as_answers, submit

if TYPE_CHECKING:
    from collections.abc import Callable

    from litserve import LitAPI

    from batchstream.integrations.litserve._link.link import Link
    from batchstream.integrations.litserve._server.responses import Responses

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


class StreamingEndpoint(LitSpec):
    """LitServe's own streaming endpoint, but its responses begin late and fail visibly.

    It is a spec because that is how LitServe lets an API bring its endpoint. LitServe calls the
    spec's hooks where the user has not written any; these return what they are given.

    Args:
        lit_api: The API, whose path it takes over.
        link: To the workers.

    Attributes:
        link: To the workers.
        passes_outputs_on: Whether its hooks change nothing; workers ask.
    """

    passes_outputs_on = True

    def __init__(self, lit_api: LitAPI, link: Link) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.api_path = lit_api.api_path
        self.link = link
        self._lit_api = lit_api

    @property
    def stream(self) -> bool:
        """Whether the API streams; LitServe asks."""
        return True

    def setup(self, server: Any) -> None:
        """Prepare for the workers, which LitServe starts next."""
        connect(self.link, server, self.api_path)  # type: ignore[arg-type]

    def decode_request(self, request: Any, context_kwargs: object = None) -> Any:  # noqa: ARG002
        """Return the request as it is."""
        return request

    def encode_response(self, output: Any, context_kwargs: object = None) -> Any:  # noqa: ARG002
        """Return the output as it is."""
        return output

    @property
    def endpoints(self) -> list[tuple[str | None, Callable[..., Any], list[str]]]:
        """The route, for the server that LitServe has just given to the spec."""
        request_type = _request_type(self._lit_api)
        check_server(self.link, self._server)
        stream: Any
        if not self.link.usable:
            handler = litserve.server.StreamingRequestHandler(self._lit_api, self._server)

            async def stream(request: Any) -> Response:
                return await handler.handle_request(request, request_type)
        elif request_type is Request:

            async def stream(request: Any) -> Response:
                asked = Asked.of(request)
                with errors_as_answers(self.link, asked.request_id):
                    payload = await _payload_of(request)
                return self._respond(payload, asked)
        else:

            async def stream(request: Any, http: Any) -> Response:
                return self._respond(request, Asked.of(http))

        # FastAPI passes what it has made of the body, and Starlette's request.
        stream.__annotations__ = {"request": request_type, "return": Response, "http": Request}
        return [(self.api_path, stream, ["POST"])]

    def _respond(self, payload: Any, asked: Asked) -> Response:
        responses = submit(self.link, self, [payload], asked)
        return TextResponse(TextBody(responses), headers={REQUEST_ID: responses.name})


def _request_type(lit_api: LitAPI) -> Any:
    """Return the annotation of the request in `decode_request`: FastAPI parses it as that."""
    try:
        signature = inspect.signature(lit_api.decode_request, eval_str=True)
    except Exception:  # noqa: BLE001 - names for type checkers only, or no names at all
        signature = inspect.signature(lit_api.decode_request)
    annotation = signature.parameters["request"].annotation
    return Request if annotation is inspect.Parameter.empty else annotation


async def _payload_of(request: Request) -> Any:
    """Read the body of a request as LitServe does, by its type.

    Raises:
        HTTPException: 400, it is no JSON, or the client has left.
    """
    try:
        if request.headers.get("content-type", "").startswith(_FORMS):
            return await request.form()
        body = await request.body()
    except ClientDisconnect as error:
        raise HTTPException(400, "the client has left before it sent its request") from error
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:  # such as a JSONDecodeError
        raise HTTPException(400, "the body of the request is not JSON") from error


class TextBody(Body):
    """The outputs of one request, joined as they come.

    Args:
        responses: From the workers, with a single queue.
    """

    def __init__(self, responses: Responses) -> None:
        super().__init__()
        self._responses = responses
        [self._queue] = responses.queues
        self._begun = False

    def cancel(self) -> None:
        """Let the workers give the request up."""
        self._responses.close()

    async def _next(self) -> bytes | None:
        while not (outputs := self._take()):
            if self._queue.over:
                return None
            await self._responses.wait()
        self._begun = True
        return b"".join([text.encode() if isinstance(text, str) else text for text in outputs])

    def _take(self) -> list[str | bytes]:
        try:
            return self._queue.take()
        except FailedError as error:
            if not self._begun:
                raise
            raise CutError from error


class TextResponse(CountedResponse):
    """The outputs of one request as they come."""
