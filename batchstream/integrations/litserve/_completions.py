"""In the server process: what a client of the OpenAI endpoint gets, as events or as a whole."""

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
from batchstream.integrations._http import Body, StreamResponse
from batchstream.integrations.litserve._exchange import FailedError
from batchstream.integrations.litserve._log import logger
from batchstream.integrations.litserve._messages import UNKNOWN, Ending

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.requests import Request
    from starlette.types import Scope

    from batchstream.integrations._http import Handler
    from batchstream.integrations.litserve._exchange import Answers, Inbox

_FINISH_REASONS: Final = ("stop", "length", "tool_calls", "content_filter", "function_call")
_USAGE: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_FIRST_STATUS_OF_SERVERS: Final = 500
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode
_WITHOUT_BODY: Final = (204, 304)


class Function(BaseModel):
    """A piece of what a tool is called with. LitServe's own model asks each for a name."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(BaseModel):
    """A piece of a call for a tool, of which the model has told the number."""

    index: int
    id: str | None = None
    type: str | None = None
    function: Function | None = None


class Choice:
    """One of the choices that a client has asked for, as far as it has come.

    Attributes:
        index: Which one.
    """

    def __init__(self, index: int, inbox: Inbox) -> None:
        self.index = index
        self._inbox = inbox
        self._unread: deque[str] = deque()
        self._calls: dict[int, int] = {}  # the model's number of a call: ours
        self._call_ids: set[str | None] = set()
        self._used: dict[str, int] = {}

    @property
    def over(self) -> bool:
        """Whether all messages have been taken."""
        return self._inbox.over and not self._unread

    def take(self) -> list[dict[str, Any]]:
        """Take the messages that have come.

        Raises:
            FailedError: The request has failed, or a message is none; all before it were taken.
        """
        messages: list[dict[str, Any]] = []
        if not self._unread:
            self._unread.extend(self._inbox.take())
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
        """Give a piece of a call the number of its call: an id that was not told begins another."""
        name, number = call.get("id"), call["index"]
        if number not in self._calls or (name and name not in self._call_ids):
            self._calls[number] = len(self._call_ids)
            self._call_ids.add(name or f"call {len(self._call_ids)}")
            call.setdefault("type", "function")
        call["index"] = self._calls[number]

    @property
    def used(self) -> dict[str, int]:
        """What the model tells of tokens, by name: with its messages, or better with its end."""
        return self._used if self._inbox.end is None else self._used | self._told_at_the_end()

    def _told_at_the_end(self) -> dict[str, int]:
        try:
            return figures_of({} if self._inbox.end is None else self._inbox.end.info)
        except ValueError as error:
            logger.exception("the info of an end tells numbers of tokens")
            raise FailedError(UNKNOWN) from error

    @property
    def finish_reason(self) -> str:
        """Why it has ended, in OpenAI's words."""
        end = self._inbox.end or Ending("eos", {})
        said = end.info.get("finish_reason")
        if said in _FINISH_REASONS:
            return str(said)
        if end.reason == FinishReason.LENGTH:  # in the midst of a call for a tool, perhaps
            return "length"
        return "tool_calls" if self._calls else "stop"


def figures_of(told: dict[str, Any]) -> dict[str, int]:
    """Return what a message, or the information on an end, tells of tokens."""
    figures = {name: told[name] for name in _USAGE if told.get(name) is not None}
    return stock.UsageInfo(**figures).model_dump(include=set(figures))


def usage_of(choices: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the figures of all choices together."""
    usage = dict.fromkeys(_USAGE, 0)
    for used in choices:
        parts = used.get("prompt_tokens", 0) + used.get("completion_tokens", 0)
        for name, figure in (used | {"total_tokens": used.get("total_tokens") or parts}).items():
            usage[name] += figure
    return usage


class CompletionBody(Body):
    """What goes to a client, and comes from the workers.

    Args:
        answers: From the workers, an inbox for each choice.
        model: The name that the client has given the model.
    """

    media_type: str

    def __init__(self, answers: Answers, model: str) -> None:
        super().__init__()
        self._answers = answers
        self._choices = [Choice(index, inbox) for index, inbox in enumerate(answers.inboxes)]
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._ended = False

    def cancel(self) -> None:
        """Tell the workers that nobody reads it any more."""
        self._answers.close()


class EventsBody(CompletionBody):
    """Chunks as they come, as server-sent events.

    Args:
        answers: From the workers.
        model: The name of the model.
        include_usage: Whether the client wants usage in a chunk of its own.
    """

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, model: str, *, include_usage: bool) -> None:
        super().__init__(answers, model)
        self._include_usage = include_usage
        self._begun = False
        self._going_on = list(self._choices)

    async def _next(self) -> bytes | None:
        if self._ended:
            return None
        events: list[str] = []
        while not events:
            try:
                for choice in tuple(self._going_on):
                    events += self._news_of(choice)
            except FailedError as error:
                if not self._begun and not events:
                    raise
                self._ended = True
                self._answers.close()
                events.append(_event(_to_json(error_of(error))))
                break
            if not events:
                await self._answers.wait()
        self._begun = True
        return "".join(events).encode()

    def _news_of(self, choice: Choice) -> list[str]:
        events = [
            self._chunk(choice.index, {key: message[key] for key in message if key not in _USAGE})
            for message in choice.take()
        ]
        if choice.over:
            self._going_on.remove(choice)
            self._ended = not self._going_on
            events += self._end_of(choice)
        return events

    def _end_of(self, choice: Choice) -> list[str]:
        if not self._ended:
            return [self._chunk(choice.index, {}, choice.finish_reason)]
        usage = usage_of(choice.used for choice in self._choices)
        if self._include_usage:
            last = self._chunk(choice.index, {}, choice.finish_reason)
            return [last, self._event([], usage), _event("[DONE]")]
        told = usage if any(usage.values()) else None
        last = self._chunk(choice.index, {}, choice.finish_reason, told)
        return [last, _event("[DONE]")]

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        usage: dict[str, int] | None = None,
    ) -> str:
        choice = {
            "index": index,
            "delta": delta,
            "finish_reason": finish_reason,
            "logprobs": None,
        }
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
        wholes = [Whole() for _ in self._choices]
        while True:
            for choice, whole in zip(self._choices, wholes, strict=True):
                while messages := choice.take():  # behind outputs there may be a failure
                    for message in messages:
                        whole.add(message)
            if all(choice.over for choice in self._choices):
                break
            await self._answers.wait()
        self._ended = True
        pairs = list(zip(self._choices, wholes, strict=True))
        choices = [
            {
                "index": choice.index,
                "message": whole.message,
                "finish_reason": choice.finish_reason,
                "logprobs": None,
            }
            for choice, whole in pairs
        ]
        usage = usage_of(choice.used for choice, _ in pairs)
        completion = {"object": "chat.completion", "choices": choices, "usage": usage}
        return _to_json(self._head | completion).encode()


class Whole:
    """The messages of one choice, put together."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}

    def add(self, message: dict[str, Any]) -> None:
        """Add a message behind the others."""
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
        """The one message that they make."""
        calls = [self._calls[index] for index in sorted(self._calls)]
        content = "".join(self._texts)
        return {"role": "assistant", "content": content, "tool_calls": calls or None}


class CompletionResponse(StreamResponse):
    """A response whose errors have the form that OpenAI's clients know."""

    def __init__(self, body: CompletionBody) -> None:
        self.media_type = body.media_type
        super().__init__(body)

    def _handler_of(self, error: Exception, scope: Scope) -> Handler | None:  # noqa: ARG002
        return _answer_error if isinstance(error, HTTPException) else None


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
    """Return the answer to an error from before there was anything else to send."""
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
            raise TypeError(f"got {type(message).__name__}")  # noqa: TRY301 - it ends as the others
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
