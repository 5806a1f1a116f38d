"""What `import batchstream` costs, in terms of the modules of others that it imports.

Each import runs in a process of its own, and is the only one there. Its byte code is there already,
as in a program that has run before.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import goals
from harness import CORES, PURE, PURE_VARIABLE, machine, ratios, spread, table, take_turns

ROUNDS, QUICK_ROUNDS = 15, 3
STANDARD, OTHERS = "its standard-library modules", "these and typing_extensions"
PROGRAM = """
import time
begin = time.process_time()
import {modules}
print(time.process_time() - begin)
"""
NEEDED = (
    "import sys; before = set(sys.modules); import batchstream; print(*{*sys.modules} - before)"
)


def printed(program: str, core: str, byte_code: str) -> str:
    """Return what a program prints that runs with the package on this core."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONPYCACHEPREFIX": byte_code,
        "PYTHONDONTWRITEBYTECODE": "",
        PURE_VARIABLE: "1" if core == PURE else "",
    }
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def cpu_time(modules: str, core: str, byte_code: str) -> float:
    """Return the processor time of an import."""
    return float(printed(PROGRAM.format(modules=modules), core, byte_code))


def main(*, quick: bool = False) -> None:
    """Print the table."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    with tempfile.TemporaryDirectory() as byte_code:
        needed = sorted(printed(NEEDED, PURE, byte_code).split())
        standard = [name for name in needed if name.partition(".")[0] in sys.stdlib_module_names]
        imports = {
            STANDARD: (", ".join(standard), PURE),
            OTHERS: (", ".join([*standard, "typing_extensions"]), PURE),
            **{f"batchstream, {core}": ("batchstream", core) for core in CORES},
        }
        runs = {name: partial(cpu_time, *what, byte_code) for name, what in imports.items()}
        took = take_turns(runs, rounds)
    rows = [
        [
            name,
            spread(seconds, 1e3, 1),
            spread(ratios(seconds, took[STANDARD]), 1, 2),
            spread(ratios(seconds, took[OTHERS]), 1, 2),
        ]
        for name, seconds in took.items()
    ]
    for core in CORES:
        goals.measured(goals.IMPORT, core, ratios(took[f"batchstream, {core}"], took[STANDARD]))
    print(f"An import, in a process of its own ({machine(rounds)}; processor time):\n")
    print(table(["import", "ms", f"in terms of {STANDARD}", f"in terms of {OTHERS}"], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    main(quick=parser.parse_args().quick)
    print()
    goals.main()
