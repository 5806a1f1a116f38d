"""In the worker: requests as they come out of LitServe's queue."""

from __future__ import annotations

import threading
from collections import deque
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

from litserve.loops.base import _SENTINEL_VALUE

if TYPE_CHECKING:
    from queue import Queue

# A worker that dies while it waits leaves its wait behind in the queue's process, where it takes a
# request that nobody will serve. So a wait is short, but no shorter than idleness asks for.
_SECONDS_OF_WAITING: Final = 1.0


def wait_for_request(request_queue: Queue[Any]) -> Any:
    """Return the next request, or LitServe's sentinel, however long that takes."""
    while True:
        try:
            return request_queue.get(timeout=_SECONDS_OF_WAITING)
        except Empty:
            pass


class Rejoined:
    """A queue with the element back in front that was taken from it."""

    def __init__(self, first: object, rest: Queue[Any]) -> None:
        self._first = [first]
        self._rest = rest

    def get(self, *, timeout: float) -> Any:
        """Return an element, as `queue.Queue` does."""
        return self._first.pop() if self._first else self._rest.get(timeout=timeout)

    def get_nowait(self) -> Any:
        """Return an element, as `queue.Queue` does."""
        return self._first.pop() if self._first else self._rest.get_nowait()


class Arrivals:
    """Takes requests from the queue in a thread, no more of them than there are free seats.

    So a step never waits for the queue, and what this worker has no seat for is left to others.

    Args:
        request_queue: Shared by all workers.
        seats: How many are free.
    """

    def __init__(self, request_queue: Queue[Any], seats: int) -> None:
        self._queue = request_queue
        self._free = threading.Semaphore(seats)
        self._arrived: deque[tuple[Any, ...]] = deque()
        self._news = threading.Event()
        self._error: BaseException | None = None
        self.over = False
        self._thread = threading.Thread(target=self._run, name="batchstream arrivals", daemon=True)
        self._thread.start()

    def free_seat(self) -> None:
        """Tell that one more request can be taken."""
        self._free.release()

    def take(self, *, block: bool) -> list[tuple[Any, ...]]:
        """Return the requests that have come, as LitServe puts them into the queue.

        Args:
            block: Whether to wait if there is none.

        Raises:
            BaseException: What the queue raises, once nothing else is left.

        Returns:
            None at all, without having waited, if LitServe has stopped the loop: it is `over`.
        """
        if block:
            self._news.wait()
        self._news.clear()
        taken = []
        while self._arrived:
            taken.append(self._arrived.popleft())
        if self.over or self._error is not None:
            self._news.set()  # nobody else will
        if not taken and self._error is not None:
            raise self._error
        return taken

    def close(self) -> None:
        """Let the thread end, which it does within a second, and may take one request more."""
        self.over = True
        self._free.release()

    def _run(self) -> None:
        try:
            while True:
                self._free.acquire()
                if self.over:
                    return
                request = wait_for_request(self._queue)
                if request == _SENTINEL_VALUE:
                    self.over = True
                    return
                self._arrived.append(request)
                self._news.set()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that takes
            self._error = error
        finally:
            self._news.set()
