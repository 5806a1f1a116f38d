"""Requests that go through the model before all others, and count in no figures."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from batchstream._batching import clock
from batchstream._batching.calls.submission import submit
from batchstream._batching.dispatching.waking import wake_workers
from batchstream._batching.requests.notice import Notice
from batchstream._batching.requests.request import without_stream
from batchstream._core.arguments import check_seconds
from batchstream._core.errors import ClosedError, DeadlineError
from batchstream._eventloops.current import current_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from batchstream._batching.calls.upstream import RequestUpstream
    from batchstream._batching.dispatching.dispatcher import Dispatcher
    from batchstream._batching.requests.request import Request

T = TypeVar("T")


def warm_up(upstream: RequestUpstream[Any], requests: Iterable[Any], timeout: float | None) -> None:
    """Run requests through the model, and wait in a thread until all have ended."""
    warming = _WarmUp(upstream, timeout)
    try:
        warming.begin(requests)
        while not warming.is_over():
            upstream.wait_for_any(warming.notice, warming.until)
    finally:
        warming.end()


async def warm_up_in_loop(
    upstream: RequestUpstream[Any],
    requests: Iterable[Any],
    timeout: float | None,  # noqa: ASYNC109 - that of the requests
) -> None:
    """Do the same in an event loop."""
    loop = current_loop()
    warming = _WarmUp(upstream, timeout)
    try:
        warming.begin(requests)
        while not warming.is_over():
            await upstream.wait_for_any_in_loop(warming.notice, loop, warming.until)
    finally:
        warming.end()


class _WarmUp(Generic[T]):
    """The requests of one call.

    Args:
        upstream: That of the batcher's streams.
        timeout: For how many seconds they may last together; None for any time.

    Attributes:
        until: Until when they may last.
        notice: Wakes the caller when one has ended.
    """

    def __init__(self, upstream: RequestUpstream[T], timeout: float | None) -> None:
        seconds = None if timeout is None else check_seconds("timeout", timeout)
        self._upstream = upstream
        self._dispatcher = dispatcher = upstream.dispatcher
        self._timeout = timeout
        self.until = None if seconds is None else clock.monotonic() + seconds
        self.notice = Notice(dispatcher.parking)
        self._warm_ups = dispatcher.readiness
        self._is_over = False
        self._live: set[Request[T]] = set()
        self._ended: deque[Request[T]] = deque()  # added to by any thread; one may come twice

    def end(self) -> None:
        """Cancel what has not ended."""
        try:
            for request in self._live:
                request.on_end = None  # which refers to this
                self._upstream.cancel(request)
            if not self._is_over:
                self._dispatcher.reap()  # the others need not wait for what was cancelled here
        finally:
            self._warm_ups.under_way.discard(self)
            self._warm_ups.last_has_failed = not self._is_over

    def begin(self, contents: Iterable[Any]) -> None:
        """Submit the requests, all before the first of them is taken.

        Raises:
            ValueError: There is none.
            Exception: What submitting one raises; none of them reaches the model.
        """
        self._warm_ups.last_has_failed = True  # until it has ended well, whatever breaks it off
        self._warm_ups.under_way.add(self)
        for content in contents:
            self._live.add(_submit(self._upstream, content, self._note_end))
        if not self._live:
            raise ValueError("warm_up takes at least one request, got none")
        _begin(self._dispatcher, self._live)

    def _note_end(self, request: Request[T]) -> None:
        self._ended.append(request)
        self.notice.wake()

    def is_over(self) -> bool:
        """Whether all have ended well.

        Raises:
            DeadlineError: The time is over.
            ClosedError: A request was cancelled.
            Exception: What a request has failed with.
        """
        self.notice.ready = False
        while self._ended:
            request = self._ended.popleft()
            self._live.discard(request)
            request.on_end = None
            if request.cancelled:
                raise ClosedError("a request of the warm-up was cancelled before it had ended")
            if request.end is not None and request.end.error is not None:
                request.conclude()
            request.take_all()
        if self._live and self.until is not None and self.until <= clock.monotonic():
            raise DeadlineError(
                f"the warm-up was not finished within {self._timeout} seconds (timeout): "
                f"give it longer, or fewer requests",
                timeout=float(self._timeout or 0.0),
            )
        self._is_over = not self._live
        return self._is_over


def _submit(
    upstream: RequestUpstream[T], content: Any, on_end: Callable[[Request[T]], object]
) -> Request[T]:
    """Accept a request of a warm-up, which waits for `_begin`; see `submit`."""
    return submit(
        upstream,
        content,
        without_stream,
        timeout=None,
        wait_timeout=None,
        on_end=on_end,
        is_warm_up=True,
    )


def _begin(dispatcher: Dispatcher[T], requests: Collection[Request[T]]) -> None:
    """Let requests of a warm-up that were submitted join batches, before all others."""
    with dispatcher.lock:
        dispatcher.scheduler.begin_warm_up(requests)
    wake_workers(dispatcher)
