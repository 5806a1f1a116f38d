"""Timing of several contestants in one process, taking turns, with the spread shown.

The package itself takes part twice, once with each of its cores: see `CORES`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import batchstream

ROUNDS = 9
NATIVE, PURE = "native", "pure"
PURE_VARIABLE = "BATCHSTREAM_PURE"
# Markers and records are the same classes in both, so that one model serves either.
SHARED = ("batchstream._core.markers", "batchstream._core.records")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Core:
    """The package as it runs on one of its cores, in its own set of modules."""

    name: str
    package: ModuleType
    modules: dict[str, ModuleType]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[ModuleType]:
        """Let this be `batchstream` for a while: some of its modules import others as they run."""
        others = taken_out()
        sys.modules.update(self.modules)
        try:
            yield self.package
        finally:
            self.modules.update(taken_out())
            sys.modules.update(others)

    def run(self, function: Callable[..., Result], *args: object, **options: object) -> Result:
        """Call a function with this in place; it gets the package as its first argument."""
        with self.in_place() as package:
            return function(package, *args, **options)


def taken_out() -> dict[str, ModuleType]:
    """Take the package's modules out of `sys.modules`, and return them."""
    ours = [name for name in sys.modules if name.partition(".")[0] == "batchstream"]
    return {name: sys.modules.pop(name) for name in ours}


def imported_again() -> Core:
    """Return the package on the Python core, imported once more."""
    before, others = os.environ.get(PURE_VARIABLE), taken_out()
    sys.modules.update({name: others[name] for name in SHARED})
    os.environ[PURE_VARIABLE] = "1"
    try:
        package = importlib.import_module("batchstream")
    finally:
        modules = taken_out()
        sys.modules.update(others)
        if before is None:
            del os.environ[PURE_VARIABLE]
        else:
            os.environ[PURE_VARIABLE] = before
    assert not package.__native__
    return Core(PURE, package, modules)


def cores() -> dict[str, Core]:
    """Return the package on both cores, or on the Python core alone where no other was built."""
    modules = taken_out()
    sys.modules.update(modules)
    if not batchstream.__native__:
        return {PURE: Core(PURE, batchstream, modules)}
    return {NATIVE: Core(NATIVE, batchstream, modules), PURE: imported_again()}


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
    """Return how much processor time it takes to run this, in all threads."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def run(main: Callable[..., Coroutine], *args: object, **options: object) -> Any:
    """Run a coroutine function in an event loop of its own."""
    return asyncio.run(main(*args, **options))


def spread(values: Sequence[float], scale: float, digits: int = 0) -> str:
    """Return `median (min-max)` of the values times `scale`."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle * scale:.{digits}f} ({low * scale:.{digits}f}-{high * scale:.{digits}f})"


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
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


CORES = cores()
