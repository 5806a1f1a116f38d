"""Requests on their way out of LitServe's queue."""

from __future__ import annotations

from collections import deque
from queue import Empty
from threading import Event, Semaphore, Thread
from typing import TYPE_CHECKING, Any, Final

from litserve.loops.base import _SENTINEL_VALUE

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import Queue

# A worker that dies while it waits leaves its wait behind in the queue's process, where it takes a
# request that is never served. So a wait is short, but long enough for an idle worker to sleep.
_SECONDS_OF_WAITING: Final = 1.0


def wait_for_request(request_queue: Queue[Any], closed: Event | None = None) -> Any:
    """Return the next request, or LitServe's sentinel, however long that takes.

    It returns the sentinel also soon after `closed` is set.
    """
    while closed is None or not closed.is_set():
        try:
            return request_queue.get(timeout=_SECONDS_OF_WAITING)
        except Empty:
            pass
    return _SENTINEL_VALUE


class ArrivalTimes:
    """A queue that remembers when the requests were put into it that were taken from it.

    LitServe drops that before the loop sees a request.

    Attributes:
        of: The times, by uid.
    """

    def __init__(self, request_queue: Queue[Any]) -> None:
        self._queue = request_queue
        self.of: dict[object, float] = {}

    def get(self, *, timeout: float) -> Any:
        """Return an element, as `queue.Queue` does."""
        return self._noted(self._queue.get(timeout=timeout))

    def get_nowait(self) -> Any:
        """Return an element, as `queue.Queue` does."""
        return self._noted(self._queue.get_nowait())

    def _noted(self, element: Any) -> Any:
        _, uid, submitted, _ = element
        self.of[uid] = submitted
        return element


class PushbackQueue:
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


class RequestPrefetcher:
    """Takes requests from the queue in a thread, no more of them than there are free slots.

    So a step never waits for the queue, and other workers can take what this one has no slot for.

    Args:
        request_queue: Shared by all workers.
        slots: How many are free.
        taken: Called with each request that this worker takes, in the thread.

    Attributes:
        over: Whether LitServe has stopped the loop, and all earlier requests have been taken.
    """

    def __init__(
        self,
        request_queue: Queue[Any],
        slots: int,
        taken: Callable[[int, object], None] = lambda *_: None,
    ) -> None:
        self._queue = request_queue
        self._taken = taken
        self._free = Semaphore(slots)
        self._fetched: deque[tuple[Any, ...]] = deque()
        self._changed = Event()
        self._error: BaseException | None = None
        self._ended = False
        self._closed = Event()
        self.over = False
        Thread(target=self._run, name="batchstream prefetcher", daemon=True).start()

    def release_slot(self) -> None:
        """Let one more request be fetched."""
        self._free.release()

    def take(self, *, block: bool) -> list[tuple[Any, ...]]:
        """Return the requests that have been fetched, as LitServe puts them into the queue.

        Args:
            block: Whether to wait if there is none.

        Raises:
            BaseException: What the queue raises, after all earlier requests have been taken.

        Returns:
            An empty list, without waiting, if LitServe has stopped the loop: `over` is set then.
        """
        if block:
            self._changed.wait()
        self._changed.clear()
        # Read before the requests: what was fetched before the end is then found below.
        ended = self._ended
        taken = []
        while self._fetched:
            taken.append(self._fetched.popleft())
        if ended:
            self._changed.set()  # the thread is gone, and must not be waited for again
            if not taken and self._error is not None:
                raise self._error
            self.over = not taken
        return taken

    def close(self) -> list[tuple[Any, ...]]:
        """Fetch nothing more, and return what has been fetched; the thread ends within a second."""
        self._closed.set()
        self._free.release()
        return list(self._fetched)

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
                self._taken(*request[:2])
                self._fetched.append(request)
                self._changed.set()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that takes
            self._error = error
        finally:
            self._ended = True
            self._changed.set()
