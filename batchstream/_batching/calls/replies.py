"""Many requests through one batcher: as many in flight as fit, and the reply of each as a list.

Theory of operation
-------------------

A `Flight` has the requests of one `map` that were submitted and whose replies were not taken. A
request of a flight has no stream: it keeps all its outputs, whatever the batcher's bound, and tells
the flight when it has ended. The consumer takes requests from the caller's iterable and submits
them, up to a width that keeps every worker busy; then it waits until any request has ended.

Other clients may fill the queue of the batcher. Then a request of a flight is not refused: the
flight holds it back, until the dispatcher tells that the queue has room again.

The iterators below refer to the flight, and nothing refers to them: one that is dropped cancels
what is in flight at once, without waiting for the cycle collector.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Self, cast, final

from typing_extensions import TypeVar

from batchstream._batching.calls.submission import submit
from batchstream._batching.requests.request import Deadlines, without_stream
from batchstream._core.errors import ClosedError, OverloadedError, concurrent_error
from batchstream._eventloops.current import current_loop
from batchstream._pumps.process import forkable

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream._batching.calls.upstream import RequestUpstream
    from batchstream._batching.requests.request import Request

T = TypeVar("T")
ReplyT = TypeVar("ReplyT", default=Any)

HELD_PER_LIVE: Final = 4
"""How many requests may be in flight for each that fits, where finished ones wait for their turn
behind one that takes long."""


class Flight(Generic[T]):
    """The requests of one `map` that are in flight.

    Args:
        upstream: That of the batcher's streams.
        ordered: Whether replies are taken in the order of the requests.
        timeout: For how long each may last.
        wait_timeout: For how long each may wait for a batch.
        first_timeout: For how long each may be without its first output.
        gap_timeout: For how long each may be without another, from the first on.

    Attributes:
        upstream: The same.
        is_cancelled: Whether all is over.
        room: Whether the dispatcher has told of room since a request was held back.
        passes_on: False: the consumer may be busy with a reply, and others need not wait for it.
    """

    passes_on = False
    is_held_up = staticmethod(bool)  # never: it looks for itself
    __slots__ = (
        "__weakref__",
        "_claim",
        "_done",
        "_ended",
        "_failure",
        "_held_back",
        "_in_flight",
        "_numbers",
        "_ordered",
        "_requests_over",
        "_timeouts",
        "is_cancelled",
        "room",
        "upstream",
    )

    def __init__(
        self,
        upstream: RequestUpstream[T],
        *,
        ordered: bool,
        timeout: float | None,
        wait_timeout: float | None,
        first_timeout: float | None,
        gap_timeout: float | None,
    ) -> None:
        Deadlines.checked(timeout, wait_timeout, first_timeout, gap_timeout)
        self.upstream = upstream
        self.room = False
        self._claim = Lock()
        forkable.add(self)
        self._ordered = ordered
        self._timeouts = timeout, wait_timeout, first_timeout, gap_timeout
        self._numbers = count()
        # The requests with their numbers, in their order; and the ended ones among them, in the
        # order of their ends.
        self._in_flight: dict[Request[T], int] = {}
        self._done: dict[Request[T], None] = {}
        self._ended: deque[Request[T]] = deque()  # added to by any thread; one may come twice
        self._held_back: list[Any] = []  # a request for which there was no room, if any
        self._requests_over = False
        self._failure: Exception | None = None  # raised behind the replies that are still to come
        self.is_cancelled = False

    def __repr__(self) -> str:
        if self.is_cancelled:
            return "closed"
        return f"{len(self._in_flight)} requests in flight, {len(self.live)} of them live"

    # ---- from any thread, never waiting

    @property
    def ready(self) -> bool:
        """Whether there is something to do for a consumer that waits."""
        return bool(self._ended) or self.room

    def note_end(self, request: Request[T]) -> None:
        """Take note that a request has ended, behind its outputs, and wake the consumer."""
        self._ended.append(request)
        self.upstream.dispatcher.parking.wake((self,))

    def note_room(self) -> None:
        """Take note that the batcher's queue has room again, and wake the consumer."""
        self.room = True
        self.upstream.dispatcher.parking.wake((self,))

    def cancel(self) -> None:
        """Cancel what is in flight, and take no request any more."""
        self.is_cancelled = True  # first: a consumer that submits at the moment cancels again
        self._held_back.clear()
        self.upstream.dispatcher.ends.room_waiters.pop(self, None)
        for request in list(self._in_flight):  # which only the consumer changes
            request.on_end = None  # which refers to this
            self.upstream.cancel(request)
        self.note_room()

    _cancel_with_loop = cancel

    # ---- from the consumer

    def enter(self, consumer: str) -> Lock:
        """Refuse a second consumer at the same time, and return what the first releases.

        Raises:
            ConcurrentConsumerError: There is one.
        """
        claim = self._claim
        if not claim.acquire(blocking=False):
            raise concurrent_error("a map", consumer)
        return claim

    def after_fork(self) -> None:
        """Forget that a consumer was at work in another thread, which is not in this process."""
        self._claim = Lock()

    @property
    def wanted(self) -> int:
        """How many requests to take before the next look: one if a reply is ready already."""
        if self._requests_over or self.is_cancelled:
            return 0
        live, all_ = len(self._in_flight) - len(self._done), len(self._in_flight)
        options = self.upstream.dispatcher.options
        size = options.max_batch_size
        # One batch more than run, so that a worker finds the next one as it ends the last.
        width = options.workers * size + min(size, options.max_pending)
        most = max(min(width - live, HELD_PER_LIVE * width - all_), 0)
        return min(most, 1) if self.has_reply else most

    @property
    def has_reply(self) -> bool:
        """Whether the next reply is ready."""
        if self.is_cancelled:
            return False
        if not self._done:
            return self._failure is not None and not self._in_flight
        return not self._ordered or next(iter(self._in_flight)) in self._done

    @property
    def is_over(self) -> bool:
        """Whether all replies were taken."""
        all_taken = self._requests_over and not (self._in_flight or self._failure)
        return self.is_cancelled or all_taken

    @property
    def live(self) -> list[Request[T]]:
        """The requests that have not ended."""
        return [it for it in list(self._in_flight) if not it.ends]

    def look(self) -> bool:
        """Look at what has ended, and submit what was held back; False if there is no room yet."""
        self.room = False  # also if nothing is held back: or it would be ready for ever
        while self._ended:
            request = self._ended.popleft()
            if request in self._in_flight:
                self._done[request] = None
        return not self._held_back or self.submit(self._held_back.pop())

    def submit(self, content: Any) -> bool:
        """Submit a request; False if it is held back, or fails and none is taken behind it."""
        self.room = False
        upstream = self.upstream
        for _ in range(2):
            try:
                timeout, wait_timeout, first_timeout, gap_timeout = self._timeouts
                request = submit(
                    upstream,
                    content,
                    without_stream,
                    timeout=timeout,
                    wait_timeout=wait_timeout,
                    first_timeout=first_timeout,
                    gap_timeout=gap_timeout,
                    on_end=self.note_end,
                )
            except OverloadedError:
                # And once more: room that came before this does not tell.
                upstream.dispatcher.ends.room_waiters[self] = None
            except Exception as error:  # noqa: BLE001 - raised in the place of the reply
                upstream.dispatcher.ends.room_waiters.pop(self, None)
                self.end_requests(error)
                return False
            else:
                upstream.dispatcher.ends.room_waiters.pop(self, None)
                self._in_flight[request] = next(self._numbers)
                if self.is_cancelled:  # by another thread, a moment ago
                    self.cancel()
                return True
        self._held_back.append(content)
        return False

    def end_requests(self, error: Exception | None = None) -> None:
        """Take no request any more; raise the error, if any, behind the replies up to here."""
        self._requests_over = True
        self._failure = error

    def take(self) -> Any:
        """Take the next reply, which is ready.

        Raises:
            Exception: What its request has failed with, and the others are cancelled; or what no
                request could be submitted for, behind all replies.
        """
        if (failure := self._failure) is not None and not self._in_flight:
            self.cancel()
            try:
                raise failure
            finally:
                del failure  # it holds this frame
                self._failure = None
        request = next(iter(self._in_flight if self._ordered else self._done))
        self._done.pop(request)
        number = self._in_flight.pop(request)
        try:
            request.on_end = None  # which refers to this
            if request.cancelled:  # not by this flight, which then takes no reply
                raise ClosedError("a request was cancelled before its reply was whole")  # noqa: TRY301
            if request.end is not None and request.end.error is not None:
                request.conclude()
            outputs = request.take_all()
        except BaseException:
            self.cancel()
            raise
        finally:
            del request  # the error may hold this frame
        return outputs if self._ordered else (number, outputs)


class _AnyReplies(Generic[ReplyT]):
    """What both iterators have in common."""

    __slots__ = ("__weakref__", "_flight", "_requests")
    _flight: Flight[Any]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {self._flight!r}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied: its requests are in flight"
        )

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if hasattr(self, "_flight") and not _is_finalizing():
            self._flight.cancel()


@final
class Replies(_AnyReplies[ReplyT], Iterator[ReplyT]):
    """The replies to many requests, as an iterator: what `map` of a batcher returns.

    Close or drop it, as leaving a `for` loop does, and what is in flight is cancelled. An error of
    a request is raised in its place, cancels the others, and ends the iterator.

    Raises (on iteration):
        ClosedError: The batcher was closed.
        ForkedError: The batcher had requests when this process was forked.
        DeadlineError: A request was not finished in time.
        ConcurrentConsumerError: Another thread waits for a reply.
        RuntimeError: The model of the batcher waits for its own requests.
        Exception: What the model, `key`, `cost`, `max_outputs`, `decode`, the function of
            `per_request` or the iterable of requests raise.

    Blocking: until there is a reply, and while the iterable of requests blocks.
    Cancellation: an exception from a signal leaves what is in flight, and the next receive goes on;
        one that strikes in the iterable of requests cancels all.
    Threads: one at a time.
    """

    __slots__ = ()

    def __init__(self, flight: Flight[Any], requests: Iterator[Any]) -> None:
        self._flight = flight
        self._requests = requests

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ReplyT:
        flight = self._flight
        try:
            claim = flight.enter("thread")
            try:
                while True:
                    self._submit()
                    if flight.has_reply:
                        reply = cast("ReplyT", flight.take())
                        if not flight.is_cancelled:  # by another thread: it may be cut
                            return reply
                    if flight.is_over:
                        raise StopIteration
                    flight.upstream.wait_for_any(flight)
            finally:
                claim.release()
        except BaseException:
            del self  # which this frame would keep alive, and the error keeps the frame
            raise

    def _submit(self) -> None:
        """Submit requests, as many as fit."""
        flight, requests = self._flight, self._requests
        del self  # as in `__next__`
        if not flight.look():
            return
        for _ in range(flight.wanted):
            try:
                content = next(requests)
            except StopIteration:
                flight.end_requests()
                return
            except Exception as error:  # noqa: BLE001 - raised in the place of the reply
                flight.end_requests(error)
                return
            except BaseException:
                flight.cancel()
                raise
            if not flight.submit(content) or flight.is_over:
                return

    def close(self) -> None:
        """Cancel what is in flight; the iterator is over. Repeated calls do nothing.

        Blocking: never.
        Cancellation: call it again.
        Threads: any.
        """
        self._flight.cancel()


@final
class AsyncReplies(_AnyReplies[ReplyT], AsyncIterator[ReplyT]):
    """The replies to many requests, as an asynchronous iterator: what `amap` of a batcher returns.

    Close or drop it, as leaving an `async for` loop does, and what is in flight is cancelled. An
    error of a request is raised in its place, cancels the others, and ends the iterator.

    Raises (on iteration):
        ClosedError: The batcher was closed.
        ForkedError: The batcher had requests when this process was forked.
        DeadlineError: A request was not finished in time.
        ConcurrentConsumerError: Another task waits for a reply.
        Exception: What the model, `key`, `cost`, `max_outputs`, `decode`, the function of
            `per_request` or the iterable of requests raise.

    Blocking: never, unless the iterable of requests does; it waits until there is a reply.
    Cancellation: a receive that is cancelled as it waits for a reply takes nothing, and the next
        one goes on; one that is cancelled as it waits for the iterable of requests cancels all,
        because an asynchronous generator ends by it.
    Threads: one task at a time, in any event loop.
    """

    __slots__ = ()

    def __init__(self, flight: Flight[Any], requests: Iterator[Any] | AsyncIterator[Any]) -> None:
        self._flight = flight
        self._requests = requests

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ReplyT:
        flight = self._flight
        try:
            claim = flight.enter("task")
            try:
                loop = current_loop()
                # Before the reply is taken: replies that are ready leave others their turn.
                await loop.checkpoint()
                while True:
                    await self._submit()
                    if flight.has_reply:
                        reply = cast("ReplyT", flight.take())
                        if not flight.is_cancelled:  # by another thread: it may be cut
                            return reply
                    if flight.is_over:
                        raise StopAsyncIteration
                    await flight.upstream.wait_for_any_in_loop(flight, loop)
            finally:
                claim.release()
        except BaseException:
            del self  # which this frame would keep alive, and the error keeps the frame
            raise

    async def _submit(self) -> None:
        """Submit requests, as many as fit."""
        flight, requests = self._flight, self._requests
        del self  # as in `__anext__`
        if not flight.look():
            return
        for _ in range(flight.wanted):
            try:
                if isinstance(requests, AsyncIterator):
                    content = await anext(requests)
                else:
                    content = next(requests)
            except (StopIteration, StopAsyncIteration):
                flight.end_requests()
                return
            except Exception as error:  # noqa: BLE001 - raised in the place of the reply
                flight.end_requests(error)
                return
            except BaseException:
                flight.cancel()
                raise
            if not flight.submit(content) or flight.is_over:
                return

    async def aclose(self) -> None:
        """Cancel what is in flight; the iterator is over. Repeated calls do nothing.

        Blocking: never, and it waits for nothing.
        Cancellation: call it again.
        Threads: any.
        """
        self._flight.cancel()
