"""What the responses share: when they begin, how they fail, and that they cancel their streams."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from starlette.requests import Request
from starlette.responses import Response

from batchstream.integrations.starlette._answers import handler_of
from batchstream.integrations.starlette._connection import Connection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.background import BackgroundTask
    from starlette.types import Receive, Scope, Send

    from batchstream.integrations.starlette._chunks import Chunks


class StreamResponse(Response):
    """A response that sends chunks.

    Args:
        chunks: The body, and the stream behind it.
        status_code: The status where there is no error.
        headers: Sent along.
        background: Run behind the response.
        send_timeout: How many seconds a write may wait for the client.
    """

    def __init__(
        self,
        chunks: Chunks[Any],
        *,
        status_code: int,
        headers: Mapping[str, str] | None,
        background: BackgroundTask | None,
        send_timeout: float | None,
    ) -> None:
        if send_timeout is not None and not send_timeout > 0:
            raise ValueError(
                f"send_timeout must be None or more than 0 seconds, got {send_timeout!r}"
            )
        self._chunks = chunks
        self._send_timeout = send_timeout
        self.status_code = status_code
        self.background = background
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as Starlette asks for it.

        Cancellation: the stream is cancelled, as it is whatever else happens.
        """
        connection = Connection(receive, send, self._send_timeout)
        try:
            if scope.get("method") == "HEAD":
                await connection.start(self.status_code, self.raw_headers)
                await connection.send_body(b"", more=False)
            else:
                await connection.respond(partial(self._respond, scope, connection))
        finally:
            self._chunks.cancel()
        if self.background is not None:
            await self.background()

    async def _respond(self, scope: Scope, connection: Connection) -> None:
        try:
            await self._chunks.begin()
        except Exception as error:
            handler = handler_of(error, scope)
            if handler is None:
                raise
            answer = await handler(Request(scope), error)
            self.background = None  # as after an error that is raised
            await answer(scope, anyio.sleep_forever, connection.send)  # type: ignore[arg-type]
            return
        try:
            await self._send_chunks(scope, connection)
        except Exception as error:
            self._chunks.cancel()  # now: the client may never read what it is sent next
            await connection.cut(error)
            raise

    async def _send_chunks(self, scope: Scope, connection: Connection) -> None:  # noqa: ARG002
        await connection.start(self.status_code, self.raw_headers)
        async for chunk in self._chunks:
            await connection.send_body(chunk, more=True)
        await connection.send_body(b"", more=False)
