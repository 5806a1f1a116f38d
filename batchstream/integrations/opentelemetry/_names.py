"""Names of the conventions, version 0.1.0, and what spans and metrics both say by them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import batchstream
from batchstream._core.arguments import check_name
from batchstream._core.errors import type_name

if TYPE_CHECKING:
    from batchstream import StreamEnd

SCOPE: Final = "batchstream"
VERSION: Final = batchstream.__version__

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
MODEL: Final = "gen_ai.request.model"
MAX_TOKENS: Final = "gen_ai.request.max_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
ERROR_TYPE: Final = "error.type"

REQUEST_DURATION: Final = "gen_ai.server.request.duration"
TIME_TO_FIRST: Final = "gen_ai.server.time_to_first_token"
TIME_PER_OUTPUT: Final = "gen_ai.server.time_per_output_token"

# Of our own, where the conventions have none.
BATCHER: Final = "batchstream.batcher"
REQUEST_ID: Final = "batchstream.request.id"
BATCH_SIZE: Final = "batchstream.batch.size"
REASON: Final = "batchstream.reason"
JOINED: Final = "batchstream.joined"
FIRST_OUTPUT: Final = "batchstream.first_output"
REQUEUED: Final = "batchstream.requeued"
WAITING: Final = "batchstream.requests.waiting"
RUNNING: Final = "batchstream.requests.running"
REFUSED: Final = "batchstream.requests.refused"

FINISH_REASON_OF: Final = {
    batchstream.FinishReason.EOS: "stop",
    batchstream.FinishReason.EXHAUSTED: "stop",
    batchstream.FinishReason.LENGTH: "length",
    batchstream.FinishReason.CANCELLED: "cancelled",
    batchstream.FinishReason.ERROR: "error",
}
"""The conventions leave the words to the provider; these are OpenAI's, as far as it has any."""


class Operation:
    """What a batcher does, as the conventions want to be told in each span and each metric.

    Args:
        operation: What is done for a request.
        model: The model; None for the name of the batcher.
        provider: What serves it.

    Raises:
        TypeError, ValueError: An argument is no string, or empty.
    """

    def __init__(self, operation: str, model: str | None, provider: str) -> None:
        self.name = check_name("operation", operation)
        self._model = None if model is None else check_name("model", model)
        self._provider = check_name("provider", provider)

    def model(self, batcher: str) -> str:
        """Return the name of the model that a batcher runs."""
        return batcher if self._model is None else self._model

    def attributes(self, batcher: str) -> dict[str, Any]:
        """Return the attributes that all spans and metrics of a batcher have."""
        return {
            OPERATION: self.name,
            PROVIDER: self._provider,
            MODEL: self.model(batcher),
            BATCHER: batcher,
        }


def error_type(end: StreamEnd) -> str | None:
    """Return what the conventions call the error of an end, if it is one."""
    if end.error is None:
        return "_OTHER" if end.reason == batchstream.FinishReason.ERROR else None
    return type_name(end.error)
