"""Pull-driven streams against what the standard library offers, in one thread.

`tee` is the pipeline that `more_itertools.unzip` builds, all of it in C: `itertools.tee`, an
`itemgetter` for each slot, and `takewhile` up to the end mark. It has no bound, no close, no
errors, no cancel, and keeps every step until the slowest stream has passed it. `deques` is what one
writes by hand: a deque for each slot and a generator over it.
"""

from __future__ import annotations

import argparse
import random
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import takewhile, tee
from operator import is_not, itemgetter

from harness import ROUNDS, alternate, machine, ratios, spread, table

from batchstream import demux

Steps = list[list[str | None]]
LENGTHS = {1: 40_000, 8: 10_000, 32: 6_000, 64: 4_000, 512: 500}
QUICK_LENGTHS = {8: 2_000, 64: 400}


def lengths_of(size: int, longest: int) -> list[int]:
    """Return how many outputs each of the ragged sequences has, the longest first."""
    rng = random.Random(size)
    return [longest, *(rng.randint(1, longest) for _ in range(size - 1))]


def model(lengths: list[int]) -> Iterator[list[str | None]]:
    """Yield steps of fresh outputs, and None for finished slots, as the simplest model does."""
    for number in range(max(lengths) + 1):
        yield [f"{number}" if number < length else None for length in lengths]


def by_tee(source: Iterator[list[str | None]], size: int) -> list[Iterator[str | None]]:
    """Split with C iterators alone."""
    not_the_mark = partial(is_not, None)
    return [
        takewhile(not_the_mark, map(itemgetter(slot), steps))
        for slot, steps in enumerate(tee(source, size))
    ]


def by_deques(source: Iterator[list[str | None]], size: int) -> list[Iterator[str | None]]:
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


def one_after_another(streams: list[Iterator[str | None]]) -> int:
    """Read each stream to its end before the next one."""
    count = 0
    for stream in streams:
        for _ in stream:
            count += 1
    return count


def round_robin(streams: list[Iterator[str | None]]) -> int:
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


SPLITTERS: dict[str, Callable[..., list[Iterator[str | None]]]] = {
    "tee": by_tee,
    "deques": by_deques,
    "batchstream": lambda source, size: list(demux(source, size)),
}


def split_and_read(
    split: Callable[..., list[Iterator[str | None]]],
    source: Callable[[], Iterator[list[str | None]]],
    size: int,
    read: Callable[[list[Iterator[str | None]]], int],
) -> int:
    """Do all that is measured, and return how many outputs there were."""
    return read(split(source(), size))


def speed(longest: Mapping[int, int], rounds: int) -> str:
    """Return the table of nanoseconds per output, and how batchstream compares, by slots."""
    rows = []
    for size in longest:
        lengths = lengths_of(size, longest[size])
        beforehand: Steps = list(model(lengths))
        sources: dict[str, Callable[[], Iterator[list[str | None]]]] = {
            "made when asked": lambda lengths=lengths: model(lengths),
            "made beforehand": lambda steps=beforehand: iter(steps),
        }
        for source_name, source in sources.items():
            for read in (one_after_another, round_robin):
                contestants = {
                    name: partial(split_and_read, split, source, size, read)
                    for name, split in SPLITTERS.items()
                }
                assert {run() for run in contestants.values()} == {sum(lengths)}
                seconds = alternate(contestants, rounds)
                per_output = 1e9 / sum(lengths)
                rows.append(
                    [
                        str(size),
                        read.__name__.replace("_", " "),
                        source_name,
                        *(spread(seconds[name], per_output) for name in SPLITTERS),
                        spread(ratios(seconds["tee"], seconds["batchstream"]), 1, 2),
                        spread(ratios(seconds["batchstream"], seconds["deques"]), 1, 2),
                    ]
                )
    head = ["slots", "reading", "steps", *(f"{n}, ns" for n in SPLITTERS)]
    head += ["speed against tee", "time against deques"]
    return table(head, rows)


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
        rows.append(
            [
                str(size),
                str(LENGTHS[size]),
                *(f"{held[name] / 1024:.0f}" for name in SPLITTERS),
                f"{held['batchstream'] / held['tee']:.3f}",
            ]
        )
    head = ["slots", "steps", *(f"{name}, KiB" for name in SPLITTERS), "of tee's"]
    return table(head, rows)


def main(*, quick: bool = False) -> None:
    """Print both tables."""
    rounds = 1 if quick else ROUNDS
    print(f"One output, end to end ({machine(rounds)}; median, minimum and maximum):\n")
    print(speed(QUICK_LENGTHS if quick else LENGTHS, rounds))
    print("\nHeld when every stream but one was read:\n")
    print(memory())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two sizes, one short round")
    main(quick=parser.parse_args().quick)
