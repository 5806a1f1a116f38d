"""In the server process: requests go to the workers here, and what they answer comes back."""

from __future__ import annotations

import asyncio
import time
import uuid
import warnings
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from fastapi import HTTPException
from litserve.callbacks import EventTypes
from litserve.utils import LitAPIStatus

from batchstream.integrations.litserve._link.messages import UNKNOWN, Ending, Failure
from batchstream.integrations.litserve._link.pipes import Receipts, Window
from batchstream.integrations.litserve._log import logger
from batchstream.integrations.litserve._shutdown import end_together
from batchstream.integrations.litserve._worker.disconnects import Announcer, Departures
from batchstream.integrations.litserve._worker.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence
    from multiprocessing.connection import Connection

    from litserve import LitServer
    from litserve.specs.base import LitSpec

    from batchstream.integrations.litserve._worker.outbox import Parcel

NEEDED_OF_SERVER: Final = ("response_buffer", "_get_request_queue", "_callback_runner")
"""What LitServe's own `OpenAISpec` uses of a server, and so does an exchange."""

_RETRY_AFTER: Final = {"retry-after": "1"}


class Exchange:
    """What an API's endpoint has to do with its workers.

    It is made where the API is, reaches the server processes by fork and the workers by spawn.
    A worker gets no more of it than it needs.

    Args:
        max_pending: How many requests may wait in LitServe's queue; None for any number.
        max_buffered: How many outputs may wait for a client; None for any number.
        tells_ends: Whether the endpoint wants to know how requests ended.

    Attributes:
        usable: Whether the endpoint is one that understands this package's messages.
    """

    def __init__(
        self,
        *,
        max_pending: int | None = None,
        max_buffered: int | None = None,
        tells_ends: bool = False,
    ) -> None:
        self._max_pending = max_pending
        self._max_buffered = max_buffered
        self.tells_ends = tells_ends
        self.usable = True
        self._sorter: str | None = None
        self._buffer: dict[Any, Any] | None = None
        self._announcer: Announcer | None = None
        self._news: list[Connection] = []  # of each worker, about departures
        self._receipts: list[Connection] = []  # the same, about messages that were taken

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_buffer": None, "_announcer": None}

    # ---- where the server is set up

    def check(self, server: LitServer | None) -> None:
        """Find out whether it is usable on this server, and warn if it is not."""
        missing = [name for name in NEEDED_OF_SERVER if not hasattr(server, name)]
        self.usable = not missing
        if missing:
            warnings.warn(
                f"this LitServe has no LitServer.{missing[0]}: streams go on, but a client that "
                f"leaves is not noticed, and one whose stream fails gets status 200 and a response "
                f"that ends early",
                RuntimeWarning,
                stacklevel=2,
            )

    def connect(self, server: LitServer, api_path: str) -> None:
        """Prepare for the workers that the main process is about to start, or to start again."""
        if not self.usable or self._buffer is server.response_buffer:
            return
        end_together()
        buffer: dict[Any, Any] = server.response_buffer
        self._buffer = buffer
        self._sorter = f"batchstream:{api_path}"
        sorter = Sorter(self._buffer)
        buffer[self._sorter] = sorter
        try:
            workers = len(server._inference_workers_config_for_api(api_path))  # noqa: SLF001
        except AttributeError as error:
            warnings.warn(
                f"this LitServe does not tell how many workers there are ({error}): streams go on, "
                f"but a client that leaves is not noticed",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self._announcer = Announcer(workers)
        self._news = self._announcer.readers
        with suppress(OSError, AttributeError):  # Windows: then nobody waits for anybody
            sorter.receipts = Receipts(workers)
            self._receipts = sorter.receipts.readers

    # ---- in a server process

    def submit(self, spec: LitSpec, payloads: Sequence[Any]) -> Answers:
        """Send requests to the workers, all of one client.

        Raises:
            HTTPException: 503, as many requests wait as may; 400, these alone are more.
            Exception: A request does not pickle; none is served.
        """
        server: Any = spec._server  # noqa: SLF001 - LitServe gives it to specs
        requests = server._get_request_queue(spec.api_path)  # noqa: SLF001 - as does its own spec
        if self._max_pending is not None:
            if len(payloads) > self._max_pending:
                raise HTTPException(400, f"no more than {self._max_pending} requests may wait")
            waiting = requests.qsize()
            if waiting + len(payloads) > self._max_pending:
                raise HTTPException(503, "Service Unavailable", _RETRY_AFTER)
        answers = Answers(server, self._announcer, len(payloads), self._max_buffered)
        server._callback_runner.trigger_event(  # noqa: SLF001
            EventTypes.ON_REQUEST.value, active_requests=server.active_requests, litserver=server
        )
        try:
            for inbox, payload in zip(answers.inboxes, payloads, strict=True):
                requests.put((spec.response_queue_id, inbox.uid, time.monotonic(), payload))
        except BaseException:
            answers.close()
            raise
        return answers

    # ---- in a worker

    def departures(self, worker: int) -> Departures:
        """Return who has left, and who will."""
        return Departures(_of_worker(worker, self._news))

    def outbox(self, put: Callable[..., None], worker: int) -> Outbox:
        """Return where a worker's messages go."""
        window = Window(_of_worker(worker, self._receipts))
        return Outbox(put, sorter=self._sorter, worker=worker, window=window)


def _of_worker(worker: int, pipes: list[Connection]) -> Connection | None:
    return pipes[worker] if worker < len(pipes) else None


def exchange_of(spec: LitSpec | None) -> Exchange | None:
    """Return the exchange of an endpoint that understands this package's messages."""
    exchange = getattr(spec, "exchange", None)
    return exchange if isinstance(exchange, Exchange) and exchange.usable else None


class Answers:
    """What comes back to one client, whose requests may be several.

    Attributes:
        inboxes: One for each request.
    """

    def __init__(
        self,
        server: LitServer,
        announcer: Announcer | None,
        size: int,
        max_buffered: int | None,
    ) -> None:
        self._server = server
        self._announcer = announcer
        self._arrival = asyncio.Event()
        self._closed = False
        self.inboxes = [
            Inbox(str(uuid.uuid4()), self._arrival, max_buffered, self._leave) for _ in range(size)
        ]
        buffer: dict[Any, Any] = server.response_buffer
        buffer.update({inbox.uid: inbox for inbox in self.inboxes})

    async def wait(self) -> None:
        """Wait until there is something new in an inbox."""
        await self._arrival.wait()
        self._arrival.clear()

    def close(self) -> None:
        """Let go of all requests, and tell the workers of those that have not ended."""
        if self._closed:
            return
        self._closed = True
        for inbox in self.inboxes:
            here = self._server.response_buffer.pop(inbox.uid, None)
            if here is not None and not inbox.over:
                self._leave(inbox.uid)
        self._server._callback_runner.trigger_event(  # type: ignore[no-untyped-call]  # noqa: SLF001
            EventTypes.ON_RESPONSE.value, litserver=self._server
        )

    def _leave(self, uid: str) -> None:
        self._server.response_buffer.pop(uid, None)
        if self._announcer is not None:
            self._announcer.announce(uid)


class Inbox:
    """An entry of LitServe's response buffer: what has come for one request.

    Args:
        uid: LitServe's name for the request.
        event: For LitServe to set.
        max_buffered: How many messages may wait to be taken.
        leave: Called with the uid if more do, to get no more of them.

    Attributes:
        uid: LitServe's name for the request.
        response_queue: What LitServe appends to.
        event: What it sets then.
        worker_id: What it notes here if it restarts workers.
        end: How the request ended, once everything has been taken.
        over: Whether it has ended, or failed.
    """

    response = None  # of APIs that do not stream

    def __init__(
        self,
        uid: str,
        event: asyncio.Event,
        max_buffered: int | None,
        leave: Callable[[str], None],
    ) -> None:
        self.uid = uid
        self.event = event
        self._max_buffered = max_buffered
        self._leave = leave
        self.response_queue: deque[Sequence[Any]] = deque()
        self.worker_id: int | None = None
        self.end: Ending | None = None
        self.over = False

    def make_room(self) -> None:
        """Give the request up if its client has not taken what it should, before there is more."""
        if self._max_buffered is None or len(self.response_queue) < self._max_buffered:
            return
        logger.warning(
            "request %s is cut off: its client has left %d messages unread (max_buffered)",
            self.uid,
            len(self.response_queue),
        )
        self.response_queue.append((UNKNOWN, LitAPIStatus.OK))
        self.event.set()
        self._leave(self.uid)

    def take(self) -> list[Any]:
        """Take the outputs that have come, and the end behind them.

        Raises:
            FailedError: The request has failed, and all outputs from before have been taken.
        """
        outputs: list[Any] = []
        while self.response_queue and not self.over:
            data, status = self.response_queue[0]
            if status == LitAPIStatus.FINISH_STREAMING:
                self.end = data if isinstance(data, Ending) else Ending("eos", {})
                self.over = True
            elif status == LitAPIStatus.OK and not isinstance(data, Failure):
                outputs.append(data)
            elif not outputs:
                self.over = True
                # LitServe's own message says no more than that a worker has died.
                raise FailedError(data if isinstance(data, Failure) else UNKNOWN)
            else:
                break
            self.response_queue.popleft()
        return outputs


class FailedError(HTTPException):
    """A request has failed in its worker."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.status_code, failure.detail, failure.headers)


class Sorter:
    """An entry of LitServe's response buffer to which messages for many requests are addressed.

    LitServe appends to its queue and sets its event; it is both.

    Attributes:
        receipts: Who is told that they have been taken.
    """

    worker_id = None
    response = None

    def __init__(self, buffer: MutableMapping[Any, Any]) -> None:
        self._buffer = buffer
        self.receipts: Receipts | None = None

    def __reduce__(self) -> tuple[type[Sorter], tuple[dict[Any, Any]]]:
        return Sorter, ({},)  # to a worker of another API, which has no use for it

    @property
    def response_queue(self) -> Sorter:
        """Where LitServe appends to."""
        return self

    @property
    def event(self) -> Sorter:
        """What LitServe sets then."""
        return self

    def append(self, response: tuple[Parcel, object]) -> None:
        """Pass on what has come."""
        worker, server, messages = response[0]
        if self.receipts is not None and worker is not None:
            self.receipts.give(worker, server)
        for uid in {uid for uid, _, status in messages if status == LitAPIStatus.OK}:
            inbox = self._buffer.get(uid)
            if isinstance(inbox, Inbox):  # and not another's, of a spec that was derived
                inbox.make_room()
        for uid, data, status in messages:
            inbox = self._buffer.get(uid)
            if inbox is not None:
                inbox.response_queue.append((data, status))
                inbox.event.set()

    def set(self) -> None:
        """Nobody waits here."""
