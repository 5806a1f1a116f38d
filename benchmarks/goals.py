"""What is asked of each core, and what was measured: printed after the tables that measure it.

A benchmark says what it has measured by `measured`, in the words of `ASKED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import ge, le
from statistics import median

from harness import NATIVE, PURE, spread, table

Asked = dict[str, tuple[str, float, float]]  # by name: at most or at least, for pure and for native

AT_MOST, AT_LEAST = "≤", "≥"
MADE_WHEN_ASKED, MADE_BEFOREHAND = "made when asked", "made beforehand"


def against_deques(slots: int, source: str) -> str:
    """Name the goal."""
    return f"time against deques by hand, {slots} slots, {source}"


def against_tee(slots: int) -> str:
    """Name the goal."""
    return f"speed against tee, {slots} slots, {MADE_WHEN_ASKED}"


def paced_against_futures(streams: int) -> str:
    """Name the goal."""
    return f"asyncio, paced, {streams} streams: against chained futures"


def step_against_queues(slots: int) -> str:
    """Name the goal."""
    return f"ContinuousBatcher, paced, {slots} slots: over the model, against a queue each"


UVLOOP = "uvloop, paced, 256 streams: against chained futures"
UNPACED = "asyncio, unpaced, 64 streams: speed against a queue each"
ANSWER = "an answer, 64 clients: against a future each"
IDLE_BYTES = "bytes of an idle stream"
LAG = "p99 of the loop's lag, 512 streams, ms"
KEYS = "10,000 keys: against one key"
KEYS_LATER = "10,000 keys, with the default batch_timeout: against one key"
CHURN = "ContinuousBatcher, 256 slots, joins and leaves: against none"
IMPORT = "import: against its standard-library modules"
TEXT = "text of a token with a stop string: against DecodeStream"
TEXT_TIME = "text of a token with a stop string, µs"

ASKED: Asked = {}
for made in (MADE_WHEN_ASKED, MADE_BEFOREHAND):
    ASKED[against_deques(1, made)] = (AT_MOST, 2.5, 0.5)
    ASKED[against_deques(8, made)] = (AT_MOST, 1.6, 0.35)
    ASKED[against_deques(32, made)] = (AT_MOST, 1.3, 0.3)
    ASKED[against_deques(64, made)] = (AT_MOST, 1.3, 0.3)
ASKED |= {
    against_tee(1): (AT_LEAST, 0.25, 1.0),
    against_tee(8): (AT_LEAST, 0.25, 1.0),
    against_tee(32): (AT_LEAST, 0.5, 1.0),
    against_tee(64): (AT_LEAST, 0.5, 1.5),
    against_tee(512): (AT_LEAST, 0.5, 1.0),
    paced_against_futures(8): (AT_MOST, 1.0, 0.5),
    paced_against_futures(64): (AT_MOST, 1.0, 0.5),
    paced_against_futures(256): (AT_MOST, 1.0, 0.5),
    UVLOOP: (AT_MOST, 1.1, 0.6),
    UNPACED: (AT_LEAST, 2.3, 3.0),
    IDLE_BYTES: (AT_MOST, 800, 300),
    LAG: (AT_MOST, 15, 10),
    step_against_queues(32): (AT_MOST, 0.7, 0.4),
    step_against_queues(256): (AT_MOST, 0.6, 0.3),
    ANSWER: (AT_MOST, 3, 2),
    KEYS: (AT_MOST, 2, 2),
    KEYS_LATER: (AT_MOST, 2, 2),
    CHURN: (AT_MOST, 3, 2),
    IMPORT: (AT_MOST, 1.3, 1.3),
    TEXT: (AT_MOST, 3, 3),
    TEXT_TIME: (AT_MOST, 2, 2),
}

_measured: dict[tuple[str, str], Sequence[float]] = {}


def measured(goal: str, core: str, values: Sequence[float]) -> None:
    """Note what was measured, round by round, unless nothing is asked."""
    if goal in ASKED:
        _measured[goal, core] = values


def in_words(goal: str, core: str) -> list[str]:
    """Return what is asked of a core, what was measured, and whether that is enough."""
    sign, of_pure, of_native = ASKED[goal]
    asked = of_native if core == NATIVE else of_pure
    values = _measured.get((goal, core))
    if values is None:
        return [f"{sign} {asked:g}", "", ""]
    met = (le if sign == AT_MOST else ge)(median(values), asked)
    digits = 0 if asked > 100 else 2
    return [f"{sign} {asked:g}", spread(values, 1, digits), "yes" if met else "no"]


def main() -> None:
    """Print the table of all that were measured."""
    rows = [
        [goal, *in_words(goal, NATIVE), *in_words(goal, PURE)]
        for goal in ASKED
        if any((goal, core) in _measured for core in (NATIVE, PURE))
    ]
    head = ["goal"]
    for core in (NATIVE, PURE):
        head += [f"{core}: asked", "measured", "met"]
    print("Goals:\n")
    print(table(head, rows))
