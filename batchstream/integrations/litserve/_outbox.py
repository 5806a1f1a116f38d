"""In the worker: messages on their way to the server processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from litserve.utils import LitAPIStatus, LoopResponseType

if TYPE_CHECKING:
    from collections.abc import Callable

SORTER: Final = "batchstream"
"""To whom messages for many requests are addressed; LitServe's own addresses are UUIDs."""

Message: TypeAlias = "tuple[object, object, str]"
"""For whom, what, and which of LitServe's states it tells."""


class Outbox:
    """Collects messages, and sends those for one server process together.

    What LitServe's transport costs it costs for each message, whatever is in it: on its default
    transport two trips through a third process, which are longer than most models take to make
    an output.

    Args:
        put: The loop's `put_response`, for the transport in use.
        collects: Whether the other side can sort messages; otherwise each is sent by itself.
    """

    def __init__(self, put: Callable[..., None], *, collects: bool) -> None:
        self._put = put
        self._collects = collects
        self._collected: dict[int, list[Message]] = {}
        self._error: Exception | None = None

    def put(self, server: int, uid: object, data: object, status: str) -> None:
        """Send a message, with the next `flush` at the latest.

        Raises:
            Exception: What the transport raises.
        """
        if self._collects:
            self._collected.setdefault(server, []).append((uid, data, status))
        else:
            self._put(server, uid, data, status, LoopResponseType.STREAMING)

    def flush(self) -> None:
        """Send what has been collected.

        Raises:
            Exception: What the transport raises, now and ever after: messages have been lost, and
                those who miss them must not get others.
        """
        if self._error is not None:
            raise self._error
        if not self._collected:
            return
        collected, self._collected = self._collected, {}
        try:
            for server, messages in collected.items():
                self._send(server, messages)
        except Exception as error:
            self._error = error
            raise

    def _send(self, server: int, messages: list[Message]) -> None:
        uid: object
        data: Any
        if len(messages) == 1:
            [(uid, data, status)] = messages
        else:
            uid, data, status = SORTER, messages, LitAPIStatus.OK
        self._put(server, uid, data, status, LoopResponseType.STREAMING)
