"""What a client of the OpenAI endpoint gets, as events or as a whole."""

from __future__ import annotations

import json
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import litserve.specs.openai as stock
from fastapi import HTTPException
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from batchstream import FinishReason
from batchstream.integrations._http import Body
from batchstream.integrations.litserve._link.messages import UNKNOWN, EndMessage
from batchstream.integrations.litserve._log import logger
from batchstream.integrations.litserve._server.cuts import STREAM_HEADERS, CountedResponse
from batchstream.integrations.litserve._server.responses import FailedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.requests import Request
    from starlette.types import Scope

    from batchstream.integrations._http import Handler
    from batchstream.integrations.litserve._server.responses import ResponseQueue, Responses

_FINISH_REASONS: Final = ("stop", "length", "tool_calls", "content_filter", "function_call")
_USAGE: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_FIRST_STATUS_OF_SERVERS: Final = 500
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode
_WITHOUT_BODY: Final = (204, 304)


class Function(BaseModel):
    """A piece of a tool call's arguments. LitServe's own model asks each piece for a name."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(BaseModel):
    """A piece of a tool call, with the number that the model has given the call."""

    index: int
    id: str | None = None
    type: str | None = None
    function: Function | None = None


class Choice:
    """One of the choices that a client has asked for, and the messages for it.

    Attributes:
        index: Its number.
    """

    def __init__(self, index: int, queue: ResponseQueue) -> None:
        self.index = index
        self._queue = queue
        self._unread: deque[str] = deque()
        self._calls: dict[int, int] = {}  # from the model's number of a call to ours
        self._call_ids: set[str | None] = set()
        self._used: dict[str, int] = {}

    @property
    def over(self) -> bool:
        """Whether all messages have been taken."""
        return self._queue.over and not self._unread

    def take(self) -> list[dict[str, Any]]:
        """Take the messages that have come.

        Raises:
            FailedError: The request has failed, or a message is invalid; all before it were taken.
        """
        messages: list[dict[str, Any]] = []
        if not self._unread:
            self._unread.extend(self._queue.take())
        while self._unread:
            try:
                messages.append(_message(self._unread[0]))
            except FailedError:
                if messages:
                    break
                raise
            self._unread.popleft()
        for message in messages:
            for call in message.get("tool_calls") or ():
                self._number(call)
            for name, figure in figures_of(message).items():
                self._used[name] = self._used.get(name, 0) + figure
        return messages

    def _number(self, call: dict[str, Any]) -> None:
        """Give a piece of a call the number of its call: a new id begins another call."""
        name, number = call.get("id"), call["index"]
        if number not in self._calls or (name and name not in self._call_ids):
            self._calls[number] = len(self._call_ids)
            self._call_ids.add(name or f"call {len(self._call_ids)}")
            call.setdefault("type", "function")
        call["index"] = self._calls[number]

    @property
    def used(self) -> dict[str, int]:
        """The numbers of tokens, by name. Figures at the end replace figures of the messages."""
        return self._used if self._queue.end is None else self._used | self._used_at_the_end()

    def _used_at_the_end(self) -> dict[str, int]:
        try:
            return figures_of({} if self._queue.end is None else self._queue.end.info)
        except ValueError as error:
            logger.exception("the info of an end has invalid numbers of tokens")
            raise FailedError(UNKNOWN) from error

    @property
    def finish_reason(self) -> str:
        """Why it has ended, in OpenAI's words."""
        end = self._queue.end or EndMessage("eos", {})
        given = end.info.get("finish_reason")
        if given in _FINISH_REASONS:
            return str(given)
        if end.reason == FinishReason.LENGTH:  # perhaps in the middle of a tool call
            return "length"
        return "tool_calls" if self._calls else "stop"


def figures_of(source: dict[str, Any]) -> dict[str, int]:
    """Return the numbers of tokens in a message, or in the info of an end."""
    figures = {name: source[name] for name in _USAGE if source.get(name) is not None}
    return stock.UsageInfo(**figures).model_dump(include=set(figures))


def usage_of(choices: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the sums of the figures of all choices."""
    usage = dict.fromkeys(_USAGE, 0)
    for used in choices:
        parts = used.get("prompt_tokens", 0) + used.get("completion_tokens", 0)
        for name, figure in (used | {"total_tokens": used.get("total_tokens") or parts}).items():
            usage[name] += figure
    return usage


class CompletionBody(Body):
    """The body of a response, made of what comes from the workers.

    Args:
        responses: From the workers, a queue for each choice.
        model: The name that the client has given the model.
    """

    media_type: str

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


class EventsBody(CompletionBody):
    """Chunks as they come, as server-sent events.

    Args:
        responses: From the workers.
        model: The name of the model.
        include_usage: Whether the client wants usage in a chunk of its own.
    """

    media_type = "text/event-stream"

    def __init__(self, responses: Responses, model: str, *, include_usage: bool) -> None:
        super().__init__(responses, model)
        self._include_usage = include_usage
        self._begun = False
        self._open_choices = list(self._choices)

    async def _next(self) -> bytes | None:
        if self._ended:
            return None
        events: list[str] = []
        while not events:
            try:
                for choice in tuple(self._open_choices):
                    events += self._new_events_of(choice)
            except FailedError as error:
                if not self._begun and not events:
                    raise
                self._ended = True
                self._responses.close()
                events.append(_event(_to_json(error_of(error))))
                break
            if not events:
                await self._responses.wait()
        self._begun = True
        return "".join(events).encode()

    def _new_events_of(self, choice: Choice) -> list[str]:
        events = [
            self._chunk(choice.index, {key: message[key] for key in message if key not in _USAGE})
            for message in choice.take()
        ]
        if choice.over:
            self._open_choices.remove(choice)
            self._ended = not self._open_choices
            events += self._end_of(choice)
        return events

    def _end_of(self, choice: Choice) -> list[str]:
        if not self._ended:
            return [self._chunk(choice.index, {}, choice.finish_reason)]
        usage = usage_of(choice.used for choice in self._choices)
        in_chunk = None if self._include_usage or not any(usage.values()) else usage
        last = self._chunk(choice.index, {}, choice.finish_reason, in_chunk)
        in_own_chunk = [self._event([], usage)] if self._include_usage else []
        return [last, *in_own_chunk, _event("[DONE]")]

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        usage: dict[str, int] | None = None,
    ) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return self._event([choice], usage)

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> str:
        chunk = {"object": "chat.completion.chunk", "choices": choices, "usage": usage}
        return _event(_to_json(self._head | chunk))


class MessageBody(CompletionBody):
    """The whole completion, when all of its choices have ended."""

    media_type = "application/json"

    async def _next(self) -> bytes | None:
        if self._ended:
            return None
        builders = [MessageBuilder() for _ in self._choices]
        while True:
            for choice, builder in zip(self._choices, builders, strict=True):
                while messages := choice.take():  # a failure may follow the outputs
                    for message in messages:
                        builder.add(message)
            if all(choice.over for choice in self._choices):
                break
            await self._responses.wait()
        self._ended = True
        pairs = list(zip(self._choices, builders, strict=True))
        choices = [
            {
                "index": choice.index,
                "message": builder.message,
                "finish_reason": choice.finish_reason,
                "logprobs": None,
            }
            for choice, builder in pairs
        ]
        usage = usage_of(choice.used for choice, _ in pairs)
        completion = {"object": "chat.completion", "choices": choices, "usage": usage}
        return _to_json(self._head | completion).encode()


class MessageBuilder:
    """The messages of one choice, joined into one."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}

    def add(self, message: dict[str, Any]) -> None:
        """Append a message."""
        if isinstance(message.get("content"), str):
            self._texts.append(message["content"])
        for part in message.get("tool_calls") or ():
            call = self._calls.setdefault(part["index"], {"function": {"arguments": ""}})
            function, more = call["function"], part.get("function") or {}
            call |= {key: part[key] for key in ("id", "type") if part.get(key)}
            function |= {"name": more["name"]} if more.get("name") else {}
            function["arguments"] += more.get("arguments") or ""

    @property
    def message(self) -> dict[str, Any]:
        """The joined message."""
        calls = [self._calls[index] for index in sorted(self._calls)]
        content = "".join(self._texts)
        return {"role": "assistant", "content": content, "tool_calls": calls or None}


class CompletionResponse(CountedResponse):
    """A response whose errors have the form that OpenAI's clients know."""

    def __init__(self, body: CompletionBody) -> None:
        self.media_type = body.media_type
        super().__init__(body, STREAM_HEADERS if isinstance(body, EventsBody) else {})

    def _handler_of(self, error: Exception, scope: Scope) -> Handler | None:
        return (
            _answer_error if isinstance(error, HTTPException) else super()._handler_of(error, scope)
        )


def error_of(error: HTTPException) -> dict[str, Any]:
    """Return an error as OpenAI's clients know it."""
    of_client = error.status_code < _FIRST_STATUS_OF_SERVERS
    detail: Any = error.detail
    return {
        "error": {
            "message": detail if isinstance(detail, str) else json.dumps(detail),
            "type": "invalid_request_error" if of_client else "server_error",
            "param": None,
            "code": None,
        }
    }


def error_response(error: HTTPException) -> Response:
    """Return the response to an error that comes before any output."""
    headers = None if error.headers is None else dict(error.headers)
    if error.status_code in _WITHOUT_BODY:
        return Response(None, error.status_code, headers)
    return JSONResponse(error_of(error), error.status_code, headers)


async def _answer_error(_request: Request, error: HTTPException) -> Response:
    return error_response(error)


def _message(data: str) -> dict[str, Any]:
    try:
        message = json.loads(data)
        if not isinstance(message, dict):
            raise TypeError(f"got {type(message).__name__}")  # noqa: TRY301 - handled below like the others
        for position, call in enumerate(message.get("tool_calls") or ()):
            call.setdefault("index", position)
            ToolCall(**call)
        stock.ChoiceDelta(**{key: message[key] for key in message if key != "tool_calls"})
        figures_of(message)
    except (ValueError, TypeError, AttributeError) as error:
        logger.exception("encode_response gives OpenAISpec chat messages, got %.80r", data)
        raise FailedError(UNKNOWN) from error
    return message


def _event(data: str) -> str:
    return f"data: {data}\n\n"
