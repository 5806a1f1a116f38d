"""The client's end: a batcher whose model is in another process."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._batching.batcher import Batcher
from batchstream._batching.calls.upstream import RequestUpstream
from batchstream._batching.dispatching.engine_dispatcher import engine_dispatcher
from batchstream._batching.engine import Engine
from batchstream._batching.options import BatcherOptions
from batchstream._core.arguments import check_count, check_seconds
from batchstream._core.errors import ClosedError, OverloadedError
from batchstream._core.rules import EndRules
from batchstream._remote.link import Link
from batchstream._remote.link_options import LinkOptions
from batchstream._remote.payloads import Terms, pickled, submission, too_large
from batchstream._remote.protocol import DEFAULT_MAX_FRAME, is_too_large
from batchstream._remote.server import check_max_frame, check_users
from batchstream._remote.sockets import check_address, is_served

if TYPE_CHECKING:
    import os
    from collections.abc import Collection

    from batchstream._batching.telemetry.metrics import MetricsOrFactory
    from batchstream._batching.telemetry.traces import Traces

T = TypeVar("T", default=Any)
RequestT = TypeVar("RequestT", default=Any)

_LONGEST_TERMS = len(submission(Terms(0.5, 0.5, 0.5, 0.5, "x" * 1000, True), b""))  # noqa: FBT003


class _NeverAnEnd:
    """The end mark of what comes from the server, which says ends otherwise: None is an output."""


class RemoteBatcher(Batcher[RequestT, T]):
    """A batcher whose model is in another process: what `connect` returns.

    It is used as other batchers are. Its statistics, metrics, traces and log are about the requests
    of this process; the model's are about the requests of all processes.
    """

    __slots__ = ("__weakref__", "_links")

    def __init__(
        self,
        address: str | os.PathLike[str],
        *,
        max_requests: int,
        window: int,
        connect_timeout: float,
        max_frame: int,
        trusted_users: Collection[int],
        name: str | None,
        metrics: MetricsOrFactory | None,
        traces: Traces | None,
        drain: float | None,
    ) -> None:
        size = check_count("max_requests", max_requests, at_least=1)
        most = check_max_frame(max_frame)
        links = LinkOptions(
            check_address(address),
            window=check_count("window", window, at_least=1),
            max_frame=most,
            connect_timeout=_check_connect_timeout(connect_timeout),
            trusted_users=check_users(trusted_users),
        )
        options: BatcherOptions[RequestT, T] = BatcherOptions(
            EndRules(eos=_NeverAnEnd()),
            max_batch_size=size,
            max_pending=size,
            max_buffered=links.window,
            on_overflow="cancel",  # never: no stream holds more than the window
            name=name,
            metrics=metrics,
            traces=traces,
            runs=RemoteBatcher,
            drain=drain,
            prepare=partial(_prepared, max_frame=most),
            overloaded=_overloaded,
        )
        self._dispatcher = engine_dispatcher(options, Engine(lambda: Link(links)), links.show)
        self._upstream = RequestUpstream(self._dispatcher)
        self._links = links

    @property
    def ready(self) -> bool:
        """Whether to send it requests: it accepts them, and a model listens at the address.

        The system is asked each time, by a connection that is closed at once. A model that drains
        does not listen any more; as soon as another does, this is True again.

        Blocking: never; the model's process need not answer.
        Threads: any.
        """
        return super().ready and is_served(self._links.path, self._links.trusted_users)

    def call(
        self,
        request: RequestT,
        *,
        timeout: float | None = None,
        wait_timeout: float | None = None,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
        request_id: str | None = None,
    ) -> T:
        """Submit a request, wait for its one result and return it, of a model with `single=True`.

        Args:
            request: Whatever the model takes.
            timeout: For how long to wait for the result, in seconds.
            wait_timeout: For how long the request may wait until it joins a batch.
            first_timeout: For how long to wait for its first output.
            gap_timeout: Without effect, as no other follows; see `stream`.
            request_id: What errors and logs call the request; see `stream`.

        Raises:
            TypeError: The model gives more than one output, or none.
            ClosedError: The batcher was closed, or the request was cancelled.
            Exception: What `stream`, and iterating over the stream, raise.

        Blocking: until there is a result.
        Cancellation: a signal's exception cancels the request.
        Threads: any.
        """
        with self.stream(
            request,
            timeout=timeout,
            wait_timeout=wait_timeout,
            first_timeout=first_timeout,
            gap_timeout=gap_timeout,
            request_id=request_id,
        ) as stream:
            outputs = [output for output, _ in zip(stream, range(2), strict=False)]
            return _only(outputs, cancelled=stream.finish_reason == "cancelled")

    async def acall(
        self,
        request: RequestT,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the request's, which its batch goes by
        wait_timeout: float | None = None,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
        request_id: str | None = None,
    ) -> T:
        """Do the same in an event loop.

        Args:
            request: Whatever the model takes.
            timeout: For how long to wait for the result, in seconds.
            wait_timeout: For how long the request may wait until it joins a batch.
            first_timeout: For how long to wait for its first output.
            gap_timeout: Without effect, as no other follows; see `stream`.
            request_id: What errors and logs call the request; see `stream`.

        Raises:
            Exception: What `call` raises.

        Blocking: never; it waits until there is a result.
        Cancellation: the request is cancelled.
        Threads: any event loop.
        """
        async with self.astream(
            request,
            timeout=timeout,
            wait_timeout=wait_timeout,
            first_timeout=first_timeout,
            gap_timeout=gap_timeout,
            request_id=request_id,
        ) as stream:
            outputs: list[T] = []
            async for output in stream:
                outputs.append(output)
                if len(outputs) > 1:
                    break
            return _only(outputs, cancelled=stream.finish_reason == "cancelled")


def _check_connect_timeout(connect_timeout: object) -> float:
    seconds = check_seconds("connect_timeout", connect_timeout)
    if not seconds:
        raise ValueError(
            f"connect_timeout must be more than 0 seconds, got {connect_timeout!r}: the model's "
            f"process takes a moment to answer"
        )
    return seconds


def _only(outputs: list[T], *, cancelled: bool) -> T:
    if len(outputs) == 1:
        return outputs[0]
    if cancelled:
        raise ClosedError("the request was cancelled before it had a result")
    how_many = "more than one output" if outputs else "no output"
    raise TypeError(
        f"call and acall are for a model with one result for each request (single=True), and this "
        f"one has given {how_many}: use stream or astream"
    )


def _overloaded(error: OverloadedError) -> OverloadedError:
    """Return the error of a request for which this process has no room."""
    return OverloadedError(
        f"the model has as many requests of this process as it may, {error.pending} more are "
        f"waiting here, and no more than {error.max_pending} may (max_requests): submit the "
        f"request again when some have ended",
        pending=error.pending,
        max_pending=error.max_pending,
        reason=error.reason,
        retry_after=error.retry_after,
    )


def _prepared(content: object, *, max_frame: int) -> bytes:
    """Return a request as it is sent.

    Raises:
        TypeError: It cannot be pickled.
        RequestError: It is too large.
    """
    payload = pickled(content)
    if is_too_large(payload, max_frame - _LONGEST_TERMS):
        raise too_large(payload, f"{max_frame} (max_frame)")
    return payload


def connect(
    address: str | os.PathLike[str],
    *,
    max_requests: int = 1024,
    window: int = 256,
    connect_timeout: float = 5.0,
    max_frame: int = DEFAULT_MAX_FRAME,
    trusted_users: Collection[int] = (),
    name: str | None = None,
    metrics: MetricsOrFactory | None = None,
    traces: Traces | None = None,
    drain: float | None = None,
) -> RemoteBatcher[Any, Any]:
    """Return a batcher whose model is in another process, which serves it with `serve`.

    It connects with the first request, so that it may be made as a module is imported, and before
    a fork. If the model's process is not there, the request fails with `ConnectionLostError`, which
    web integrations answer with 503; if it goes away, so do the requests under way. The next
    request connects again. After the model's process has received SIGTERM, requests go to the next
    one that listens at the address; `ready` says whether one does.

    Requests are accepted or refused, ordered, bounded and given deadlines by the model's batcher;
    its errors arrive with their types. What it refuses is raised by the first receive. Requests,
    outputs, `info` of ends and errors are pickled. A server can run code in this process: see
    `serve` for which servers are trusted.

    Args:
        address: The path of the socket.
        max_requests: How many requests of this process the model may have at a time. As many again
            wait here, and others are refused with `OverloadedError`.
        window: How many outputs a stream holds here at most, of whatever size. If its consumer
            lags, the others stay at the model, whose `on_overflow` decides.
        connect_timeout: For how many seconds to wait for the model's process to answer; more
            than 0.
        max_frame: How many bytes a request or an output may have as it is pickled, at least 4096;
            where the server says another number, the smaller one counts. A request with more than
            this raises `RequestError` as it is submitted; one with more than the server's raises it
            at the first receive.
        trusted_users: Numbers of users that the model's process may run as, besides this process's
            own and root.
        name: What metrics, logs and errors of this process call the batcher.
        metrics: As for a `ContinuousBatcher`; of the requests of this process.
        traces: The same.
        drain: The same.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.
        RuntimeError: The system has no Unix sockets.

    Blocking: never.
    Threads: any. A thread of its own begins with the first request; an idle one takes no time.
    """
    return RemoteBatcher(
        address,
        max_requests=max_requests,
        window=window,
        connect_timeout=connect_timeout,
        max_frame=max_frame,
        trusted_users=trusted_users,
        name=name,
        metrics=metrics,
        traces=traces,
        drain=drain,
    )
