"""The responses: a stream as lines, as running text, or as events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from typing_extensions import TypeVar

from batchstream._core.errors import ClosedError
from batchstream.integrations._http import StreamResponse
from batchstream.integrations.starlette._body import StreamBody
from batchstream.integrations.starlette._handlers import handler_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from starlette.background import BackgroundTask
    from starlette.types import Scope

    from batchstream import AsyncStream, StreamEnd
    from batchstream.integrations._http import Body, Connection, Handler

T = TypeVar("T")

_to_json: Final = json.JSONEncoder(
    ensure_ascii=False,
    allow_nan=False,  # it would be no JSON
    separators=(",", ":"),
).encode


class _Response(StreamResponse):
    """A response to whose early errors the `exception_handlers` of this package respond."""

    def _handler_of(self, error: Exception, scope: Scope) -> Handler | None:
        return handler_of(error, scope)


class NDJSONResponse(_Response):
    """A stream as lines, each of them one output in JSON: `application/x-ndjson`.

    The status is sent with the first output, so that a request that fails earlier gets a status of
    its own: 504 for a `DeadlineError`; 503 with `Retry-After` for a `ClosedError`, or where the
    stream was cancelled from elsewhere. Any other error is raised, for a handler of the
    application, or 500. A stream that fails later, or is cancelled from elsewhere, has its
    connection cut: the client sees that the body lacks its end. A stream without outputs is an
    empty body.

    One write holds all that was buffered. When the client leaves, at any time, the stream is
    cancelled at once. A HEAD request gets the headers alone, and its stream is cancelled too.

    A client that stays and does not read makes a write wait for as long as the server lets it:
    uvicorn does until the client reads or leaves. Meanwhile the stream's buffer fills up, and
    `max_buffered` and `on_overflow` decide what happens then: the stream fails, or the whole batch
    waits. With `send_timeout` the stream is cancelled after that time. No response can close the
    connection at that moment: it is closed when the server gets the next write through.

    Memory: what was buffered when a write began, as outputs and as bytes.

    Args:
        stream: From now on only this response reads it; it is cancelled with the response. Outputs
            may have been read from it before.
        encode: Returns what is written as JSON for an output; without it the output itself is. It
            runs in the event loop, whose other tasks run after every 64 outputs. An error that it
            raises counts as an error of the stream.
        encode_end: Returns what is written as a last line, for the `StreamEnd`. Without it there is
            no such line.
        status_code: The status, unless the stream fails before its first output.
        headers: Sent along.
        background: Run after the response, also if the client has left; not after an error.
        send_timeout: How many seconds a write may wait for the client before the stream is
            cancelled; None for any time.

    Raises:
        TypeError: The stream is no `AsyncStream`.
        ValueError: `send_timeout` is not more than 0.

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
        stream: AsyncStream[T],
        *,
        encode: Callable[[T], Any] | None = None,
        encode_end: Callable[[StreamEnd], Any] | None = None,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
        send_timeout: float | None = None,
    ) -> None:
        end = None if encode_end is None else _line(encode_end)
        body = StreamBody(stream, _line(encode), end)
        super().__init__(body, status_code, headers, background, send_timeout)


class TextResponse(_Response):
    r"""A stream as running text: `text/plain; charset=utf-8`.

    Nothing is put between the outputs. The response begins, fails and cancels its stream as an
    `NDJSONResponse` does.

    Args:
        stream: From now on only this response reads it; it is cancelled with the response.
        encode: Returns the text of an output.
        encode_end: Returns a last text, for the `StreamEnd`. Without it there is no such text.
        status_code: The status, unless the stream fails before its first output.
        headers: Sent along.
        background: Run after the response; not after an error.
        send_timeout: How many seconds a write may wait for the client.

    Raises:
        TypeError: The stream is no `AsyncStream`.
        ValueError: `send_timeout` is not more than 0.

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
        stream: AsyncStream[T],
        *,
        encode: Callable[[T], str] = str,
        encode_end: Callable[[StreamEnd], str] | None = None,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
        send_timeout: float | None = None,
    ) -> None:
        end = None if encode_end is None else _text(encode_end)
        body = StreamBody(stream, _text(encode), end)
        super().__init__(body, status_code, headers, background, send_timeout)


class EventsResponse(_Response):
    r"""A stream as server-sent events, each of them one output in JSON: `text/event-stream`.

    sse-starlette's `EventSourceResponse` sends the events, with its headers and its pings, which
    begin after the first output. It ends all events when the server shuts down; the connection of a
    stream that this breaks off is cut. Otherwise the response begins, fails and cancels its stream
    as an `NDJSONResponse` does.

    An `EventSource` in a browser takes every end of a response for a lost connection, and sends the
    request again. Only an event can make it close: `encode_end` is for that.

    Args:
        stream: From now on only this response reads it; it is cancelled with the response.
        encode: Returns the data of an output's event, which are written as JSON; or a
            `ServerSentEvent` of sse-starlette, which is sent as it is.
        encode_end: Returns the data of a last event, for the `StreamEnd`. Without it there is no
            such event.
        event: The type of the events; a browser takes them for `message` if it is left out.
        end_event: The type of the last event.
        ping: Seconds between pings, 15 if left out; 0 for none.
        ping_message_factory: Makes the ping; a comment if left out.
        sep: What ends a line: `"\r\n"` if left out, or `"\r"`, or `"\n"`.
        status_code: The status, unless the stream fails before its first output.
        headers: Sent along.
        background: Run after the response; not after an error.
        send_timeout: How many seconds a write, or a ping, may wait for the client.

    Raises:
        TypeError: The stream is no `AsyncStream`, or `ping` is no number.
        ValueError: `send_timeout` is not more than 0, `ping` is negative, or `sep` is none of
            these.

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
        stream: AsyncStream[T],
        *,
        encode: Callable[[T], Any] | None = None,
        encode_end: Callable[[StreamEnd], Any] | None = None,
        event: str | None = None,
        end_event: str | None = None,
        ping: float | None = None,
        ping_message_factory: Callable[[], ServerSentEvent] | None = None,
        sep: str | None = None,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
        send_timeout: float | None = None,
    ) -> None:
        end = None if encode_end is None else _event(encode_end, end_event, sep)
        body = StreamBody(stream, _event(encode, event, sep), end)
        super().__init__(body, status_code, headers, background, send_timeout)
        self._events = EventSourceResponse(
            iter(()), headers=headers, ping=ping, ping_message_factory=ping_message_factory, sep=sep
        )
        self.raw_headers = self._events.raw_headers  # the given headers, and those of events

    async def _send_chunks(self, scope: Scope, connection: Connection) -> None:
        events = self._events
        events.status_code, events.raw_headers = self.status_code, self.raw_headers
        events.body_iterator = _sending(self._body, connection)
        # It need not listen for a disconnect: the connection does, and cancels this task.
        await events(scope, anyio.sleep_forever, connection.send)  # type: ignore[arg-type]
        if not self._body.complete:
            raise ClosedError("the server shuts down, and a stream of events was broken off")


def _line(encode: Callable[[T], Any] | None) -> Callable[[T], bytes]:
    if encode is None:
        return lambda output: (_to_json(output) + "\n").encode()
    return lambda output: (_to_json(encode(output)) + "\n").encode()


def _text(encode: Callable[[T], str]) -> Callable[[T], bytes]:
    return lambda output: encode(output).encode()


def _event(
    encode: Callable[[T], Any] | None, event: str | None, sep: str | None
) -> Callable[[T], bytes]:
    # What sse-starlette writes around data of one line; and JSON is one line.
    before, _, after = ServerSentEvent("{}", event=event, sep=sep).encode().rpartition(b"{}")

    def encode_event(output: T) -> bytes:
        value = output if encode is None else encode(output)
        if isinstance(value, ServerSentEvent):
            return value.encode()
        return before + _to_json(value).encode() + after

    return encode_event


async def _sending(body: Body, connection: Connection) -> AsyncGenerator[bytes, None]:
    """Send the chunks of a body, instead of yielding them to sse-starlette, which then sends them.

    Between its start and its end, which sse-starlette sends. Its own way costs as much again for
    each chunk.
    """
    await body.send_through(connection)
    return
    yield b""  # makes it a generator
