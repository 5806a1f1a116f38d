"""What comes back for one client, whose requests may be several."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from litserve.callbacks import EventTypes

from batchstream.integrations.litserve._link.messages import Departure
from batchstream.integrations.litserve._server.reports import RequestReport
from batchstream.integrations.litserve._server.response_queue import ResponseQueue
from batchstream.integrations.litserve._server.timers import RequestTimer, Timeouts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from litserve import LitServer

    from batchstream.integrations.litserve._link.link import Link
    from batchstream.integrations.litserve._link.messages import Failure
    from batchstream.integrations.litserve._server.asked import Asked
    from batchstream.integrations.litserve._server.reports import Reports
    from batchstream.integrations.litserve._server.watch import ServerWatch


class Responses:
    """What comes back to one client, whose requests may be several.

    Args:
        server: LitServe's.
        link: Of the endpoint.
        payloads: The requests, by their uids.
        asked: What the client asks for besides.
        watch: Of the endpoint.
        reports: To the endpoint's metrics.

    Attributes:
        name: The client's name for its request; the uid of the first if it has none.
        discard: Takes a request out of the queue, and returns whether it was still there; None
            where the queue cannot do that.
        queues: One for each request.
    """

    def __init__(
        self,
        server: LitServer,
        link: Link,
        payloads: Mapping[str, Any],
        asked: Asked,
        *,
        watch: ServerWatch | None,
        reports: Reports,
    ) -> None:
        self._server = server
        self._pipes = link.pipes
        self._arrival = asyncio.Event()
        self._closed = False
        self._is_cut = False
        self._discarded: set[str] = set()
        due: dict[str, RequestReport] = {} if watch is None else watch.due_reports()
        self._reports = {
            uid: RequestReport(reports, uid, payload, due) for uid, payload in payloads.items()
        }
        self.name = asked.request_id or next(iter(payloads))
        self.discard: Callable[[str], bool] | None = None
        self.queues = [
            ResponseQueue(
                uid,
                self._arrival,
                link.bound,
                self._give_up_failed,
                name=self.name,
                batcher=link.name or "",
            )
            for uid in payloads
        ]
        buffer: dict[Any, Any] = server.response_buffer
        buffer.update({queue.uid: queue for queue in self.queues})
        self._watch = watch
        if watch is not None:
            watch.add(self)
        timeouts = Timeouts(asked.timeout, link.first_timeout, link.gap_timeout, link.wait_timeout)
        if timeouts:
            loop = asyncio.get_running_loop()
            for queue in self.queues:
                take_back = partial(self._is_discarded, queue.uid)
                queue.timer = RequestTimer(timeouts, queue.fail_late, loop, take_back)

    async def wait(self) -> None:
        """Wait until something new is in a queue."""
        await self._arrival.wait()
        self._arrival.clear()

    def submitted(self, uid: str) -> None:
        """Report that a request waits."""
        self._reports[uid].submitted()

    def cut(self, failure: Failure) -> None:
        """Fail the requests that have not ended, as the server ends.

        If no worker has a request, its end is reported here: none may take it any more.
        """
        self._is_cut = True
        self.fail(failure)

    def fail(self, failure: Failure, *, worker: int | None = None) -> int:
        """Fail the requests that have not ended; if a worker is given, only its requests.

        Returns:
            How many these were.
        """
        failing = [
            queue
            for queue in self.queues
            if not queue.has_end and worker in (None, self._reports[queue.uid].worker)
        ]
        for queue in failing:
            queue.fail(failure)
        return len(failing)

    def forget(self) -> None:
        """Receive nothing more of requests that were refused."""
        self._receive_no_more()
        self._watch_no_more()

    def close(self) -> None:
        """Receive nothing more; the workers give up the requests that have not ended."""
        if self._closed:
            return
        try:
            for uid in self._receive_no_more():
                self._give_up(uid)
        finally:
            # Last: a server process may wait for it, and for due reports.
            self._watch_no_more()
        self._server._callback_runner.trigger_event(  # type: ignore[no-untyped-call]  # noqa: SLF001
            EventTypes.ON_RESPONSE.value, litserver=self._server
        )

    def _receive_no_more(self) -> list[str]:
        """Return the uids of the requests that have not ended."""
        self._closed = True
        unfinished = []
        for queue in self.queues:
            queue.close()
            entry = self._server.response_buffer.pop(queue.uid, None)
            if entry is not None and not queue.over:
                unfinished.append(queue.uid)
        return unfinished

    def _watch_no_more(self) -> None:
        if self._watch is not None:
            self._watch.discard(self)

    def _give_up_failed(self, uid: str, error: Exception) -> None:
        self._server.response_buffer.pop(uid, None)
        self._give_up(uid, error)

    def _give_up(self, uid: str, error: Exception | None = None) -> None:
        report = self._reports[uid]
        report.error = error
        if self._is_discarded(uid):
            report.ended()  # no worker has seen it
            return
        is_reported = self._is_cut and error is not None and report.worker is None
        if is_reported:
            report.ended()
        if self._pipes is not None:
            self._pipes.send_departure(Departure(uid, error, is_reported))

    def _is_discarded(self, uid: str) -> bool:
        """Take a request out of the queue, and return whether it was there until now."""
        if uid in self._discarded:
            return True
        if self.discard is None or self._reports[uid].worker is not None:
            return False
        try:
            if self.discard(uid):
                self._discarded.add(uid)
        except (OSError, EOFError):  # the queue's process has ended
            return False
        return uid in self._discarded
