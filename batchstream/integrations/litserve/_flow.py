"""How far a server process has got, so that no worker runs ahead of it.

LitServe's transport takes any number of messages, and its server process takes about one in a
quarter of a millisecond out of it, whatever is in them. A model that is faster would only make its
clients' outputs wait there, and take their memory. So a worker waits before it sends another
message to a server process that has not taken the last few. Each worker has a pipe on which it is
told of every message taken, with a byte that is the number of the server process.
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

_PATIENCE: Final = 1.0
"""Seconds, after which a server process is thought to be gone, and waited for no more."""

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
    """In a worker: lets it send a message when the server process has taken those before it.

    Args:
        reader: The worker's pipe; without it, it never has to wait.
    """

    def __init__(self, reader: Connection | None = None) -> None:
        self._reader = reader
        self._under_way: Counter[int] = Counter()
        self._silent: set[int] = set()

    def enter(self, server: int) -> None:
        """Wait until a server process can be sent another message, and count that."""
        reader, number = self._reader, server % _NUMBERS
        if reader is None:
            return
        self._read(reader)
        while self._under_way[number] >= _UNDER_WAY and not self._is_silent(number):
            if not wait([reader], _PATIENCE):
                self._silent.add(number)
                self._under_way[number] = 0
            self._read(reader)
        self._under_way[number] += 1

    def _is_silent(self, number: int) -> bool:
        return self._reader is None or number in self._silent

    def _read(self, reader: Connection) -> None:
        try:
            taken = os.read(reader.fileno(), _ALL_THERE_IS)
        except BlockingIOError:
            return
        if not taken:  # there is nobody left who could tell
            self._reader = None
        for number, count in Counter(taken).items():
            self._silent.discard(number)
            self._under_way[number] = max(0, self._under_way[number] - count)
