"""What the model says, piece by piece, in the form that OpenAI's clients add up.

A whole message is the sum of its deltas. So everything that the two have in common is decided here,
once: the role, the numbers and ids of tool calls, what an empty reply is.
"""

from __future__ import annotations

import json
import uuid
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from batchstream import FinishReason
from batchstream.integrations.litserve._link.messages import UNKNOWN, EndMessage
from batchstream.integrations.litserve._log import logger
from batchstream.integrations.litserve._server.response_queue import FailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchstream.integrations.litserve._server.response_queue import ResponseQueue

USAGE: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
MESSAGE_FIELDS: Final = frozenset(
    {"role", "content", "refusal", "reasoning_content", "reasoning", "audio", *USAGE}
    | {"tool_calls", "function_call", "logprobs"}
)
"""Of these a dict has at least one if it is a piece of a message."""

_FINISH_REASONS: Final = ("stop", "length", "tool_calls", "content_filter", "function_call")
_NOT_IN_DELTA: Final = frozenset({"role", "logprobs", *USAGE})
_REPLACED: Final = ("index", "type")  # the last one holds; everything else is added up


class Figures(BaseModel):
    """Numbers of tokens, in a message or in the info of an end."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class FunctionPiece(BaseModel):
    """A piece of the call of a function."""

    name: str | None = None
    arguments: str | None = None


class ToolCallPiece(BaseModel):
    """A piece of a tool call, with the number that the model has given the call."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: FunctionPiece | None = None


class Logprobs(BaseModel):
    """The log probabilities of the tokens of a piece."""

    content: list[dict[str, Any]] | None = None
    refusal: list[dict[str, Any]] | None = None


class Message(Figures):
    """A piece of a message, as the model gives it; it may have any other field."""

    model_config = ConfigDict(extra="allow")
    role: Literal["developer", "system", "user", "assistant", "tool"] | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallPiece] | None = None
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a message, as clients get it.

    Attributes:
        fields: What is added to the message.
        logprobs: The log probabilities of its tokens.
    """

    fields: dict[str, Any]
    logprobs: dict[str, Any] | None = None


class Choice:
    """One of the choices that a client has asked for, and the deltas of it.

    Attributes:
        index: Its number.
        begun: Whether the first delta has been taken, which has the role.
    """

    def __init__(self, index: int, queue: ResponseQueue) -> None:
        self.index = index
        self.begun = False
        self._queue = queue
        self._unread: deque[str] = deque()
        self._calls = ToolCalls()
        self._used: dict[str, int] = {}
        self._is_empty = True

    @property
    def over(self) -> bool:
        """Whether all deltas have been taken."""
        return self._queue.over and not self._unread

    def begin(self) -> Delta:
        """Return a first delta, where there is nothing to say yet."""
        self.begun = True
        return Delta({"role": "assistant"})

    def take(self) -> list[Delta]:
        """Take the deltas that have come. A reply that was empty gets one of no text at its end.

        Raises:
            FailedError: The request has failed, or a message is invalid; all before it were taken.
        """
        if not self._unread:
            self._unread.extend(self._queue.take())
        deltas: list[Delta] = []
        while self._unread:
            try:
                message = _read(self._unread[0])
            except FailedError:
                if deltas:
                    break
                raise
            self._unread.popleft()
            deltas += self._deltas_of(message)
        if self.over and self._is_empty:
            self.usage()  # if that raises, nothing has been said
            deltas += self._deltas_of({"content": ""})
        return deltas

    def _deltas_of(self, message: dict[str, Any]) -> list[Delta]:
        """Return the delta of a message, which is none if the message says nothing."""
        for name, figure in _figures_of(message).items():
            self._used[name] = self._used.get(name, 0) + figure
        fields = {
            key: value
            for key, value in message.items()
            if value is not None and key not in _NOT_IN_DELTA
        }
        logprobs = message.get("logprobs")
        if calls := fields.pop("tool_calls", None):
            fields["tool_calls"] = self._calls.pieces_of(calls)
        if fields:
            self._is_empty = False
        if logprobs:
            # OpenAI's client takes the logprobs of a first delta twice.
            first = [] if self.begun else [self.begin()]
            return [*first, Delta(fields, {"content": None, "refusal": None} | logprobs)]
        if not self.begun and (fields or message.get("role")):
            fields = self.begin().fields | fields
        return [Delta(fields)] if fields else []

    def usage(self) -> dict[str, int]:
        """Return the numbers of tokens, by name. Figures at the end replace the messages' own.

        Raises:
            FailedError: What the model gave at the end are no numbers.
        """
        if self._queue.end is None:
            return self._used
        try:
            return self._used | _figures_of(self._queue.end.info)
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


class ToolCalls:
    """The tool calls of one choice: what each has got, and which piece belongs to which.

    A call begins with an id that is new, or with a number that is. Its first piece has everything
    that clients need of a call. Of a later one they add up all texts, so that it must not repeat
    the id or the name.
    """

    def __init__(self) -> None:
        self._names: list[str | None] = []  # None for a call of a custom tool
        self._by_id: dict[str, int] = {}
        self._by_number: dict[int, int] = {}  # the model's

    def __bool__(self) -> bool:
        return bool(self._names)

    def pieces_of(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the pieces of calls in a message, with the numbers of their calls."""
        return [self._piece_of(position, call) for position, call in enumerate(calls)]

    def _piece_of(self, position: int, call: dict[str, Any]) -> dict[str, Any]:
        number, call_id = call.get("index"), call.get("id")
        number = position if number is None else number
        piece = {key: value for key, value in call.items() if value is not None}
        index = self._by_id.get(call_id) if call_id else self._by_number.get(number)
        if index is None:
            return self._begin(number, piece)
        self._by_number[number] = index
        for key in ("id", "type"):
            piece.pop(key, None)
        piece["index"] = index
        if (name := self._names[index]) is not None:
            piece["function"] = self._more(index, name, piece.get("function", {}))
        return piece

    def _begin(self, number: int, piece: dict[str, Any]) -> dict[str, Any]:
        index = len(self._names)
        call_id = piece.get("id") or f"call_{uuid.uuid4().hex}"
        self._by_number[number] = self._by_id[call_id] = index
        begun = piece | {"index": index, "id": call_id, "type": piece.get("type", "function")}
        name = None
        if begun["type"] == "function":
            given = {key: text for key, text in piece.get("function", {}).items() if text}
            begun["function"] = {"name": "", "arguments": ""} | given
            name = begun["function"]["name"]
        self._names.append(name)
        return begun

    def _more(self, index: int, name: str, function: dict[str, Any]) -> dict[str, Any]:
        more = {key: value for key, value in function.items() if value is not None}
        more_of_name = more.pop("name", "")
        if more_of_name and more_of_name != name:
            self._names[index] = name + more_of_name
            more["name"] = more_of_name
        return more


# ---- the sum


def sum_of(deltas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that the deltas make, as OpenAI's clients add them up."""
    keys = dict.fromkeys(key for delta in deltas for key in delta)
    return {
        key: _sum(key, [delta[key] for delta in deltas if delta.get(key) is not None])
        for key in keys
    }


def _sum(key: str, values: list[Any]) -> Any:
    if not values:
        return None
    if key not in _REPLACED:
        if all(isinstance(value, str) for value in values):
            return "".join(values)
        if all(isinstance(value, dict) for value in values):
            return sum_of(values)
        if all(isinstance(value, list) for value in values):
            return _sum_of_lists(values)
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return sum(values)
    return values[-1]


def _sum_of_lists(lists: list[list[Any]]) -> list[Any]:
    """Add up the entries that have the same index, or append where they have none."""
    entries = [entry for some in lists for entry in some]
    if not all(isinstance(entry, dict) and "index" in entry for entry in entries):
        return entries
    by_index: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        by_index.setdefault(entry["index"], []).append(entry)
    return [sum_of(by_index[index]) for index in sorted(by_index)]


# ---- usage


def usage_of(choices: Sequence[dict[str, int]]) -> dict[str, int]:
    """Return the figures of a response: all choices answer the same prompt, which counts once."""
    prompt = max(used.get("prompt_tokens", 0) for used in choices)
    completion = sum(used.get("completion_tokens", 0) for used in choices)
    total = prompt
    for used in choices:
        given = used.get("total_tokens")  # the prompt is part of it
        own = used.get("completion_tokens", 0)
        total += given - used.get("prompt_tokens", 0) if given else own
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def _figures_of(source: dict[str, Any]) -> dict[str, int]:
    figures = {name: source[name] for name in USAGE if source.get(name) is not None}
    return Figures(**figures).model_dump(include=set(figures)) if figures else {}


def _read(data: str) -> dict[str, Any]:
    """Return a message that the model has given.

    Raises:
        FailedError: It is none.
    """
    try:
        message = json.loads(data, parse_constant=_finite)
        if not isinstance(message, dict):
            raise TypeError(f"got {type(message).__name__}")  # noqa: TRY301 - handled below like the others
        Message(**message)
    except (ValueError, TypeError) as error:
        logger.exception("encode_response gives OpenAISpec chat messages, got %.80r", data)
        raise FailedError(UNKNOWN) from error
    return message


def _finite(constant: str) -> float:
    # OpenAI has this for a token that is almost impossible, as JSON has no infinity.
    if constant == "-Infinity":
        return -9999.0
    raise ValueError(f"{constant} is no JSON")
