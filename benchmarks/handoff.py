"""Handing steps to consumers in an event loop: processor time, lag of the loop, and memory.

A source makes steps, in a thread or in the loop, and one task for each stream consumes with
`async for`. *Paced*, the source makes the next step when every consumer has received its output of
the last, so that each step pays for its own wake-ups. *Unpaced*, it runs ahead as fast as it can.
Clocks start when all consumers wait and stop when all have ended; they count the processor time of
all threads. Outputs are fresh strings, and each consumer's are compared with what it should have
received, after the clock has stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import statistics
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial

import goals
from burden import LAG_STREAMS, lag, memory
from contestants import (
    CHAINED,
    CONTESTANTS,
    OURS,
    OURS_ASYNC,
    PATIENCE,
    QUEUE_EACH,
    UNBOUND,
    Contestant,
    NewLoop,
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
UVLOOP = importlib.util.find_spec("uvloop") is not None
ON_UVLOOP = (QUEUE_EACH, CHAINED, *OURS.values())


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


async def hand_over(contestant: Contestant, size: int, steps: int, paced: bool) -> float:  # noqa: FBT001
    """Return the processor time from the first step until all consumers have ended."""
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
        begin = time.process_time()
        pace.release()
        await asyncio.gather(*tasks)
        seconds = time.process_time() - begin
    for slot, outputs in enumerate(received):
        assert outputs == [f"{number}" for number in range(slot, size * steps, size)]
    return seconds


async def wake_alone(size: int, steps: int, *, paced: bool) -> float:
    """Return the processor time of the steps and a call of the loop for each, without consumers."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    pace = ThreadPace(1)

    def pump() -> None:
        for step in pace.source(made(size, steps), paced=paced):
            loop.call_soon_threadsafe(over.set if step[0] is None else woken)

    woken = pace.release if paced else int
    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    begin = time.process_time()
    pace.release()
    await over.wait()
    seconds = time.process_time() - begin
    thread.join(PATIENCE)
    return seconds


Seconds = dict[str, dict[int, list[float]]]


def timed(
    lengths: Mapping[int, int],
    rounds: int,
    *,
    paced: bool,
    names: Sequence[str] = tuple(CONTESTANTS),
    new_loop: NewLoop | None = None,
) -> Seconds:
    """Return what each contestant took for an output (unpaced) or a step (paced), by size."""
    seconds: Seconds = {}
    for size, steps in lengths.items():
        runs = {}
        if new_loop is None:
            runs[FLOOR] = partial(run, wake_alone, size, steps, paced=paced)
        for name in names:
            if not (paced and name in UNBOUND.values()):  # the bound is not felt anyway
                runs[name] = partial(
                    CONTESTANTS[name].run, hand_over, size, steps, paced, new_loop=new_loop
                )
        units = steps if paced else steps * size
        for name, took in take_turns(runs, rounds).items():
            seconds.setdefault(name, {})[size] = [value / units for value in took]
    return seconds


def speed(seconds: Seconds, unit: str) -> str:
    """Return the table of microseconds, with the speed of each core against each contestant."""
    sizes = list(next(iter(seconds.values())))
    rows = []
    for name, by_size in seconds.items():
        row = [name]
        for size in sizes:
            row.append(spread(by_size[size], 1e6, 0 if unit == "step" else 2))
            row.append(speed_against(seconds, name, size))
        rows.append(row)
    head = ["hand-off"]
    for size in sizes:
        head += [f"{size}: µs per {unit}", f"{' / '.join(OURS)} is"]
    return table(head, rows)


def speed_against(seconds: Seconds, name: str, size: int) -> str:
    """Say how often batchstream does the work in the time of this contestant, by core."""
    in_loop = name in CONTESTANTS and CONTESTANTS[name].in_loop
    times = [
        statistics.median(ratios(seconds[name][size], seconds[mine][size]))
        for mine in (OURS_ASYNC if in_loop else OURS).values()
    ]
    return " / ".join(f"{one:.2f}x" for one in times)


def on_uvloop(paced: Mapping[int, int], rounds: int) -> str:
    """Return the table of tasks in uvloop, and say what is to be said of the goals."""
    import uvloop  # noqa: PLC0415 - not needed for the others

    seconds = timed(paced, rounds, paced=True, names=ON_UVLOOP, new_loop=uvloop.new_event_loop)
    for core, mine in OURS.items():
        goals.measured(goals.UVLOOP, core, ratios(seconds[mine][256], seconds[CHAINED][256]))
    return speed(seconds, "step")


def note_goals(paced: Seconds, unpaced: Seconds) -> None:
    """Note what was measured."""
    for core, mine in OURS.items():
        for size in paced[mine]:
            of_futures = ratios(paced[mine][size], paced[CHAINED][size])
            goals.measured(goals.paced_against_futures(size), core, of_futures)
        goals.measured(goals.UNPACED, core, ratios(unpaced[QUEUE_EACH][64], unpaced[mine][64]))


def main(*, quick: bool = False) -> None:
    """Print all tables."""
    rounds, lag_rounds = (1, 1) if quick else (ROUNDS, LAG_ROUNDS)
    lengths = QUICK_PACED if quick else PACED
    print(f"Paced ({machine(rounds)}; processor time):\n")
    paced = timed(lengths, rounds, paced=True)
    print(speed(paced, "step"))
    print("\nUnpaced:\n")
    unpaced = timed(QUICK_UNPACED if quick else UNPACED, rounds, paced=False)
    print(speed(unpaced, "output"))
    note_goals(paced, unpaced)
    if UVLOOP:
        print("\nPaced, in uvloop:\n")
        print(on_uvloop({256: lengths[256]}, rounds))
    print(f"\nHow late a sleep of 1 ms is, {LAG_STREAMS} streams, a source that is always ready:\n")
    print(lag(LAG_SECONDS / 5 if quick else LAG_SECONDS, lag_rounds))
    print("\nHeld by a stream without outputs; waited for: less what a task and a future hold:\n")
    print(memory())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two sizes, one short round")
    main(quick=parser.parse_args().quick)
    print()
    goals.main()
