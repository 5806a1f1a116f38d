"""A worker's lines on their way into the pipe of a server process."""

from __future__ import annotations

import os
import select
from collections import deque
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class LineWriter:
    """Writes lines into a pipe, in order, and never lets the caller wait.

    A pipe is full if its server process is busy for long enough. Lines that find no room are kept,
    and a thread writes them as soon as there is some; it ends when it has written all. A server
    process knows of each request of which lines are kept, so they are no more than its requests.

    Args:
        pipe: The end to write to, which does not block.

    Threads: any.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._kept: deque[bytes] = deque()  # while it has any, a thread is there to write them
        self._writing = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return LineWriter, (self._pipe,)

    def write(self, line: bytes) -> None:
        """Write a line of no more than 512 bytes, now or later."""
        with self._writing:
            if not self._kept:
                if self._is_done(line):
                    return
                # Before the line is kept: if no thread can be started, later lines try anew.
                Thread(target=self._write_kept, name="batchstream lines", daemon=True).start()
            self._kept.append(line)

    def _write_kept(self) -> None:
        room = select.poll()
        room.register(self._pipe, select.POLLOUT)
        while True:
            room.poll()
            with self._writing:
                while self._kept and self._is_done(self._kept[0]):
                    self._kept.popleft()
                if not self._kept:
                    return

    def _is_done(self, line: bytes) -> bool:
        """Write a line, and return whether it need not be tried again."""
        try:
            os.write(self._pipe.fileno(), line)
        except BlockingIOError:
            return False
        except OSError:  # nothing reads it any more
            pass
        return True
