"""Who has left: told by the server processes, heard in the workers.

Each worker has a pipe of its own, and every server process writes to all of them: it does not know
which worker has a request, or whether one has it yet. What is written is shorter than what a pipe
takes in one piece, so that several processes may write without a lock. A pipe that is full, since
its worker has been busy for thousands of departures, is not waited for.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Final

from batchstream.integrations.litserve._log import logger

_REMEMBERED: Final = 10_000
"""How many departures a worker keeps in mind, for requests that it may not have seen yet."""

_SECONDS_WITHOUT_LOOKING: Final = 5.0


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
        parent = Parent()
        while True:
            try:
                ready = wait([reader, *parent.ends], parent.patience)
                if reader in ready:
                    self._note(reader.recv_bytes().decode())
            except (EOFError, OSError):
                return
            if parent.is_gone:
                _interrupt_main_thread()
                return

    def _note(self, uid: str) -> None:
        self._known[uid] = None
        if len(self._known) > _REMEMBERED:
            self._known.pop(next(iter(self._known)))
        self._news.append(uid)


class Parent:
    """LitServe's main process, as its worker sees it.

    The sentinel that multiprocessing has for it is of no use: server processes that were forked
    later hold the other end as well.

    Attributes:
        ends: What becomes ready when it is gone, where the system has such a thing.
        patience: For how many seconds to wait without looking, where it has not.
    """

    def __init__(self) -> None:
        parent = multiprocessing.parent_process()
        self._pid = None if parent is None else parent.pid
        self.ends: list[int] = []
        self.patience: float | None = None
        if self._pid is not None:
            try:
                self.ends = [os.pidfd_open(self._pid)]
            except (AttributeError, OSError):
                self.patience = _SECONDS_WITHOUT_LOOKING

    @property
    def is_gone(self) -> bool:
        """Whether it has ended."""
        return self._pid is not None and os.getppid() != self._pid


def _interrupt_main_thread() -> None:
    """Raise KeyboardInterrupt there, whatever it waits for."""
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()
