"""What a response does with its connection: watch it, cut it, and not wait for it for ever."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio

from batchstream.integrations._cut import Tripwire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.types import Message, Receive, Send

_CLIENT_CLOSED_REQUEST = 499  # no client sees it; nginx has it for its log
_START = "http.response.start"
_BODY = "http.response.body"


class Connection:
    """A client that one response is sent to.

    Args:
        receive: As the server gives it, for this object alone from now on.
        send: The same.
        send_timeout: How many seconds a write may wait for the client; None for any time.
    """

    def __init__(self, receive: Receive, send: Send, send_timeout: float | None) -> None:
        self._receive = receive
        self._send = send
        self._send_timeout = send_timeout
        self._started = False

    async def send(self, message: Message) -> None:
        """Send a message, unless it takes too long.

        Raises:
            TimeoutError: The client has taken nothing for longer than `send_timeout`.
        """
        self._started = True
        if self._send_timeout is None:
            return await self._send(message)
        with anyio.move_on_after(self._send_timeout) as scope:
            return await self._send(message)
        assert scope.cancelled_caught  # noqa: S101 - or else it has returned
        raise TimeoutError(
            f"the client took nothing for longer than send_timeout={self._send_timeout!r} seconds"
        )

    async def start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send the status line and the headers."""
        await self.send({"type": _START, "status": status, "headers": headers})

    async def send_body(self, chunk: bytes, *, more: bool) -> None:
        """Send a piece of the body, which may be the last."""
        await self.send({"type": _BODY, "body": chunk, "more_body": more})

    async def cut(self, error: Exception) -> None:
        """Make the server close the connection in mid-response; the caller then raises the error.

        However long that takes: to give up would show half a body as a whole one.
        """
        with suppress(Exception):
            await self._send({"type": _BODY, "body": Tripwire(error), "more_body": True})

    async def respond(self, respond: Callable[[], Awaitable[Any]]) -> None:
        """Run what sends the response, and break it off where the client leaves.

        What it raises is raised, and not in a group of exceptions.
        """
        error: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cancel_at_disconnect, tasks.cancel_scope)
            try:
                await respond()
            except (anyio.get_cancelled_exc_class(), GeneratorExit):
                raise
            except BaseException as raised:  # noqa: BLE001 - raised again behind the group
                error = raised
            tasks.cancel_scope.cancel()
        try:
            if error is not None:
                raise error
        finally:
            del error  # with its traceback it holds this frame, and all that the response has
        if not self._started:
            await self._answer_to_nobody()

    async def _cancel_at_disconnect(self, scope: anyio.CancelScope) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _answer_to_nobody(self) -> None:
        """Send a response after all: a middleware takes it for an error that there is none."""
        with suppress(OSError):  # servers ignore it, or raise this
            await self.start(_CLIENT_CLOSED_REQUEST, [])
            await self.send_body(b"", more=False)
