"""Whether the hot paths are slower than in another revision: `make bench-compare REV=main~3`.

Each workload of `hot_paths.py` runs in processes of its own, with the package of that revision and
with this one by turns. With `--instructions` it counts, with valgrind, the instructions of a run
instead, which is slow and does not depend on what else the machine does.

usage: compare.py REVISION [--rounds N] [--instructions] [WORKLOAD ...]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import machine, ratios, spread, table
from hot_paths import WORKLOADS

ROOT = Path(__file__).parents[1]
HOT_PATHS = Path(__file__).with_name("hot_paths.py")
PROCESSES = 5


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Yield a folder with that revision of the repository."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)  # noqa: S603
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)  # noqa: S603


def run(tree: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the package of a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
    done = subprocess.run(  # noqa: S603 - our own program
        command, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with {tree}:\n{done.stdout}{done.stderr}")
    return done


def cpu_time(tree: Path, name: str, rounds: int) -> float:
    """Return the nanoseconds of CPU time for an output: the best of some rounds of a process."""
    done = run(tree, sys.executable, str(HOT_PATHS), name, str(rounds))
    return min(map(float, done.stdout.split()))


def instructions(tree: Path, name: str, rounds: int) -> float:
    """Return the instructions of a process with so many rounds more than none."""
    counts = []
    for number in (0, rounds):
        done = run(
            tree,
            *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
            *(sys.executable, str(HOT_PATHS), name, str(number)),
        )
        [count] = re.findall(r"Collected : (\d+)", done.stderr)
        counts.append(int(count))
    return (counts[1] - counts[0]) / rounds


def main() -> None:
    """Print a table with a line for each workload."""
    parser = argparse.ArgumentParser(description="Compare the hot paths with another revision.")
    parser.add_argument("revision")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=3, help="of each process")
    parser.add_argument("--instructions", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.workloads) - set(WORKLOADS):
        parser.error(f"no workload is called {', '.join(sorted(unknown))}")
    if arguments.instructions and shutil.which("valgrind") is None:
        parser.error("--instructions needs valgrind")
    measure, unit, processes = cpu_time, "ns for an output", PROCESSES
    if arguments.instructions:
        measure, unit, processes = instructions, "instructions for a run", 1
    rows = []
    with checked_out(arguments.revision) as tree:
        for name in arguments.workloads or WORKLOADS:
            before, now = [], []
            for _ in range(processes):
                before.append(measure(tree, name, arguments.rounds))
                now.append(measure(ROOT, name, arguments.rounds))
            rows.append(
                [name, spread(before, 1), spread(now, 1), spread(ratios(now, before), 1, 2)]
            )
            print(f"{name}: {statistics.median(ratios(now, before)):.2f}", file=sys.stderr)
    print(f"This tree in terms of {arguments.revision} ({machine(processes)}):\n")
    print(table(["workload", f"{arguments.revision}, {unit}", "this tree", "ratio"], rows))


if __name__ == "__main__":
    main()
