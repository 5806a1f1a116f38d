"""A stream over a WebSocket."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocketDisconnect
from typing_extensions import TypeVar

from batchstream import SKIP, AsyncStream, ClosedError, FinishReason
from batchstream._log import write_line
from batchstream.integrations._disconnects import run_until
from batchstream.integrations.starlette._closing import close_for
from batchstream.integrations.starlette._handlers import is_expected
from batchstream.integrations.starlette._json import to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.websockets import WebSocket

    from batchstream import StreamEnd

T = TypeVar("T")


async def send_stream(
    websocket: WebSocket,
    stream: AsyncStream[T],
    *,
    encode: Callable[[T], Any] | None = None,
    encode_end: Callable[[StreamEnd], Any] | None = None,
    on_message: Callable[[str | bytes], object] | None = None,
    close: bool = True,
) -> bool:
    """Send a stream over a WebSocket, a message for each output, and close the socket.

    The close code says whether the stream is whole: 1000, with the reason of its end. An error is
    1013, which is to try again later, for a batcher that was closed; 1008 for a `RequestError`,
    with its text; and else 1011. The log has one line for an error that the server cannot help, as
    for a response; any other is raised once the socket is closed.

    Only a server that receives learns that its client has left. So this receives while it sends,
    and the stream is cancelled as soon as the client leaves, also in the midst of a write to a
    client that reads nothing. That is no error.

    Args:
        websocket: One that was accepted. Nothing else may receive from it meanwhile.
        stream: From now on only this reads it; it is cancelled if it does not come to its end.
        encode: Returns what is sent for an output, or `SKIP` for nothing; without it the output
            is. Text and bytes are sent as they are, and anything else as text, in JSON as
            `NDJSONResponse` has it. It runs in the event loop.
        encode_end: Returns what is sent as a last message, for the `StreamEnd`.
        on_message: Called in the event loop with each message that the client sends meanwhile; they
            are ignored without it. It may cancel the stream, as a client asks for: the socket is
            then closed with 1000 and the reason `cancelled`. Its error is raised like the stream's.
        close: False leaves the socket open at a stream's own end, for the next request; let
            `encode_end` tell the client of the end then.

    Returns:
        Whether the client was there until the end or the close code was sent.

    Raises:
        TypeError: `stream` is no `AsyncStream`.
        Exception: The stream has failed, or a function above.

    Blocking: until the last message is sent, or the client has left.
    Cancellation: cancels the stream.
    Threads: the event loop of the socket.

    Example:
        >>> from fastapi import FastAPI, WebSocket
        >>> import batchstream
        >>> @batchstream.batched(max_batch_size=8)
        ... def spell(words):
        ...     yield from zip(*words)
        >>> app = FastAPI()
        >>> @app.websocket("/spell")
        ... async def respond(websocket: WebSocket):
        ...     await websocket.accept()
        ...     await send_stream(websocket, spell.astream(await websocket.receive_text()))
    """
    if not isinstance(stream, AsyncStream):
        raise TypeError(f"stream must be an AsyncStream, got {stream!r}")
    sending = _Sending(websocket, stream, on_message)
    try:
        await run_until(sending.client_left, partial(sending.send, encode, encode_end, close=close))
    finally:
        stream.cancel()
    if sending.failure is not None:
        await sending.fail(sending.failure)
    return sending.is_over


class _Sending:
    """One stream that is being sent.

    Attributes:
        failure: What `on_message` has raised.
        is_over: Whether the client was there until the end or the close code was sent.
    """

    def __init__(
        self,
        websocket: WebSocket,
        stream: AsyncStream[Any],
        on_message: Callable[[str | bytes], object] | None,
    ) -> None:
        self._websocket = websocket
        self._stream = stream
        self._on_message = on_message
        self._stopped = False  # by `on_message`
        self.failure: Exception | None = None
        self.is_over = False

    async def client_left(self) -> None:
        """Receive until the client has left, or what is done with a message fails."""
        while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
            if self._on_message is None:
                continue
            text = message.get("text")
            was_live = self._stream.finish_reason is None
            try:
                self._on_message(message["bytes"] if text is None else text)
            except Exception as error:  # noqa: BLE001 - raised by `send_stream`
                self.failure = error
                return
            if was_live and self._stream.finish_reason is FinishReason.CANCELLED:
                self._stopped = True

    async def send(
        self,
        encode: Callable[[Any], Any] | None,
        encode_end: Callable[[StreamEnd], Any] | None,
        *,
        close: bool,
    ) -> None:
        """Send the outputs and the end, and close the socket; or close it for an error."""
        try:
            await self._send_all(encode)
            end = self._stream.end
            assert end is not None  # noqa: S101 - for the type checker
            if encode_end is not None:
                await self._send(encode_end(end))
            if close:
                await self._websocket.close(1000, end.reason.value)
            self.is_over = True
        except WebSocketDisconnect:
            pass  # the client has left, and a write has noticed it first
        except Exception as error:  # noqa: BLE001 - `fail` raises it
            await self.fail(error)

    async def _send_all(self, encode: Callable[[Any], Any] | None) -> None:
        try:
            async for output in self._stream.body():
                await self._send(output if encode is None else encode(output))
        except ClosedError:
            if not self._stopped:
                raise

    async def _send(self, content: object) -> None:
        if isinstance(content, bytes):
            await self._websocket.send_bytes(content)
        elif content is not SKIP:
            text = content if isinstance(content, str) else to_json(content)
            await self._websocket.send_text(text)

    async def fail(self, error: Exception) -> None:
        """Close the socket for an error, and raise that if the server has to know of it."""
        self._stream.cancel()  # before a write, which may wait for the client
        with suppress(WebSocketDisconnect):
            await close_for(self._websocket, error)
            self.is_over = True
        if not is_expected(error, self._websocket.scope):
            raise error
        reason = type(error).__name__
        message = "a WebSocket was closed: %s: %s"
        write_line(logging.WARNING, "cut", message, reason, error, reason=reason)
