"""Pull-driven streams against what the standard library offers, in one thread.

`tee` is the pipeline that `more_itertools.unzip` builds, all of it in C: `itertools.tee`, an
`itemgetter` for each slot, and `takewhile` up to the end mark. It has no bound, no close, no
errors, no cancel, and keeps every step until the slowest stream has passed it. `deques` is what one
writes by hand: a deque for each slot and a generator over it. `source alone` is the floor: the
steps are made, and dropped.
"""

from __future__ import annotations

import argparse
import random
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain, takewhile, tee
from operator import is_not, itemgetter
from types import ModuleType

import goals
from goals import MADE_BEFOREHAND, MADE_WHEN_ASKED
from harness import CORES, ROUNDS, alternate, machine, ratios, spread, table

Steps = list[list[str | None]]
Streams = list[Iterator[str | None]]
LENGTHS = {1: 40_000, 8: 10_000, 32: 6_000, 64: 4_000, 512: 500}
QUICK_LENGTHS = {8: 2_000, 64: 400}
SHORT_SIZES, SHORT_LENGTHS = (8, 64), (50, 500, 4_000)
SHORT_OUTPUTS, QUICK_SHORT_OUTPUTS = 40_000, 4_000  # of a run, in batches one after another
FLOOR, TEE, DEQUES = "source alone", "tee", "deques"


def lengths_of(size: int, longest: int) -> list[int]:
    """Return how many outputs each of the ragged sequences has, the longest first."""
    rng = random.Random(size)
    return [longest, *(rng.randint(1, longest) for _ in range(size - 1))]


def model(lengths: list[int]) -> Iterator[list[str | None]]:
    """Yield steps of fresh outputs, and None for finished slots, as the simplest model does."""
    for number in range(max(lengths) + 1):
        yield [f"{number}" if number < length else None for length in lengths]


def by_tee(source: Iterator[list[str | None]], size: int) -> Streams:
    """Split with C iterators alone."""
    not_the_mark = partial(is_not, None)
    return [
        takewhile(not_the_mark, map(itemgetter(slot), steps))
        for slot, steps in enumerate(tee(source, size))
    ]


def by_deques(source: Iterator[list[str | None]], size: int) -> Streams:
    """Split with a generator and a deque for each slot."""
    waiting: list[deque[str | None]] = [deque() for _ in range(size)]

    def stream(mine: deque[str | None]) -> Iterator[str | None]:
        while True:
            while not mine:
                step = next(source, None)
                if step is None:
                    return
                for queue, output in zip(waiting, step, strict=True):
                    queue.append(output)
            output = mine.popleft()
            if output is None:
                return
            yield output

    return [stream(mine) for mine in waiting]


def one_after_another(streams: Streams) -> int:
    """Read each stream to its end before the next one."""
    count = 0
    for stream in streams:
        for _ in stream:
            count += 1
    return count


def round_robin(streams: Streams) -> int:
    """Receive one output from each live stream in turn."""
    count = 0
    over = object()
    live = deque(streams)
    while live:
        stream = live.popleft()
        if next(stream, over) is not over:
            count += 1
            live.append(stream)
    return count


def ours(package: ModuleType, source: Iterator[list[str | None]], size: int) -> Streams:
    """Split with the package."""
    return list(package.demux(source, size))


SPLITTERS: dict[str, Callable[..., Streams]] = {
    TEE: by_tee,
    DEQUES: by_deques,
    **{name: partial(core.run, ours) for name, core in CORES.items()},
}


def split_and_read(
    split: Callable[..., Streams],
    source: Callable[[], Iterator[list[str | None]]],
    size: int,
    read: Callable[[Streams], int],
    times: int = 1,
) -> int:
    """Do all that is measured, and return how many outputs there were."""
    return sum(read(split(source(), size)) for _ in range(times))


def drop(source: Callable[[], Iterator[list[str | None]]], times: int = 1) -> None:
    """Let the steps be made, and drop each."""
    for _ in range(times):
        for _ in source():
            pass


def contestants_of(
    source: Callable[[], Iterator[list[str | None]]],
    size: int,
    read: Callable[[Streams], int],
    times: int = 1,
) -> dict[str, Callable[[], object]]:
    """Return what takes turns."""
    contestants: dict[str, Callable[[], object]] = {FLOOR: partial(drop, source, times)}
    for name, split in SPLITTERS.items():
        contestants[name] = partial(split_and_read, split, source, size, read, times)
    return contestants


HEAD = [
    f"{FLOOR}, ns",
    *(f"{name}, ns" for name in SPLITTERS),
    *(f"{name} / {DEQUES}" for name in CORES),
    *(f"{TEE} / {name}" for name in CORES),
]


def cells(seconds: Mapping[str, list[float]], outputs: int) -> list[str]:
    """Return the cells under the head: nanoseconds per output, and how ours compares."""
    row = [spread(took, 1e9 / outputs) for took in seconds.values()]
    row += [spread(ratios(seconds[name], seconds[DEQUES]), 1, 2) for name in CORES]
    return row + [spread(ratios(seconds[TEE], seconds[name]), 1, 2) for name in CORES]


def speed(longest: Mapping[int, int], rounds: int, source_name: str) -> str:
    """Return the table of nanoseconds per output, by slots."""
    rows = []
    for size in longest:
        lengths = lengths_of(size, longest[size])
        beforehand: Steps = list(model(lengths))
        source = partial(model, lengths)
        if source_name == MADE_BEFOREHAND:
            source = partial(iter, beforehand)
        by_reading = []
        for read in (one_after_another, round_robin):
            contestants = contestants_of(source, size, read)
            assert {contestants[name]() for name in SPLITTERS} == {sum(lengths)}
            seconds = alternate(contestants, rounds)
            by_reading.append(seconds)
            row = [str(size), read.__name__.replace("_", " ")]
            rows.append(row + cells(seconds, sum(lengths)))
        note_goals(by_reading, size, source_name)
    return table(["slots", "reading", *HEAD], rows)


def note_goals(by_reading: list[dict[str, list[float]]], size: int, source_name: str) -> None:
    """Note what was measured: both ways of reading together."""
    for name in CORES:
        of_deques = [ratios(seconds[name], seconds[DEQUES]) for seconds in by_reading]
        of_tee = [ratios(seconds[TEE], seconds[name]) for seconds in by_reading]
        goals.measured(goals.against_deques(size, source_name), name, [*chain(*of_deques)])
        if source_name == MADE_WHEN_ASKED:
            goals.measured(goals.against_tee(size), name, [*chain(*of_tee)])


def short(outputs: int, rounds: int) -> str:
    """Return the table for batches of short streams: to make and to end a batch counts."""
    rows = []
    for size in SHORT_SIZES:
        for longest in SHORT_LENGTHS:
            lengths = lengths_of(size, longest)
            times = max(1, outputs // sum(lengths))
            source = partial(model, lengths)
            seconds = alternate(contestants_of(source, size, one_after_another, times), rounds)
            rows.append([str(size), str(longest), *cells(seconds, sum(lengths) * times)])
    return table(["slots", "longest", *HEAD], rows)


def memory() -> str:
    """Return the table of what is held when all streams but one have been read."""
    rows = []
    for size in (8, 64, 512):
        lengths = [LENGTHS[size]] * size
        held = {}
        for name, split in SPLITTERS.items():
            tracemalloc.start()
            streams = split(model(lengths), size)
            for _ in zip(*streams[1:], strict=True):
                pass
            held[name] = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            del streams
        row = [str(size), str(LENGTHS[size]), *(f"{held[name] / 1024:.0f}" for name in SPLITTERS)]
        rows.append(row + [f"{held[name] / held[TEE]:.3f}" for name in CORES])
    head = ["slots", "steps", *(f"{name}, KiB" for name in SPLITTERS)]
    return table(head + [f"{name}: of tee's" for name in CORES], rows)


def main(*, quick: bool = False) -> None:
    """Print all tables."""
    rounds = 1 if quick else ROUNDS
    for source_name in (MADE_WHEN_ASKED, MADE_BEFOREHAND):
        print(f"One output, end to end, steps {source_name} ({machine(rounds)}):\n")
        print(speed(QUICK_LENGTHS if quick else LENGTHS, rounds, source_name))
        print()
    print(f"Short streams, batch after batch, steps {MADE_WHEN_ASKED}:\n")
    print(short(QUICK_SHORT_OUTPUTS if quick else SHORT_OUTPUTS, rounds))
    print("\nHeld when every stream but one was read:\n")
    print(memory())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two sizes, one short round")
    main(quick=parser.parse_args().quick)
    print()
    goals.main()
