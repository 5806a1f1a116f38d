"""Pipes from the server processes to the workers, and back: disconnects, receipts and claims.

Every worker has two pipes of its own, and every server process writes to the pipes of all workers:
it does not know which worker has a request, or whether any has it yet. Every server process has one
pipe, in which workers claim the requests that they take, and say when they have reported how these
ended: if a worker is killed, no message would say which requests it had. No write is longer than
the 512 bytes that any system's pipe takes in one piece, so that several processes can write without
a lock. No write waits. Where a pipe is full, a disconnect or a receipt is dropped. What a worker
says of its requests is kept until there is room (`lines.py`): a server process would keep a request
for ever of whose end it does not hear.
"""

from __future__ import annotations

import os
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final

from batchstream.integrations.litserve._link.lines import LineWriter
from batchstream.integrations.litserve._log import logger

if TYPE_CHECKING:
    from batchstream.integrations.litserve._link.messages import Departure

_REPORTED: Final = "reported"

SERVER_NUMBERS: Final = 256
"""How many server processes a receipt can tell apart: it is one byte, the number of one."""


class WorkerPipes:
    """The pipes to all workers of an API, made before any other process starts.

    Server processes inherit it by fork. A worker gets it by spawn, without the ends to write to:
    it finds a pipe at its end once no server process is left.

    Args:
        workers: How many workers there are.
        servers: How many server processes there will be; without them, nothing is claimed.

    Attributes:
        disconnects: For each worker, the end to read uids of clients from that have disconnected.
        receipts: For each worker, the end to read receipts from. Empty where the system has no
            pipes that can be read without waiting, as on Windows.
    """

    def __init__(self, workers: int, servers: int = 0) -> None:
        self.disconnects, self._disconnect_writers = _make_pipes(workers)
        self.receipts, self._receipt_writers = _make_pipes(workers)
        self._claims, claim_writers = _make_pipes(servers)
        self._has_warned = False
        try:
            for writer in self._disconnect_writers:
                os.set_blocking(writer.fileno(), False)
            for pipe in (
                *(*self.receipts, *self._receipt_writers),
                *(*self._claims, *claim_writers),
            ):
                os.set_blocking(pipe.fileno(), False)
        except (AttributeError, OSError):
            self.receipts, self._receipt_writers = [], []
            self._claims, claim_writers = [], []
        self._claim_writers = [LineWriter(writer) for writer in claim_writers]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_disconnect_writers": [], "_receipt_writers": [], "_claims": []}

    def send_departure(self, departure: Departure) -> None:
        """Tell every worker of a request whose client has disconnected, or that has failed.

        A worker whose pipe is full goes on serving that request.
        """
        message = departure.as_bytes()
        for writer in self._disconnect_writers:
            try:
                writer.send_bytes(message)
            except OSError as error:
                if not self._has_warned:
                    self._has_warned = True
                    logger.warning("a worker cannot be notified of clients that leave: %s", error)

    def send_receipt(self, worker: int, server: int) -> None:
        """Send a worker the receipt for a message that a server process has taken."""
        with suppress(OSError, IndexError):
            os.write(self._receipt_writers[worker].fileno(), bytes([server % SERVER_NUMBERS]))

    def claim(self, server: int, uid: object) -> None:
        """Let a server process know that this worker has taken a request."""
        self._say(server, f"{os.getpid()} {uid}\n")

    def note_reported(self, server: int, uid: object) -> None:
        """Let a server process know that this worker has reported the end of a request."""
        self._say(server, f"{os.getpid()} {uid} {_REPORTED}\n")

    def _say(self, server: int, line: str) -> None:
        if server < len(self._claim_writers):
            self._claim_writers[server].write(line.encode())

    def claims_for(self, server: int) -> int | None:
        """Return the descriptor from which a server process reads lines.

        Each is a worker's id and a uid; and one word more if the worker has reported its end.
        """
        return self._claims[server].fileno() if server < len(self._claims) else None


def _make_pipes(workers: int) -> tuple[list[Connection], list[Connection]]:
    pipes = [Pipe(duplex=False) for _ in range(workers)]
    return [reader for reader, _ in pipes], [writer for _, writer in pipes]
