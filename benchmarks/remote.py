"""What a model in another process costs: the same batcher here, over a socket, and in LitServe.

Each contestant serves the same streams from a process of its own kind, and one client process reads
them in an event loop:

- one process: the batcher and its consumers share it, as in a server with one process.
- remote: `serve` has the batcher, and `connect` the consumers.
- LitServe's transport: the same steps go through the queue with which LitServe's workers send to
  its server processes, one message for each step, as `ContinuousBatchLoop` sends it; a bare reader
  hands them to the consumers. There is no server on top, so all else that LitServe does is left
  out.

A step takes no time, or 5 ms. Contestants take turns; processor time is that of all processes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import machine, ratios, spread, table, take_turns

from batchstream import ContinuousBatcher, Last
from batchstream.remote import connect, serve

ROUNDS, QUICK_ROUNDS = 5, 1
SIZES = (8, 64)
STEPS = (0.0, 0.005)  # seconds
OUTPUTS = {0.0: 400, 0.005: 100}  # of each stream
SECONDS_TO_START = 60.0
HERE, REMOTE, LITSERVE = "one process", "remote", "LitServe's transport"


class Engine:
    """Gives each request so many outputs."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._left: dict[int, int] = {}

    def add(self, slot: int, request: int) -> None:
        """Let a request join."""
        self._left[slot] = request

    def step(self) -> dict[int, object]:
        """Make a step."""
        if self._seconds:
            time.sleep(self._seconds)
        step: dict[int, object] = {
            slot: Last("output") if left == 1 else "output" for slot, left in self._left.items()
        }
        for slot in step:
            self._left[slot] -= 1
        return step

    def remove(self, slot: int) -> None:
        """Forget a request."""
        del self._left[slot]


def batcher_of(size: int, seconds: float) -> ContinuousBatcher[int, str]:
    """Return the batcher that all of them have."""
    return ContinuousBatcher(
        lambda: Engine(seconds), max_batch_size=size, max_buffered=64, on_overflow="wait"
    )


def processor_time(pid: int | None = None) -> float:
    """Return the processor time of this process, or of another, in seconds."""
    if pid is None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Said:
    """What one round has shown.

    Attributes:
        per_second: Outputs per second of the clock.
        first: The median time to the first output, in seconds.
        per_output: Processor time of all processes for an output, in seconds.
    """

    per_second: float
    first: float
    per_output: float


async def read(streams: Callable[[], list[AsyncIterator[object]]], outputs: int) -> list[float]:
    """Read all streams at once, and return when the first output of each came."""
    began = time.perf_counter()

    async def one(stream: AsyncIterator[object]) -> float:
        count, first = 0, 0.0
        async for _ in stream:
            first = first or time.perf_counter() - began
            count += 1
        assert count == outputs, f"a stream has {count} outputs, expected {outputs}"
        return first

    return await asyncio.gather(*map(one, streams()))


def measured(
    streams: Callable[[], list[AsyncIterator[object]]], size: int, outputs: int, pids: list[int]
) -> Said:
    """Measure a round."""
    before = processor_time() + sum(map(processor_time, pids))
    began = time.perf_counter()
    firsts = asyncio.run(read(streams, outputs))
    seconds = time.perf_counter() - began
    used = processor_time() + sum(map(processor_time, pids)) - before
    total = size * outputs
    return Said(total / seconds, statistics.median(firsts), used / total)


# ---- the contestants


@contextlib.contextmanager
def here(size: int, seconds: float) -> Iterator[Callable[[], Said]]:
    """Have the batcher in this process."""
    outputs = OUTPUTS[seconds]
    with batcher_of(size, seconds) as batcher:
        yield lambda: measured(
            lambda: [batcher.astream(outputs) for _ in range(size)], size, outputs, []
        )


def serve_model(path: str, size: int, seconds: float) -> None:
    """Be the process of the model."""
    serve(batcher_of(size, seconds), path)


@contextlib.contextmanager
def remote(size: int, seconds: float) -> Iterator[Callable[[], Said]]:
    """Have it in another."""
    outputs = OUTPUTS[seconds]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.sock"
        process = context.Process(target=serve_model, args=(path, size, seconds), daemon=True)
        process.start()
        until = time.monotonic() + SECONDS_TO_START
        while not Path(path).exists():
            assert time.monotonic() < until, "the model does not start"
            time.sleep(0.01)
        try:
            with connect(path) as batcher:
                yield lambda: measured(
                    lambda: [batcher.astream(outputs) for _ in range(size)],
                    size,
                    outputs,
                    [process.pid or 0],
                )
        finally:
            process.terminate()
            process.join()


def send_steps(transport: Any, requests: Any, size: int, seconds: float) -> None:
    """Be a worker of LitServe's: send one message for each step, when all requests are there."""
    while True:
        joining = [requests.get() for _ in range(size)]
        engine = Engine(seconds)
        for slot, outputs in enumerate(joining):
            if outputs is None:
                return
            engine.add(slot, outputs)
        live = True
        while live:
            step = engine.step()
            live = not any(type(output) is Last for output in step.values())
            transport.send(list(step.items()), 0)


@contextlib.contextmanager
def litserve(size: int, seconds: float) -> Iterator[Callable[[], Said]]:
    """Let the steps go through LitServe's queue."""
    from litserve.transport.process_transport import (  # noqa: PLC0415 - it need not be installed
        MPQueueTransport,
    )

    outputs = OUTPUTS[seconds]
    context = multiprocessing.get_context("spawn")
    manager = context.Manager()
    transport = MPQueueTransport(manager, [manager.Queue()])
    requests = manager.Queue()
    process = context.Process(
        target=send_steps, args=(transport, requests, size, seconds), daemon=True
    )
    process.start()

    def streams() -> list[AsyncIterator[object]]:
        queues: list[asyncio.Queue[object]] = [asyncio.Queue() for _ in range(size)]
        for _ in queues:
            requests.put(outputs)

        async def receive() -> None:
            ended = 0
            while ended < size:
                # None after a second without a message
                for slot, output in await transport.areceive(0, timeout=None) or ():
                    queues[slot].put_nowait(output)
                    ended += type(output) is Last

        async def stream(queue: asyncio.Queue[object]) -> AsyncIterator[object]:
            while type(output := await queue.get()) is not Last:
                yield output
            yield output.output  # type: ignore[attr-defined]

        receivers.append(asyncio.create_task(receive()))
        return [stream(queue) for queue in queues]

    receivers: list[asyncio.Task[None]] = []
    server = manager._process.pid  # type: ignore[attr-defined] # noqa: SLF001 - its processor time
    try:
        yield lambda: measured(streams, size, outputs, [process.pid or 0, server])
    finally:
        for _ in range(size):
            requests.put(None)
        process.join(5)
        process.kill()
        manager.shutdown()


CONTESTANTS = {HERE: here, REMOTE: remote, LITSERVE: litserve}


def main(arguments: list[str]) -> None:
    """Print a table for each number of streams and time of a step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds")
    rounds = QUICK_ROUNDS if parser.parse_args(arguments).quick else ROUNDS
    print(machine(rounds))
    head = ["streams", "a step takes", "", "outputs/s", "ratio", "first, ms", "ratio"]
    head += ["CPU per output, µs", "ratio"]
    rows = []
    for seconds in STEPS:
        for size in SIZES:
            with contextlib.ExitStack() as stack:
                runs = {
                    name: stack.enter_context(make(size, seconds))
                    for name, make in CONTESTANTS.items()
                }
                said = take_turns(runs, rounds)
            base = said[HERE]
            for name, rounds_ in said.items():
                row = [str(size), f"{seconds * 1e3:.0f} ms", name]
                for figure, scale, digits in (
                    ("per_second", 1, 0),
                    ("first", 1e3, 1),
                    ("per_output", 1e6, 1),
                ):
                    own = [getattr(it, figure) for it in rounds_]
                    others = [getattr(it, figure) for it in base]
                    row += [spread(own, scale, digits), spread(ratios(own, others), 1, 2)]
                rows.append(row)
    print(table(head, rows))


if __name__ == "__main__":
    main(sys.argv[1:])
