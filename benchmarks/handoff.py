"""Handing steps to consumers in an event loop: time, lag of the loop, and memory.

A source makes steps, in a thread or in the loop, and one task for each stream consumes with
`async for`. *Paced*, the source makes the next step when every consumer has received its output of
the last, so that each step pays for its own wake-ups. *Unpaced*, it runs ahead as fast as it can.
Clocks start when all consumers wait and stop when all have ended. Outputs are fresh strings, and
each consumer's are compared with what it should have received, after the clock has stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial

from burden import LAG_STREAMS, lag, memory
from contestants import (
    CHAINED,
    CONTESTANTS,
    MISSING,
    OURS,
    OURS_ASYNC,
    PATIENCE,
    PER_OUTPUT,
    QUEUE_EACH,
    UNBOUND,
    Contestant,
    ThreadPace,
    made,
    until_all_wait,
)
from harness import machine, ratios, run, spread, table, take_turns

# How many steps a run has, by the number of streams.
PACED = {8: 600, 64: 160, 256: 50, 1024: 12}
UNPACED = {8: 2_500, 64: 1_500, 256: 200, 1024: 40}  # with 8 and 64 the bound of 1024 is felt
ROUNDS, LAG_ROUNDS, LAG_SECONDS = 7, 3, 0.4
QUICK_PACED = {64: 50, 256: 20}
QUICK_UNPACED = {64: 300, 256: 60}
FLOOR = "(wake-up alone)"


async def collect(stream: AsyncIterator[str], received: list[str]) -> None:
    """Consume as a user does."""
    async for output in stream:
        received.append(output)  # noqa: PERF401 - the loop that a user writes


async def collect_paced(stream: AsyncIterator[str], received: list[str], pace: ThreadPace) -> None:
    """Consume as a user does, and let the source go on after the last of a step's outputs."""
    missing = pace.missing
    async for output in stream:
        received.append(output)
        missing.pop()
        if not missing:
            pace.go_on()


async def hand_over(contestant: Contestant, size: int, steps: int, *, paced: bool) -> float:
    """Return the seconds from the first step until all consumers have ended."""
    pace = contestant.pace(size)
    source = pace.source(made(size, steps), paced=paced)
    received: list[list[str]] = [[] for _ in range(size)]
    async with asyncio.timeout(PATIENCE), contestant.streams(source, size) as streams:
        tasks = [
            asyncio.create_task(
                collect_paced(stream, mine, pace) if paced else collect(stream, mine)
            )
            for stream, mine in zip(streams, received, strict=True)
        ]
        await until_all_wait()
        begin = time.perf_counter()
        pace.release()
        await asyncio.gather(*tasks)
        seconds = time.perf_counter() - begin
    for slot, outputs in enumerate(received):
        assert outputs == [f"{number}" for number in range(slot, size * steps, size)]
    return seconds


async def wake_alone(size: int, steps: int, *, paced: bool) -> float:
    """Return the seconds for making the steps and calling the loop for each, with no consumers."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    pace = ThreadPace(1)

    def pump() -> None:
        for step in pace.source(made(size, steps), paced=paced):
            loop.call_soon_threadsafe(over.set if step[0] is None else woken)

    woken = pace.release if paced else int
    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    begin = time.perf_counter()
    pace.release()
    await over.wait()
    seconds = time.perf_counter() - begin
    thread.join(PATIENCE)
    return seconds


Seconds = dict[str, dict[int, list[float]]]


def timed(lengths: Mapping[int, int], rounds: int, *, paced: bool) -> Seconds:
    """Return what each contestant took for an output (unpaced) or a step (paced), by size."""
    seconds: Seconds = {}
    for size, steps in lengths.items():
        runs = {
            name: partial(run, hand_over, contestant, size, steps, paced=paced)
            for name, contestant in CONTESTANTS.items()
            if not (paced and name == UNBOUND)  # the bound is not felt anyway
        }
        runs[FLOOR] = partial(run, wake_alone, size, steps, paced=paced)
        units = steps if paced else steps * size
        for name, took in take_turns(runs, rounds).items():
            seconds.setdefault(name, {})[size] = [value / units for value in took]
    return seconds


def speed(seconds: Seconds, unit: str) -> str:
    """Return the table of microseconds, with batchstream's speed against each."""
    sizes = list(seconds[FLOOR])
    order = [FLOOR, *(name for name in seconds if name != FLOOR)]
    rows = []
    for name in order:
        row = [name]
        for size in sizes:
            row.append(spread(seconds[name][size], 1e6, 0 if unit == "step" else 2))
            row.append(speed_against(seconds, name, size))
        rows.append(row)
    head = ["hand-off"]
    for size in sizes:
        head += [f"{size}: µs per {unit}", "ours is"]
    return table(head, rows)


def speed_against(seconds: Seconds, name: str, size: int) -> str:
    """Say how often batchstream does the work in the time of this contestant."""
    in_loop = name in CONTESTANTS and CONTESTANTS[name].in_loop
    mine = OURS_ASYNC if in_loop else OURS
    if mine not in seconds:
        return MISSING
    return f"{statistics.median(ratios(seconds[name][size], seconds[mine][size])):.2f}x"


def goals(paced: Seconds, unpaced: Seconds, p99: float | None, of_ours: float | None) -> str:
    """Return the table of what is asked of batchstream and what was measured."""

    def ratio(seconds: Seconds, size: int, over: str, under: str) -> str:
        if OURS not in seconds:
            return MISSING
        return spread(ratios(seconds[over][size], seconds[under][size]), 1, 2)

    rows = [
        ["paced 256: speed against " + PER_OUTPUT, "≥ 5.5", ratio(paced, 256, PER_OUTPUT, OURS)],
        ["paced 256: speed against " + QUEUE_EACH, "≥ 1.7", ratio(paced, 256, QUEUE_EACH, OURS)],
        ["paced 256: time in terms of " + CHAINED, "≤ 1.1", ratio(paced, 256, OURS, CHAINED)],
        ["unpaced 64: speed against " + QUEUE_EACH, "≥ 2.4", ratio(unpaced, 64, QUEUE_EACH, OURS)],
        ["kB per idle stream", "≤ 1.5", f"{of_ours / 1e3:.2f}" if of_ours else MISSING],
        ["p99 of the loop's lag, ms", "≤ 15", f"{p99 * 1e3:.1f}" if p99 else MISSING],
    ]
    return table(["goal", "asked", "measured"], rows)


def main(*, quick: bool = False) -> None:
    """Print all tables."""
    rounds, lag_rounds = (1, 1) if quick else (ROUNDS, LAG_ROUNDS)
    print(f"Paced ({machine(rounds)}; median, minimum and maximum):\n")
    paced = timed(QUICK_PACED if quick else PACED, rounds, paced=True)
    print(speed(paced, "step"))
    print("\nUnpaced:\n")
    unpaced = timed(QUICK_UNPACED if quick else UNPACED, rounds, paced=False)
    print(speed(unpaced, "output"))
    print(f"\nHow late a sleep of 1 ms is, {LAG_STREAMS} streams, a source that is always ready:\n")
    lag_table, p99 = lag(LAG_SECONDS / 5 if quick else LAG_SECONDS, lag_rounds)
    print(lag_table)
    print("\nHeld by a stream without outputs; waited for: less what a task and a future hold:\n")
    memory_table, of_ours = memory()
    print(memory_table)
    print("\nGoals:\n")
    print(goals(paced, unpaced, p99, of_ours))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two sizes, one short round")
    main(quick=parser.parse_args().quick)
