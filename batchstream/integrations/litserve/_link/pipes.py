"""How far a server process has got, so that no worker runs ahead of it.

LitServe's transport takes any number of messages, and its server process takes about one in a
quarter of a millisecond out of it, whatever is in them. A model that is faster would only make its
clients' outputs wait there, and take their memory. So a worker waits a little before it sends
another message to a server process that has not taken the last few, and if that does not help,
keeps it back to send it with what comes next. Each worker has a pipe on which it is told of every
message taken, with a byte that is the number of the server process.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Final

_UNDER_WAY: Final = 4
"""How many messages a server process may not have taken yet: enough for it never to be idle."""

_PATIENCE: Final = 0.1
"""For how many seconds a model waits for a server process that is behind."""

_NUMBERS: Final = 256
_ALL_THERE_IS: Final = 65536


class Receipts:
    """In a server process: tells workers that it has taken a message.

    Args:
        workers: How many there are.

    Attributes:
        readers: The pipe of each worker.

    Raises:
        OSError: The system has no pipes that need not be waited for.
    """

    def __init__(self, workers: int) -> None:
        pipes = [Pipe(duplex=False) for _ in range(workers)]
        self.readers = [reader for reader, _ in pipes]
        self._writers = [writer for _, writer in pipes]
        for reader, writer in pipes:
            os.set_blocking(reader.fileno(), False)
            os.set_blocking(writer.fileno(), False)

    def give(self, worker: int, server: int) -> None:
        """Tell a worker, if it listens."""
        with suppress(OSError, IndexError):
            os.write(self._writers[worker].fileno(), bytes([server % _NUMBERS]))


class Window:
    """In a worker: tells whether a server process should be sent another message.

    Args:
        reader: The worker's pipe; without it, always.
    """

    def __init__(self, reader: Connection | None = None) -> None:
        self._reader = reader
        self._under_way: Counter[int] = Counter()
        self._behind: set[int] = set()

    def enter(self, server: int) -> bool:
        """Tell whether to send a server process a message, and if so, count that.

        It waits a little for one that has not taken the last few, and not again before that one
        has caught up: others should not have to wait for it.
        """
        reader, number = self._reader, server % _NUMBERS
        if reader is None:
            return True
        self._read(reader)
        if self._is_full(number) and number not in self._behind:
            if wait([reader], _PATIENCE):
                self._read(reader)
            if self._is_full(number):
                self._behind.add(number)
        if self._is_full(number):
            return False
        self._under_way[number] += 1
        return True

    def _is_full(self, number: int) -> bool:
        return self._reader is not None and self._under_way[number] >= _UNDER_WAY

    def _read(self, reader: Connection) -> None:
        try:
            taken = os.read(reader.fileno(), _ALL_THERE_IS)
        except BlockingIOError:
            return
        if not taken:  # there is nobody left who could tell
            self._reader = None
        for number, count in Counter(taken).items():
            self._under_way[number] = max(0, self._under_way[number] - count)
            if not self._under_way[number]:
                self._behind.discard(number)
