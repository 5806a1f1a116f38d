"""What dynamic and continuous batchers have in common: requests in, streams out."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Self, overload

from typing_extensions import TypeVar

from batchstream._batching.calls.closing import aclose, block_end, close, said_with
from batchstream._batching.calls.replies import AsyncReplies, Flight, Replies
from batchstream._batching.calls.room import (
    ANY_REQUEST,
    AnyRequest,
    wait_for_room,
    wait_for_room_in_loop,
)
from batchstream._batching.calls.submission import submit
from batchstream._batching.calls.warm_up import warm_up, warm_up_in_loop
from batchstream._batching.life import BatcherState, check_drain
from batchstream._core.errors import ClosedError
from batchstream._pumps.source import shown
from batchstream._streams.async_stream import AsyncStream
from batchstream._streams.stream import Stream

if TYPE_CHECKING:
    from types import TracebackType

    from batchstream._batching.calls.upstream import RequestUpstream
    from batchstream._batching.dispatching.dispatcher import Dispatcher
    from batchstream._core.records import BatcherStatistics

T = TypeVar("T", default=Any)
RequestT = TypeVar("RequestT", default=Any)


class Batcher(Generic[RequestT, T]):
    """Accepts requests one by one, and returns a stream for each at once."""

    __slots__ = ("_dispatcher", "_upstream")
    _dispatcher: Dispatcher[T]
    _upstream: RequestUpstream[T]

    def __repr__(self) -> str:
        return f"<{self._kind}, {self._dispatcher.summary}>"

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
        raise TypeError(
            f"a {self._kind} cannot be pickled or copied: it has workers; make it in the "
            f"process that uses it"
        )

    def stream(
        self,
        request: RequestT,
        *,
        timeout: float | None = None,
        wait_timeout: float | None = None,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
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
            first_timeout: The same for how long it may be without its first output, from now on.
            gap_timeout: The same for how long it may be without another output, from the first on;
                more than 0. An output counts from the step of the model that has given it, be it
                read or not. The time stands still while the batch waits for room in this very
                stream (`on_overflow="wait"`), and begins anew when there is room.
            request_id: What errors, logs and the stream's text call the request, such as an
                `X-Request-ID`; without one it has a number of the batcher's own.

        Raises:
            OverloadedError: `max_pending` requests are waiting, or more than another bound allows.
                Nothing was submitted.
            ClosedError: The batcher was closed, or is draining.
            ForkedError: The batcher had requests when this process was forked.
            RuntimeError: The model is an asynchronous function, and no event loop is known.
            Exception: What `key`, `cost`, `max_outputs`, `decode`, `priority`, `tenant`, `share` or
                the function of `per_request` raise for this request.

        Blocking: never; receiving from the stream does.
        Cancellation: a request that was not accepted entirely is cancelled.
        Threads: any.
        """
        return submit(
            self._upstream,
            request,
            Stream._of,  # noqa: SLF001
            timeout=timeout,
            wait_timeout=wait_timeout,
            first_timeout=first_timeout,
            gap_timeout=gap_timeout,
            request_id=request_id,
        )

    def astream(
        self,
        request: RequestT,
        *,
        timeout: float | None = None,
        wait_timeout: float | None = None,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
        request_id: str | None = None,
    ) -> AsyncStream[T]:
        """Submit a request, and return its stream for a consumer in an event loop.

        The same as `stream` otherwise. Not a coroutine: it returns at once.

        Args:
            request: Whatever the model takes.
            timeout: For how long the stream may last from now on, in seconds.
            wait_timeout: For how long it may wait until it joins a batch.
            first_timeout: For how long it may be without its first output, from now on.
            gap_timeout: For how long it may be without another output, from the first on.
            request_id: What errors, logs and the stream's text call the request; see `stream`.

        Raises:
            OverloadedError: `max_pending` requests are waiting, or more than another bound allows.
                Nothing was submitted.
            ClosedError: The batcher was closed, or is draining.
            ForkedError: The batcher had requests when this process was forked.
            RuntimeError: The model is an asynchronous function, and no event loop is known.
            Exception: What `key`, `cost`, `max_outputs`, `decode`, `priority`, `tenant`, `share` or
                the function of `per_request` raise for this request.

        Blocking: never.
        Cancellation: nothing to cancel.
        Threads: any, in an event loop or not; the stream belongs to the loop that first waits.
        """
        return submit(
            self._upstream,
            request,
            AsyncStream._of,  # noqa: SLF001
            timeout=timeout,
            wait_timeout=wait_timeout,
            first_timeout=first_timeout,
            gap_timeout=gap_timeout,
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
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
    ) -> Replies[list[T]]: ...
    @overload
    def map(
        self,
        requests: Iterable[RequestT],
        *,
        ordered: Literal[False],
        timeout: float | None = None,
        wait_timeout: float | None = None,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
    ) -> Replies[tuple[int, list[T]]]: ...
    def map(
        self,
        requests: Iterable[RequestT],
        *,
        ordered: bool = True,
        timeout: float | None = None,
        wait_timeout: float | None = None,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
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
            first_timeout: For how long each may be without its first output, from then on.
            gap_timeout: For how long each may be without another output, from its first on.

        Raises:
            TypeError, ValueError: An argument is of the wrong kind, or cannot work.

        Blocking: never; the iterator does, see `Replies`.
        Cancellation: see `Replies`.
        Threads: any; the iterator is for one thread at a time.
        """
        flight = Flight(
            self._upstream,
            ordered=ordered,
            timeout=timeout,
            wait_timeout=wait_timeout,
            first_timeout=first_timeout,
            gap_timeout=gap_timeout,
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
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
    ) -> AsyncReplies[list[T]]: ...
    @overload
    def amap(
        self,
        requests: Iterable[RequestT] | AsyncIterable[RequestT],
        *,
        ordered: Literal[False],
        timeout: float | None = None,
        wait_timeout: float | None = None,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
    ) -> AsyncReplies[tuple[int, list[T]]]: ...
    def amap(
        self,
        requests: Iterable[RequestT] | AsyncIterable[RequestT],
        *,
        ordered: bool = True,
        timeout: float | None = None,
        wait_timeout: float | None = None,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
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
            first_timeout: For how long each may be without its first output, from then on.
            gap_timeout: For how long each may be without another output, from its first on.

        Raises:
            TypeError, ValueError: An argument is of the wrong kind, or cannot work.

        Blocking: never.
        Cancellation: see `AsyncReplies`.
        Threads: any; the iterator is for one task at a time.
        """
        flight = Flight(
            self._upstream,
            ordered=ordered,
            timeout=timeout,
            wait_timeout=wait_timeout,
            first_timeout=first_timeout,
            gap_timeout=gap_timeout,
        )
        if isinstance(requests, AsyncIterable):
            return AsyncReplies(flight, aiter(requests))
        return AsyncReplies(flight, iter(_check_requests("amap", requests)))

    def wait_for_room(
        self,
        timeout: float | None = None,
        *,
        request: RequestT | AnyRequest = ANY_REQUEST,
        cost: float = 0.0,
    ) -> None:
        """Wait until a request would not be refused, for a caller that would rather wait.

        Callers that wait are woken in the order in which they came, one for each place. The place
        is not reserved: a request that another caller submits meanwhile may take it, so submit in a
        loop. A caller whose tenant has as many requests waiting as it may holds up no caller of
        another tenant.

        Args:
            timeout: For how long to wait, in seconds; None for any time.
            request: The request that will be submitted: its cost and its tenant are asked for as
                `stream` does, and count with `max_pending_cost` and `max_pending_per_tenant`.
            cost: In place of it, what the request will cost. Without both there is room as soon as
                any request would be accepted, of a tenant with room.

        Raises:
            TimeoutError: There was no room in this time.
            RequestError: The cost is more than a batch may have: there is never room.
            TypeError, ValueError: The timeout is no duration, the cost no number, or both a request
                and a cost are given; or a function of the request returns what it may not.
            Exception: What `cost`, `priority`, `tenant` or `share` raises for the request.
            ClosedError: The batcher was closed, or is draining.
            ForkedError: The batcher had requests when this process was forked.
            RuntimeError: The calling code is the model's own, or blocks the event loop that an
                asynchronous function runs in.

        Blocking: until there is room.
        Cancellation: nothing is lost; the next caller is woken instead.
        Threads: any.

        Example:
            >>> import batchstream
            >>> @batchstream.batched(max_batch_size=2, max_pending=1, single=True)
            ... def double(numbers):
            ...     return [2 * number for number in numbers]
            >>> def stream_when_there_is_room(number):
            ...     while True:
            ...         double.wait_for_room(timeout=10)
            ...         try:
            ...             return double.stream(number)
            ...         except batchstream.OverloadedError:
            ...             pass
            >>> [next(stream_when_there_is_room(number)) for number in range(4)]
            [0, 2, 4, 6]
            >>> double.close()
        """
        wait_for_room(self._upstream, timeout, cost, request)

    async def await_for_room(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as `wait_for_room` has it
        *,
        request: RequestT | AnyRequest = ANY_REQUEST,
        cost: float = 0.0,
    ) -> None:
        """Do the same in an event loop.

        Args:
            timeout: For how long to wait, in seconds; None for any time.
            request: The request that will be submitted.
            cost: In place of it, what the request will cost, with `max_pending_cost`.

        Raises:
            Exception: What `wait_for_room` raises.

        Blocking: never; it waits until there is room.
        Cancellation: nothing is lost; the next caller is woken instead.
        Threads: any event loop.
        """
        await wait_for_room_in_loop(self._upstream, timeout, cost, request)

    def warm_up(self, requests: Iterable[RequestT], *, timeout: float | None = None) -> None:
        """Run requests through the model once, before all others, and wait until all have ended.

        For what a model does at its first use: it is loaded, compiled, or records CUDA graphs. The
        requests share batches with each other alone; a batch that runs already ends before, other
        requests wait behind. They count neither in the statistics nor in the metrics, and what they
        give is dropped. `ready` is False until they have ended, and stays False if one fails.

        With several workers no more of them are used than there are batches.

        Args:
            requests: Requests for the model, as many and as long as it should be ready for. They go
                in batches of up to `max_batch_size`.
            timeout: For how long all of them may last, in seconds.

        Raises:
            ValueError: There is no request.
            DeadlineError: They have not ended in this time; they are cancelled.
            ClosedError: The batcher was closed, or is draining.
            ForkedError: The batcher had requests when this process was forked.
            RuntimeError: The calling code is the model's own, or blocks the event loop that an
                asynchronous function runs in.
            Exception: What the model, `key`, `cost`, `max_outputs`, `decode` or the function of
                `per_request` raises for one of them; the others are cancelled.

        Blocking: until all have ended.
        Cancellation: they are cancelled, and `ready` stays False.
        Threads: any.
        """
        warm_up(self._upstream, _check_requests("warm_up", requests), timeout)

    async def awarm_up(
        self,
        requests: Iterable[RequestT],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as `warm_up` has it
    ) -> None:
        """Do the same in an event loop.

        Args:
            requests: What the model takes.
            timeout: For how long all of them may last, in seconds.

        Raises:
            Exception: What `warm_up` raises.

        Blocking: never; it waits until all have ended.
        Cancellation: they are cancelled, and `ready` stays False.
        Threads: any event loop.
        """
        await warm_up_in_loop(self._upstream, _check_requests("awarm_up", requests), timeout)

    @property
    def name(self) -> str | None:
        """What metrics, logs and errors call it; None if it was given no name."""
        return self._dispatcher.options.name

    @property
    def max_batch_size(self) -> int:
        """How many requests a batch that is formed now has at most; see `reconfigure`.

        Threads: any.
        """
        return self._dispatcher.options.max_batch_size

    @property
    def max_pending(self) -> int:
        """How many requests may wait; see `reconfigure`.

        Threads: any.
        """
        return self._dispatcher.options.max_pending

    @property
    def max_batch_cost(self) -> float | None:
        """What the requests of a batch may cost together; None if they have no cost.

        Threads: any.
        """
        return self._dispatcher.options.max_batch_cost

    @property
    def max_pending_cost(self) -> float | None:
        """What the requests that wait may cost together; None for any cost; see `reconfigure`.

        Threads: any.
        """
        return self._dispatcher.options.max_pending_cost

    @property
    def max_pending_per_tenant(self) -> int | None:
        """How many requests of one tenant may wait; None for any number; see `reconfigure`.

        Threads: any.
        """
        return self._dispatcher.options.max_pending_per_tenant

    @property
    def state(self) -> BatcherState:
        """Whether it is `"accepting"` requests, `"draining"` or `"closed"`.

        Threads: any.
        """
        return self._dispatcher.scheduler.state

    @property
    def ready(self) -> bool:
        """Whether to send it requests: it accepts them, and its model is warm.

        The model counts as warm unless a warm-up is under way, or the last one has failed.

        Threads: any.
        """
        dispatcher = self._dispatcher
        return dispatcher.scheduler.state == "accepting" and dispatcher.readiness.is_warm

    def close(self, *, drain: float | None = None) -> None:
        """Let every request fail that has not ended, with `ClosedError`, and end the workers.

        A stream gives what it holds before it raises. Repeated calls do nothing more.

        With `drain` the requests that were accepted may end before that, waiting ones included;
        deadlines go on, and no batch waits for others to fill it. New requests are refused with
        `ClosedError` from the beginning, as are requests that a `map` has not submitted yet: it
        gives the replies to the others first. Of several drains the one that is over first counts;
        a call without `drain` closes the batcher at once.

        Args:
            drain: For how many seconds to let requests end; `math.inf` for any time. None closes at
                once.

        Raises:
            TypeError, ValueError: `drain` is no number of at least 0.

        Blocking: until the drain is over, and while the model is in a step or an engine is closed.
            Called in the event loop that an asynchronous function runs in, or by the model itself,
            it does not wait; nor in a signal's handler that has interrupted the batcher. Then a
            thread waits for the end of the drain.
        Cancellation: an exception from a signal ends the drain, and leaves the batcher closed; call
            it again to wait.
        Threads: any.
        """
        seconds = check_drain(drain)
        close(self._upstream, f"close({said_with(seconds)})", seconds)

    async def aclose(self, *, drain: float | None = None) -> None:
        """Do the same, and wait in an event loop until the workers have ended.

        Args:
            drain: For how many seconds to let requests end; None closes at once.

        Raises:
            TypeError, ValueError: `drain` is no number of at least 0.

        Blocking: never; it waits until the drain is over, and while the model is in a step or an
            engine is closed.
        Cancellation: the drain is over, and the batcher is closed all the same.
        Threads: any event loop.
        """
        seconds = check_drain(drain)
        await aclose(self._upstream, f"aclose({said_with(seconds)})", seconds)

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
        drain = self._dispatcher.options.drain if exc_type is None else None
        close(self._upstream, block_end("with", drain), drain)

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
        drain = self._dispatcher.options.drain if exc_type is None else None
        await aclose(self._upstream, block_end("async with", drain), drain)

    def _check_open(self) -> None:
        self._dispatcher.check_not_forked()
        scheduler = self._dispatcher.scheduler
        if scheduler.state != "accepting":
            raise ClosedError(
                f"this {self._kind} was closed{scheduler.closing}, before it was "
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
