"""What a client asks for: LitServe's request, widened to everything that OpenAI's own server takes.

Fields without a declaration are kept: they are attributes of their object, and the context has such
fields of the request as well. A text is no number, and neither is a boolean: what OpenAI's server
refuses must not become something else on the way.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

import litserve.specs.openai as stock
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    StrictBool,
    StrictFloat,
    StrictInt,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from batchstream.integrations.litserve._openai.faults import COMBINATION

_LARGEST_N: Final = 128  # as with OpenAI's own API
_KEEP_ALL: Final = ConfigDict(extra="allow")

ReasoningEffort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
TokenLimit: TypeAlias = Annotated[StrictInt, Field(ge=1)]
Role: TypeAlias = Literal["developer", "system", "user", "assistant", "tool", "function"]


class Named(BaseModel):
    """A function or a custom tool, by name."""

    model_config = _KEEP_ALL
    name: str


# ---- messages


class OtherPart(BaseModel):
    """A part of a message's content that LitServe has no class for, such as a file."""

    model_config = _KEEP_ALL
    type: str


def _kind_of_part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return kind if kind in {"text", "image_url", "input_audio"} else "other"


ContentPart: TypeAlias = Annotated[
    Annotated[stock.TextContent, Tag("text")]
    | Annotated[stock.ImageContent, Tag("image_url")]
    | Annotated[stock.AudioContent, Tag("input_audio")]
    | Annotated[OtherPart, Tag("other")],
    Discriminator(_kind_of_part),
]


class ToolCall(stock.ToolCall):
    """A call of a function in an earlier answer."""

    index: StrictInt = 0


class CustomToolCall(BaseModel):
    """A call of a custom tool in an earlier answer."""

    model_config = _KEEP_ALL
    type: Literal["custom"]
    custom: Named


class ChatMessage(stock.ChatMessage):
    """A message of the conversation."""

    model_config = _KEEP_ALL
    role: Role
    content: str | list[ContentPart] | None = None  # type: ignore[assignment]  # wider
    tool_calls: list[ToolCall | CustomToolCall] | None = None  # type: ignore[assignment]


# ---- tools


class Function(stock.Function):
    """A function that the model may call; only its name is required."""

    model_config = _KEEP_ALL
    description: str = ""
    parameters: dict[str, object] = Field(default_factory=dict)


class Tool(stock.Tool):
    """A function as a tool."""

    model_config = _KEEP_ALL
    function: Function


class CustomTool(BaseModel):
    """A custom tool."""

    model_config = _KEEP_ALL
    type: Literal["custom"]
    custom: Named


class ToolChoice(StrEnum):
    """Whether the model may, or has to, call a tool."""

    auto = "auto"
    none = "none"
    any = "any"  # LitServe's word for "required"
    required = "required"


class FunctionChoice(BaseModel):
    """The model has to call this function."""

    type: Literal["function"]
    function: Named


class CustomToolChoice(BaseModel):
    """The model has to call this custom tool."""

    type: Literal["custom"]
    custom: Named


class AllowedTools(BaseModel):
    """The tools that the model may call, or of which it has to call one."""

    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class AllowedToolsChoice(BaseModel):
    """The model may call some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


NamedToolChoice: TypeAlias = Annotated[
    FunctionChoice | CustomToolChoice | AllowedToolsChoice, Field(discriminator="type")
]


# ---- the form of the answer


class JSONSchema(stock.JSONSchema):
    """The schema that an answer keeps to."""

    strict: StrictBool | None = False


class ResponseFormatJSONSchema(stock.ResponseFormatJSONSchema):
    """The answer is JSON that keeps to a schema."""

    json_schema: JSONSchema


ResponseFormat: TypeAlias = Annotated[
    stock.ResponseFormatText | stock.ResponseFormatJSONObject | ResponseFormatJSONSchema,
    Field(discriminator="type"),
]


# ---- the request


class StreamOptions(BaseModel):
    """What a client may ask of a stream."""

    model_config = _KEEP_ALL
    include_usage: StrictBool | None = False


class ChatCompletionRequest(stock.ChatCompletionRequest):
    """What a client of OpenAI's interface asks for.

    It is LitServe's request, widened to everything that OpenAI's own server takes. Fields that it
    does not declare, such as `seed` or one of your own, are in the `context` of the hooks too. To
    declare and check fields of your own, derive from it and pass the class to `OpenAISpec`:

        class Request(ChatCompletionRequest):
            top_k: int = Field(50, ge=1)

        spec = OpenAISpec(request_type=Request)

    A request that does not fit is answered with status 400, in OpenAI's words. `max_tokens` and its
    newer name, `max_completion_tokens`, have the same value, whichever the client has sent; a
    request with both is refused. Each of the `n` choices is a request of its own, with `n` of 1,
    whose `choice_index` is in the context.
    """

    model_config = _KEEP_ALL

    messages: list[ChatMessage] = Field(min_length=1)  # type: ignore[assignment]  # wider
    n: StrictInt | None = Field(1, ge=1, le=_LARGEST_N)
    temperature: StrictFloat | None = Field(0.7, ge=0, le=2)
    top_p: StrictFloat | None = Field(1.0, ge=0, le=1)
    presence_penalty: StrictFloat | None = Field(0.0, ge=-2, le=2)
    frequency_penalty: StrictFloat | None = Field(0.0, ge=-2, le=2)
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    tools: list[Annotated[Tool | CustomTool, Field(discriminator="type")]] | None = None  # type: ignore[assignment]
    tool_choice: ToolChoice | NamedToolChoice | None = ToolChoice.auto  # type: ignore[assignment]
    response_format: ResponseFormat | None = None
    reasoning_effort: ReasoningEffort | None = None  # type: ignore[assignment]
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = Field(None, ge=0, le=20)
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    _choice_index: int = PrivateAttr(0)

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        for name, needed in _ONLY_WITH.items():
            if getattr(self, name) is not None and not getattr(self, needed):
                raise _refused(
                    f"The '{name}' parameter is only allowed when '{needed}' is enabled.", name
                )
        if "tool_choice" in self.model_fields_set and self.tool_choice and self.tools is None:
            raise _refused(
                "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are "
                "specified.",
                "tool_choice",
            )
        return self

    @model_validator(mode="after")
    def _give_both_limits_one_value(self) -> Self:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None:
            raise _refused(
                "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not "
                "supported.",
                "max_tokens",
                "invalid_parameter_combination",
            )
        self.max_tokens = self.max_completion_tokens = new if old is None else old
        return self


def choices_of(request: ChatCompletionRequest) -> list[ChatCompletionRequest]:
    """Return a request for each of the choices that are asked for."""
    choices = [request.model_copy(update={"n": 1}) for _ in range(request.n or 1)]
    for index, choice in enumerate(choices):
        choice._choice_index = index  # noqa: SLF001 - no field: a client could set that
    return choices


def choice_index_of(request: ChatCompletionRequest) -> int:
    """Return which of the choices a request is for."""
    return request._choice_index  # noqa: SLF001


_ONLY_WITH: Final = {"top_logprobs": "logprobs", "stream_options": "stream"}


def _refused(message: Any, param: str, code: str | None = None) -> PydanticCustomError:
    """Return the error for a request whose parameters do not go together."""
    return PydanticCustomError(COMBINATION, message, {"param": param, "code": code})
