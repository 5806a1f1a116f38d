"""The hot paths, each as a workload that takes a moment: what `compare.py` runs on two revisions.

It uses public names alone, so that it runs with every revision of the package.

usage: hot_paths.py NAME [ROUNDS]: prints the nanoseconds of CPU time for an output, round by round.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import Any

from models import Engine, Request

from batchstream import AsyncBatchedStream, ContinuousBatcher, batched, demux, token_ids

OUTPUTS = 40_000


def round_robin(streams: Iterable[Iterator[Any]]) -> None:
    """Receive one output from each live stream in turn."""
    over, live = object(), deque(streams)
    while live:
        stream = live.popleft()
        if next(stream, over) is not over:
            live.append(stream)


def pulled(size: int, element: Any = "x", **options: Any) -> int:
    """Streams that are read in turn, in a thread."""
    steps = itertools.repeat([element] * size, OUTPUTS // size)
    round_robin(demux(steps, size, **options))
    return OUTPUTS


def pulled_arrays(size: int) -> int:
    """Streams of ids, out of arrays."""
    import numpy as np  # noqa: PLC0415 - for this one alone

    steps = itertools.repeat(np.full(size, 5), OUTPUTS // size)
    round_robin(demux(steps, size, is_eos=token_ids(2)))
    return OUTPUTS


def short(size: int, length: int = 50) -> int:
    """Batches of short streams, which are read one after another."""
    steps = [["x"] * size] * length + [[None] * size]
    for _ in range(OUTPUTS // (size * length)):
        for stream in list(demux(iter(steps), size)):
            for _ in stream:
                pass
    return OUTPUTS // (size * length) * size * length


def in_a_loop(size: int) -> int:
    """Tasks that wait for each output, of a source in their loop."""
    count = OUTPUTS // size // 2

    async def source() -> AsyncIterator[Any]:
        for _ in range(count):
            await asyncio.sleep(0)
            yield ["x"] * size

    async def read(stream: Any) -> None:
        async for _ in stream:
            pass

    async def main() -> None:
        async with AsyncBatchedStream(source(), size) as batch:
            await asyncio.gather(*map(read, batch))

    asyncio.run(main())
    return count * size


def answers(clients: int) -> int:
    """One answer to each request, through a decorated function."""
    each = OUTPUTS // 10 // clients

    @batched(max_batch_size=clients)
    def double(numbers: list[int]) -> Iterator[list[int]]:
        yield [2 * number for number in numbers]

    async def client() -> None:
        for number in range(each):
            assert [output async for output in double.astream(number)] == [2 * number]

    async def main() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    asyncio.run(main())
    double.close()
    return each * clients


def refilled(size: int, longest: int) -> int:
    """Requests that join and leave a continuous batch between its steps."""
    count = 2 * OUTPUTS // longest
    requests = [Request(number, 1 + 7 * number % longest) for number in range(count)]
    with ContinuousBatcher(
        Engine, max_batch_size=size, max_pending=OUTPUTS, max_buffered=OUTPUTS
    ) as batcher:
        for stream in [batcher.stream(request) for request in requests]:
            for _ in stream:
                pass
    return sum(request.length for request in requests)


WORKLOADS: dict[str, Callable[[], int]] = {
    **{f"pulled, {size} slots": partial(pulled, size) for size in (1, 8, 32, 64, 512)},
    "function as is_eos, 8 slots": partial(pulled, 8, is_eos=lambda output: output == "y"),
    "function as is_eos, 64 slots": partial(pulled, 64, is_eos=lambda output: output == "y"),
    "ids in lists, 64 slots": partial(pulled, 64, 5, is_eos=token_ids(2)),
    "ids in arrays, 8 slots": partial(pulled_arrays, 8),
    "ids in arrays, 64 slots": partial(pulled_arrays, 64),
    "50 outputs each, 8 slots": partial(short, 8),
    "50 outputs each, 64 slots": partial(short, 64),
    **{f"asyncio, {size} streams": partial(in_a_loop, size) for size in (8, 64, 256)},
    "answers, 1 client": partial(answers, 1),
    "answers, 64 clients": partial(answers, 64),
    "refilled, 32 slots": partial(refilled, 32, 200),
    "refilled, 256 slots": partial(refilled, 256, 200),
}


def nanoseconds(workload: Callable[[], int]) -> float:
    """Return how much CPU time an output takes."""
    begin = time.process_time_ns()
    outputs = workload()
    return (time.process_time_ns() - begin) / outputs


def main(name: str, rounds: int = 1) -> None:
    """Print the figures of a workload; the first round is not printed."""
    nanoseconds(WORKLOADS[name])
    for _ in range(rounds):
        print(nanoseconds(WORKLOADS[name]))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
