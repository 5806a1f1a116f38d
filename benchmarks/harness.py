"""Timing of several contestants in one process, taking turns, with the spread shown."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping

ROUNDS = 9


def alternate(contestants: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Run each contestant in turn, for `ROUNDS` rounds, and return their seconds.

    Taking turns lets a slow moment of the machine hit all of them. The order changes from round to
    round, so that nobody always comes after the one that fills the caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for name in names:
        contestants[name]()  # once, unmeasured
    for number in range(ROUNDS):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            begin = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def spread(values: list[float], scale: float, digits: int = 0) -> str:
    """Return `median (min-max)` of the values times `scale`."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle * scale:.{digits}f} ({low * scale:.{digits}f}-{high * scale:.{digits}f})"


def ratios(numerator: list[float], denominator: list[float]) -> list[float]:
    """Return the ratios of what was measured in the same round."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def machine() -> str:
    """Say in a line what this was run on."""
    return f"{platform.python_implementation()} {platform.python_version()}, {ROUNDS} rounds"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
