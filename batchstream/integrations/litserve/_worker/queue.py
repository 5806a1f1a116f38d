"""In the worker: requests as they come out of LitServe's queue."""

from __future__ import annotations

from collections import deque
from queue import Empty
from threading import Event, Semaphore, Thread
from typing import TYPE_CHECKING, Any, Final

from litserve.loops.base import _SENTINEL_VALUE

if TYPE_CHECKING:
    from queue import Queue

# A worker that dies while it waits leaves its wait behind in the queue's process, where it takes a
# request that nobody will serve. So a wait is short, but no shorter than idleness asks for.
_SECONDS_OF_WAITING: Final = 1.0


def wait_for_request(request_queue: Queue[Any], closed: Event | None = None) -> Any:
    """Return the next request, or LitServe's sentinel, however long that takes.

    It also gives up soon after it has been closed, and returns the sentinel then.
    """
    while closed is None or not closed.is_set():
        try:
            return request_queue.get(timeout=_SECONDS_OF_WAITING)
        except Empty:
            pass
    return _SENTINEL_VALUE


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

    Attributes:
        over: Whether LitServe has stopped the loop, and all that came before has been taken.
    """

    def __init__(self, request_queue: Queue[Any], seats: int) -> None:
        self._queue = request_queue
        self._free = Semaphore(seats)
        self._arrived: deque[tuple[Any, ...]] = deque()
        self._news = Event()
        self._error: BaseException | None = None
        self._ended = False
        self._closed = Event()
        self.over = False
        Thread(target=self._run, name="batchstream arrivals", daemon=True).start()

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
        ended = self._ended  # first: whatever came before that is found below
        taken = []
        while self._arrived:
            taken.append(self._arrived.popleft())
        if ended:
            self._news.set()  # nobody else will
            if not taken and self._error is not None:
                raise self._error
            self.over = not taken
        return taken

    def close(self) -> list[tuple[Any, ...]]:
        """Take nothing more, and return what has been taken; the thread ends within a second."""
        self._closed.set()
        self._free.release()
        return list(self._arrived)

    def _run(self) -> None:
        try:
            while True:
                self._free.acquire()
                request = wait_for_request(self._queue, self._closed)
                if request == _SENTINEL_VALUE:
                    return
                if self._closed.is_set():
                    self._queue.put(request)  # another worker may serve it
                    return
                self._arrived.append(request)
                self._news.set()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that takes
            self._error = error
        finally:
            self._ended = True
            self._news.set()
