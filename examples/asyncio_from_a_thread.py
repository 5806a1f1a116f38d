"""A model that computes in a thread, and clients in asyncio, one of which cancels early.

    python examples/asyncio_from_a_thread.py

The model is ordinary blocking code, as code for a GPU is. It runs in a thread of its own, so that
the event loop stays free. Four clients share its batch. Each is through at its own step, and the
model leaves out the work for clients that have finished or cancelled.
"""

import argparse
import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator

from batchstream import AsyncBatchedStream, AsyncStream, token_ids

LENGTHS = [3, 40, 5, 8]  # how many tokens the model has to say to each prompt
IMPATIENT = 1  # this client cancels ...
PATIENCE = 2  # ... after so many tokens
MAX_BUFFERED = 4

END = 0  # the token that ends a sequence
VOCABULARY = 16
WIDTH = 24


class Model:
    """A recurrent network with random weights, which records the slots it worked for."""

    def __init__(self, seed: int) -> None:
        weights = random.Random(seed)
        self.weights = [[weights.uniform(-1, 1) for _ in range(WIDTH)] for _ in range(WIDTH)]
        self.work: Counter[int] = Counter()
        self.steps = 0
        self.thread = ""

    def generate(self, lengths: list[int]) -> Iterator[dict[int, int]]:
        """Yield one token for each live slot, until there is none."""
        states = [[1.0 + slot] * WIDTH for slot in range(len(lengths))]
        live: tuple[int, ...] = tuple(range(len(lengths)))
        while True:
            self.thread = threading.current_thread().name
            step = {}
            for slot in live:
                states[slot] = self.advance(states[slot])
                step[slot] = END if self.work[slot] == lengths[slot] else read_out(states[slot])
                self.work[slot] += 1
            self.steps += 1
            live = yield step

    def advance(self, state: list[float]) -> list[float]:
        """Multiply the weights with the state, and keep it small."""
        return [sum(w * x for w, x in zip(row, state, strict=True)) % 1 for row in self.weights]


def read_out(state: list[float]) -> int:
    """Make a token of a state; never the one that ends a sequence."""
    return 1 + int(sum(state) * 1_000) % (VOCABULARY - 1)


async def client(stream: AsyncStream[int], patience: int | None) -> list[int]:
    """Receive tokens until they end, or for as long as one has patience."""
    tokens = []
    async for token in stream:
        tokens.append(token)
        if len(tokens) == patience:
            stream.cancel()  # the batch holds the stream, so leaving the loop is not enough
            break
    return tokens


async def main() -> None:
    """Serve all clients at once, and tell how it went."""
    model = Model(seed=7)
    source = model.generate(LENGTHS)
    async with AsyncBatchedStream[int](
        source, size=len(LENGTHS), is_eos=token_ids(END), max_buffered=MAX_BUFFERED
    ) as batch:
        patience = {IMPATIENT: PATIENCE}
        async with asyncio.TaskGroup() as group:
            clients = [
                group.create_task(client(stream, patience.get(stream.slot))) for stream in batch
            ]

        for stream, task in zip(batch, clients, strict=True):
            line = f"client {stream.slot}: {len(task.result())} tokens"
            if stream.finish_reason == "eos":
                print(f"{line}, ended in step {stream.end.outputs}")
            else:
                print(f"{line}, then it gave up ({stream.finish_reason})")

    worked = model.work[IMPATIENT]
    print(f"model: {model.steps} steps in the thread {model.thread!r}")
    print(f"model: worked for client {IMPATIENT} in {worked} of {LENGTHS[IMPATIENT] + 1} steps")


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    asyncio.run(main())
