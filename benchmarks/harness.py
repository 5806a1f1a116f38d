"""Timing of several contestants in one process, taking turns, with the spread shown."""

from __future__ import annotations

import asyncio
import gc
import platform
import statistics
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

ROUNDS = 9
Result = TypeVar("Result")


def alternate(
    contestants: Mapping[str, Callable[[], object]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Run each contestant in turn, round by round, and return their seconds."""
    return take_turns({name: partial(seconds_of, run) for name, run in contestants.items()}, rounds)


def take_turns(
    contestants: Mapping[str, Callable[[], Result]], rounds: int
) -> dict[str, list[Result]]:
    """Run each contestant in turn, round by round, and return what each says of each round.

    Taking turns lets a slow moment of the machine hit all of them. The order changes from round to
    round, so that none always comes after the one that fills the caches.
    """
    said: dict[str, list[Result]] = {name: [] for name in contestants}
    names = list(contestants)
    for name in names:
        contestants[name]()  # once, unmeasured
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            said[name].append(contestants[name]())
    return said


def seconds_of(run: Callable[[], object]) -> float:
    """Return how long it takes to run this."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def run(main: Callable[..., Coroutine], *args: object, **options: object) -> Any:
    """Run a coroutine function in an event loop of its own."""
    return asyncio.run(main(*args, **options))


def spread(values: list[float], scale: float, digits: int = 0) -> str:
    """Return `median (min-max)` of the values times `scale`."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle * scale:.{digits}f} ({low * scale:.{digits}f}-{high * scale:.{digits}f})"


def ratios(numerator: list[float], denominator: list[float]) -> list[float]:
    """Return the ratios of what was measured in the same round."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def machine(rounds: int = ROUNDS) -> str:
    """Say in a line what this was run on."""
    return f"{platform.python_implementation()} {platform.python_version()}, {rounds} rounds"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
