"""A model whose process forks with its first request; the child ends when the standard input does.

python remote_forking_model.py SOCKET
"""

import os
import sys

from batchstream import ContinuousBatcher
from batchstream.remote import serve


class Endless:
    """Gives each request an output with each step, for ever."""

    def __init__(self):
        self._slots = set()
        self._has_forked = False

    def add(self, slot, _):
        self._slots.add(slot)
        if not self._has_forked:
            self._has_forked = True
            if os.fork() == 0:
                os.read(sys.stdin.fileno(), 1)
                os._exit(0)

    def step(self):
        return dict.fromkeys(self._slots, "x")

    def remove(self, slot):
        self._slots.remove(slot)


if __name__ == "__main__":
    serve(ContinuousBatcher(Endless, max_batch_size=4, on_overflow="wait"), sys.argv[1])
