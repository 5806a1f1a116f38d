"""Requests go to the workers here, and what comes back waits here for the client."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from fastapi import HTTPException
from litserve.callbacks import EventTypes
from litserve.utils import LitAPIStatus
from starlette import exceptions as starlette

from batchstream.integrations.litserve._link.messages import (
    UNKNOWN,
    EndMessage,
    Failure,
    new_uid,
)
from batchstream.integrations.litserve._log import logger
from batchstream.integrations.litserve._server.watch import SHUTTING_DOWN, watch_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from litserve import LitServer
    from litserve.specs.base import LitSpec

    from batchstream.integrations.litserve._link.link import Link
    from batchstream.integrations.litserve._link.pipes import WorkerPipes
    from batchstream.integrations.litserve._server.watch import ServerWatch

_RETRY_AFTER: Final = {"retry-after": "1"}


@contextmanager
def errors_as_answers() -> Iterator[None]:
    """Answer an error of the block with 500, as LitServe's endpoint does, and log it.

    LitServe's `track_requests` never counts a request down whose endpoint raises anything else.

    Raises:
        HTTPException: Any error of the block.
    """
    try:
        yield
    except starlette.HTTPException:  # FastAPI's is one
        raise
    except Exception as error:
        logger.exception("a request has failed before it has reached a worker")
        raise HTTPException(UNKNOWN.status_code, UNKNOWN.detail) from error


@errors_as_answers()
def submit(link: Link, spec: LitSpec, payloads: Sequence[Any]) -> Responses:
    """Send requests to the workers, all of one client.

    Raises:
        HTTPException: 503, as many requests wait as may, or the server is about to end; 400, these
            alone are more; 500, one does not pickle, or the queue is gone. None is served.
    """
    server: Any = spec._server  # noqa: SLF001 - LitServe gives it to specs
    requests = server._get_request_queue(spec.api_path)  # noqa: SLF001 - as does its own spec
    watch = watch_of(link, spec.response_queue_id)  # type: ignore[arg-type]  # set by then
    if watch is not None and watch.is_ending:
        raise FailedError(SHUTTING_DOWN)
    if link.max_pending is not None:
        if len(payloads) > link.max_pending:
            raise HTTPException(400, f"no more than {link.max_pending} requests may wait")
        if requests.qsize() + len(payloads) > link.max_pending:
            raise HTTPException(503, "Service Unavailable", _RETRY_AFTER)
    responses = Responses(server, link.pipes, len(payloads), link.max_buffered, watch)
    server._callback_runner.trigger_event(  # noqa: SLF001
        EventTypes.ON_REQUEST.value, active_requests=server.active_requests, litserver=server
    )
    try:
        for queue, payload in zip(responses.queues, payloads, strict=True):
            requests.put((spec.response_queue_id, queue.uid, time.monotonic(), payload))
    except BaseException:
        responses.close()
        raise
    return responses


class Responses:
    """What comes back to one client, whose requests may be several.

    Attributes:
        queues: One for each request.
    """

    def __init__(
        self,
        server: LitServer,
        pipes: WorkerPipes | None,
        size: int,
        max_buffered: int | None,
        watch: ServerWatch | None,
    ) -> None:
        self._server = server
        self._pipes = pipes
        self._arrival = asyncio.Event()
        self._closed = False
        self.queues = [
            ResponseQueue(new_uid(), self._arrival, max_buffered, self._give_up)
            for _ in range(size)
        ]
        buffer: dict[Any, Any] = server.response_buffer
        buffer.update({queue.uid: queue for queue in self.queues})
        self._watch = watch
        if watch is not None:
            watch.add(self)

    async def wait(self) -> None:
        """Wait until something new is in a queue."""
        await self._arrival.wait()
        self._arrival.clear()

    def claim(self, uid: str, worker: int) -> None:
        """Note the process id of the worker that has taken a request, if it is one of these."""
        for queue in self.queues:
            if queue.uid == uid:
                queue.worker_pid = worker

    def fail(self, failure: Failure, *, worker: int | None = None) -> int:
        """Fail the requests that have not ended, or only those that a worker has taken.

        Returns:
            How many these were.
        """
        failing = [
            queue
            for queue in self.queues
            if not queue.has_end and worker in (None, queue.worker_pid)
        ]
        for queue in failing:
            queue.fail(failure)
        return len(failing)

    def close(self) -> None:
        """Receive nothing more; the workers give up the requests that have not ended."""
        if self._closed:
            return
        self._closed = True
        if self._watch is not None:
            self._watch.discard(self)
        for queue in self.queues:
            entry = self._server.response_buffer.pop(queue.uid, None)
            if entry is not None and not queue.over:
                self._give_up(queue.uid)
        self._server._callback_runner.trigger_event(  # type: ignore[no-untyped-call]  # noqa: SLF001
            EventTypes.ON_RESPONSE.value, litserver=self._server
        )

    def _give_up(self, uid: str) -> None:
        self._server.response_buffer.pop(uid, None)
        if self._pipes is not None:
            self._pipes.send_disconnect(uid)


class ResponseQueue:
    """An entry of LitServe's response buffer: the messages for one request.

    Args:
        uid: LitServe's name for the request.
        event: For LitServe to set.
        max_buffered: How many messages may wait to be taken.
        give_up: Called with the uid if more wait: the request gets no more of them.

    Attributes:
        uid: LitServe's name for the request.
        response_queue: LitServe appends messages to it.
        event: LitServe sets it then.
        worker_id: LitServe writes it if it restarts workers.
        worker_pid: The process id of the worker that has taken the request.
        end: How the request ended, once everything has been taken.
        over: Whether the request has ended or failed, and everything has been taken.
    """

    response = None  # for LitServe; APIs that do not stream use it

    def __init__(
        self,
        uid: str,
        event: asyncio.Event,
        max_buffered: int | None,
        give_up: Callable[[str], None],
    ) -> None:
        self.uid = uid
        self.event = event
        self._max_buffered = max_buffered
        self._give_up = give_up
        self.response_queue: deque[Sequence[Any]] = deque()
        self.worker_id: int | None = None
        self.worker_pid: int | None = None
        self.end: EndMessage | None = None
        self.over = False

    def check_room(self) -> None:
        """Fail the request if its client has not taken enough to make room for another message."""
        if self._max_buffered is None or len(self.response_queue) < self._max_buffered:
            return
        logger.warning(
            "request %s is cut off: its client has left %d messages unread (max_buffered)",
            self.uid,
            len(self.response_queue),
        )
        self.fail(UNKNOWN)

    @property
    def has_end(self) -> bool:
        """Whether the request has ended or failed, although the end may not have been taken."""
        if self.over or not self.response_queue:
            return self.over
        data, status = self.response_queue[-1]
        return status != LitAPIStatus.OK or isinstance(data, Failure)

    def fail(self, failure: Failure) -> None:
        """Fail the request, after what has come, and let the workers give it up."""
        self.response_queue.append((failure, LitAPIStatus.OK))
        self.event.set()
        self._give_up(self.uid)

    def take(self) -> list[Any]:
        """Take the outputs that have come, and the end behind them.

        Raises:
            FailedError: The request has failed, and all earlier outputs have been taken.
        """
        outputs: list[Any] = []
        while self.response_queue and not self.over:
            data, status = self.response_queue[0]
            if status == LitAPIStatus.FINISH_STREAMING:
                self.end = data if isinstance(data, EndMessage) else EndMessage("eos", {})
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
    """A request has failed in its worker.

    Attributes:
        rejects: See `Failure`.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.status_code, failure.detail, failure.headers)
        self.rejects = failure.rejects
