"""The model of all servers in this folder: it spells words, a letter of each in one step.

Put your own in its place: a server imports nothing but the batcher.
"""

import time

from batchstream import EOS, ContinuousBatcher, RequestError


class Speller:
    """An engine: requests join and leave between any two steps."""

    def __init__(self) -> None:
        self.rest = {}  # by slot; a network has a row of its cache for each

    def add(self, slot: int, word: str) -> None:
        """Let a request join, unless its client is at fault."""
        if not word.isalpha():
            raise RequestError(f"expected a word, which is letters alone, got {word!r}")
        self.rest[slot] = iter(word)

    def step(self) -> dict:
        """Return the next letter of each word, or its end."""
        time.sleep(0.05)  # your model's forward
        return {slot: next(letters, EOS) for slot, letters in self.rest.items()}

    def remove(self, slot: int) -> None:
        """Free the slot of a request that has ended, or whose client has left."""
        del self.rest[slot]


batcher = ContinuousBatcher(Speller, max_batch_size=8, max_pending=32, drain=30)
