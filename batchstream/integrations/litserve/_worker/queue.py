"""Requests on their way out of LitServe's queue."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from queue import Empty
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Final

from litserve.loops.base import _SENTINEL_VALUE

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import Queue

# A worker that dies while it waits leaves its wait behind in the queue's process, where it takes a
# request that is never served. So a wait is short, but long enough for an idle worker to sleep.
_SECONDS_OF_WAITING: Final = 1.0


def wait_for_request(request_queue: Queue[Any]) -> Any:
    """Return the next request, or LitServe's sentinel, however long that takes."""
    while True:
        try:
            return request_queue.get(timeout=_SECONDS_OF_WAITING)
        except Empty:
            pass


class Arrivals:
    """A queue that remembers what was taken from it.

    LitServe drops when a request was put into it, and all of one that is late, before the loop sees
    it.

    Attributes:
        of: When each request was put into it, and its content, by uid.
    """

    def __init__(self, request_queue: Queue[Any]) -> None:
        self._queue = request_queue
        self.of: dict[object, tuple[float, Any]] = {}

    def get(self, *, timeout: float) -> Any:
        """Return an element, as `queue.Queue` does."""
        return self._noted(self._queue.get(timeout=timeout))

    def get_nowait(self) -> Any:
        """Return an element, as `queue.Queue` does."""
        return self._noted(self._queue.get_nowait())

    def _noted(self, element: Any) -> Any:
        _, uid, submitted, content = element
        self.of[uid] = submitted, content
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
    """Takes requests from the queue in a thread: one at a time, and none before it is told to.

    So no step waits for a request to come, and what this worker cannot add waits in the queue:
    there it counts as waiting, an urgent request can overtake it, and another worker can take it.

    A queue with a `take`, that of a loop which orders its requests, is asked in two calls: whether
    a request waits, and for that request. What was told is looked at between the two. LitServe's
    queue is asked in one call, and gets back what comes too late: it has no order to keep.

    Args:
        request_queue: Shared by all workers.
        taken: Called with each request that this worker takes, in the thread; not with one that
            goes back.

    Attributes:
        over: Whether LitServe has stopped the loop, and all earlier requests have been taken.
    """

    def __init__(
        self, request_queue: Queue[Any], taken: Callable[[int, object], None] = lambda *_: None
    ) -> None:
        self._queue: Any = request_queue
        self._taken = taken
        # One that tells whether others wait, so that it need not be asked in vain.
        self._tells = hasattr(request_queue, "take")
        self._is_told = False  # or one that was fetched has not been taken
        self._told = Event()  # what the thread knows of it
        self._fetched: deque[tuple[Any, ...]] = deque()
        self._others_wait = False  # as far as the queue has told, behind the one fetched last
        self._is_asking = False  # for one that is there; the thread clears it before it waits
        self._changed = Event()
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False
        # Held where `recall` and `close` must find a request either in the queue or here.
        self._keeping = Lock()
        self.over = False
        Thread(target=self._run, name="batchstream prefetcher", daemon=True).start()

    def fetch(self) -> None:
        """Let the next request be fetched, unless the one before has not been taken."""
        if not self._is_told:
            self._is_told, self._is_asking = True, self._others_wait
            self._told.set()

    def recall(self) -> None:
        """Let none be fetched until the next `fetch`; one that has been is there to take."""
        if not self._is_told:
            return
        with self._keeping:
            if not self._fetched:
                self._told.clear()
                self._is_told = False

    def take(self, *, block: bool) -> tuple[Any, ...] | None:
        """Return the next request, as LitServe puts it into the queue; None if there is none.

        Args:
            block: Whether to wait until one comes. Else this waits only until the queue has given
                the next one, if there was one.

        Raises:
            BaseException: What the queue raises, after all earlier requests have been taken.

        Returns:
            None, without waiting, also if LitServe has stopped the loop: `over` is set then.
        """
        self.fetch()
        while not (self._fetched or self._ended) and (block or self._is_asking):
            self._changed.wait()
            self._changed.clear()
        if self._fetched:
            request = self._fetched.popleft()
            self._is_told = False
            return request
        if self._ended:
            if self._error is not None:
                raise self._error
            self.over = True
        return None

    def close(self) -> list[tuple[Any, ...]]:
        """Fetch nothing more, and return what has been fetched; the thread ends within a second."""
        with self._keeping:
            self._closed = True
        self._told.set()
        return list(self._fetched)

    def _run(self) -> None:
        try:
            while self._told.wait() and not self._closed:
                with suppress(Empty):
                    if self._next() == _SENTINEL_VALUE:
                        return
        except BaseException as error:  # noqa: BLE001 - raised in the thread that takes
            self._error = error
        finally:
            self._ended = True
            self._changed.set()

    def _next(self) -> Any:
        """Fetch the next request, and return it, or LitServe's sentinel.

        Raises:
            queue.Empty: None has come, or it is not wanted any more.
        """
        others_waited, self._others_wait = self._others_wait, False
        if not others_waited:
            self._is_asking = False
            self._changed.set()
        if self._tells:
            if not (others_waited or self._queue.wait(_SECONDS_OF_WAITING)):
                raise Empty
            with self._keeping:
                if not self._is_wanted:
                    raise Empty
                request, self._others_wait = self._queue.take(block=False)
                self._keep(request)
            return request
        request = self._queue.get(block=not others_waited, timeout=_SECONDS_OF_WAITING)
        with self._keeping:
            if self._is_wanted:
                self._others_wait = True  # for all that is known
                self._keep(request)
                return request
        self._queue.put(request)  # another worker may serve it
        raise Empty

    @property
    def _is_wanted(self) -> bool:
        return self._told.is_set() and not self._closed

    def _keep(self, request: Any) -> None:
        if request == _SENTINEL_VALUE:
            return
        self._taken(*request[:2])
        self._told.clear()  # before the loop can see the request, and tell anew
        self._fetched.append(request)
        self._changed.set()
