"""What responses share that send a body as it comes: when they begin, how they fail and end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import anyio
from starlette.requests import Request
from starlette.responses import Response

from batchstream.integrations._connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from starlette.background import BackgroundTask
    from starlette.types import Receive, Scope, Send

Handler: TypeAlias = "Callable[[Request, Any], Coroutine[Any, Any, Response]]"
"""What makes the answer to an error, as Starlette has it."""


class Body(ABC):
    """What a response sends, chunk by chunk, and what is given up with it.

    Attributes:
        over: Whether every chunk has been taken, and the body is complete.
    """

    def __init__(self) -> None:
        self._held: bytes | None = None
        self.over = False

    async def begin(self) -> None:
        """Wait until the first chunk is there, or the end, and hold it back.

        Raises:
            Exception: What keeps the body from beginning.
        """
        self._held = await self._next()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk, self._held = self._held, None
        if chunk is None:
            chunk = await self._next()
        if chunk is None:
            self.over = True
            raise StopAsyncIteration
        return chunk

    @abstractmethod
    def cancel(self) -> None:
        """Tell whoever makes it that nobody reads it any more; also after its end."""

    @abstractmethod
    async def _next(self) -> bytes | None:
        """Wait for the next chunk; None is the end."""


class StreamResponse(Response):
    """A response that begins when there is something to send, and visibly breaks off if it fails.

    Args:
        body: What is sent.
        status_code: The status where there is no error.
        headers: Sent along.
        background: Run behind the response.
        send_timeout: How many seconds a write may wait for the client.
    """

    def __init__(
        self,
        body: Body,
        *,
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
        """Send the response, as Starlette asks for it.

        Cancellation: the body is cancelled, as it is whatever else happens.
        """
        connection = Connection(receive, send, self._send_timeout)
        try:
            if scope.get("method") == "HEAD":
                await connection.start(self.status_code, self.raw_headers)
                await connection.send_body(b"", more=False)
            else:
                await connection.respond(partial(self._respond, scope, connection))
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
            answer = await handler(Request(scope), error)
            self.background = None  # as after an error that is raised
            await answer(scope, anyio.sleep_forever, connection.send)  # type: ignore[arg-type]
            return
        try:
            await self._send_chunks(scope, connection)
        except Exception as error:
            self._body.cancel()  # now: the client may never read what it is sent next
            await connection.cut(error)
            if not self._has_cut(error):
                raise

    def _handler_of(self, error: Exception, scope: Scope) -> Handler | None:  # noqa: ARG002
        """Return what answers to an error from before the first chunk, or None to raise it."""
        return None

    def _has_cut(self, error: Exception) -> bool:  # noqa: ARG002
        """Tell whether it is enough to have cut the connection, or the error is raised as well."""
        return False

    async def _send_chunks(self, scope: Scope, connection: Connection) -> None:  # noqa: ARG002
        await connection.start(self.status_code, self.raw_headers)
        async for chunk in self._body:
            await connection.send_body(chunk, more=True)
        await connection.send_body(b"", more=False)
