"""In the server process: what a client of the OpenAI endpoint gets, as events or as a whole."""

from __future__ import annotations

import json
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

import litserve.specs.openai as stock
from fastapi import HTTPException
from fastapi.responses import JSONResponse

from batchstream import FinishReason
from batchstream.integrations._response import Body, StreamResponse
from batchstream.integrations.litserve._exchange import FailedError
from batchstream.integrations.litserve._messages import UNKNOWN

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Scope

    from batchstream.integrations._response import Handler
    from batchstream.integrations.litserve._exchange import Answers, Inbox

_FINISH_REASONS: Final = ("stop", "length", "tool_calls", "content_filter", "function_call")
_FIRST_STATUS_OF_SERVERS: Final = 500

logger = logging.getLogger("batchstream.integrations.litserve")


class Choice:
    """One of the choices that a client has asked for, as far as it has come.

    Attributes:
        index: Which one.
        messages: All that have been taken.
    """

    def __init__(self, index: int, inbox: Inbox) -> None:
        self.index = index
        self.messages: list[dict[str, Any]] = []
        self._inbox = inbox
        self._info: dict[str, Any] = {}

    @property
    def over(self) -> bool:
        """Whether all messages have been taken."""
        return self._inbox.over

    def take(self) -> list[dict[str, Any]]:
        """Take the messages that have come.

        Raises:
            FailedError: The request has failed, or its messages are none.
        """
        messages = [_message(data) for data in self._inbox.take()]
        self.messages += messages
        if self._inbox.end is not None:
            self._info = self._inbox.end.info
        return messages

    @property
    def finish_reason(self) -> str:
        """Why it has ended, in OpenAI's words."""
        said = self._info.get("finish_reason")
        if said in _FINISH_REASONS:
            return str(said)
        if any(message.get("tool_calls") for message in self.messages):
            return "tool_calls"
        end = self._inbox.end
        return "length" if end is not None and end.reason == FinishReason.LENGTH else "stop"

    @property
    def usage(self) -> stock.UsageInfo:
        """What the model says that it has used."""
        told = [*self.messages, self._info]
        prompt, completion, total = (
            sum(figures.get(name) or 0 for figures in told)
            for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        )
        return stock.UsageInfo(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=total or prompt + completion,
        )


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

    def _usage(self) -> stock.UsageInfo:
        usages = [choice.usage for choice in self._choices]
        return stock.UsageInfo(
            prompt_tokens=sum(usage.prompt_tokens for usage in usages),
            completion_tokens=sum(usage.completion_tokens or 0 for usage in usages),
            total_tokens=sum(usage.total_tokens for usage in usages),
        )


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
                events.append(_event(json.dumps(error_of(error))))
                break
            if not events:
                await self._answers.wait()
        self._begun = True
        return "".join(events).encode()

    def _news_of(self, choice: Choice) -> list[str]:
        events = [
            self._chunk(choice.index, stock.ChoiceDelta(**message)) for message in choice.take()
        ]
        if choice.over:
            self._going_on.remove(choice)
            self._ended = not self._going_on
            events += self._end_of(choice)
        return events

    def _end_of(self, choice: Choice) -> list[str]:
        delta, reason = stock.ChoiceDelta(), choice.finish_reason
        if not self._ended:
            return [self._chunk(choice.index, delta, reason)]
        usage = self._usage()
        if self._include_usage:
            last = stock.ChatCompletionChunk(**self._head, choices=[], usage=usage)
            return [self._chunk(choice.index, delta, reason), _json_event(last), _event("[DONE]")]
        told = usage if usage.total_tokens else None
        return [self._chunk(choice.index, delta, reason, told), _event("[DONE]")]

    def _chunk(
        self,
        index: int,
        delta: stock.ChoiceDelta,
        finish_reason: str | None = None,
        usage: stock.UsageInfo | None = None,
    ) -> str:
        choice = stock.ChatCompletionStreamingChoice(
            index=index,
            delta=delta,
            finish_reason=finish_reason,  # type: ignore[arg-type]  # one of those
        )
        return _json_event(stock.ChatCompletionChunk(**self._head, choices=[choice], usage=usage))


class MessageBody(CompletionBody):
    """The whole completion, when all of its choices have ended."""

    media_type = "application/json"

    async def _next(self) -> bytes | None:
        if self._ended:
            return None
        while True:
            for choice in self._choices:
                while choice.take():  # behind outputs there may be a failure
                    pass
            if all(choice.over for choice in self._choices):
                break
            await self._answers.wait()
        self._ended = True
        completion = {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(choice) for choice in self._choices],
            "usage": self._usage().model_dump(),
        }
        return json.dumps(completion).encode()

    def _choice(self, choice: Choice) -> dict[str, Any]:
        texts = [message.get("content") for message in choice.messages]
        calls = [message["tool_calls"] for message in choice.messages if message.get("tool_calls")]
        message = stock.ChatMessage(
            role="assistant",
            content="".join(text for text in texts if text is not None),
            tool_calls=calls[-1] if calls else None,
        )
        return {
            "index": choice.index,
            "message": message.model_dump(),
            "finish_reason": choice.finish_reason,
        }


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


def error_response(error: HTTPException) -> JSONResponse:
    """Return the answer to an error from before there was anything else to send."""
    headers = None if error.headers is None else dict(error.headers)
    return JSONResponse(error_of(error), error.status_code, headers)


async def _answer_error(_request: Request, error: HTTPException) -> Response:
    return error_response(error)


def _message(data: str) -> dict[str, Any]:
    try:
        message = json.loads(data)
        stock.ChoiceDelta(**message)
    except (ValueError, TypeError) as error:
        logger.exception("encode_response gives OpenAISpec chat messages, got %.80r", data)
        raise FailedError(UNKNOWN) from error
    return message  # type: ignore[no-any-return]


def _json_event(chunk: stock.ChatCompletionChunk) -> str:
    return _event(chunk.model_dump_json(by_alias=True))


def _event(data: str) -> str:
    return f"data: {data}\n\n"
