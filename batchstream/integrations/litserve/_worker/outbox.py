"""In the worker: messages on their way to the server processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from litserve.utils import LitAPIStatus, LoopResponseType

from batchstream.integrations.litserve._link.pipes import Window

if TYPE_CHECKING:
    from collections.abc import Callable

Message: TypeAlias = "tuple[object, object, str]"
"""For whom, what, and which of LitServe's states it tells."""

_MOST: Final = 4096
"""How many messages are kept back for a server process."""

Parcel: TypeAlias = "tuple[int | None, int, list[Message]]"
"""From which worker, to which server process, and the messages."""


class Outbox:
    """Collects messages, and sends those for one server process together.

    What LitServe's transport costs it costs for each message, whatever is in it: on its default
    transport two trips through a third process, which are longer than most models take to make
    an output.

    Args:
        put: The loop's `put_response`, for the transport in use.
        sorter: The entry of the server processes' response buffers that sorts messages which were
            sent together; without it, each is sent by itself.
        worker: Which worker this is.
        window: When the next may be sent.
    """

    def __init__(
        self,
        put: Callable[..., None],
        *,
        sorter: str | None = None,
        worker: int | None = None,
        window: Window | None = None,
    ) -> None:
        self._put = put
        self._sorter = sorter
        self._worker = worker
        self._window = window or Window()
        self._collected: dict[int, list[Message]] = {}
        self._error: Exception | None = None

    def put(self, server: int, uid: object, data: object, status: str) -> None:
        """Send a message, with the next `flush` at the latest.

        Raises:
            Exception: What the transport raises.
        """
        if self._sorter is None:
            self._put(server, uid, data, status, LoopResponseType.STREAMING)
        else:
            self._collected.setdefault(server, []).append((uid, data, status))

    def flush(self, *, entirely: bool = False) -> None:
        """Send what has been collected, to those server processes that have got so far.

        Args:
            entirely: Whether to all others as well: there may not be another flush for long.

        Raises:
            Exception: What the transport raises, now and ever after: messages have been lost, and
                those who miss them must not get others.
        """
        if self._error is not None:
            raise self._error
        try:
            for server, messages in tuple(self._collected.items()):
                may = self._window.enter(server)
                if not (may or entirely or len(messages) > _MOST):
                    continue
                del self._collected[server]
                parcel = (self._worker, server, messages)
                response_type = LoopResponseType.STREAMING
                self._put(server, self._sorter, parcel, LitAPIStatus.OK, response_type)
        except Exception as error:
            self._error = error
            raise
