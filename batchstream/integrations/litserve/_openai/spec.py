"""LitServe's OpenAI endpoint, for requests that end one by one."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Self

import litserve.specs.openai as stock
from fastapi import BackgroundTasks, HTTPException, Request, Response

from batchstream.integrations.litserve._openai.answers import (
    CompletionResponse,
    EventsBody,
    MessageBody,
)
from batchstream.integrations.litserve._openai.deltas import MESSAGE_FIELDS
from batchstream.integrations.litserve._openai.errors import (
    answer_errors_of,
    error_response,
    refusal,
)
from batchstream.integrations.litserve._openai.request import (
    ChatCompletionRequest,
    choice_index_of,
    choices_of,
)
from batchstream.integrations.litserve._options import check_pickles
from batchstream.integrations.litserve._server.asked import NOTHING, Asked
from batchstream.integrations.litserve._server.setup import check_server, connect
from batchstream.integrations.litserve._server.submit import submit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from litserve import LitAPI
    from litserve.specs.base import LitSpec

    from batchstream.integrations.litserve._link.link import Link
    from batchstream.integrations.litserve._openai.answers import CompletionBody

_COMPLETIONS: Final = "/chat/completions"

_asked: ContextVar[Asked] = ContextVar("_asked", default=NOTHING)
"""What the headers of the request say whose endpoint runs; LitServe's signature has no room."""


class OpenAISpec(stock.OpenAISpec):
    """LitServe's `OpenAISpec`, for loops in which each request ends on its own.

    A loop of this package replaces LitServe's own spec by this one. Derive from it to make a spec
    of your own.

    Each of the `n` choices that a client asks for is a request of its own for the model. The
    response ends when all of them have ended. The `finish_reason` of a choice is `"length"` if its
    request ended with that reason, `"tool_calls"` if it has any, otherwise `"stop"`. The model may
    give another, with `Last(..., info={"finish_reason": "content_filter"})`.

    What the model gives is text, or a dict with any part of a message: `content`, `tool_calls`,
    `refusal`, `reasoning_content`, or a field of your own. The spec adds the role, and gives pieces
    of tool calls what they lack. Where the client asks for no stream, its message is the sum of
    what a stream would have sent. `logprobs` in a dict become the choice's.

    The model may give numbers of tokens (`prompt_tokens`, `completion_tokens`, `total_tokens`), in
    the `info` of the end or in its messages, whose numbers are added up. The prompt counts once,
    whatever `n` is. In a stream the usage is the last chunk, if the client asks with
    `stream_options: {"include_usage": true}`.

    An error before the first output is answered with its status; a later error is an event. Either
    way it has the form that OpenAI's clients raise. The workers give up the other choices. The
    detail of an `HTTPException` may be a dict with a `message`, and with `type`, `param` or `code`.
    A request that is invalid is answered with 400, and so is one that asks for `stop`, unless the
    loop has `decode`: its decoders find the stop strings, which are in the context.

    Args:
        request_type: The class of requests.
        models: What `GET /v1/models` lists; the name of the API's class if left out. A request may
            name any other model, too.
        ping: After how many seconds without an event a stream sends a comment, also before its
            first event: so that a proxy in front does not give up during a long prompt. The status
            is 200 then, and a later error an event. None for never.
        handles_stop: Whether the API itself ends a request at the texts of its `stop`, which are in
            the context. A loop with `decode` does without.

    Attributes:
        link: To the workers; a loop of this package sets it. With another loop the answers of this
            spec are no more than LitServe's own.
        handles_stop: As given.

    Raises:
        TypeError: `request_type` is not derived from `ChatCompletionRequest`, or workers could not
            import it; `models` is a single text.
        ValueError: `ping` is not more than 0.
    """

    def __init__(
        self,
        *,
        request_type: type[ChatCompletionRequest] = ChatCompletionRequest,
        models: Sequence[str] | None = None,
        ping: float | None = None,
        handles_stop: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        given: object = request_type
        if not (isinstance(given, type) and issubclass(given, ChatCompletionRequest)):
            raise TypeError(
                f"request_type takes a class derived from ChatCompletionRequest, got {given!r}"
            )
        check_pickles("request_type", request_type)
        if isinstance(models, str):
            raise TypeError(f"models takes a list of names, got {models!r}: pass [{models!r}]")
        if ping is not None and not ping > 0:
            raise ValueError(f"ping must be None or more than 0 seconds, got {ping!r}")
        self.link: Link | None = None
        self._request_type = request_type
        self._models = None if models is None else list(models)
        self._ping = ping
        self.handles_stop = handles_stop
        self._created = int(time.time())

    @classmethod
    def instead_of(cls, spec: LitSpec, lit_api: LitAPI) -> Self:
        """Return a spec for an API that LitServe has prepared for another one."""
        new = cls()
        new.api_path = spec.api_path
        new._max_batch_size = lit_api.max_batch_size
        new.pre_setup(lit_api)
        return new

    def __getstate__(self) -> dict[str, Any]:
        # Workers do not need what waits in the buffer, and it does not pickle.
        return super().__getstate__() | {"response_buffer": None}  # type: ignore[no-untyped-call, no-any-return]

    # ---- set up

    def pre_setup(self, lit_api: LitAPI) -> None:
        """Check the API as LitServe does; it needs no `predict` where a loop calls none."""
        self._endpoints = []  # an earlier server's
        if self._models is None:
            self._models = [type(lit_api).__name__]
        calls_predict = getattr(lit_api.loop, "calls_predict", True)
        super().pre_setup(lit_api if calls_predict else _Predicting(lit_api))  # type: ignore[arg-type]

    def setup(self, server: Any) -> None:
        """Prepare for the workers, which LitServe starts next."""
        super().setup(server)
        if self.link is not None:
            connect(self.link, server, str(self.api_path))

    @property
    def endpoints(self) -> list[tuple[str, Callable[..., Any], list[str]]]:
        """The routes, for the server that LitServe has just given to the spec."""
        if self.link is not None:
            check_server(self.link, self._server)
        routes = [
            (path, self._typed if endpoint == self.chat_completion else endpoint, methods)
            for path, endpoint, methods in super().endpoints
        ]
        path = str(self.api_path)
        if path.endswith(_COMPLETIONS):
            models = f"{path.removesuffix(_COMPLETIONS)}/models"
            routes += [
                (models, self.list_models, ["GET"]),
                (f"{models}/{{model:path}}", self.retrieve_model, ["GET"]),
            ]
        answer_errors_of(self._server.app, [endpoint for _, endpoint, _ in routes])
        return routes

    @property
    def _typed(self) -> Callable[..., Any]:
        """The endpoint with the annotation that FastAPI reads the request by."""

        async def chat_completion(request: Any, background_tasks: Any, http: Any) -> Response:
            _asked.set(Asked.of(http))
            return await self.chat_completion(request, background_tasks)

        chat_completion.__annotations__ = {
            "request": self._request_type,
            "background_tasks": BackgroundTasks,
            "http": Request,
            "return": Response,
        }
        return chat_completion

    # ---- in a worker

    def populate_context(self, context: dict[str, Any], request: Any) -> None:
        """Put what the client asks for, except the messages, and the choice's index in it."""
        context.update(request.model_dump(exclude={"messages"}))
        context["choice_index"] = choice_index_of(request)

    def _encode_response(self, output: Any) -> dict[str, Any]:
        # LitServe's own refuses a dict without content, and takes the usage out of the user's dict.
        if self.link is not None:
            if isinstance(output, str):
                return {"content": output}
            if isinstance(output, dict) and not MESSAGE_FIELDS.isdisjoint(output):
                return output
        return super()._encode_response(output)

    # ---- in a server process

    async def chat_completion(  # type: ignore[override]  # it takes what the client may ask of us
        self, request: ChatCompletionRequest, background_tasks: BackgroundTasks
    ) -> Response:
        """Answer a client that asks for a completion."""
        if self.link is None or not self.link.usable:
            return await super().chat_completion(request, background_tasks)  # type: ignore[no-any-return]
        if request.stop and not (self.handles_stop or self.link.decodes):
            raise refusal(
                "Unsupported parameter: 'stop' is not supported by this server. Leave it out.",
                "stop",
                "unsupported_parameter",
            )
        if self.link.decodes and _has_empty(request.stop):
            raise refusal("Invalid 'stop': a stop sequence must not be empty.", "stop", None)
        responses = submit(self.link, self, choices_of(request), _asked.get())
        model = request.model or ""
        body: CompletionBody
        if request.stream:
            asked = request.stream_options
            include_usage = asked is not None and bool(asked.include_usage)
            body = EventsBody(responses, model, include_usage=include_usage, ping=self._ping)
        else:
            body = MessageBody(responses, model)
        return CompletionResponse(body)

    async def list_models(self) -> dict[str, Any]:
        """Answer a client that asks which models there are."""
        return {"object": "list", "data": [self._model(name) for name in self._models or ()]}

    async def retrieve_model(self, model: str) -> Any:
        """Answer a client that asks for one model."""
        if model in (self._models or ()):
            return self._model(model)
        message = f"The model {model!r} does not exist."
        detail: Any = {"message": message, "param": "model", "code": "model_not_found"}
        return error_response(HTTPException(404, detail))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "system"}


def _has_empty(stop: str | list[str] | None) -> bool:
    return stop is not None and (not stop if isinstance(stop, str) else "" in stop)


class _Predicting:
    """An API that seems to have the `predict` that LitServe's check asks for."""

    def __init__(self, lit_api: LitAPI) -> None:
        self._lit_api = lit_api

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lit_api, name)

    def predict(self) -> Iterator[None]:
        """Stand in for a real one."""
        yield


def is_stock(spec: LitSpec | None) -> bool:
    """Return whether a spec is LitServe's own, and not of a subclass."""
    return type(spec) is stock.OpenAISpec
