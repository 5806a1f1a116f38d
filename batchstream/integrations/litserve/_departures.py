"""Who has left: told by the server processes, heard in the workers.

Each worker has a pipe of its own, and every server process writes to all of them: it does not know
which worker has a request, or whether one has it yet. What is written is shorter than what a pipe
takes in one piece, so that several processes may write without a lock. A pipe that is full, since
its worker has been busy for thousands of departures, is not waited for.
"""

from __future__ import annotations

import _thread
import logging
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Final

_REMEMBERED: Final = 10_000
"""How many departures a worker keeps in mind, for requests that it may not have seen yet."""

logger = logging.getLogger("batchstream.integrations.litserve")


class Announcer:
    """In a server process: tells the workers who has left.

    Args:
        workers: How many there are.

    Attributes:
        readers: The pipe of each worker.
    """

    def __init__(self, workers: int) -> None:
        pipes = [multiprocessing.Pipe(duplex=False) for _ in range(workers)]
        self.readers = [reader for reader, _ in pipes]
        self._writers = [writer for _, writer in pipes]
        self._has_warned = False
        with suppress(AttributeError, OSError):  # on Windows it waits
            for writer in self._writers:
                os.set_blocking(writer.fileno(), False)

    def announce(self, uid: object) -> None:
        """Tell every worker. One that does not listen serves on for a client who is not there."""
        for writer in self._writers:
            try:
                writer.send_bytes(str(uid).encode())
            except OSError as error:
                if not self._has_warned:
                    self._has_warned = True
                    logger.warning("a worker cannot be told of clients that leave: %s", error)


class Departures:
    """In a worker: who has left, as far as it has heard. A thread sleeps on the pipe.

    The thread also notices when LitServe's main process has gone without a word, and then ends the
    worker, as Ctrl-C would: nobody else is left to do it.

    Args:
        reader: The worker's pipe; without it nobody ever leaves.
    """

    def __init__(self, reader: Connection | None = None) -> None:
        self._news: deque[str] = deque(maxlen=_REMEMBERED)
        self._known: dict[str, None] = {}  # in the order of departure
        if reader is not None:
            threading.Thread(
                target=self._listen, args=(reader,), name="batchstream departures", daemon=True
            ).start()

    def news(self) -> Iterator[str]:
        """Give each departure once."""
        while self._news:
            yield self._news.popleft()

    def __contains__(self, uid: object) -> bool:
        return str(uid) in self._known

    def _listen(self, reader: Connection) -> None:
        parent = multiprocessing.parent_process()
        ends: list[Any] = [reader] if parent is None else [reader, parent.sentinel]
        while True:
            try:
                ready = wait(ends)
                if reader in ready:
                    self._note(reader.recv_bytes().decode())
                    continue
            except (EOFError, OSError):
                return
            _thread.interrupt_main()
            return

    def _note(self, uid: str) -> None:
        self._known[uid] = None
        if len(self._known) > _REMEMBERED:
            self._known.pop(next(iter(self._known)))
        self._news.append(uid)
