"""Messages on their way to the server processes, and when the next may be sent."""

from __future__ import annotations

import os
from collections import Counter
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Final

from litserve.utils import LitAPIStatus, LoopResponseType

from batchstream.integrations.litserve._link.pipes import SERVER_NUMBERS

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from batchstream.integrations.litserve._link.messages import Message, MessageBatch

_MAX_HELD_BACK: Final = 4096
"""How many messages are held back for a server process that lags."""

_MAX_UNCONFIRMED: Final = 4
"""How many batches a server process may not have taken yet: enough for it never to be idle."""

_PATIENCE: Final = 0.1
"""For how many seconds a model waits for a server process that lags."""

_ALL_RECEIPTS: Final = 65536


class Outbox:
    """Collects messages, and sends the messages for one server process together.

    LitServe's transport has its cost per message, whatever is in it: on the default transport two
    trips through a third process, which take longer than most models need for an output.

    Args:
        put_response: The loop's, for the transport in use.
        router_uid: The entry of the response buffers that takes batches of messages apart. Without
            it, each message is sent by itself, at once.
        worker: The number of this worker.
        window: Says when the next batch may be sent.
    """

    def __init__(
        self,
        put_response: Callable[..., None],
        router_uid: str | None = None,
        worker: int | None = None,
        window: SendWindow | None = None,
    ) -> None:
        self._put_response = put_response
        self._router_uid = router_uid
        self._worker = worker
        self._window = window or SendWindow()
        self._collected: dict[int, list[Message]] = {}
        self._error: Exception | None = None

    def put(self, server: int, uid: object, data: object, status: str) -> None:
        """Add a message; it is sent with the next `flush` at the latest.

        Raises:
            Exception: What the transport raises.
        """
        if self._router_uid is None:
            self._put_response(server, uid, data, status, LoopResponseType.STREAMING)
        elif server in self._collected:
            self._collected[server].append((uid, data, status))
        else:
            self._collected[server] = [(uid, data, status)]

    def flush(self, *, everything: bool = False) -> None:
        """Send the collected messages to each server process that does not lag.

        Args:
            everything: Whether to send to all others as well. The next flush may be a long time
                away.

        Raises:
            Exception: What the transport raises, now and in every later call: messages are lost,
                and the requests that miss them must not get later ones.
        """
        if self._error is not None:
            raise self._error
        try:
            for server, messages in tuple(self._collected.items()):
                has_room = self._window.try_acquire(server)
                if has_room or everything or len(messages) > _MAX_HELD_BACK:
                    del self._collected[server]  # first: nothing is ever sent twice
                    batch: MessageBatch = (self._worker, server, messages)
                    self._put_response(
                        server, self._router_uid, batch, LitAPIStatus.OK, LoopResponseType.STREAMING
                    )
        except Exception as error:
            self._error = error
            raise


class SendWindow:
    """Says whether a server process should be sent another batch of messages.

    LitServe's transport takes any number of messages, and its server process takes about one in a
    quarter of a millisecond out of it, whatever is in it. The outputs of a faster model would only
    wait there, and take memory. So a worker waits a little before it sends another batch to a
    server process that has not confirmed the last few. If that does not help it holds the messages
    back, and sends them with the next ones.

    Args:
        receipts: This worker's pipe of receipts; without it, any number of batches may be sent.
    """

    def __init__(self, receipts: Connection | None = None) -> None:
        self._receipts = receipts
        self._unconfirmed: Counter[int] = Counter()
        self._lagging: set[int] = set()

    def try_acquire(self, server: int) -> bool:
        """Return whether a server process may be sent a batch, and if so, count it.

        It waits a little for one that has just used up its window, and then not again until that
        one has confirmed everything: the other server processes should not have to wait for it.
        """
        receipts, number = self._receipts, server % SERVER_NUMBERS
        if receipts is None:
            return True
        self._read(receipts)
        if self._unconfirmed[number] >= _MAX_UNCONFIRMED and number not in self._lagging:
            if wait([receipts], _PATIENCE):
                self._read(receipts)
            if self._unconfirmed[number] >= _MAX_UNCONFIRMED:
                self._lagging.add(number)
        if self._unconfirmed[number] >= _MAX_UNCONFIRMED:
            return False
        self._unconfirmed[number] += 1
        return True

    def _read(self, receipts: Connection) -> None:
        try:
            numbers = os.read(receipts.fileno(), _ALL_RECEIPTS)
        except BlockingIOError:
            return
        if not numbers:  # the pipe is at its end: no server process is left to confirm anything
            self._receipts = None
            self._unconfirmed.clear()
        for number, count in Counter(numbers).items():
            self._unconfirmed[number] = max(0, self._unconfirmed[number] - count)
            if not self._unconfirmed[number]:
                self._lagging.discard(number)
