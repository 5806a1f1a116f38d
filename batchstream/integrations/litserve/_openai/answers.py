"""What a client of the OpenAI endpoint gets, as events or as a whole."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from anyio import move_on_after
from starlette.exceptions import HTTPException

from batchstream.integrations._headers import REQUEST_ID
from batchstream.integrations._http import Body
from batchstream.integrations.litserve._openai.deltas import Choice, Delta, sum_of, usage_of
from batchstream.integrations.litserve._openai.errors import error_of, error_response
from batchstream.integrations.litserve._server.cuts import CountedResponse
from batchstream.integrations.litserve._server.response_queue import FailedError

if TYPE_CHECKING:
    from fastapi.responses import Response
    from starlette.requests import Request
    from starlette.types import Scope

    from batchstream.integrations._http import Handler
    from batchstream.integrations.litserve._server.responses import Responses

_PING: Final = b": ping\n\n"  # a comment, which clients of events skip
_NOTHING: Final = Delta({})
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode


class CompletionBody(Body):
    """The body of a response, made of what comes from the workers.

    Args:
        responses: From the workers, a queue for each choice.
        model: The name that the client has given the model.
    """

    media_type: str

    @property
    def name(self) -> str:
        """The client's name for its request."""
        return self._responses.name

    def __init__(self, responses: Responses, model: str) -> None:
        super().__init__()
        self._responses = responses
        self._choices = [Choice(index, queue) for index, queue in enumerate(responses.queues)]
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._ended = False

    def cancel(self) -> None:
        """Let the workers give the choices up."""
        self._responses.close()

    def _usage(self) -> dict[str, int]:
        return usage_of([choice.usage() for choice in self._choices])


class EventsBody(CompletionBody):
    """Chunks as they come, as server-sent events.

    Args:
        responses: From the workers.
        model: The name of the model.
        include_usage: Whether the client wants usage, in a chunk of its own.
        ping: After how many seconds without an event a comment is sent; None for never.
    """

    media_type = "text/event-stream"

    def __init__(
        self, responses: Responses, model: str, *, include_usage: bool, ping: float | None
    ) -> None:
        super().__init__(responses, model)
        self._head["object"] = "chat.completion.chunk"
        self._include_usage = include_usage
        self._ping = ping
        self._begun = False
        self._unbegun_choices = list(reversed(self._choices))
        self._open_choices = list(self._choices)

    async def _next(self) -> bytes | None:
        if self._ended:
            return None
        while not (events := self._new_events()):
            with move_on_after(self._ping) as scope:
                await self._responses.wait()
            if scope.cancelled_caught:
                self._begun = True
                return _PING
        self._begun = True
        return "".join(events).encode()

    def _new_events(self) -> list[str]:
        events: list[str] = []
        try:
            for choice in tuple(self._open_choices):
                self._add_events_of(choice, events)
            if not self._open_choices:
                self._add_end(events)
        except FailedError as error:
            if not self._begun and not events:
                raise
            self._ended = True
            self._responses.close()
            events.append(_event(_to_json(error_of(error))))
        return events

    def _add_events_of(self, choice: Choice, events: list[str]) -> None:
        deltas = choice.take()
        if deltas:
            self._begin_choices_before(choice, events)
        events += [self._chunk(choice, delta) for delta in deltas]
        if choice.over:
            choice.usage()  # if that raises, the choice has not ended well
            self._open_choices.remove(choice)
            events.append(self._chunk(choice, _NOTHING, choice.finish_reason))

    def _begin_choices_before(self, choice: Choice, events: list[str]) -> None:
        # OpenAI's client takes the n-th choice that it sees for that of index n.
        while self._unbegun_choices and self._unbegun_choices[-1].index <= choice.index:
            other = self._unbegun_choices.pop()
            if not other.begun:
                events.append(self._chunk(other, other.begin()))

    def _add_end(self, events: list[str]) -> None:
        if self._include_usage:
            events.append(_event(_to_json(self._head | {"choices": [], "usage": self._usage()})))
        self._ended = True
        events.append(_event("[DONE]"))

    def _chunk(self, choice: Choice, delta: Delta, finish_reason: str | None = None) -> str:
        chunk = self._head | {
            "choices": [
                {
                    "index": choice.index,
                    "delta": delta.fields,
                    "logprobs": delta.logprobs,
                    "finish_reason": finish_reason,
                }
            ]
        }
        if self._include_usage:
            chunk["usage"] = None
        return _event(_to_json(chunk))


class MessageBody(CompletionBody):
    """The whole completion, when all of its choices have ended."""

    media_type = "application/json"

    async def _next(self) -> bytes | None:
        if self._ended:
            return None
        deltas: list[list[Delta]] = [[] for _ in self._choices]
        while True:
            for choice in self._choices:
                while new := choice.take():  # a failure may follow the outputs
                    deltas[choice.index] += new
            if all(choice.over for choice in self._choices):
                break
            await self._responses.wait()
        self._ended = True
        completion = self._head | {
            "object": "chat.completion",
            "choices": [_whole(choice, deltas[choice.index]) for choice in self._choices],
            "usage": self._usage(),
        }
        return _to_json(completion).encode()


def _whole(choice: Choice, deltas: list[Delta]) -> dict[str, Any]:
    """Return a choice that has ended."""
    message = {"content": None, "refusal": None} | sum_of([delta.fields for delta in deltas])
    for call in message.get("tool_calls", ()):
        del call["index"]
    logprobs = [delta.logprobs for delta in deltas if delta.logprobs is not None]
    return {
        "index": choice.index,
        "message": message,
        "logprobs": sum_of(logprobs) if logprobs else None,
        "finish_reason": choice.finish_reason,
    }


class CompletionResponse(CountedResponse):
    """A response whose errors have the form that OpenAI's clients know.

    Args:
        body: The completion.
    """

    def __init__(self, body: CompletionBody) -> None:
        self.media_type = body.media_type
        super().__init__(body, headers={REQUEST_ID: body.name})

    def _handler_of(self, error: Exception, scope: Scope) -> Handler | None:
        own = _answer_error if isinstance(error, HTTPException) else None
        return own or super()._handler_of(error, scope)


async def _answer_error(_request: Request, error: HTTPException) -> Response:
    return error_response(error)


def _event(data: str) -> str:
    return f"data: {data}\n\n"
