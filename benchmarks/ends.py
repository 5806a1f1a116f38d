"""Ends that are found by a function or among token ids, against the same written by hand.

By hand is a deque for each slot and a generator over it, as in `streams.py`, which looks at each
output as it is handed on. Streams are read in turn, in one thread; steps are made beforehand, so
that nothing but finding the ends is measured.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from types import ModuleType
from typing import Any

import numpy as np
from harness import CORES, ROUNDS, alternate, machine, ratios, spread, table

from streams import round_robin

SIZES = (8, 64)
OUTPUTS, QUICK_OUTPUTS = 40_000, 8_000
EOS_ID, OTHER_ID = 2, 5
BY_HAND = "by hand"


def is_eos(output: object) -> bool:
    """Tell the end as a user's function does."""
    return output == EOS_ID


def by_hand(steps: Iterator[Any], size: int, read: Callable[[Any], list[object]]) -> list[Iterator]:
    """Split with a generator and a deque for each slot; `read` makes a list of a step."""
    waiting: list[deque[object]] = [deque() for _ in range(size)]

    def stream(mine: deque[object]) -> Iterator[object]:
        while True:
            while not mine:
                step = next(steps, None)
                if step is None:
                    return
                for queue, output in zip(waiting, read(step), strict=True):
                    queue.append(output)
            output = mine.popleft()
            if is_eos(output):
                return
            yield output

    return [stream(mine) for mine in waiting]


def with_function(package: ModuleType, steps: Iterator[Any], size: int) -> list[Iterator]:
    """Split with the package, and a function that tells the end."""
    return list(package.demux(steps, size, is_eos=is_eos))


def with_ids(package: ModuleType, steps: Iterator[Any], size: int) -> list[Iterator]:
    """Split with the package, which looks for the id."""
    return list(package.demux(steps, size, is_eos=package.token_ids(EOS_ID)))


# How the package splits, what makes a step, and how a list is made of it by hand.
Way = tuple[Callable[..., list[Iterator]], Callable[[int], Any], Callable[[Any], list[object]]]
WAYS: dict[str, Way] = {
    "function as is_eos": (with_function, lambda size: [OTHER_ID] * size, list),
    "token_ids, steps are lists": (with_ids, lambda size: [OTHER_ID] * size, list),
    "token_ids, steps are arrays": (
        with_ids,
        lambda size: np.full(size, OTHER_ID),
        np.ndarray.tolist,
    ),
}


def split_and_read(
    split: Callable[..., list[Iterator]], step: Any, size: int, steps: int, *more: object
) -> None:
    """Do all that is measured."""
    assert round_robin(split(repeat(step, steps), size, *more)) == size * steps


def main(*, quick: bool = False) -> None:
    """Print the table."""
    rounds = 1 if quick else ROUNDS
    rows = []
    for name, (ours, make_step, read) in WAYS.items():
        for size in SIZES:
            step, steps = make_step(size), (QUICK_OUTPUTS if quick else OUTPUTS) // size
            runs = {BY_HAND: partial(split_and_read, by_hand, step, size, steps, read)}
            for core_name, core in CORES.items():
                split = partial(core.run, ours)
                runs[core_name] = partial(split_and_read, split, step, size, steps)
            seconds = alternate(runs, rounds)
            row = [name, str(size)]
            row += [spread(took, 1e9 / (size * steps)) for took in seconds.values()]
            row += [spread(ratios(seconds[core], seconds[BY_HAND]), 1, 2) for core in CORES]
            rows.append(row)
    print(f"One output, with its end to be found ({machine(rounds)}; processor time):\n")
    head = ["end", "slots", *(f"{name}, ns" for name in (BY_HAND, *CORES))]
    print(table(head + [f"{core}: time against by hand" for core in CORES], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    main(quick=parser.parse_args().quick)
