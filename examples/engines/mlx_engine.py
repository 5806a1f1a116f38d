"""mlx-lm's `BatchGenerator` under a `ContinuousBatcher`.

    python examples/engines/mlx_engine.py

It needs `pip install mlx-lm`, and on Linux `mlx[cpu]`. The generator takes prompts at any time,
computes them in pieces between the steps of the others, and drops each row with its end.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import tiny_models

from batchstream import ContinuousBatcher, End, Last, RequestError


class Request(NamedTuple):
    """What a client asks for."""

    ids: Sequence[int]
    max_new_tokens: int


class MLXEngine:
    """A `StepEngine` of token ids.

    Args:
        generator: A `BatchGenerator` with its `stop_tokens`; nothing else inserts into it. Make it
            in the batcher's thread, by a factory: what MLX has begun in a thread stays there.
        vocabulary: How many tokens the model has. MLX does not look whether it has a token.
    """

    def __init__(self, generator: Any, vocabulary: int) -> None:
        self.generator = generator
        self.vocabulary = vocabulary
        self.numbers: dict[int, int] = {}  # by slot
        self.slots: dict[int, int] = {}  # by the generator's number

    def add(self, slot: int, request: Request) -> None:
        """Queue the prompt."""
        if not request.ids or not all(0 <= token < self.vocabulary for token in request.ids):
            raise RequestError(f"a prompt has tokens from 0 to {self.vocabulary - 1}")
        [number] = self.generator.insert([list(request.ids)], [request.max_new_tokens])
        self.numbers[slot], self.slots[number] = number, slot

    def step(self) -> dict[int, int | Last[int] | End]:
        """Make a step, and compute a piece of the prompts that wait."""
        _, responses = self.generator.next()
        return {self.slots[response.uid]: read(response) for response in responses}

    def remove(self, slot: int) -> None:
        """Drop a row from the cache, or a prompt from the queue."""
        number = self.numbers.pop(slot)
        del self.slots[number]
        self.generator.remove([number])  # one that has reached its end is not there any more

    def close(self) -> None:
        """Give back the memory that the generator has wired."""
        self.generator.close()


def read(response: Any) -> int | Last[int] | End:
    """Return what a request is given."""
    if response.finish_reason == "stop":
        return End("eos")  # the token is the one that it stops at
    if response.finish_reason == "length":
        return Last(response.token, "length")
    return int(response.token)


def make_engine() -> MLXEngine:
    """Make a model and an engine for it."""
    from mlx_lm.generate import BatchGenerator  # noqa: PLC0415 - the adapter needs nothing of it

    model = tiny_models.for_mlx()
    generator = BatchGenerator(model, stop_tokens=[[tiny_models.EOS]], prefill_step_size=4)
    return MLXEngine(generator, tiny_models.VOCABULARY)


def main() -> None:
    """Let six requests share three slots; one of them leaves."""
    with ContinuousBatcher[Request, int](make_engine, max_batch_size=3) as batcher:
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
