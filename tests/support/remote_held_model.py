"""The model of examples/remote_model.py, whose first step waits until so many requests are in it.

python remote_held_model.py SOCKET REQUESTS
"""

import queue
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from remote_model import Engine

from batchstream import ContinuousBatcher
from batchstream.remote import serve


class Held(Engine):
    """Makes no step before so many requests are in it, and counts its steps."""

    def __init__(self, requests):
        super().__init__(0.0)
        self.steps = 0
        self._missing = requests
        self._wakes = queue.SimpleQueue()

    def add(self, slot, words):
        super().add(slot, words)
        self._missing -= 1

    def step(self):
        if self._missing > 0:
            self._wakes.get()
            return {}
        self.steps += 1
        return super().step()

    def wake(self):
        self._wakes.put(None)


if __name__ == "__main__":
    path, requests = sys.argv[1:]
    engine = Held(int(requests))
    batcher = ContinuousBatcher(engine, max_batch_size=int(requests))
    serve(batcher, path)
    print(f"{batcher.statistics().outputs} words in {engine.steps} steps")
