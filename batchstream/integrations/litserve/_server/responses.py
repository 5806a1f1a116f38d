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

from batchstream import FinishReason, StreamEnd
from batchstream.integrations.litserve._link.messages import (
    UNKNOWN,
    EndMessage,
    Envelope,
    Failure,
    new_uid,
)
from batchstream.integrations.litserve._log import logger
from batchstream.integrations.litserve._server.asked import NOTHING, REQUEST_ID, Asked
from batchstream.integrations.litserve._server.reports import metrics_of
from batchstream.integrations.litserve._server.timers import RequestTimer, Timeouts
from batchstream.integrations.litserve._server.watch import SHUTTING_DOWN, watch_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from litserve import LitServer
    from litserve.specs.base import LitSpec

    from batchstream._batching.metrics import MetricsCaller
    from batchstream.integrations.litserve._link.link import Link
    from batchstream.integrations.litserve._server.asked import NOTHING, REQUEST_ID, Asked
from batchstream.integrations.litserve._server.watch import ServerWatch

_OVERLOADED: Final = Failure(503, "Service Unavailable", {"retry-after": "1"})


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
def submit(link: Link, spec: LitSpec, payloads: Sequence[Any], asked: Asked = NOTHING) -> Responses:
    """Send requests to the workers, all of one client.

    Raises:
        HTTPException: 503, as many requests wait as may, or the server is about to end; 400, these
            alone are more; 500, one does not pickle, or the queue is gone. None is served.
    """
    server: Any = spec._server  # noqa: SLF001 - LitServe gives it to specs
    requests = server._get_request_queue(spec.api_path)  # noqa: SLF001 - as does its own spec
    metrics = metrics_of(link)
    watch = watch_of(link, spec.response_queue_id)  # type: ignore[arg-type]  # set by then
    uids = [new_uid() for _ in payloads]
    name = asked.request_id or uids[0]
    if watch is not None and watch.is_ending:
        raise FailedError(SHUTTING_DOWN, name)
    if link.max_pending is not None:
        if len(payloads) > link.max_pending:
            text = f"no more than {link.max_pending} requests may wait"
            raise HTTPException(400, text, {REQUEST_ID: name})
        if requests.qsize() + len(payloads) > link.max_pending:
            if metrics is not None:
                metrics("refused")
            raise FailedError(_OVERLOADED, name)
    responses = Responses(server, link, uids, asked, watch=watch, metrics=metrics)
    server._callback_runner.trigger_event(  # noqa: SLF001
        EventTypes.ON_REQUEST.value, active_requests=server.active_requests, litserver=server
    )
    try:
        for uid, payload in zip(uids, payloads, strict=True):
            sent = payload if uid == name else Envelope(payload, name)
            requests.put((spec.response_queue_id, uid, time.monotonic(), sent))
            if metrics is not None:
                metrics("submitted")
    except BaseException:
        responses.close()
        raise
    return responses


class Responses:
    """What comes back to one client, whose requests may be several.

    Args:
        server: LitServe's.
        link: Of the endpoint.
        uids: The names of the requests.
        asked: What the client asks for besides.
        watch: Of the endpoint.
        metrics: The endpoint's.

    Attributes:
        name: The client's name for its request; the uid of the first if it has none.
        queues: One for each request.
    """

    def __init__(
        self,
        server: LitServer,
        link: Link,
        uids: Sequence[str],
        asked: Asked,
        *,
        watch: ServerWatch | None,
        metrics: MetricsCaller | None,
    ) -> None:
        self._server = server
        self._pipes = link.pipes
        self._metrics = metrics
        self._submitted = time.monotonic()
        self._arrival = asyncio.Event()
        self._closed = False
        self.name = asked.request_id or uids[0]
        self.queues = [
            ResponseQueue(uid, self._arrival, link.max_buffered, self._give_up_failed, self.name)
            for uid in uids
        ]
        buffer: dict[Any, Any] = server.response_buffer
        buffer.update({queue.uid: queue for queue in self.queues})
        self._watch = watch
        if watch is not None:
            watch.add(self)
        source = f" ({asked.timeout_header})"
        timeouts = Timeouts(asked.timeout, source, link.first_timeout, link.gap_timeout)
        if timeouts:
            loop = asyncio.get_running_loop()
            for queue in self.queues:
                queue.timer = RequestTimer(timeouts, queue.fail_late, loop)

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
            if worker is not None:  # which has ended without a word
                self._report_end(FinishReason.ERROR, joined=True)
        return len(failing)

    def close(self) -> None:
        """Receive nothing more; the workers give up the requests that have not ended."""
        if self._closed:
            return
        self._closed = True
        if self._watch is not None:
            self._watch.discard(self)
        for queue in self.queues:
            queue.close()
            entry = self._server.response_buffer.pop(queue.uid, None)
            if entry is not None and not queue.over:
                self._give_up(queue.uid, failed=False)
        self._server._callback_runner.trigger_event(  # type: ignore[no-untyped-call]  # noqa: SLF001
            EventTypes.ON_RESPONSE.value, litserver=self._server
        )

    def _give_up_failed(self, uid: str) -> None:
        self._server.response_buffer.pop(uid, None)
        self._give_up(uid, failed=True)

    def _give_up(self, uid: str, *, failed: bool) -> None:
        if self._pipes is not None:
            self._pipes.send_disconnect(uid, failed=failed)

    def _report_end(self, reason: FinishReason, *, joined: bool) -> None:
        if self._metrics is not None:
            lasted = time.monotonic() - self._submitted
            self._metrics("finished", StreamEnd(reason, 0), joined=joined, lasted=lasted)


class ResponseQueue:
    """An entry of LitServe's response buffer: the messages for one request.

    Args:
        uid: LitServe's name for the request.
        event: For LitServe to set.
        max_buffered: How many messages may wait to be taken.
        give_up: Called with the uid if the request fails here, because more wait for example: it
            gets no more of them.
        name: The client's name for it.

    Attributes:
        uid: LitServe's name for the request.
        name: The client's name for it, or the same.
        timer: Fails the request if it is late; None if it may take any time.
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
        name: str = "",
    ) -> None:
        self.uid = uid
        self.name = name or uid
        self.timer: RequestTimer | None = None
        self.event = event
        self._max_buffered = max_buffered
        self._give_up = give_up
        self.response_queue: deque[Sequence[Any]] = deque()
        self.worker_id: int | None = None
        self.worker_pid: int | None = None
        self.end: EndMessage | None = None
        self.over = False

    def expect_output(self) -> None:
        """Note that an output comes, and fail the request if its client has left it no room."""
        if self.timer is not None:
            self.timer.note_output()
        if self._max_buffered is None or len(self.response_queue) < self._max_buffered:
            return
        logger.warning(
            "request %s is cut off: its client has left %d messages unread (max_buffered)",
            self.name,
            len(self.response_queue),
        )
        self.fail(UNKNOWN)

    def fail_late(self, failure: Failure) -> None:
        """Fail the request for a deadline, unless it has ended."""
        if not self.has_end:
            logger.warning("request %s is given up: %s", self.name, failure.detail)
            self.fail(failure)

    def close(self) -> None:
        """Let no deadline pass any more."""
        if self.timer is not None:
            self.timer.close()

    @property
    def has_end(self) -> bool:
        """Whether the request has ended or failed, although the end may not have been taken."""
        if self.over or not self.response_queue:
            return self.over
        data, status = self.response_queue[-1]
        return status != LitAPIStatus.OK or isinstance(data, Failure)

    def fail(self, failure: Failure) -> None:
        """Fail the request, after what has come, and let the workers give it up."""
        self.close()
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
                raise FailedError(data if isinstance(data, Failure) else UNKNOWN, self.name)
            else:
                break
            self.response_queue.popleft()
        return outputs


class FailedError(HTTPException):
    """A request has failed in its worker, or on its way there.

    Args:
        failure: The answer.
        name: The client's name for its request, if the answer should say it.

    Attributes:
        rejects: See `Failure`.
    """

    def __init__(self, failure: Failure, name: str | None = None) -> None:
        headers = {**(failure.headers or {})}
        if name is not None:
            headers[REQUEST_ID] = name
        super().__init__(failure.status_code, failure.detail, headers)
        self.rejects = failure.rejects
