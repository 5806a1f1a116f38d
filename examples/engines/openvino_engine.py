"""OpenVINO GenAI under a `ContinuousBatcher`: its pipeline joins and leaves requests by itself.

    python examples/engines/openvino_engine.py

It needs `pip install openvino-genai gguf`. The pipeline has a paged cache: what does not fit waits
inside, or is preempted and computed again, and its stream just pauses. So the adapter never says
`NotNow`.
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino
import openvino_genai as genai
import tiny_models

from batchstream import ContinuousBatcher, End, Fail, Last, Many, RequestError

REASONS = {genai.GenerationFinishReason.STOP: "eos", genai.GenerationFinishReason.LENGTH: "length"}


class Request(NamedTuple):
    """What a client asks for."""

    ids: Sequence[int]
    max_new_tokens: int


class OpenVINOEngine:
    """A `StepEngine` of token ids.

    Args:
        pipeline: The pipeline; nothing else adds requests to it.
        vocabulary: How many tokens the model has. The pipeline does not look: it reads beyond the
            table, and goes on with what it finds there.
    """

    def __init__(self, pipeline: Any, vocabulary: int) -> None:
        self.pipeline = pipeline
        self.vocabulary = vocabulary
        self.handles: dict[int, Any] = {}
        self.numbers = itertools.count()

    def add(self, slot: int, request: Request) -> None:
        """Queue the prompt; the pipeline computes it in its next steps."""
        if not request.ids or not all(0 <= token < self.vocabulary for token in request.ids):
            raise RequestError(f"a prompt has tokens from 0 to {self.vocabulary - 1}")
        config = self.pipeline.get_config()
        config.max_new_tokens = request.max_new_tokens
        ids = openvino.Tensor(np.array([request.ids], np.int64))
        self.handles[slot] = self.pipeline.add_request(next(self.numbers), ids, config)

    def step(self) -> dict[int, Any]:
        """Let the pipeline make a step, and read what it has for each request."""
        self.pipeline.step()
        return {slot: self.read(handle) for slot, handle in self.handles.items()}

    def read(self, handle: Any) -> Many[int] | Fail:
        """Return the new tokens of a request: none while it is preempted."""
        ids: list[Any] = []
        while handle.can_read():
            for output in handle.read().values():  # nothing if it was ignored
                ids += output.generated_ids
                if reason := REASONS.get(output.finish_reason):
                    last = ids.pop()
                    ids.append(End("eos") if reason == "eos" else Last(last, reason))
        if handle.get_status() == genai.GenerationStatus.IGNORED:
            return Fail(RequestError("the request alone is more than the cache holds"))
        return Many(ids)

    def remove(self, slot: int) -> None:
        """Free the blocks of a request, or leave the pipeline's queue."""
        self.handles.pop(slot).cancel()

    def close(self) -> None:
        """Free the model and the cache."""
        del self.pipeline


def open_pipeline(path: Path, **scheduling: Any) -> Any:
    """Load a model, with options of `SchedulerConfig`."""
    config = genai.SchedulerConfig()
    for name, value in scheduling.items():
        setattr(config, name, value)
    # By default a CPU computes in half precision and keeps the cache in 8 bits.
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    return genai.ContinuousBatchingPipeline(path, config, "CPU", exact)


def main() -> None:
    """Let six requests share three slots; one of them leaves."""
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_models.as_gguf(Path(folder) / "tiny.gguf")
        with ContinuousBatcher[Request, int](
            lambda: OpenVINOEngine(open_pipeline(path), tiny_models.VOCABULARY), max_batch_size=3
        ) as batcher:
            requests = [Request([5 + n] * (1 + n), 4 + 3 * n) for n in range(5)]
            leaving = batcher.stream(Request([4], 400))
            streams = [batcher.stream(request) for request in requests]
            next(leaving)
            leaving.cancel()  # its client has left
            for request, stream in zip(requests, streams, strict=True):
                print(f"{list(request.ids)}: {list(stream)} ({stream.finish_reason})")


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    main()
