"""Which clients have disconnected, as far as this worker has heard from the server processes."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import threading
from collections import deque
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Final

from batchstream.integrations.litserve._link.messages import Departure, server_pid_of
from batchstream.integrations.litserve._link.process_end import wait_for_end

_REMEMBERED: Final = 10_000
"""How many uids a worker remembers, of requests that may not have reached it yet."""

_SECONDS_BETWEEN_CHECKS: Final = 5.0


class Disconnects:
    """The requests whose clients have disconnected. A thread sleeps on the pipe.

    The thread also sees when LitServe's main process has ended without stopping its workers, and
    then ends this worker as Ctrl-C would: no other process is left to do it.

    Args:
        reader: This worker's pipe; without it, no client ever disconnects.

    Attributes:
        unread: What `take` has not returned yet, in order.
    """

    def __init__(self, reader: Connection | None = None) -> None:
        self.unread: deque[str] = deque(maxlen=_REMEMBERED)
        self._remembered: dict[str, Departure] = {}  # in the order in which they came
        self._watched_servers: set[int] = set()
        self._ended_servers: set[int] = set()
        if reader is not None:
            threading.Thread(
                target=self._listen, args=(reader,), name="batchstream disconnects", daemon=True
            ).start()

    def take(self) -> list[str]:
        """Return the uids that have come since the last call, and ids of ended processes."""
        # One by one: the thread may add another at any time.
        return [self.unread.popleft() for _ in range(len(self.unread))]

    def __contains__(self, uid: object) -> bool:
        return str(uid) in self._remembered or (
            bool(self._ended_servers) and server_pid_of(uid) in self._ended_servers
        )

    def departure_of(self, uid: object) -> Departure:
        """Return what a server process has said of a request; nothing, if it was killed."""
        uid = str(uid)
        return self._remembered.get(uid, Departure(uid))

    def add(self, uid: str, departure: Departure | None = None) -> None:
        """Remember that the client of a request has disconnected, or that it has failed."""
        # Before `unread`: the loop may take the uid at once, and a request that joins after that
        # has to find it here.
        self._remembered[uid] = departure or Departure(uid)
        if len(self._remembered) > _REMEMBERED:
            self._remembered.pop(next(iter(self._remembered)))
        self.unread.append(uid)

    def watch_server_of(self, uid: object) -> None:
        """From now on, count all clients of a server process as disconnected if that ends."""
        pid = server_pid_of(uid)
        # Where servers are threads of the main process, the other thread watches that.
        known = {*self._watched_servers, os.getppid(), os.getpid()}
        if pid is None or pid in known:
            return
        self._watched_servers.add(pid)
        threading.Thread(
            target=self._watch_server, args=(pid,), name="batchstream server watch", daemon=True
        ).start()

    def _watch_server(self, pid: int) -> None:
        wait_for_end(pid)
        self._ended_servers.add(pid)
        self.unread.append(f"{pid}")

    def _listen(self, reader: Connection) -> None:
        parent = ParentWatch()
        while True:
            try:
                ready = wait([reader, *parent.sentinels], parent.timeout)
                message = reader.recv_bytes() if reader in ready else None
            except (EOFError, OSError):
                return
            if message is not None:
                with suppress(ValueError):  # nothing is known of it, and others will come
                    departure = Departure.of(message)
                    self.add(departure.uid, departure)
            if parent.has_ended:
                _interrupt_main_thread()
                return


class ParentWatch:
    """Finds out when LitServe's main process has ended.

    The sentinel that multiprocessing has for it is of no use: server processes that were forked
    later hold the other end of it as well.

    Attributes:
        sentinels: What becomes ready when the main process has ended, if the system offers that.
        timeout: After how many seconds to check, if the system does not.
    """

    def __init__(self) -> None:
        parent = multiprocessing.parent_process()
        self._pid = None if parent is None else parent.pid
        self.sentinels: list[int] = []
        self.timeout: float | None = None
        if self._pid is not None:
            try:
                self.sentinels = [os.pidfd_open(self._pid)]
            except (AttributeError, OSError):
                self.timeout = _SECONDS_BETWEEN_CHECKS

    @property
    def has_ended(self) -> bool:
        """Whether the main process has ended."""
        return self._pid is not None and os.getppid() != self._pid


def _interrupt_main_thread() -> None:
    """Raise KeyboardInterrupt in the main thread, whatever it waits for.

    A process that ignores SIGINT, as does one that a shell starts in the background, is terminated.
    """
    main = threading.main_thread().ident
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        os.kill(os.getpid(), signal.SIGTERM)
    elif main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()
