"""onnxruntime-genai in two ways: its `Engine` under a batcher, and its `Generator` as a source.

    python examples/engines/onnxruntime_engine.py

It needs `pip install onnxruntime-genai onnx`. The engine lets requests join and leave at any step.
The generator takes one batch whose prompts are padded on the right, and computes every row to the
end of the batch: take it where there is no engine for your model.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime_genai as genai
import tiny_models

from batchstream import (
    BatchedStream,
    ContinuousBatcher,
    End,
    Many,
    NotNow,
    RequestError,
    token_ids,
)

TOKEN, FINISHED, BLOCKED, FAILED = (
    int(getattr(genai.EngineEventFlags, name))
    for name in ("TOKEN", "TURN_FINISHED", "CAPACITY_BLOCKED", "FAILED")
)
REASONS = {genai.FinishReason.EOS: "eos", genai.FinishReason.STOP_STRING: "eos"}


class Request(NamedTuple):
    """What a client asks for."""

    ids: Sequence[int]
    max_new_tokens: int


class OnnxRuntimeEngine:
    """A `StepEngine` of token ids.

    Args:
        model: The model.
        vocabulary: How many tokens it has. A token beyond them breaks the engine for all requests.
    """

    def __init__(self, model: Any, vocabulary: int) -> None:
        self.engine = genai.Engine(model)
        self.buffer = self.engine.create_event_buffer(64)
        self.vocabulary = vocabulary
        self.turns: dict[int, tuple[Any, int]] = {}
        self.slots: dict[Any, int] = {}  # by request
        self.is_full = False

    def add(self, slot: int, request: Request) -> None:
        """Begin a turn; the engine computes the prompt in its next step."""
        if not request.ids or not all(0 <= token < self.vocabulary for token in request.ids):
            raise RequestError(f"a prompt has tokens from 0 to {self.vocabulary - 1}")
        if self.is_full:
            raise NotNow
        turn = self.engine.create_request()
        options = genai.TurnOptions(turn)
        options.set_max_generated_tokens(request.max_new_tokens)
        try:
            number = turn.begin_turn(np.array(request.ids, np.int32), options)
        except RuntimeError as error:  # it is too long for the model
            turn.close()
            raise RequestError(str(error)) from error
        self.turns[slot], self.slots[turn] = (turn, number), slot

    def step(self) -> dict[int, Many[int]]:
        """Make a step; each event of it is of one request."""
        parts: dict[int, list[Any]] = {}
        for event in self.engine.run(self.buffer) or ():
            flags, slot = int(event.flags), self.slots.get(event.request)
            if flags & FAILED:  # the engine is of no more use: the batcher makes another
                raise RuntimeError(f"onnxruntime-genai has failed: {event.error_code}")
            if flags & BLOCKED:  # this request waits inside; let no other join before one leaves
                self.is_full = True
            if slot is not None:  # not the last event of a turn that was cancelled
                part = parts.setdefault(slot, [])
                if flags & TOKEN:
                    part.append(event.token)
                if flags & FINISHED:
                    part.append(End(REASONS.get(event.finish_reason, "length")))
        return {slot: Many(part) for slot, part in parts.items()}

    def remove(self, slot: int) -> None:
        """Cancel the turn if it still runs, and free its part of the cache."""
        turn, number = self.turns.pop(slot)
        del self.slots[turn]
        turn.cancel_turn(number)
        turn.close()
        self.is_full = False

    def close(self) -> None:
        """Free the engine; the model belongs to its owner."""
        del self.buffer, self.engine


def generate(
    model: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int
) -> Iterator[list[int]]:
    """Yield a step for each token of a batch, by a `Generator`.

    Rows that have ended go on with padding, and rows that were left are computed like the others.
    """
    width = max(map(len, prompts))
    ids = np.full((len(prompts), width), tiny_models.PAD, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt  # on the left, with the padding on the right
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=width + max_new_tokens, batch_size=len(prompts))
    generator = genai.Generator(model, params)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
        yield generator.get_next_tokens().tolist()


def main() -> None:
    """Let six requests share three slots; one of them leaves. Then make three a batch."""
    requests = [Request([5 + n] * (1 + n), 4 + 3 * n) for n in range(5)]
    with tempfile.TemporaryDirectory() as folder:
        model = genai.Model(str(tiny_models.for_onnxruntime(Path(folder))))
    with ContinuousBatcher[Request, int](
        lambda: OnnxRuntimeEngine(model, tiny_models.VOCABULARY), max_batch_size=3
    ) as batcher:
        leaving = batcher.stream(Request([4], 400))
        streams = [batcher.stream(request) for request in requests]
        next(leaving)
        leaving.cancel()  # its client has left
        for request, stream in zip(requests, streams, strict=True):
            print(f"{list(request.ids)}: {list(stream)} ({stream.finish_reason})")

    prompts = [request.ids for request in requests[:3]]
    ends = {"is_eos": token_ids(tiny_models.EOS), "max_outputs": 6}
    source = generate(model, prompts, max_new_tokens=6)
    with BatchedStream(source, size=len(prompts), **ends) as batch:
        for prompt, stream in zip(prompts, batch, strict=True):
            print(f"{list(prompt)} in a batch: {list(stream)} ({stream.finish_reason})")


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    main()
