"""How many steps the model makes for a backlog, and how full they are.

All requests are submitted before the first step, and none after. Their lengths are geometric, so
that a batch that runs to its end is mostly empty, and waits for its longest. The model takes no
time: steps are counted.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from harness import run, table
from models import Engine, Request, batched_steps, ideal_steps, ragged, refilled_steps, steps_of

import batchstream

CAPACITY, MEAN = 32, 64
REQUESTS, QUICK_REQUESTS = 1_000, 200
PATIENCE = 60.0
PLUG = Request(-1, 1)  # keeps the model busy until all the others have been submitted


@dataclass
class Diary:
    """What the model notes down: which requests are in each step, and when one joined last."""

    held: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)
    live: list[int] = field(default_factory=list)
    last_joined: int = 0

    def hold(self) -> None:
        """Keep the plug's step, which does not count, from ending too soon."""
        self.held.set()
        assert self.gate.wait(PATIENCE)

    def join(self) -> None:
        """Note that a request has joined before the next step."""
        self.last_joined = len(self.live)


class CountedEngine(Engine):
    """An engine that keeps a diary."""

    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self.diary = diary
        self.plugs: set[int] = set()

    def add(self, slot: int, request: Request) -> None:
        """Take a request in."""
        super().add(slot, request)
        if request is PLUG:
            self.plugs.add(slot)
        else:
            self.diary.join()

    def step(self) -> dict[int, object]:
        """Make an output for each."""
        if self.plugs:
            self.diary.hold()
            self.plugs.clear()
        else:
            self.diary.live.append(len(self.outputs))
        return super().step()


def counted_steps(batch: Sequence[Request], diary: Diary) -> Iterator[list[object]]:
    """Yield the steps of a batch, and keep a diary."""
    if batch[0] is PLUG:
        assert len(batch) == 1
        diary.hold()
        yield from steps_of(batch)
        return
    diary.join()
    for number, step in enumerate(steps_of(batch)):
        diary.live.append(sum(request.length > number for request in batch))
        yield step


def continuous(diary: Diary, pending: int) -> batchstream.ContinuousBatcher:
    """Return a batcher that refills its slots."""
    return batchstream.ContinuousBatcher(
        CountedEngine(diary), max_batch_size=CAPACITY, max_pending=pending
    )


def dynamic(diary: Diary, pending: int) -> batchstream.DynamicBatcher:
    """Return a batcher whose batches run to their ends."""
    return batchstream.DynamicBatcher(
        lambda batch: counted_steps(batch, diary), max_batch_size=CAPACITY, max_pending=pending
    )


async def collected(stream: AsyncIterator[str]) -> list[str]:
    """Consume as a user does."""
    return [output async for output in stream]


async def backlog(make: Callable[[Diary, int], object], requests: Sequence[Request]) -> Diary:
    """Return the diary of a model that has served them all."""
    diary = Diary()
    async with asyncio.timeout(PATIENCE), make(diary, len(requests) + 1) as batcher:
        plug = asyncio.create_task(collected(batcher.astream(PLUG)))
        assert await asyncio.to_thread(diary.held.wait, PATIENCE)
        streams = [batcher.astream(request) for request in requests]
        tasks = [asyncio.create_task(collected(stream)) for stream in streams]
        diary.gate.set()
        PLUG.check(await plug)
        for request, received in zip(requests, await asyncio.gather(*tasks), strict=True):
            request.check(received)
    told = batcher.statistics()  # closed, so that the last step is counted as well
    assert told.steps == len(diary.live) + 1  # the plug's
    assert math.isclose(told.occupancy * told.steps * CAPACITY, sum(diary.live) + 1)
    return diary


def main(*, quick: bool = False) -> None:
    """Print the table."""
    requests = ragged(QUICK_REQUESTS if quick else REQUESTS, MEAN)
    lengths = [request.length for request in requests]
    outputs, ideal = sum(lengths), ideal_steps(lengths, CAPACITY)
    floor = refilled_steps(lengths, CAPACITY)

    def row(name: str, steps: int, until_empty: str = "") -> list[str]:
        shares = f"{steps / ideal:.3f}", f"{steps / floor:.3f}"
        return [name, str(steps), *shares, f"{outputs / (steps * CAPACITY):.1%}", until_empty]

    rows = [
        row("(no slot ever empty)", ideal),
        row("(freed slots refilled at once)", floor, "100.0%"),
        row("(full batches, each to its end)", batched_steps(lengths, CAPACITY)),
    ]
    for name, make in {"ContinuousBatcher": continuous, "DynamicBatcher": dynamic}.items():
        diary = run(backlog, make, requests)
        until_empty = statistics.fmean(diary.live[: diary.last_joined + 1]) / CAPACITY
        rows.append(row(name, len(diary.live), f"{until_empty:.1%}"))
        assert sum(diary.live) == outputs
    rows.append(row("one at a time", outputs))
    print(
        f"Steps for a backlog of {len(requests)} requests in {CAPACITY} slots, {outputs} outputs "
        f"(lengths: mean {statistics.fmean(lengths):.0f}, median {statistics.median(lengths):.0f}, "
        f"max {max(lengths)}):\n"
    )
    occupancy = ["occupancy, all steps", "until the queue is empty"]
    print(table(["batcher", "steps", "of the ideal", "of the best refill", *occupancy], rows))


if __name__ == "__main__":
    main()
