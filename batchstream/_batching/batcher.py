"""What dynamic and continuous batchers have in common: requests in, streams out."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Self, overload

from typing_extensions import TypeVar

from batchstream._batching.replies import AsyncReplies, Flight, Replies
from batchstream._core.errors import ClosedError
from batchstream._pumps.source import shown
from batchstream._streams.async_stream import AsyncStream
from batchstream._streams.stream import Stream

if TYPE_CHECKING:
    from types import TracebackType

    from batchstream._batching.dispatcher import Dispatcher
    from batchstream._core.records import BatcherStatistics

T = TypeVar("T", default=Any)
RequestT = TypeVar("RequestT", default=Any)


class Batcher(Generic[RequestT, T]):
    """Accepts requests one by one, and returns a stream for each at once."""

    __slots__ = ("_dispatcher",)
    _dispatcher: Dispatcher[T]

    def __repr__(self) -> str:
        return f"<{self._kind}, {self._dispatcher.state}>"

    def _repr_html_(self) -> str:
        """Return its live requests, its queue and its figures, for a notebook."""
        from batchstream._batching.html import batcher_table  # noqa: PLC0415 - notebooks alone need it

        return batcher_table(self._kind, self._dispatcher)

    @property
    def _kind(self) -> str:
        """What a text calls it."""
        kind, name = type(self).__name__, self._dispatcher.options.name
        return kind if name is None else f"{kind} {name!r}"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a {self._kind} cannot be pickled or copied: it has workers")

    def stream(
        self,
        request: RequestT,
        *,
        timeout: float | None = None,
        wait_timeout: float | None = None,
        request_id: str | None = None,
    ) -> Stream[T]:
        """Submit a request, and return its stream for a consumer in a thread.

        The request waits for its turn, or joins a batch at once, whether the stream is read or
        not. Cancel the stream, or drop it, and the model stops working for the request.

        Args:
            request: Whatever the model takes.
            timeout: For how long the stream may last from now on, in seconds. When that is over it
                raises `DeadlineError` after what it holds, and the slot is free with the next step.
            wait_timeout: The same for how long it may wait until it joins a batch; 0 is always too
                short.
            request_id: What errors, logs and the stream's text call the request, such as an
                `X-Request-ID`; without one it has a number of the batcher's own.

        Raises:
            OverloadedError: `max_pending` requests are waiting, or more than another bound allows.
                Nothing was submitted.
            ClosedError: The batcher was closed.
            ForkedError: The batcher had requests when this process was forked.
            RuntimeError: The model is an asynchronous function, and no event loop is known.
            Exception: What `key`, `cost`, `max_outputs`, `decode`, `priority`, `tenant`, `share` or
                the function of `per_request` raise for this request.

        Blocking: never; receiving from the stream does.
        Cancellation: a request that was not accepted entirely is cancelled.
        Threads: any.
        """
        return self._dispatcher.submit(
            request,
            Stream._of,  # noqa: SLF001
            timeout=timeout,
            wait_timeout=wait_timeout,
            request_id=request_id,
        )

    def astream(
        self,
        request: RequestT,
        *,
        timeout: float | None = None,
        wait_timeout: float | None = None,
        request_id: str | None = None,
    ) -> AsyncStream[T]:
        """Submit a request, and return its stream for a consumer in an event loop.

        The same as `stream` otherwise. Not a coroutine: it returns at once.

        Args:
            request: Whatever the model takes.
            timeout: For how long the stream may last from now on, in seconds.
            wait_timeout: For how long it may wait until it joins a batch.
            request_id: What errors, logs and the stream's text call the request; see `stream`.

        Raises:
            OverloadedError: `max_pending` requests are waiting, or more than another bound allows.
                Nothing was submitted.
            ClosedError: The batcher was closed.
            ForkedError: The batcher had requests when this process was forked.
            RuntimeError: The model is an asynchronous function, and no event loop is known.
            Exception: What `key`, `cost`, `max_outputs`, `decode`, `priority`, `tenant`, `share` or
                the function of `per_request` raise for this request.

        Blocking: never.
        Cancellation: nothing to cancel.
        Threads: any, in an event loop or not; the stream belongs to the loop that first waits.
        """
        return self._dispatcher.submit(
            request,
            AsyncStream._of,  # noqa: SLF001
            timeout=timeout,
            wait_timeout=wait_timeout,
            request_id=request_id,
        )

    @overload
    def map(
        self,
        requests: Iterable[RequestT],
        *,
        ordered: Literal[True] = True,
        timeout: float | None = None,
        wait_timeout: float | None = None,
    ) -> Replies[list[T]]: ...
    @overload
    def map(
        self,
        requests: Iterable[RequestT],
        *,
        ordered: Literal[False],
        timeout: float | None = None,
        wait_timeout: float | None = None,
    ) -> Replies[tuple[int, list[T]]]: ...
    def map(
        self,
        requests: Iterable[RequestT],
        *,
        ordered: bool = True,
        timeout: float | None = None,
        wait_timeout: float | None = None,
    ) -> Replies[Any]:
        """Return an iterator over the replies to many requests: for each, the list of its outputs.

        Requests are taken from the iterable as they are needed: it may be endless. As many are
        submitted as keep all workers busy, with one batch that waits; none is refused, as the
        others wait for room, and none is ended for being slow, as replies have no bound. Each
        reply lets one more request be taken. Where one takes long, up to four times as many
        finished replies wait behind it. With `single=True` each list holds the one result.

        A request that fails raises its error in the place of its reply, and ends the iterator: the
        others are cancelled. So are all if you leave the loop.

        Args:
            requests: Any iterable of requests. What it raises is raised behind the
                replies to the requests that came before.
            ordered: Whether the replies come in the order of the requests. If not, a pair comes for
                each as it finishes: the number of its request, counted from 0, and the reply.
            timeout: For how long each request may last from its submission on, in seconds.
            wait_timeout: For how long each may wait from then on until it joins a batch.

        Raises:
            TypeError, ValueError: An argument is of the wrong kind, or cannot work.

        Blocking: never; the iterator does, see `Replies`.
        Cancellation: see `Replies`.
        Threads: any; the iterator is for one thread at a time.
        """
        flight = Flight(
            self._dispatcher, ordered=ordered, timeout=timeout, wait_timeout=wait_timeout
        )
        return Replies(flight, iter(_check_requests("map", requests)))

    @overload
    def amap(
        self,
        requests: Iterable[RequestT] | AsyncIterable[RequestT],
        *,
        ordered: Literal[True] = True,
        timeout: float | None = None,
        wait_timeout: float | None = None,
    ) -> AsyncReplies[list[T]]: ...
    @overload
    def amap(
        self,
        requests: Iterable[RequestT] | AsyncIterable[RequestT],
        *,
        ordered: Literal[False],
        timeout: float | None = None,
        wait_timeout: float | None = None,
    ) -> AsyncReplies[tuple[int, list[T]]]: ...
    def amap(
        self,
        requests: Iterable[RequestT] | AsyncIterable[RequestT],
        *,
        ordered: bool = True,
        timeout: float | None = None,
        wait_timeout: float | None = None,
    ) -> AsyncReplies[Any]:
        """Return an asynchronous iterator over the replies to many requests, as `map` does.

        Not a coroutine: it returns at once.

        Args:
            requests: Any iterable of requests, asynchronous or not. While it waits for its next
                request, no reply comes.
            ordered: Whether the replies come in the order of the requests; else each comes as it
                finishes, in a pair with the number of its request.
            timeout: For how long each request may last from its submission on, in seconds.
            wait_timeout: For how long each may wait from then on until it joins a batch.

        Raises:
            TypeError, ValueError: An argument is of the wrong kind, or cannot work.

        Blocking: never.
        Cancellation: see `AsyncReplies`.
        Threads: any; the iterator is for one task at a time.
        """
        flight = Flight(
            self._dispatcher, ordered=ordered, timeout=timeout, wait_timeout=wait_timeout
        )
        if isinstance(requests, AsyncIterable):
            return AsyncReplies(flight, aiter(requests))
        return AsyncReplies(flight, iter(_check_requests("amap", requests)))

    def close(self) -> None:
        """Let every request fail that has not ended, with `ClosedError`, and end the workers.

        A stream gives what it holds before it raises. Repeated calls do nothing more.

        Blocking: while the model is in a step, or an engine is closed. Called in the event loop
            that an asynchronous function runs in, or by the model itself, it does not wait.
        Cancellation: an exception from a signal leaves the batcher closed; call it again to wait.
        Threads: any.
        """
        self._dispatcher.close()

    async def aclose(self) -> None:
        """Do the same, and wait in an event loop until the workers have ended.

        Blocking: never; it waits while the model is in a step, or an engine is closed.
        Cancellation: the batcher is closed all the same.
        Threads: any event loop.
        """
        await self._dispatcher.aclose()

    def __enter__(self) -> Self:
        """Return the batcher.

        Raises:
            ClosedError: It was closed, and accepts no request any more.
        """
        self._check_open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._dispatcher.close("the end of its with block")

    async def __aenter__(self) -> Self:
        """Return the batcher, and let an asynchronous function of its run in this event loop.

        Raises:
            ClosedError: It was closed, and accepts no request any more.
        """
        self._check_open()
        self._dispatcher.prepare()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._dispatcher.aclose("the end of its async with block")

    def _check_open(self) -> None:
        self._dispatcher.check_not_forked()
        if self._dispatcher.scheduler.closed:
            raise ClosedError(
                f"this {self._kind} was closed{self._dispatcher.scheduler.closing}, before it was "
                f"entered: make another, or put all of its uses into one block"
            )

    def statistics(self) -> BatcherStatistics:
        """Return the figures up to now.

        Threads: any.
        """
        return self._dispatcher.statistics()


def _check_requests(name: str, requests: Any) -> Iterable[Any]:
    """Return what `map` or `amap` can take requests from.

    Raises:
        TypeError: It is no iterable, or one of letters, bytes or keys.
    """
    if isinstance(requests, str | bytes | bytearray | Mapping):
        instead = "pass a list of requests, or submit a single one with stream or astream"
    elif isinstance(requests, AsyncIterable):
        instead = "read it with amap"
    elif callable(requests) and (isinstance(requests, type) or not hasattr(requests, "__iter__")):
        instead = "call it, and pass what it returns"
    elif isinstance(requests, Iterable) or hasattr(requests, "__getitem__"):
        iterable: Iterable[Any] = requests
        return iterable
    else:
        instead = "pass a list of requests"
    raise TypeError(f"{name} takes an iterable of requests, got {shown(requests)}: {instead}")
