"""LitServe's OpenAI endpoint, for requests that end one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import litserve.specs.openai as stock
from fastapi import BackgroundTasks, HTTPException, Response
from pydantic import BaseModel

from batchstream.integrations.litserve._server.completions import (
    CompletionResponse,
    EventsBody,
    MessageBody,
    error_response,
)
from batchstream.integrations.litserve._server.responses import submit
from batchstream.integrations.litserve._server.setup import check_server, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from litserve import LitAPI
    from litserve.specs.base import LitSpec

    from batchstream.integrations.litserve._link.link import Link
    from batchstream.integrations.litserve._server.completions import CompletionBody

_LARGEST_N: Final = 128  # as with OpenAI's own API


class StreamOptions(BaseModel):
    """What a client may ask of a stream."""

    include_usage: bool | None = False


class ChatCompletionRequest(stock.ChatCompletionRequest):
    """LitServe's request, and what a client may ask of a stream."""

    stream_options: StreamOptions | None = None


class OpenAISpec(stock.OpenAISpec):
    """LitServe's `OpenAISpec`, for loops in which each request ends on its own.

    A loop of this package replaces LitServe's own spec by this one. Derive from it to make a spec
    of your own.

    Each of the `n` choices that a client asks for is a request of its own for the model. The
    response ends when all of them have ended. The `finish_reason` of a choice is `"length"` if its
    request ended with that reason, `"tool_calls"` if it has any, otherwise `"stop"`. The model may
    give another, with `Last(..., info={"finish_reason": "content_filter"})`.

    The model may give numbers of tokens (`prompt_tokens`, `completion_tokens`, `total_tokens`), in
    the `info` of the end or in its messages, whose numbers are added up. In a stream the sum is the
    last chunk, of its own, if the client asks with `stream_options: {"include_usage": true}`;
    otherwise it is part of the last chunk, if any number was given.

    An error before the first output is answered with its status; a later error is an event. Either
    way it has the form that OpenAI's clients raise. The workers give up the other choices.

    Attributes:
        link: To the workers; a loop of this package sets it. With another loop this spec is no more
            than LitServe's own.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.link: Link | None = None

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

    def pre_setup(self, lit_api: LitAPI) -> None:
        """Check the API as LitServe does; it needs no `predict` where a loop calls none."""
        self._endpoints = []  # an earlier server's
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
        return super().endpoints  # type: ignore[no-any-return]

    def populate_context(self, context: dict[str, Any], request: Any) -> None:
        """Put everything that the client asks for into the context, except the messages."""
        context.update(request.model_dump(exclude={"messages"}))

    async def chat_completion(  # type: ignore[override]  # FastAPI reads which request it takes
        self, request: ChatCompletionRequest, background_tasks: BackgroundTasks
    ) -> Response:
        """Answer a client."""
        if self.link is None or not self.link.usable:
            return await super().chat_completion(request, background_tasks)  # type: ignore[no-any-return]
        try:
            choices = [request.model_copy(update={"n": 1}) for _ in range(_checked(request.n))]
            responses = submit(self.link, self, choices)
        except HTTPException as error:
            return error_response(error)
        model = request.model or ""
        body: CompletionBody
        if request.stream:
            asked = request.stream_options
            include_usage = asked is not None and bool(asked.include_usage)
            body = EventsBody(responses, model, include_usage=include_usage)
        else:
            body = MessageBody(responses, model)
        return CompletionResponse(body)


def _checked(n: int | None) -> int:
    if n is None:
        return 1
    if not 1 <= n <= _LARGEST_N:
        raise HTTPException(400, f"n must be from 1 to {_LARGEST_N}, got {n}")
    return n


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
