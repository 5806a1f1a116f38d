"""Ends the servers if the demonstration could not, since it was killed.

It runs as a process of its own, and imports nothing of the package, so that it is there at once.
Its input has a line for each server that it is to watch over: the number of its session. The input
ends as the demonstration does, however that comes about. A line `done` says that nothing is left.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Read to the end of the input, and end what is left."""
    left = []
    for line in sys.stdin:
        if line.strip() == "done":
            return
        left.append(int(line))
    for session in left:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(session, signal.SIGKILL)


if __name__ == "__main__":
    main()
