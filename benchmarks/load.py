"""Five hundred streaming clients at once on one server, some of which leave or never read.

What tests/integrations/starlette/test_load.py runs, with its figures. The engine sleeps for a
millisecond a step, and computes nothing: the figures are of what is between it and a client.

usage: load.py [ROUNDS]
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.load_clients import CLIENTS, LEAVE, NEVER_READ, serving  # noqa: E402


def main(rounds: int) -> None:
    """Run some rounds, and print a line for each."""
    print(f"{CLIENTS} clients a round, of which {LEAVE} leave and {NEVER_READ} never read")
    print("round  wrong  outputs received  seconds  outputs/s  occupancy  RSS, MB  peak RSS, MB")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as load:
        for number in range(rounds):
            round_ = load.run(seed=number)
            figures = load.statistics()
            print(
                f"{number:5}  {len(round_.wrong):5}  {round_.outputs:16}  {round_.seconds:7.2f}"
                f"  {round_.outputs / round_.seconds:9.0f}  {figures['occupancy']:9.2f}"
                f"  {load.memory():7.1f}  {load.memory('VmHWM'):12.1f}"
            )
        print(f"finished: {figures['finished']}, steps: {figures['steps']}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
