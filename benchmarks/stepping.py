"""What a step costs besides the model: a batcher against a loop written by hand.

An engine with all slots in use is stepped, in a thread, and each output is handed to its
request's owner. All requests are long-lived, so that none joins or leaves. *Bare*, the engine is
stepped alone. The loops by hand step the same engine and put each output into a queue for each
request; they know no ends but the last, no bound, no cancel, no errors and no timeouts.

Owners are tasks, with `async for` or a queue's `get`: *paced*, the engine makes the next step when
every owner has its output of the last; *unpaced*, it runs ahead; *at 1 ms*, each step of the model
sleeps for a millisecond, in which the owners get along. *Unread*, no task reads before the end, so
that no time is spent on waking. Clocks count the processor time of all threads.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import goals
from contestants import PATIENCE, ThreadPace, until_all_wait
from handoff import collect, collect_paced
from harness import CORES, machine, ratios, run, spread, table, take_turns
from mechanisms import until_the_mark

BARE, HAND = "(bare model)", "by hand, asyncio.Queue each"
OURS = {core: f"ContinuousBatcher.astream, {core}" for core in CORES}
WAKE = "(one wake-up per step)"
HAND_UNREAD = "by hand, queue.SimpleQueue each"
OURS_UNREAD = {core: f"ContinuousBatcher.stream, {core}" for core in CORES}
PACED, UNPACED, TIMED, UNREAD = "paced", "unpaced", "at 1 ms", "unread"
# How many steps a run has, by the number of slots.
STEPS = {
    PACED: {32: 300, 256: 60},
    UNPACED: {32: 1_000, 256: 150},
    TIMED: {32: 80, 256: 80},
    UNREAD: {32: 4_000, 256: 600},
}
QUICK_SHARE = 4  # a quick run has a fourth of the steps
ROUNDS, QUICK_ROUNDS = 5, 1


class FullEngine:
    """Makes steps for `size` requests, of which each is its own number; begins when all are in.

    The end is a step of None for every slot.
    """

    def __init__(self, size: int, steps: int, mode: str) -> None:
        self.pace = ThreadPace(size)
        self.size = size
        self.left = steps
        self.paced = mode == PACED
        self.seconds = 0.001 if mode == TIMED else 0.0
        self.waits = True
        self.requests: dict[int, int] = {}

    def add(self, slot: int, request: int) -> None:
        """Take a request in."""
        self.requests[slot] = request

    def remove(self, slot: int) -> None:
        """Forget a request."""
        del self.requests[slot]

    def step(self) -> dict[int, str | None]:
        """Make an output for each."""
        if len(self.requests) < self.size and self.waits:
            time.sleep(0.0002)
            return {}
        if self.waits:
            assert self.pace.lock.acquire(timeout=PATIENCE)
            self.waits = self.paced
        if not self.left:
            return dict.fromkeys(self.requests)
        self.left -= 1
        if self.seconds:
            time.sleep(self.seconds)
        left = self.left
        return {slot: f"{request}:{left}" for slot, request in self.requests.items()}

    def full(self) -> FullEngine:
        """Put a request into each slot, and return the engine."""
        for slot in range(self.size):
            self.add(slot, slot)
        return self


def check(received: Sequence[list[str]], steps: int) -> None:
    """Check that every request has got what is its own."""
    for request, outputs in enumerate(received):
        assert outputs == [f"{request}:{left}" for left in reversed(range(steps))], request


def until_the_end(engine: FullEngine) -> Iterator[dict[int, str | None]]:
    """Step the engine up to the end, which is yielded too."""
    left = 1
    while left:
        left = engine.left
        yield engine.step()


@contextmanager
def stepped_by_hand(
    engine: FullEngine, give: Callable[[dict[int, str | None]], object]
) -> Iterator[None]:
    """Let a thread step the engine and give away what it makes."""

    def loop() -> None:
        for step in until_the_end(engine):
            give(step)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)


@asynccontextmanager
async def queue_each(engine: FullEngine) -> AsyncIterator[list[AsyncIterator[str]]]:
    """Give what one writes by hand: one call of the event loop for each step."""
    queues: list[asyncio.Queue[str | None]] = [asyncio.Queue() for _ in range(engine.size)]
    loop = asyncio.get_running_loop()

    def put(step: dict[int, str | None]) -> None:
        for slot, output in step.items():
            queues[slot].put_nowait(output)

    with stepped_by_hand(engine.full(), partial(loop.call_soon_threadsafe, put)):
        yield [until_the_mark(queue.get) for queue in queues]


def batcher_of(package: ModuleType, engine: FullEngine) -> Any:
    """Return a batcher whose bound is never felt."""
    return package.ContinuousBatcher(
        engine, max_batch_size=engine.size, max_buffered=engine.left + 1
    )


@asynccontextmanager
async def astreams(
    package: ModuleType, engine: FullEngine
) -> AsyncIterator[list[AsyncIterator[str]]]:
    """Give the package's streams."""
    async with batcher_of(package, engine) as batcher:
        yield [batcher.astream(request) for request in range(engine.size)]


async def handed_over(streams: Callable, size: int, steps: int, mode: str) -> float:
    """Return the seconds from the first step until all owners have ended."""
    engine = FullEngine(size, steps, mode)
    received: list[list[str]] = [[] for _ in range(size)]
    async with asyncio.timeout(PATIENCE), streams(engine) as each:
        tasks = [
            asyncio.create_task(
                collect_paced(stream, mine, engine.pace) if mode == PACED else collect(stream, mine)
            )
            for stream, mine in zip(each, received, strict=True)
        ]
        await until_all_wait()
        while len(engine.requests) < size:  # noqa: ASYNC110 - before the clock starts
            await asyncio.sleep(0.001)
        begin = time.process_time()
        engine.pace.release()
        await asyncio.gather(*tasks)
        seconds = time.process_time() - begin
    check(received, steps)
    return seconds


async def woken(size: int, steps: int, mode: str) -> float:
    """Return the seconds for the steps and a call of the loop for each, with no owners."""
    engine = FullEngine(size, steps, mode)
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def wake(step: dict[int, str | None]) -> None:
        if step[0] is None:
            over.set()
        elif mode == PACED:
            engine.pace.release()

    give = partial(loop.call_soon_threadsafe, wake)
    with stepped_by_hand(engine.full(), give):
        begin = time.process_time()
        engine.pace.release()
        await over.wait()
        return time.process_time() - begin


def bare(size: int, steps: int, mode: str) -> float:
    """Return the seconds for the steps alone."""
    engine = FullEngine(size, steps, UNPACED if mode == PACED else mode).full()
    engine.pace.release()
    begin = time.process_time()
    for _ in until_the_end(engine):
        pass
    return time.process_time() - begin


def unread_by_hand(size: int, steps: int) -> float:
    """Return the seconds for steps that go into queues, which are not read before the end."""
    engine = FullEngine(size, steps, UNREAD).full()
    queues: list[queue.SimpleQueue[str | None]] = [queue.SimpleQueue() for _ in range(size)]
    puts = [one.put for one in queues]

    def give(step: dict[int, str | None]) -> None:
        for slot, output in step.items():
            puts[slot](output)

    begin = time.process_time()
    with stepped_by_hand(engine, give):
        engine.pace.release()
    seconds = time.process_time() - begin
    check([list(iter(one.get, None)) for one in queues], steps)
    return seconds


def read_by_tasks(package: ModuleType, size: int, steps: int, mode: str) -> float:
    """Return the seconds for steps that go to the package's streams."""
    return run(handed_over, partial(astreams, package), size, steps, mode)


def unread(package: ModuleType, size: int, steps: int) -> float:
    """Return the seconds for steps that go to streams, which are not read before the end."""
    engine = FullEngine(size, steps, UNREAD)
    with batcher_of(package, engine) as batcher:
        streams = [batcher.stream(request) for request in range(size)]
        while len(engine.requests) < size:
            time.sleep(0.001)
        begin = time.process_time()
        engine.pace.release()
        while any(stream.end is None for stream in streams):
            time.sleep(0.001)
        seconds = time.process_time() - begin
        check([list(stream) for stream in streams], steps)
    return seconds


def runs_of(mode: str, size: int, steps: int) -> dict[str, Callable[[], float]]:
    """Return what is measured, and how."""
    runs: dict[str, Callable[[], float]] = {BARE: partial(bare, size, steps, mode)}
    if mode == UNREAD:
        runs[HAND_UNREAD] = partial(unread_by_hand, size, steps)
        for name, core in CORES.items():
            runs[OURS_UNREAD[name]] = partial(core.run, unread, size, steps)
        return runs
    runs[WAKE] = partial(run, woken, size, steps, mode)
    runs[HAND] = partial(run, handed_over, queue_each, size, steps, mode)
    for name, core in CORES.items():
        runs[OURS[name]] = partial(core.run, read_by_tasks, size, steps, mode)
    return runs


def rows_of(mode: str, size: int, steps: int, rounds: int) -> list[list[str]]:
    """Return the rows of the table: microseconds for each step, over the bare model, and ours."""
    took = take_turns(runs_of(mode, size, steps), rounds)
    over = {
        name: [one - alone for one, alone in zip(seconds, took[BARE], strict=True)]
        for name, seconds in took.items()
    }
    by_hand = over[HAND_UNREAD if mode == UNREAD else HAND]
    rows = []
    for name, seconds in took.items():
        row = [mode, str(size), name, spread(seconds, 1e6 / steps, 0), "", ""]
        if name != BARE:
            row[4] = spread(over[name], 1e6 / steps, 0)
            row[5] = spread(ratios(over[name], by_hand), 1, 2)
        rows.append(row)
    if mode == PACED:
        for core, mine in OURS.items():
            goals.measured(goals.step_against_queues(size), core, ratios(over[mine], by_hand))
    return rows


def main(*, quick: bool = False) -> None:
    """Print the table."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    rows = []
    for mode, lengths in STEPS.items():
        for size, steps in lengths.items():
            rows += rows_of(mode, size, steps // (QUICK_SHARE if quick else 1), rounds)
    print(f"Overhead of a step with all slots in use ({machine(rounds)}):\n")
    columns = ["over the model, µs", "in terms of by hand"]
    print(table(["mode", "slots", "steps made by", "µs per step", *columns], rows))


if __name__ == "__main__":
    main()
    print()
    goals.main()
