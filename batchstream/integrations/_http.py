"""HTTP responses that send a body chunk by chunk, for every integration that serves over ASGI.

Theory of operation
-------------------

A `StreamResponse` sends a `Body` through a `Connection`.

*Before the first chunk.* The response waits for the first chunk, and only then sends its status.
Until then an error can still have a status of its own: the handler that `_handler_of` returns
answers it. Where there is no handler the error is raised, as Starlette expects of an endpoint.

*After the first chunk.* The status is out, so that the only way to report an error is a body that
visibly lacks its end. The response cancels the body and cuts the connection.

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

from abc import ABC, abstractmethod
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from anyio import create_task_group, get_cancelled_exc_class, move_on_after, sleep_forever
from starlette.requests import Request
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from anyio import CancelScope
    from starlette.background import BackgroundTask
    from starlette.types import Message, Receive, Scope, Send

Handler: TypeAlias = "Callable[[Request, Any], Coroutine[Any, Any, Response]]"
"""Makes the response to an error, as Starlette's `exception_handlers` do."""

_CLIENT_CLOSED_REQUEST = 499  # no client sees this status; nginx logs the same one
_START = "http.response.start"
_BODY = "http.response.body"
_PATH = "http.response.pathsend"


class Body(ABC):
    """What a response sends, chunk by chunk.

    Attributes:
        complete: Whether the last chunk has been taken.
    """

    def __init__(self) -> None:
        self._first: bytes | None = None
        self.complete = False

    async def begin(self) -> None:
        """Wait for the first chunk, or for the end of an empty body, and keep the chunk.

        Raises:
            Exception: The body failed before its first chunk.
        """
        self._first = await self._next()

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
            chunk = await self._next()
        self.complete = True

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
        status_code: The status, unless the body fails before its first chunk.
        headers: Sent along.
        background: Run after the response; not after an error.
        send_timeout: How many seconds a write may wait for the client; None for any time.

    Raises:
        ValueError: `send_timeout` is not more than 0.
    """

    def __init__(
        self,
        body: Body,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
        send_timeout: float | None = None,
    ) -> None:
        if send_timeout is not None and not send_timeout > 0:
            raise ValueError(
                f"send_timeout must be None or more than 0 seconds, got {send_timeout!r}"
            )
        self._body = body
        self._send_timeout = send_timeout
        self.status_code = status_code
        self.background = background
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response: an ASGI application.

        Cancellation: the body is cancelled, as after every other end of the response.
        """
        connection = Connection(receive, send, self._send_timeout)
        try:
            if scope.get("method") == "HEAD":
                await connection.start(self.status_code, self.raw_headers)
                await connection.send_body(b"", more=False)
            else:
                await connection.run(partial(self._respond, scope, connection))
        except Exception as error:
            if not (connection.is_cut and self._has_cut(error)):
                raise
        finally:
            self._body.cancel()
        if self.background is not None:
            await self.background()

    async def _respond(self, scope: Scope, connection: Connection) -> None:
        try:
            await self._body.begin()
        except Exception as error:
            handler = self._handler_of(error, scope)
            if handler is None:
                raise
            response = await handler(Request(scope), error)
            self.background = None  # as after an error that is raised
            await response(scope, sleep_forever, connection.send)  # type: ignore[arg-type]
            return
        try:
            await self._send_chunks(scope, connection)
        except Exception as error:
            # Before the cut, which waits until the client has read what was sent before.
            self._body.cancel()
            await connection.cut(error)
            raise

    def _handler_of(self, error: Exception, scope: Scope) -> Handler | None:  # noqa: ARG002
        """Return what responds to an error before the first chunk, or None to raise the error."""
        return None

    def _has_cut(self, error: Exception) -> bool:  # noqa: ARG002
        """Whether cutting the connection is enough, so that the error need not be raised too."""
        return False

    async def _send_chunks(self, scope: Scope, connection: Connection) -> None:  # noqa: ARG002
        await connection.start(self.status_code, self.raw_headers)
        await self._body.send_through(connection)
        await connection.send_body(b"", more=False)


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
            TimeoutError: The client has taken nothing for longer than `send_timeout`.
        """
        self._started = True
        if self._send_timeout is None:
            return await self._send(message)
        with move_on_after(self._send_timeout) as scope:
            return await self._send(message)
        assert scope.cancelled_caught  # noqa: S101 - or else it has returned
        raise TimeoutError(
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

    async def run(self, respond: Callable[[], Awaitable[Any]]) -> None:
        """Await what sends the response, and cancel it when the client leaves.

        Raises:
            BaseException: What `respond` raised, as it is and not in an exception group.
        """
        error: BaseException | None = None

        async def run_to_the_end() -> None:
            nonlocal error
            try:
                await respond()
            except (get_cancelled_exc_class(), GeneratorExit):
                raise
            except BaseException as raised:  # noqa: BLE001 - raised again outside the task group
                error = raised
            tasks.cancel_scope.cancel()

        # The response has a task of its own, and the disconnect is awaited here, and not the other
        # way round: a task that is resumed goes through all coroutines that await each other in
        # it. Here these are the framework's and those of every middleware, at every output.
        async with create_task_group() as tasks:
            tasks.start_soon(run_to_the_end)
            await self._cancel_at_disconnect(tasks.cancel_scope)
        try:
            if error is not None:
                raise error
        finally:
            # The traceback holds this frame: the cycle would keep the response and its stream.
            del error
        if not self._started:
            await self._send_client_closed_request()

    async def _cancel_at_disconnect(self, scope: CancelScope) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _send_client_closed_request(self) -> None:
        """Send a response although the client has left: a middleware raises where there is none."""
        with suppress(OSError):  # what some servers raise; the others ignore the response
            await self.start(_CLIENT_CLOSED_REQUEST, [])
            await self.send_body(b"", more=False)


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
