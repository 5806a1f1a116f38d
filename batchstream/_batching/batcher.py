"""What dynamic and continuous batchers have in common: requests in, streams out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self

from typing_extensions import TypeVar

from batchstream._streams.async_stream import AsyncStream
from batchstream._streams.stream import Stream

if TYPE_CHECKING:
    from types import TracebackType

    from batchstream._batching.dispatcher import Dispatcher
    from batchstream._core.records import BatcherStatistics

T = TypeVar("T", default=Any)
RequestT = TypeVar("RequestT", default=Any)


class AnyBatcher(Generic[RequestT, T]):
    """Accepts requests one by one, and returns a stream for each at once."""

    __slots__ = ("_dispatcher",)
    _dispatcher: Dispatcher[T]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {self._dispatcher.state}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled or copied: it has workers")

    def stream(
        self, request: RequestT, *, timeout: float | None = None, wait_timeout: float | None = None
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

        Raises:
            OverloadedError: `max_pending` requests are waiting. Nothing was submitted.
            ClosedError: The batcher was closed, or is in use in the process this is a fork of.
            RuntimeError: The model is an asynchronous function, and no event loop is known.
            Exception: What `key`, `cost` or `max_outputs` raise for this request.

        Blocking: never; receiving from the stream does.
        Cancellation: a request that was not accepted entirely is cancelled.
        Threads: any.
        """
        return self._dispatcher.submit(
            request,
            Stream._of,  # noqa: SLF001
            timeout=timeout,
            wait_timeout=wait_timeout,
        )

    def astream(
        self, request: RequestT, *, timeout: float | None = None, wait_timeout: float | None = None
    ) -> AsyncStream[T]:
        """Submit a request, and return its stream for a consumer in an event loop.

        The same as `stream` otherwise. Not a coroutine: it returns at once.

        Args:
            request: Whatever the model takes.
            timeout: For how long the stream may last from now on, in seconds.
            wait_timeout: For how long it may wait until it joins a batch.

        Raises:
            OverloadedError: `max_pending` requests are waiting. Nothing was submitted.
            ClosedError: The batcher was closed, or is in use in the process this is a fork of.
            RuntimeError: The model is an asynchronous function, and no event loop is known.
            Exception: What `key`, `cost` or `max_outputs` raise for this request.

        Blocking: never.
        Cancellation: nothing to cancel.
        Threads: any, in an event loop or not; the stream belongs to the loop that first waits.
        """
        return self._dispatcher.submit(
            request,
            AsyncStream._of,  # noqa: SLF001
            timeout=timeout,
            wait_timeout=wait_timeout,
        )

    def close(self) -> None:
        """Let every request fail that has not ended, with `ClosedError`, and end the workers.

        A stream gives what it holds before it raises. Repeated calls do nothing more.

        Blocking: while the model is in a step. Called in the event loop that an asynchronous
            function runs in, or by the model itself, it does not wait.
        Cancellation: an exception from a signal leaves the batcher closed; call it again to wait.
        Threads: any.
        """
        self._dispatcher.close()

    async def aclose(self) -> None:
        """Do the same, and wait in an event loop until the workers have ended.

        Blocking: never; it waits while the model is in a step.
        Cancellation: the batcher is closed all the same.
        Threads: any event loop.
        """
        await self._dispatcher.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._dispatcher.prepare()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def statistics(self) -> BatcherStatistics:
        """Return the figures up to now.

        Threads: any.
        """
        return self._dispatcher.statistics()
