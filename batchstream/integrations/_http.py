"""HTTP responses that send a body chunk by chunk, for every integration that serves over ASGI.

Theory of operation
-------------------

A `StreamResponse` sends a `Body` through a `Connection`.

*Before the status.* The response waits for the first chunk, and only then sends its status. Until
then an error can still have a status of its own: the handler that `_handler_of` returns answers it.
Where there is no handler the error is raised, as Starlette expects of an endpoint. With
`start_after` the wait is bounded: a `KeepAlive` sends the status when the time is over, and pings
where the format has any, so that no proxy takes the wait for a server that is gone.

*After the status.* The only way to report an error is a body that visibly lacks its end. The
response cancels the body, sends the body's word for the error, if it has one, and cuts the
connection. To a client of HTTP/1.0 the end of the connection is the end of the body: that word is
all that tells it of the error.

An error that the server cannot help, such as a deadline that has passed, is one line in the log; a
`CutError` takes its place, which no handler of the application takes for its own and no server
need log. Any other error is raised.

Raising the error does not cut the connection. Starlette's `BaseHTTPMiddleware` first ends the body
in the proper way, and raises what the application raised afterwards: the client would take half a
body for a whole one. So the response sends two messages before, each with the error in it, as a
*tripwire*:

- A message that sends a file. A `BaseHTTPMiddleware` hands it on, and does not end the body behind
  it. The server refuses a file in the midst of a body, and raises the error as it names that.
  `GZipMiddleware` repeats the message that began the response in front of a file: so that message
  has become one that sends a file, too.
- A chunk, for a middleware that drops the first message. It passes where a middleware asks only
  whether there is something to send, and raises the error where the server asks for its length.

*A client that leaves.* One task listens for the disconnect from the wait for the first chunk to the
last byte, and cancels the response. Only this task calls `receive`: two readers would take
messages away from each other.

*A client that does not read.* A write waits for as long as the server lets it; `send_timeout`
limits that.

*Whatever ends the response*, the body is cancelled afterwards. Neither a server nor Starlette does
that: a server cancels the task, and Starlette drops the iterator without closing it.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeAlias

from anyio import (
    CancelScope,
    Event,
    Lock,
    move_on_after,
    sleep,
    sleep_forever,
)
from starlette.requests import Request
from starlette.responses import Response

from batchstream._log import write_line
from batchstream.integrations._disconnects import run_until

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from starlette.background import BackgroundTask
    from starlette.types import Message, Receive, Scope, Send

Handler: TypeAlias = "Callable[[Request, Any], Coroutine[Any, Any, Response]]"
"""Makes the response to an error, as Starlette's `exception_handlers` do."""

STREAM_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""What every body that is sent as it comes says: no cache keeps it, and nginx passes on at once."""

_CLIENT_CLOSED_REQUEST = 499  # no client sees this status; nginx logs the same one
_START = "http.response.start"
_BODY = "http.response.body"
_PATH = "http.response.pathsend"


class Body(ABC):
    """What a response sends, chunk by chunk.

    Attributes:
        failed: Whether making a chunk has failed, rather than sending one.
    """

    def __init__(self) -> None:
        self._first: bytes | None = None
        self.failed = False

    async def begin(self) -> None:
        """Wait for the first chunk, or for the end of an empty body, and keep the chunk.

        Raises:
            Exception: The body failed before its first chunk.
        """
        try:
            self._first = await self._next()
        except Exception:
            self.failed = True
            raise

    async def send_through(self, connection: Connection) -> None:
        """Send all chunks, from the first."""
        send = connection.sender
        chunk, self._first = self._first, None
        if chunk is None:
            chunk = await self._next()
        # No iterator, and no method that makes the message: each would be one more coroutine to
        # go through for every chunk.
        while chunk is not None:
            await send({"type": _BODY, "body": chunk, "more_body": True})
            try:
                chunk = await self._next()
            except Exception:
                self.failed = True
                raise

    def word_for(self, error: Exception) -> bytes | None:  # noqa: ARG002
        """Return a last chunk that tells the client of an error, or None for none."""
        return None

    async def aclose(self) -> None:
        """Cancel what makes the chunks, in the task that has taken them."""
        self.cancel()

    @abstractmethod
    def cancel(self) -> None:
        """Cancel what makes the chunks; does nothing after the end."""

    @abstractmethod
    async def _next(self) -> bytes | None:
        """Wait for the next chunk; None is the end, also when asked again."""


class StreamResponse(Response):
    """A response that begins with its first chunk, and is visibly cut if it fails later.

    Args:
        body: What is sent.
        status_code: The status, unless the body fails before the status is sent.
        headers: Sent along; they take precedence over `STREAM_HEADERS`.
        background: Run after the response; not after an error.
        send_timeout: How many seconds a write may wait for the client; None for any time.
        start_after: The status is sent after so many seconds, though there is no chunk yet; None
            to wait for the first chunk.
        ping: Sent every so often from the status to the end; None for no pings.

    Raises:
        ValueError: `send_timeout` is not more than 0, or `start_after` is negative.
    """

    def __init__(  # noqa: PLR0917 - as Starlette's responses
        self,
        body: Body,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
        send_timeout: float | None = None,
        start_after: float | None = None,
        ping: Ping | None = None,
    ) -> None:
        if send_timeout is not None and not send_timeout > 0:
            raise ValueError(
                f"send_timeout must be None or more than 0 seconds, got {send_timeout!r}"
            )
        if start_after is not None and not start_after >= 0:
            raise ValueError(f"start_after must be None or 0 seconds or more, got {start_after!r}")
        self._body = body
        self._send_timeout = send_timeout
        self._start_after = start_after
        self._ping = ping
        self.status_code = status_code
        self.background = background
        self.init_headers(headers)
        for name, value in STREAM_HEADERS.items():
            self.headers.setdefault(name, value)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response: an ASGI application.

        Cancellation: the body is cancelled, as after every other end of the response.
        """
        connection = Connection(receive, send, self._send_timeout)
        try:
            if scope.get("method") == "HEAD":
                await connection.start(self.status_code, self.raw_headers)
                await connection.send_body(b"", more=False)
                await self._body.aclose()
            else:
                alive = KeepAlive(connection, self._start, self._start_after, self._ping)
                await connection.run(
                    partial(self._respond_and_close, scope, connection, alive), alive.task
                )
        except Exception as error:
            if not (connection.is_cut and self._has_cut(error)):
                raise
        finally:
            self._body.cancel()
        if self.background is not None:
            await self.background()

    async def _start(self, connection: Connection) -> None:
        await connection.start(self.status_code, self.raw_headers)

    async def _respond_and_close(
        self, scope: Scope, connection: Connection, alive: KeepAlive
    ) -> None:
        try:
            await self._respond(scope, connection, alive)
        except GeneratorExit:  # behind which nothing can be awaited
            raise
        except BaseException:
            await self._body.aclose()
            raise
        await self._body.aclose()

    async def _respond(self, scope: Scope, connection: Connection, alive: KeepAlive) -> None:
        try:
            with alive.scope:
                try:
                    await self._body.begin()
                except Exception as error:
                    if not alive.give_up():
                        raise
                    handler = self._handler_of(error, scope)
                    if handler is None:
                        raise
                    response = await handler(Request(scope), error)
                    self.background = None  # as after an error that is raised
                    await response(scope, sleep_forever, connection.send)  # type: ignore[arg-type]
                    return
                await alive.start()
                await self._body.send_through(connection)
            await alive.stop()
            alive.check()
            await connection.send_body(b"", more=False)
        except Exception as error:
            if not alive.started:
                raise
            # Before the cut, which waits until the client has read what was sent before.
            await self._body.aclose()
            await alive.stop()
            reason = await self._send_word_for(error, connection)
            if self._is_expected(reason, scope):
                name = type(reason).__name__
                message = "a response was cut: %s: %s"
                write_line(logging.WARNING, "cut", message, name, reason, reason=name)
                keep_cuts_out_of_the_log()
                cut = CutError(reason)
                cut.__cause__ = reason  # before the cut, in which a server may raise it
                await connection.cut(cut)
                raise cut from reason
            await connection.cut(reason)
            if reason is not error:
                raise reason from error
            raise

    async def _send_word_for(self, error: Exception, connection: Connection) -> Exception:
        """Send the body's word for its error, and return the error that the body is cut for."""
        if not self._body.failed:
            return error  # the client takes nothing
        try:
            word = self._body.word_for(error)
        except Exception as failure:  # noqa: BLE001 - raised by the caller, after the cut
            return failure
        if word is not None:
            with suppress(Exception):  # the cut follows in any case
                await connection.send_body(word, more=True)
        return error

    def _handler_of(self, error: Exception, scope: Scope) -> Handler | None:  # noqa: ARG002
        """Return what responds to an error before the status, or None to raise the error."""
        return None

    def _is_expected(self, error: Exception, scope: Scope) -> bool:  # noqa: ARG002
        """Whether an error after the status is worth a line in the log, and need not be raised."""
        return False

    def _has_cut(self, error: Exception) -> bool:  # noqa: ARG002
        """Whether cutting the connection is enough, so that the error need not be raised too."""
        return False


class Ping(NamedTuple):
    """What keeps a connection alive while there is no chunk.

    Attributes:
        seconds: How often, from the status on.
        make: Makes the bytes.
    """

    seconds: float
    make: Callable[[], bytes]


class KeepAlive:
    """Sends the status once, by a time if need be, and pings until the response ends.

    Args:
        connection: To the client.
        send_start: Sends the status.
        start_after: How many seconds after which the status is sent without a chunk; or None.
        ping: Sent from then on; or None.

    Attributes:
        scope: What sends the body runs in it; it is cancelled when the task below fails.
        started: Whether sending the status has begun.
        task: To be run beside what sends the body, and cancelled after it; None if nothing is to
            be done.
    """

    def __init__(
        self,
        connection: Connection,
        send_start: Callable[[Connection], Awaitable[None]],
        start_after: float | None,
        ping: Ping | None,
    ) -> None:
        self._connection = connection
        self._send_start = send_start
        self._start_after = start_after
        self._ping = ping
        self._over = False
        self._error: Exception | None = None
        self.scope = CancelScope()
        self.started = False
        self.task = None if start_after is None and ping is None else self._run
        # One write at a time, but for the chunks: these write at any time after the status.
        self._turns: AbstractAsyncContextManager[Any] = (
            nullcontext() if self.task is None else Lock()
        )
        self._start = None if self.task is None else Event()

    async def start(self) -> None:
        """Send the status unless it was sent, and wait until it is."""
        async with self._turns:
            await self._start_once()

    async def _start_once(self) -> None:
        if self.started or self._over:
            return
        self.started = True
        if self._start is not None:
            self._start.set()
        await self._send_start(self._connection)

    def give_up(self) -> bool:
        """Send no status and no pings any more; False if sending the status has begun."""
        self._over = not self.started
        return self._over

    async def stop(self) -> None:
        """Send nothing more; what is being sent is waited for."""
        self._over = True
        async with self._turns:
            pass

    def check(self) -> None:
        """Raise the error of the task, if it has failed."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def _run(self) -> None:
        try:
            await self._start_in_time()
            while self._ping is not None:
                await sleep(self._ping.seconds)
                async with self._turns:
                    if self._over:
                        return
                    await self._connection.send_body(self._ping.make(), more=True)
        except Exception as error:  # noqa: BLE001 - raised by `check`
            self._error = error
            self.scope.cancel()

    async def _start_in_time(self) -> None:
        assert self._start is not None  # noqa: S101 - for the type checker
        if self._start_after is None:
            await self._start.wait()
        else:
            with move_on_after(self._start_after):
                await self._start.wait()
        async with self._turns:
            if not self.started and not self._over:
                await self._start_once()
                # Some middlewares keep the status until there is a body.
                await self._connection.send_body(b"", more=True)


class Connection:
    """The client that one response is sent to.

    Args:
        receive: The server's `receive`; from now on only this object calls it.
        send: The server's `send`; from now on only this object calls it.
        send_timeout: How many seconds a write may wait for the client; None for any time.

    Attributes:
        is_cut: Whether the server was made to close it in mid-response.
    """

    def __init__(self, receive: Receive, send: Send, send_timeout: float | None) -> None:
        self._receive = receive
        self._send = send
        self._send_timeout = send_timeout
        self._started = False
        self._start_message: dict[str, Any] = {}
        self.is_cut = False

    @property
    def sender(self) -> Callable[[Message], Awaitable[None]]:
        """What sends a message as `send` does, once the response has started."""
        return self._send if self._send_timeout is None else self.send

    async def send(self, message: Message) -> None:
        """Send an ASGI message.

        Raises:
            SendTimeoutError: The client has taken nothing for longer than `send_timeout`.
        """
        self._started = True
        if self._send_timeout is None:
            return await self._send(message)
        with move_on_after(self._send_timeout) as scope:
            return await self._send(message)
        assert scope.cancelled_caught  # noqa: S101 - or else it has returned
        raise SendTimeoutError(
            f"the client took nothing for longer than send_timeout={self._send_timeout!r} seconds"
        )

    async def start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send the status line and the headers."""
        self._start_message = {"type": _START, "status": status, "headers": headers}
        await self.send(self._start_message)

    async def send_body(self, chunk: bytes, *, more: bool) -> None:
        """Send a chunk of the body, which may be the last."""
        await self.send({"type": _BODY, "body": chunk, "more_body": more})

    async def cut(self, error: Exception) -> None:
        """Make the server close the connection in mid-response; the caller raises the error next.

        Without `send_timeout`: a cut that is given up would show half a body as a whole one.
        """
        self.is_cut = True
        file = {"type": TripwireName(_PATH, error), "path": ""}
        self._start_message.update(file)
        for message in (file, {"type": _BODY, "body": TripwireChunk(error), "more_body": True}):
            with suppress(Exception):
                await self._send(message)

    async def run(
        self,
        respond: Callable[[], Awaitable[Any]],
        beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """Await what sends the response, and cancel it when the client leaves; see `run_until`."""
        await run_until(self._disconnected, respond, beside)
        if not self._started:
            await self._send_client_closed_request()

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _send_client_closed_request(self) -> None:
        """Send a response although the client has left: a middleware raises where there is none."""
        with suppress(OSError):  # what some servers raise; the others ignore the response
            await self.start(_CLIENT_CLOSED_REQUEST, [])
            await self.send_body(b"", more=False)


class SendTimeoutError(TimeoutError):
    """The client has not taken what was written for longer than `send_timeout`."""


_CUT: Final = "a stream has failed"


class CutError(Exception):
    """Makes the server close a connection in mid-response, for a reason that is logged already.

    Args:
        reason: The error that the body has failed with, or None.
    """

    def __init__(self, reason: Exception | None = None) -> None:
        what = "" if reason is None else f" ({type(reason).__name__}: {reason})"
        super().__init__(f"{_CUT}{what}: its connection is cut")


_GRANIAN_LOG: Final = "_granian.utils"
_SERVER_LOGS: Final = ("uvicorn.error", "hypercorn.error", _GRANIAN_LOG)


def keep_cuts_out_of_the_log() -> None:
    """Keep servers from logging a `CutError` with its traceback; may be called again."""
    for name in _SERVER_LOGS:
        logging.getLogger(name).addFilter(_is_no_cut)


def _is_no_cut(record: logging.LogRecord) -> bool:
    if record.name == _GRANIAN_LOG:  # whose record is the text of a traceback, without the error
        return f"{CutError.__name__}: {_CUT}" not in str(record.msg)
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and type(error).__module__.startswith("litestar."):
        error = error.__cause__  # Litestar raises an error of its own from any other
    return not isinstance(error, CutError)


class TripwireName(str):
    """The name of a message that raises an error when a server or a middleware shows it.

    Attributes:
        error: What it raises.
    """

    __slots__ = ("error",)
    error: Exception

    def __new__(cls, name: str, error: Exception) -> Self:
        tripwire = super().__new__(cls, name)
        tripwire.error = error
        return tripwire

    def __str__(self) -> str:
        raise self.error

    __repr__ = __str__

    def __format__(self, _: str) -> str:
        raise self.error


class TripwireChunk(bytes):
    """A chunk of a body that raises an error when a server asks for its length.

    Attributes:
        error: What it raises.
    """

    error: Exception

    def __new__(cls, error: Exception) -> Self:
        tripwire = super().__new__(cls)
        tripwire.error = error
        return tripwire

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        raise self.error
