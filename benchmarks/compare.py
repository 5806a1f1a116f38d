"""Whether the hot paths are slower than in another revision: `make bench-compare REV=main~3`.

Each workload of `hot_paths.py` runs in processes of its own, with the package of that revision and
with this one by turns, on each core. A revision that has no native core is measured on the Python
core, and both cores of this tree are held against that. With `--instructions` it counts, with
valgrind, the instructions of a run instead, which is slow and does not depend on what else the
machine does.

usage: compare.py REVISION [--rounds N] [--processes N] [--instructions] [WORKLOAD ...]
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
from dataclasses import dataclass
from pathlib import Path

from harness import NATIVE, PURE, PURE_VARIABLE, machine, ratios, spread, table
from hot_paths import WORKLOADS

ROOT = Path(__file__).parents[1]
HOT_PATHS = Path(__file__).with_name("hot_paths.py")
PROCESSES = 5


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Yield a folder with the package of that revision, and with its native core if it has one."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)  # noqa: S603
        try:
            if Path(tree, "native").is_dir():
                installed = Path(folder, "installed")
                install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
                subprocess.run([*install, "--target", str(installed), str(tree)], check=True)  # noqa: S603
                yield installed
            else:
                yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)  # noqa: S603


@dataclass(frozen=True)
class Package:
    """The package in a folder, on one of its cores."""

    folder: Path
    core: str

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command with it."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "PYTHONHASHSEED": "0",
            PURE_VARIABLE: "1" if self.core == PURE else "",
        }
        done = subprocess.run(  # noqa: S603 - our own program
            command, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed with {self}:\n{done.stdout}{done.stderr}")
        return done

    def exists(self) -> bool:
        """Tell whether it has this core."""
        ask = "import batchstream; print(getattr(batchstream, '__native__', False))"
        return self.run(sys.executable, "-P", "-c", ask).stdout.strip() == str(self.core == NATIVE)

    def cpu_time(self, name: str, rounds: int) -> float:
        """Return the nanoseconds of CPU time for an output: the best round of a process."""
        done = self.run(sys.executable, str(HOT_PATHS), name, str(rounds))
        return min(map(float, done.stdout.split()))

    def instructions(self, name: str, rounds: int) -> float:
        """Return the instructions of a process with so many rounds more than none."""
        counts = []
        for number in (0, rounds):
            done = self.run(
                *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
                *(sys.executable, str(HOT_PATHS), name, str(number)),
            )
            [count] = re.findall(r"Collected : (\d+)", done.stderr)
            counts.append(int(count))
        return (counts[1] - counts[0]) / rounds


def pairs(folder: Path) -> Iterator[tuple[Package, Package]]:
    """Yield the packages to be compared: that of the folder, and this tree's."""
    for core in (NATIVE, PURE):
        now = Package(ROOT, core)
        if now.exists():
            before = Package(folder, core)
            yield before if before.exists() else Package(folder, PURE), now


def main() -> None:
    """Print a table with a line for each workload."""
    parser = argparse.ArgumentParser(description="Compare the hot paths with another revision.")
    parser.add_argument("revision")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=3, help="of each process")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="of each package")
    parser.add_argument("--instructions", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.workloads) - set(WORKLOADS):
        parser.error(f"no workload is called {', '.join(sorted(unknown))}")
    if arguments.instructions and shutil.which("valgrind") is None:
        parser.error("--instructions needs valgrind")
    measure, unit, processes = Package.cpu_time, "ns for an output", arguments.processes
    if arguments.instructions:
        measure, unit, processes = Package.instructions, "instructions for a run", 1
    rows = []
    with checked_out(arguments.revision) as folder:
        packages = list(pairs(folder))
        for name in arguments.workloads or WORKLOADS:
            for old, new in packages:
                before, now = [], []
                for _ in range(processes):
                    before.append(measure(old, name, arguments.rounds))
                    now.append(measure(new, name, arguments.rounds))
                times = ratios(now, before)
                figures = spread(before, 1), spread(now, 1), spread(times, 1, 2)
                rows.append([name, f"{old.core}, {new.core}", *figures])
                print(f"{name}, {new.core}: {statistics.median(times):.2f}", file=sys.stderr)
    print(f"This tree in terms of {arguments.revision} ({machine(processes)}):\n")
    head = ["workload", "cores", f"{arguments.revision}, {unit}", "this tree", "ratio"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
