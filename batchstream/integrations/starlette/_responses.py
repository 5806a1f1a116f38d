"""The responses: chunks of a stream as lines, as running text, or as events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from typing_extensions import TypeVar

from batchstream._core.errors import ClosedError
from batchstream.integrations._response import StreamResponse
from batchstream.integrations.starlette._answers import handler_of
from batchstream.integrations.starlette._chunks import Chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.background import BackgroundTask
    from starlette.types import Scope

    from batchstream import AsyncStream, StreamEnd
    from batchstream.integrations._connection import Connection
    from batchstream.integrations._response import Handler

T = TypeVar("T")

_to_json: Final = json.JSONEncoder(
    ensure_ascii=False,
    allow_nan=False,  # it would be no JSON
    separators=(",", ":"),
).encode


class _Response(StreamResponse):
    """A response to whose early errors this module has answers."""

    def _handler_of(self, error: Exception, scope: Scope) -> Handler | None:
        return handler_of(error, scope)


class NDJSONResponse(_Response):
    """A stream as lines, each of them one output in JSON: `application/x-ndjson`.

    The status is sent with the first output, so that a request that fails before has a status that
    says so: 504 for a `DeadlineError`, 503 with `Retry-After` for a `ClosedError` or where somebody
    else cancelled the stream; any other error is raised, for a handler of the application, or 500.
    A stream that fails later, or is cancelled by somebody else, has its connection cut: its client
    sees that the body lacks its end. A stream without outputs is an empty body.

    One write holds all that was buffered. A client that leaves, at any time, has its stream
    cancelled at once; so has a HEAD request, which gets the headers alone.

    A client that stays and does not read makes a write wait, for as long as the server lets it:
    uvicorn does until the client reads or leaves. Meanwhile the stream's buffer fills up, and
    `max_buffered` and `on_overflow` say what then happens: the stream fails, or the whole batch
    waits. With `send_timeout` the stream is cancelled after that time. What no response can do is
    close the connection, which goes with the next write that the server gets through.

    Memory: what was buffered when a write began, as outputs and as bytes.

    Args:
        stream: Read by this response alone, and cancelled with it. It may have been read from.
        encode: Makes an output what is written as JSON; without it that is the output itself. It
            runs in the event loop, which lets others have their turn after every 64 outputs. What
            it raises is an error of the stream.
        encode_end: Makes how the stream ended a last line. Without it there is none.
        status_code: The status where there is no error.
        headers: Sent along.
        background: Run behind the response, also if the client has left; not after an error.
        send_timeout: How many seconds a write may wait for the client before the stream is
            cancelled; None for any time.

    Raises:
        TypeError: The stream is no `AsyncStream`.
        ValueError: `send_timeout` is not more than 0.

    Blocking: never.
    Cancellation: a response that is cancelled cancels its stream.
    Threads: made in any, sent in the event loop that the stream belongs to.

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
        super().__init__(
            Chunks(stream, _line(encode), None if encode_end is None else _line(encode_end)),
            status_code=status_code,
            headers=headers,
            background=background,
            send_timeout=send_timeout,
        )


class TextResponse(_Response):
    r"""A stream as running text: `text/plain; charset=utf-8`.

    Nothing is put between the outputs. When it begins, how it fails and when it cancels the stream
    is as with `NDJSONResponse`, and so are the arguments not explained here.

    Args:
        stream: Read by this response alone, and cancelled with it.
        encode: Makes an output a text.
        encode_end: Makes how the stream ended a last text. Without it there is none.
        status_code: The status where there is no error.
        headers: Sent along.
        background: Run behind the response.
        send_timeout: How many seconds a write may wait for the client.

    Raises:
        TypeError: The stream is no `AsyncStream`.
        ValueError: `send_timeout` is not more than 0.

    Blocking: never.
    Cancellation: a response that is cancelled cancels its stream.
    Threads: made in any, sent in the event loop that the stream belongs to.

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
        super().__init__(
            Chunks(stream, _text(encode), None if encode_end is None else _text(encode_end)),
            status_code=status_code,
            headers=headers,
            background=background,
            send_timeout=send_timeout,
        )


class EventsResponse(_Response):
    r"""A stream as server-sent events, each of them one output in JSON: `text/event-stream`.

    The events are sent by sse-starlette's `EventSourceResponse`, with its headers and its pings,
    which begin behind the first output. It ends all events when the server shuts down; a stream
    that is broken off by that has its connection cut. When the response begins, how it fails and
    when it cancels the stream is as with `NDJSONResponse`, and so are the arguments not explained
    here.

    An `EventSource` in a browser takes every end of a response for a lost connection, and asks
    again. It needs an event that tells it to close: that is what `encode_end` is for.

    Args:
        stream: Read by this response alone, and cancelled with it.
        encode: Makes an output what the event has for data, as JSON; or a `ServerSentEvent` of
            sse-starlette, which is sent as it is.
        encode_end: The same for how the stream ended. Without it there is no last event.
        event: The type of the events, which browsers take for `message` if it is left out.
        end_event: The type of the last event.
        ping: Seconds between pings, 15 if left out; 0 for none.
        ping_message_factory: Makes the ping, which is a comment if left out.
        sep: What ends a line: `"\r\n"` if left out, `"\r"` or `"\n"`.
        status_code: The status where there is no error.
        headers: Sent along.
        background: Run behind the response.
        send_timeout: How many seconds a write, or a ping, may wait for the client.

    Raises:
        TypeError: The stream is no `AsyncStream`, or the ping no number.
        ValueError: `send_timeout` is not more than 0, the ping is negative, or `sep` is another.

    Blocking: never.
    Cancellation: a response that is cancelled cancels its stream.
    Threads: made in any, sent in the event loop that the stream belongs to.

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
        chunks = Chunks(stream, _event(encode, event, sep), end)
        self._events = EventSourceResponse(
            chunks, headers=headers, ping=ping, ping_message_factory=ping_message_factory, sep=sep
        )
        super().__init__(
            chunks,
            status_code=status_code,
            headers=headers,
            background=background,
            send_timeout=send_timeout,
        )
        self.raw_headers = self._events.raw_headers

    async def _send_chunks(self, scope: Scope, connection: Connection) -> None:
        events = self._events
        events.status_code, events.raw_headers = self.status_code, self.raw_headers
        # It need not listen for a disconnect: somebody does, and would break it off.
        await events(scope, anyio.sleep_forever, connection.send)  # type: ignore[arg-type]
        if not self._body.over:
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
    def encode_event(output: T) -> bytes:
        value = output if encode is None else encode(output)
        if not isinstance(value, ServerSentEvent):
            value = ServerSentEvent(_to_json(value), event=event, sep=sep)
        return value.encode()

    return encode_event
