"""Shows what the page "Comparison" says of each system, by running it.

    python examples/comparison                    # the table
    python examples/comparison litserve           # one column
    python examples/comparison litserve own-end   # one cell

batchstream, queues and tee need NumPy; the columns of LitServe need litserve and httpx, that of
transformers needs torch and transformers. A system that is not installed is passed over.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec

import rules
import systems

# In the order of the page.
ROWS = {
    "several": "a batch of several requests is streamed",
    "own-end": "a stream ends at its own end, while the model works for the others",
    "short-step": "a step that lacks an output gives no client what belongs to another",
    "error": "an error of the model reaches each client, and looks like one",
    "one-fails": "one request fails, and the others of its batch go on",
    "leave": "the model stops when all of its clients are gone",
    "slow": "what is held for a client that does not read has a bound",
    "timeout": "a client in asyncio gives up waiting for a moment, and loses no output",
    "arrays": "an output may be an array",
    "joins": "a request joins a batch that runs",
    "deadline": "a deadline ends a request in the middle",
}

COLUMNS = {
    "batchstream": set(ROWS),
    "queues": {*rules.IN_PROCESS, "timeout"},
    "tee": set(rules.IN_PROCESS),
    "litserve": {
        "several",
        "own-end",
        "short-step",
        "error",
        "one-fails",
        "leave",
        "slow",
        "joins",
    },
    "litserve-batchstream": {*rules.IN_PROCESS, "one-fails", "joins"} - {"arrays"},
    "transformers": {"several", "error", "leave", "slow"},
}
"""The rules that can be tried on each system. It has nothing that could be tried for the others."""

NEEDS = {
    "litserve": ["litserve", "httpx"],
    "litserve-batchstream": ["litserve", "httpx"],
    "transformers": ["torch", "transformers"],
}


def try_rules(system: str, names: list[str]) -> dict[str, bool]:
    """Return whether the rules hold in a system."""
    if system.startswith("litserve"):
        import litserve_cells  # noqa: PLC0415 - only where it is installed

        if system == "litserve":
            return litserve_cells.cells("stock", names)
        batched = [name for name in names if name != "joins"]
        results = litserve_cells.cells("ours", batched) if batched else {}
        return results | (litserve_cells.cells("continuous", ["joins"]) if "joins" in names else {})
    if system == "transformers":
        import transformers_cells  # noqa: PLC0415 - only where it is installed

        return {name: transformers_cells.RULES[name]() for name in names}
    make = {"batchstream": systems.batchstream, "queues": systems.queues, "tee": systems.tees}
    results = {}
    for name in names:
        if name in rules.IN_PROCESS:
            results[name] = rules.IN_PROCESS[name](make[system])
        elif name == "timeout":
            of = {"batchstream": rules.timeout_of_batchstream, "queues": rules.timeout_of_queues}
            results[name] = of[system]()
        elif name == "one-fails":
            results[name] = rules.one_fails(make[system])
        else:
            results[name] = {"joins": rules.joins, "deadline": rules.deadline}[name]()
    return results


def main() -> None:
    """Print a line for each cell: the system, the rule, and yes or no."""
    parser = argparse.ArgumentParser(
        prog="python examples/comparison",
        description="Try the rules of the page Comparison.",
        epilog="\n".join(f"{name:10}  {rule}" for name, rule in ROWS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("system", nargs="?", choices=COLUMNS, help="without it, all")
    parser.add_argument("rule", nargs="?", choices=ROWS, help="without it, all")
    args = parser.parse_args()
    for system in [args.system] if args.system else COLUMNS:
        missing = [package for package in NEEDS.get(system, []) if find_spec(package) is None]
        names = [name for name in ROWS if name in COLUMNS[system] and args.rule in {None, name}]
        if missing:
            print(f"{system:20}  not installed: {', '.join(missing)}", flush=True)
        elif not names:
            print(f"{system:20}  {args.rule:10}  has nothing for it", flush=True)
        else:
            if system in NEEDS:  # it takes some seconds
                print(f"{system}: starting", file=sys.stderr, flush=True)
            for name, holds in try_rules(system, names).items():
                print(f"{system:20}  {name:10}  {'yes' if holds else 'no'}", flush=True)


if __name__ == "__main__":
    main()
