"""What streams cost besides time: how late the loop becomes, and what an idle stream holds."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from functools import partial

import goals
from contestants import (
    CHAINED,
    CONTESTANTS,
    EVENT_EACH,
    OURS,
    OURS_ASYNC,
    PATIENCE,
    PER_OUTPUT,
    QUEUE_EACH,
    TASK_QUEUES,
    UNBOUND,
    Contestant,
    made,
    until_all_wait,
)
from harness import run, spread, table, take_turns
from mechanisms import Step

LAG_STREAMS = 512
PROBE_SECONDS = 0.001
IDLE_STREAMS = 1024


def always_ready(size: int, seconds: float, steps: list[int]) -> Iterator[Step]:
    """Yield steps for so long, and note how many there were."""
    end = time.perf_counter() + seconds
    number = 0
    while time.perf_counter() < end:
        yield [f"{number}" for _ in range(size)]
        number += 1
    steps.append(number)
    yield [None] * size


async def count(stream: AsyncIterator[str]) -> int:
    """Consume as a user does, and keep nothing."""
    outputs = 0
    async for _ in stream:
        outputs += 1
    return outputs


async def late(contestant: Contestant | None, seconds: float) -> list[float]:
    """Return by how much each short sleep was late while a source that is always ready ran.

    Without a contestant, a thread makes the steps and no consumer gets them.
    """
    steps: list[int] = []
    lags: list[float] = []
    ready = always_ready(LAG_STREAMS, seconds, steps)

    async def probe() -> None:
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(PROBE_SECONDS)
            lags.append(time.perf_counter() - begin - PROBE_SECONDS)

    if contestant is None:
        probing = asyncio.create_task(probe())
        await asyncio.to_thread(list, map(len, ready))
    else:
        pace = contestant.pace(LAG_STREAMS)
        source = pace.source(ready, paced=False)
        async with asyncio.timeout(PATIENCE), contestant.streams(source, LAG_STREAMS) as streams:
            tasks = [asyncio.create_task(count(stream)) for stream in streams]
            await until_all_wait()
            probing = asyncio.create_task(probe())
            pace.release()
            assert set(await asyncio.gather(*tasks)) == set(steps)
    probing.cancel()
    await asyncio.wait([probing])
    return lags


async def held(contestant: Contestant) -> tuple[float, float]:
    """Return the bytes of a stream that was never read, and of one that a task waits in."""
    pace = contestant.pace(IDLE_STREAMS)
    source = pace.source(made(IDLE_STREAMS, 0), paced=True)
    before = traced()
    async with contestant.streams(source, IDLE_STREAMS) as streams:
        unread = traced() - before
        tasks = [asyncio.create_task(count(stream)) for stream in streams]
        await until_all_wait()
        waited_for = traced() - before
        pace.release()
        await asyncio.gather(*tasks)
    return unread / IDLE_STREAMS, waited_for / IDLE_STREAMS


async def held_by_waiting() -> float:
    """Return the bytes of a task that waits for a future."""

    async def wait(future: asyncio.Future[None]) -> None:
        await future

    loop = asyncio.get_running_loop()
    before = traced()
    futures = [loop.create_future() for _ in range(IDLE_STREAMS)]
    tasks = [asyncio.create_task(wait(future)) for future in futures]
    await until_all_wait()
    waiting = traced() - before
    for future in futures:
        future.set_result(None)
    await asyncio.gather(*tasks)
    return waiting / IDLE_STREAMS


def traced() -> int:
    """Return how many bytes are held now."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def lag(seconds: float, rounds: int) -> str:
    """Return the table of the loop's lag."""
    names = [PER_OUTPUT, QUEUE_EACH, EVENT_EACH, CHAINED, TASK_QUEUES]
    names += [*OURS.values(), *OURS_ASYNC.values()]
    runs = {"(a busy thread alone)": partial(run, late, None, seconds)}
    runs |= {name: partial(CONTESTANTS[name].run, late, seconds) for name in names}
    rows = []
    for name, by_round in take_turns(runs, rounds).items():
        lags = sorted(value for values in by_round for value in values)
        p99s = [sorted(values)[int(len(values) * 0.99)] for values in by_round]
        for core, mine in OURS.items():
            if name == mine:
                goals.measured(goals.LAG, core, [1e3 * value for value in p99s])
        p50 = f"{statistics.median(lags) * 1e3:.1f}"
        rows.append([name, str(len(lags)), p50, spread(p99s, 1e3, 1), f"{lags[-1] * 1e3:.1f}"])
    return table(["hand-off", "sleeps", "p50, ms", "p99 by round, ms", "max, ms"], rows)


def memory() -> str:
    """Return the table of bytes per stream."""
    rows = []
    tracemalloc.start()
    run(held_by_waiting)
    bare = run(held_by_waiting)
    for name, contestant in CONTESTANTS.items():
        if name in UNBOUND.values():
            continue
        contestant.run(held)  # once, unmeasured: what is made once for all is made here
        unread, waited_for = contestant.run(held)
        for core, mine in OURS.items():
            if name == mine:
                goals.measured(goals.IDLE_BYTES, core, [unread])
        rows.append([name, f"{unread:.0f}", f"{waited_for - bare:.0f}"])
    tracemalloc.stop()
    return table(["hand-off", "unread, bytes", "waited for, bytes"], rows)
