"""What a client asks for: LitServe's request, widened to everything that OpenAI's own server takes.

Fields without a declaration are kept: they are attributes of their object, and those of the request
are in the context as well.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

import litserve.specs.openai as stock
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

_LARGEST_N: Final = 128  # as with OpenAI's own API
_KEEP_ALL: Final = ConfigDict(extra="allow")

ReasoningEffort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
TokenLimit: TypeAlias = Annotated[int, Field(ge=1)]


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


class CustomToolCall(BaseModel):
    """A call of a custom tool in an earlier answer."""

    model_config = _KEEP_ALL
    type: Literal["custom"]
    custom: Named


class ChatMessage(stock.ChatMessage):
    """A message of the conversation."""

    model_config = _KEEP_ALL
    content: str | list[ContentPart] | None = None  # type: ignore[assignment]  # wider
    tool_calls: list[stock.ToolCall | CustomToolCall] | None = None  # type: ignore[assignment]


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


# ---- the request


class StreamOptions(BaseModel):
    """What a client may ask of a stream."""

    model_config = _KEEP_ALL
    include_usage: bool | None = False


class ChatCompletionRequest(stock.ChatCompletionRequest):
    """What a client of OpenAI's interface asks for.

    It is LitServe's request, widened to everything that OpenAI's own server takes. Fields that it
    does not declare, such as `seed` or one of your own, are in the `context` of the hooks too. To
    declare and check fields of your own, derive from it and pass the class to `OpenAISpec`:

        class Request(ChatCompletionRequest):
            top_k: int = Field(50, ge=1)

        spec = OpenAISpec(request_type=Request)

    A request that does not fit is answered with status 400. `max_tokens` and its newer name,
    `max_completion_tokens`, have the same value, whichever the client has sent.
    """

    model_config = _KEEP_ALL

    messages: list[ChatMessage] = Field(min_length=1)  # type: ignore[assignment]  # wider
    n: int | None = Field(1, ge=1, le=_LARGEST_N)
    temperature: float | None = Field(0.7, ge=0, le=2)
    top_p: float | None = Field(1.0, ge=0, le=1)
    presence_penalty: float | None = Field(0.0, ge=-2, le=2)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2)
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    tools: list[Annotated[Tool | CustomTool, Field(discriminator="type")]] | None = None  # type: ignore[assignment]
    tool_choice: ToolChoice | NamedToolChoice | None = ToolChoice.auto  # type: ignore[assignment]
    reasoning_effort: ReasoningEffort | None = None  # type: ignore[assignment]
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _give_both_limits_one_value(self) -> Self:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise ValueError(
                f"max_tokens and max_completion_tokens are two names of one limit: send one of "
                f"them, got {old} and {new}"
            )
        self.max_tokens = self.max_completion_tokens = new if old is None else old
        return self
