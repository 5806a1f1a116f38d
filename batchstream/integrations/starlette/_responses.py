"""The responses: a stream as lines, as running text, or as events."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sse_starlette import ServerSentEvent
from typing_extensions import TypeVar

from batchstream import SKIP
from batchstream.integrations._http import Ping, StreamResponse
from batchstream.integrations.starlette._body import Encoders, body_of
from batchstream.integrations.starlette._handlers import detail_of, handler_of, is_expected
from batchstream.integrations.starlette._json import to_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Mapping
    from typing import Literal

    from starlette.background import BackgroundTask
    from starlette.types import Scope

    from batchstream import AsyncStream, StreamEnd
    from batchstream._core.markers import Signal
    from batchstream.integrations._http import Handler

    Skip: TypeAlias = Literal[Signal.SKIP]

T = TypeVar("T")

_PING: Final = 15.0
_SEPARATORS: Final = ("\r\n", "\r", "\n")


class _Response(StreamResponse):
    """A response to whose early errors the `exception_handlers` of this package respond."""

    def _handler_of(self, error: Exception, scope: Scope) -> Handler | None:
        return handler_of(error, scope)

    def _is_expected(self, error: Exception, scope: Scope) -> bool:
        return is_expected(error, scope)


class NDJSONResponse(_Response):
    """A stream as lines, each of them one output in JSON: `application/x-ndjson`.

    The status is sent with the first output, so that a request that fails earlier gets a status of
    its own: 504 for a `DeadlineError`; 503 with `Retry-After` for a `ClosedError`, or where the
    stream was cancelled from elsewhere. Any other error is raised, for a handler of the
    application, or 500. A stream that fails later, or is cancelled from elsewhere, has its
    connection cut: the client sees that the body lacks its end. A stream without outputs is an
    empty body. With `start_after` the status is sent after so many seconds in any case, and an
    error that comes later cuts the connection.

    A client of HTTP/1.0 sees no cut, because the end of the connection is the end of the body;
    nginx is one, unless `proxy_http_version 1.1` is set. A last line tells it: `encode_end`, which
    a body that fails lacks, or `encode_error`.

    The log has one line for a stream that is cut by its deadline, by a batcher that closes, by a
    client that does not read, or by an error that the application has a handler for. Any other
    error is raised to the server.

    A line is an output in JSON: text, numbers, lists and dicts; arrays, scalars and tensors of
    NumPy and PyTorch; dates and dataclasses; where Pydantic is installed, its models and what else
    it knows. It contains nothing that a client takes for the end of a line. Outputs before one that
    cannot be encoded are sent.

    One write holds all that was buffered. When the client leaves, at any time, the stream is
    cancelled at once. A HEAD request gets the headers alone, and its stream is cancelled too. The
    headers keep caches from storing the body and nginx from holding it back, unless you set
    `Cache-Control` or `X-Accel-Buffering` yourself.

    A client that stays and does not read makes a write wait for as long as the server lets it:
    uvicorn does until the client reads or leaves. Meanwhile the stream's buffer fills up, and
    `max_buffered` and `on_overflow` decide what happens then: the stream fails, or the whole batch
    waits. With `send_timeout` the stream is cancelled after that time. No response can close the
    connection at that moment: it is closed when the server gets the next write through.

    Memory: what was buffered when a write began, as outputs and as bytes.

    Args:
        stream: From now on only this response reads it; it is cancelled with the response. Outputs
            may have been read from it before. Another asynchronous iterator will do, such as a
            generator that reads a stream: it is closed with the response, and what it has to itself
            is let go of. If it reads `stream.body()`, a stream that was cancelled elsewhere is an
            error, as it is without a generator, and no end.
        encode: Returns what is written as JSON for an output, or `SKIP` for no line; without it the
            output itself is. It runs in the event loop, whose other tasks run after every 64
            outputs. An error that it raises counts as an error of the stream.
        encode_end: Returns what is written as a last line, for the `StreamEnd`. Without it there is
            no such line. The end of an iterator that is no stream has the reason `exhausted`.
        encode_error: Returns what is written as a last line for an error, before the connection is
            cut. It gets any error that comes after the status, but for errors of the connection.
        status_code: The status, unless the stream fails before its first output.
        headers: Sent along.
        background: Run after the response, also if the client has left; not after an error.
        send_timeout: How many seconds a write may wait for the client before the stream is
            cancelled; None for any time.
        start_after: After how many seconds the status is sent although there is no output; as
            many as `ping` if that is given, and None to wait for the first output.
        ping: Seconds between empty lines, for a proxy that gives up on a server that is silent;
            None or 0 for none. Its clients have to leave empty lines out, as most do.

    Raises:
        TypeError: The stream is neither an `AsyncStream` nor another asynchronous iterator, or
            `ping` is no number.
        ValueError: `send_timeout` is not more than 0, or `ping` or `start_after` is negative.

    Blocking: never.
    Cancellation: a response that is cancelled cancels its stream.
    Threads: made in any thread, sent in the event loop that the stream belongs to.

    Example:
        >>> import asyncio, batchstream, httpx
        >>> from starlette.applications import Starlette
        >>> from starlette.routing import Route
        >>> async def model():
        ...     yield ["so"]
        ...     yield ["it ends"]
        >>> async def complete(request):
        ...     (stream,) = batchstream.demux(model(), size=1)
        ...     return NDJSONResponse(
        ...         stream,
        ...         encode=lambda output: {"text": output},
        ...         encode_end=lambda end: {"finish_reason": end.reason},
        ...     )
        >>> app = Starlette(routes=[Route("/", complete)])
        >>> async def main():
        ...     transport = httpx.ASGITransport(app)  # in place of a server
        ...     async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        ...         print((await client.get("/")).text, end="")
        >>> asyncio.run(main())
        {"text":"so"}
        {"text":"it ends"}
        {"finish_reason":"exhausted"}
    """

    media_type = "application/x-ndjson"

    def __init__(
        self,
        stream: AsyncStream[T] | AsyncIterable[T],
        *,
        encode: Callable[[T], Any] | None = None,
        encode_end: Callable[[StreamEnd], Any] | None = None,
        encode_error: Callable[[Exception], Any] | None = None,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
        send_timeout: float | None = None,
        start_after: float | None = None,
        ping: float | None = None,
    ) -> None:
        encoders = Encoders(
            _line(encode), _if_given(_line, encode_end), _if_given(_line, encode_error)
        )
        body = body_of(stream, encoders)
        pings = None if ping is None else _pings(ping, lambda: b"\n")
        if start_after is None and ping:
            start_after = ping
        super().__init__(body, status_code, headers, background, send_timeout, start_after, pings)


class TextResponse(_Response):
    r"""A stream as running text: `text/plain; charset=utf-8`.

    Nothing is put between the outputs. Outputs that are bytes are sent as they are. The response
    begins, fails and cancels its stream as an `NDJSONResponse` does; so a client of HTTP/1.0 cannot
    tell a text that was cut, unless `encode_end` or `encode_error` says so in the text.

    Args:
        stream: From now on only this response reads it; it is cancelled with the response. An
            asynchronous iterator will do, as for an `NDJSONResponse`.
        encode: Returns the text of an output, or its bytes, or `SKIP` for none.
        encode_end: Returns a last text, for the `StreamEnd`. Without it there is no such text.
        encode_error: Returns a last text for an error, before the connection is cut.
        status_code: The status, unless the stream fails before its first output.
        headers: Sent along.
        background: Run after the response; not after an error.
        send_timeout: How many seconds a write may wait for the client.
        start_after: After how many seconds the status is sent although there is no output.

    Raises:
        TypeError: The stream is neither an `AsyncStream` nor another asynchronous iterator.
        ValueError: `send_timeout` is not more than 0, or `start_after` is negative.

    Blocking: never.
    Cancellation: a response that is cancelled cancels its stream.
    Threads: made in any thread, sent in the event loop that the stream belongs to.

    Example:
        >>> import asyncio, batchstream, httpx
        >>> from starlette.applications import Starlette
        >>> from starlette.routing import Route
        >>> async def model():
        ...     for word in ("so ", "it ", "ends\n"):
        ...         yield [word]
        >>> async def complete(request):
        ...     (stream,) = batchstream.demux(model(), size=1)
        ...     return TextResponse(stream)
        >>> app = Starlette(routes=[Route("/", complete)])
        >>> async def main():
        ...     transport = httpx.ASGITransport(app)  # in place of a server
        ...     async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        ...         print((await client.get("/")).text, end="")
        >>> asyncio.run(main())
        so it ends
    """

    media_type = "text/plain"

    def __init__(
        self,
        stream: AsyncStream[T] | AsyncIterable[T],
        *,
        encode: Callable[[T], str | bytes | Skip] | None = None,
        encode_end: Callable[[StreamEnd], str | bytes | Skip] | None = None,
        encode_error: Callable[[Exception], str | bytes | Skip] | None = None,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
        send_timeout: float | None = None,
        start_after: float | None = None,
    ) -> None:
        encoders = Encoders(
            _text(_as_text if encode is None else encode),
            _if_given(_text, encode_end),
            _if_given(_text, encode_error),
        )
        body = body_of(stream, encoders)
        super().__init__(body, status_code, headers, background, send_timeout, start_after)


class EventsResponse(_Response):
    r"""A stream as server-sent events, each of them one output in JSON: `text/event-stream`.

    The response begins, fails, cancels its stream and writes JSON as an `NDJSONResponse` does.
    Pings go on from the status to the end. A `ping` that you give is wanted before the first
    output, too: the status is then sent when the first ping is due.

    At a shutdown the events go on for as long as the server lets a response go on. That of
    sse-starlette's own `EventSourceResponse` is broken off at once.

    An `EventSource` in a browser takes every end of a response for a lost connection, and sends the
    request again. Only an event can make it close: `encode_end` is for that, and `encode_error`,
    without which a request that fails is generated again and again.

    Args:
        stream: From now on only this response reads it; it is cancelled with the response. An
            asynchronous iterator will do, as for an `NDJSONResponse`.
        encode: Returns the data of an output's event, which are written as JSON; or a
            `ServerSentEvent` of sse-starlette, which is sent as it is; or `SKIP` for no event.
        encode_end: Returns the data of a last event, for the `StreamEnd`. Without it there is no
            such event.
        encode_error: Returns the data of a last event for an error, before the connection is cut.
            If only `encode_end` is given, they are `{"detail": ...}` as `exception_handlers` has
            it, which says nothing about the server.
        event: The type of the events; a browser takes them for `message` if it is left out.
        end_event: The type of the last event.
        error_event: The type of the event for an error. A browser calls the `error` listeners of
            its `EventSource`, too, when a connection is lost: this event has data.
        ping: Seconds between pings, 15 if left out; 0 for none.
        ping_message_factory: Makes the ping; a comment if left out.
        sep: What ends a line: `"\r\n"` if left out, or `"\r"`, or `"\n"`.
        status_code: The status, unless the stream fails before its first output.
        headers: Sent along.
        background: Run after the response; not after an error.
        send_timeout: How many seconds a write, or a ping, may wait for the client.
        start_after: After how many seconds the status is sent although there is no output; as
            many as `ping` if that is given. `math.inf` for never.

    Raises:
        TypeError: The stream is neither an `AsyncStream` nor another asynchronous iterator, or
            `ping` is no number.
        ValueError: `send_timeout` is not more than 0, `ping` or `start_after` is negative, or `sep`
            is none of these.

    Blocking: never.
    Cancellation: a response that is cancelled cancels its stream.
    Threads: made in any thread, sent in the event loop that the stream belongs to.

    Example:
        >>> import asyncio, batchstream, httpx
        >>> from starlette.applications import Starlette
        >>> from starlette.routing import Route
        >>> async def model():
        ...     yield ["so"]
        ...     yield ["it ends"]
        >>> async def complete(request):
        ...     (stream,) = batchstream.demux(model(), size=1)
        ...     return EventsResponse(stream, encode_end=lambda end: end.reason, end_event="end")
        >>> app = Starlette(routes=[Route("/", complete)])
        >>> async def main():
        ...     transport = httpx.ASGITransport(app)  # in place of a server
        ...     async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        ...         print(*filter(None, (await client.get("/")).text.splitlines()), sep="\n")
        >>> asyncio.run(main())
        data: "so"
        data: "it ends"
        event: end
        data: "exhausted"
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        stream: AsyncStream[T] | AsyncIterable[T],
        *,
        encode: Callable[[T], Any] | None = None,
        encode_end: Callable[[StreamEnd], Any] | None = None,
        encode_error: Callable[[Exception], Any] | None = None,
        event: str | None = None,
        end_event: str | None = None,
        error_event: str | None = "error",
        ping: float | None = None,
        ping_message_factory: Callable[[], ServerSentEvent] | None = None,
        sep: str | None = None,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
        send_timeout: float | None = None,
        start_after: float | None = None,
    ) -> None:
        if sep not in (None, *_SEPARATORS):
            raise ValueError(f"sep must be one of {', '.join(map(repr, _SEPARATORS))}, got {sep!r}")
        if encode_error is None and encode_end is not None:
            encode_error = detail_of
        encoders = Encoders(
            _event(encode, event, sep),
            None if encode_end is None else _event(encode_end, end_event, sep),
            None if encode_error is None else _event(encode_error, error_event, sep),
        )
        body = body_of(stream, encoders)
        pings = _pings(_PING if ping is None else ping, _events_of(ping_message_factory, sep))
        if start_after is None and ping:
            start_after = ping
        super().__init__(body, status_code, headers, background, send_timeout, start_after, pings)


def _if_given(
    encoder: Callable[[Callable[[T], Any]], Callable[[T], bytes | None]],
    encode: Callable[[T], Any] | None,
) -> Callable[[T], bytes | None] | None:
    return None if encode is None else encoder(encode)


def _line(encode: Callable[[T], Any] | None) -> Callable[[T], bytes | None]:
    if encode is None:
        return lambda output: (to_json(output) + "\n").encode()

    def encode_line(output: T) -> bytes | None:
        value = encode(output)
        return None if value is SKIP else (to_json(value) + "\n").encode()

    return encode_line


def _as_text(output: object) -> str | bytes:
    return bytes(output) if isinstance(output, (bytes, bytearray)) else str(output)


def _text(encode: Callable[[T], str | bytes | Skip]) -> Callable[[T], bytes | None]:
    def encode_text(output: T) -> bytes | None:
        value = encode(output)
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, (bytes, bytearray)):
            return bytes(value)
        if value is SKIP:
            return None
        raise TypeError(f"encode= of a TextResponse must return text, bytes or SKIP, got {value!r}")

    return encode_text


def _event(
    encode: Callable[[T], Any] | None, event: str | None, sep: str | None
) -> Callable[[T], bytes | None]:
    # What sse-starlette writes around data of one line; and JSON is one line.
    before, _, after = ServerSentEvent("{}", event=event, sep=sep).encode().rpartition(b"{}")

    def encode_event(output: T) -> bytes | None:
        value = output if encode is None else encode(output)
        if value is SKIP:
            return None
        if isinstance(value, ServerSentEvent):
            return value.encode()
        return before + to_json(value).encode() + after

    return encode_event


def _pings(seconds: float, make: Callable[[], bytes]) -> Ping | None:
    if not isinstance(seconds, (int, float)):
        raise TypeError(f"ping must be a number of seconds, got {seconds!r}")
    if not seconds >= 0:
        raise ValueError(f"ping must be 0 seconds or more, got {seconds!r}")
    return Ping(seconds, make) if seconds else None


def _events_of(
    factory: Callable[[], ServerSentEvent] | None, sep: str | None
) -> Callable[[], bytes]:
    if factory is not None:
        return lambda: factory().encode()
    # A comment: no client takes it for an event.
    return lambda: ServerSentEvent(comment=f"ping - {datetime.now(UTC)}", sep=sep).encode()
