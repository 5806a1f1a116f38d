"""The made-up model that stands behind every batcher, and what its requests ask for.

A step takes the same time whatever the batch, as that of a real model nearly does. The time is
slept, as a thread that waits for a GPU does: meanwhile others run. Each output says whose it is.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchstream import Last

SEED = 20


@dataclass(frozen=True, slots=True)
class Request:
    """So many outputs are asked for; the number tells requests apart."""

    number: int
    length: int

    def outputs(self) -> Iterator[str]:
        """Yield what has to arrive; each is made when asked for."""
        number = self.number
        for position in range(self.length):
            yield f"{number}:{position}"

    def marked(self) -> Iterator[str | Last[str]]:
        """Yield the same with the last output marked, so that the end takes no step of its own."""
        number = self.number
        for position in range(self.length - 1):
            yield f"{number}:{position}"
        yield Last(f"{number}:{self.length - 1}")

    def check(self, received: list[str]) -> None:
        """Check that this is what was asked for: all of it, in order, and no other request's."""
        assert received == list(self.outputs()), (self, received[:3], len(received))


def ragged(count: int, mean: float, seed: int = SEED) -> list[Request]:
    """Return requests whose lengths are geometric: most are short, and a few are very long."""
    random_ = random.Random(seed)
    requests = []
    for number in range(count):
        length = 1
        while random_.random() > 1 / mean:
            length += 1
        requests.append(Request(number, length))
    return requests


def ideal_steps(lengths: Sequence[int], capacity: int) -> int:
    """Return how many steps there are if no slot is ever empty."""
    return -(-sum(lengths) // capacity)


def refilled_steps(lengths: Sequence[int], capacity: int) -> int:
    """Return how many steps there are if each freed slot takes the next request at once.

    That is the best there is as long as no request jumps the queue and the lengths are unknown: in
    the end the queue is empty, and the slots are freed one by one.
    """
    free_at = [0] * capacity
    for length in lengths:
        heapq.heapreplace(free_at, free_at[0] + length)
    return max(free_at)


def batched_steps(lengths: Sequence[int], capacity: int) -> int:
    """Return how many steps there are if full batches run to their ends, one after another."""
    return sum(max(lengths[first : first + capacity]) for first in range(0, len(lengths), capacity))


class Engine:
    """Steps the requests in all slots, driven by `ContinuousBatcher` or by a loop by hand."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.outputs: dict[int, Iterator[str | Last[str]]] = {}

    def add(self, slot: int, request: Request) -> None:
        """Take a request in."""
        assert slot not in self.outputs
        self.outputs[slot] = request.marked()

    def step(self) -> dict[int, str | Last[str]]:
        """Make an output for each."""
        if self.seconds:
            time.sleep(self.seconds)
        return {slot: next(outputs) for slot, outputs in self.outputs.items()}

    def remove(self, slot: int) -> None:
        """Forget a request."""
        del self.outputs[slot]


def steps_of(batch: Sequence[Request], seconds: float = 0.0) -> Iterator[list[str | Last | None]]:
    """Yield the steps of a batch that runs to its end: what `DynamicBatcher` drives."""
    outputs = [request.marked() for request in batch]
    for _ in range(max(request.length for request in batch)):
        if seconds:
            time.sleep(seconds)
        yield [next(mine, None) for mine in outputs]
