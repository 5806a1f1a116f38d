"""The rules, tried on systems that run in this process. A rule returns whether it holds.

`make(source, size)` is the system: it gives an iterator for each slot.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from systems import Source

from batchstream import (
    AsyncBatchedStream,
    ContinuousBatcher,
    DeadlineError,
    DynamicBatcher,
    Fail,
)

Make = Callable[[Source, int], list[Iterator[Any]]]
AT_LONGEST = 5.0  # seconds, until what does not come counts as hanging
MANY = 2_000
HANGS = "it hangs"


def read(stream: Iterator[Any]) -> tuple[list[Any], str | None]:
    """Return what a client gets, and what goes wrong: the name of the error, or that it hangs."""
    outputs: list[Any] = []
    problems: list[str | None] = [HANGS]

    def run() -> None:
        try:
            for output in stream:
                outputs.append(output)  # noqa: PERF402 - an error must not take them along
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            problems.append(type(error).__name__)
        else:
            problems.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(AT_LONGEST)
    return outputs.copy(), problems[-1]


def several(make: Make) -> bool:
    """A batch of more than one request is streamed."""
    streams = make(iter([["a", "x"], ["b", "y"], [None, None]]), 2)
    return [read(stream) for stream in streams] == [(["a", "b"], None), (["x", "y"], None)]


def own_end(make: Make) -> bool:
    """A stream ends at its own end, while the model works for the others."""
    go_on = threading.Event()

    def model() -> Source:
        yield ["a", "x"]
        yield [None, "y"]
        go_on.wait()
        yield [None, None]

    short, _long = make(model(), 2)
    received = read(short)
    go_on.set()
    return received == (["a"], None)


def short_step(make: Make) -> bool:
    """A step that lacks an output gives no client what belongs to another."""
    streams = make(iter([["a", "x"], ["y"], [None, None]]), 2)  # "y" is of the second request
    received, _ = read(streams[0])
    return "y" not in received


def error(make: Make) -> bool:
    """An error of the model reaches each client, after what it was given."""

    def model() -> Source:
        yield ["a", "x"]
        raise OSError("device lost")

    first, second = make(model(), 2)
    return [read(first), read(second)] == [(["a"], "OSError"), (["x"], "OSError")]


def one_fails(make: Make) -> bool:
    """One request fails, and the others of its batch go on."""
    first, second = make(iter([["a", "x"], [Fail(ValueError("too long")), "y"], [None, None]]), 2)
    return (read(first), read(second)) == ((["a"], "ValueError"), (["x", "y"], None))


def leave(make: Make) -> bool:
    """The model stops when all of its clients are gone."""
    gone, closed = threading.Event(), threading.Event()
    steps = []

    def model() -> Source:
        try:
            for number in range(MANY):
                steps.append(number)
                yield [number, -number]
                gone.wait()
        finally:
            closed.set()

    streams = make(model(), 2)
    next(streams[0])
    streams.clear()
    gone.set()
    return closed.wait(AT_LONGEST) and len(steps) < MANY


def slow(make: Make) -> bool:
    """What is held for a client that does not read has a bound."""
    read_on = threading.Semaphore(1)

    def model() -> Source:
        for number in range(MANY):
            read_on.acquire()
            yield [number, number]
        yield [None, None]

    first, second = make(model(), 2)
    for _ in first:
        read_on.release()
    held, _ = read(second)
    return len(held) < MANY


def arrays(make: Make) -> bool:
    """An output may be an array: no mark is compared with it by `==`."""
    streams = make(iter([[np.zeros(2), np.ones(2)], [None, None]]), 2)
    return [len(outputs) for outputs, error in map(read, streams) if error is None] == [1, 1]


def timeout_of(open_streams: Callable[..., Any]) -> bool:
    """A client in asyncio gives up waiting for a moment, and loses no output."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from queue_per_request_broken import give_up_and_come_back  # noqa: PLC0415 - found by the path

    return "received 0 1 2 3 of" in asyncio.run(give_up_and_come_back(open_streams))


def timeout_of_batchstream() -> bool:
    """Try it on the streams of this library."""
    return timeout_of(lambda source, size: AsyncBatchedStream(source, size=size))


def timeout_of_queues() -> bool:
    """Try it on queues."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from queue_per_request_broken import open_queues  # noqa: PLC0415 - found by the path

    return timeout_of(open_queues)


class Engine:
    """Gives each request its own letters, without an end for "endless"."""

    def __init__(self) -> None:
        self.letters: dict[int, Iterator[str]] = {}

    def add(self, slot: int, request: str) -> None:
        """Let a request join."""
        self.letters[slot] = iter(lambda: "x", None) if request == "endless" else iter(request)

    def step(self) -> dict[int, str | None]:
        """Give a letter to each."""
        return {slot: next(letters, None) for slot, letters in self.letters.items()}

    def remove(self, slot: int) -> None:
        """Forget a request."""
        del self.letters[slot]


def joins() -> bool:
    """A request joins a batch that runs already."""
    with ContinuousBatcher(Engine(), max_batch_size=2, on_overflow="wait") as batcher:
        running = batcher.stream("endless")
        next(running)
        late = batcher.stream("so")
        reader = threading.Thread(target=list, args=(running,), daemon=True)
        reader.start()
        received = read(late)
        was_live = running.finish_reason is None
        running.cancel()
        reader.join(AT_LONGEST)
    return received == (["s", "o"], None) and was_live


def deadline() -> bool:
    """A deadline ends a request in the middle."""

    def endless(requests: list[str]) -> Source:
        while True:
            yield requests

    outputs = []
    with DynamicBatcher(endless, max_batch_size=1, on_overflow="wait") as batcher:
        try:
            outputs.extend(batcher.stream("x", timeout=0.5))
        except DeadlineError:
            return bool(outputs)
    return False


IN_PROCESS: dict[str, Callable[[Make], bool]] = {
    "several": several,
    "own-end": own_end,
    "short-step": short_step,
    "error": error,
    "leave": leave,
    "slow": slow,
    "arrays": arrays,
}
