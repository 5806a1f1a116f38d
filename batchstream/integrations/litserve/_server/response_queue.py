"""What comes back from the workers for one request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import HTTPException
from litserve.utils import LitAPIStatus

from batchstream import SlowConsumerError
from batchstream._core.errors import type_name
from batchstream.integrations._headers import REQUEST_ID
from batchstream.integrations.litserve._link.messages import UNKNOWN, EndMessage, Failure
from batchstream.integrations.litserve._link.outputs import data_of
from batchstream.integrations.litserve._log import fields, logger
from batchstream.integrations.litserve._server.unread import UnreadMessages

if TYPE_CHECKING:
    import asyncio
    from collections import deque
    from collections.abc import Callable, Sequence

    from batchstream import DeadlineError
    from batchstream._core.arguments import Bound
    from batchstream.integrations.litserve._server.timers import RequestTimer


_GATEWAY_TIMEOUT: Final = 504


class ResponseQueue:
    """An entry of LitServe's response buffer: the messages for one request.

    Args:
        uid: LitServe's name for the request.
        event: For LitServe to set.
        bound: How much may wait to be taken, and what happens to what comes then.
        give_up: Called with the uid and the error if the request fails here, because more wait for
            example: it gets no more of them.
        name: The client's name for it.
        batcher: What the log calls the API.

    Attributes:
        uid: LitServe's name for the request.
        name: The client's name for it, or the same.
        timer: Fails the request if it is late; None if it may take any time.
        response_queue: LitServe appends messages to it.
        event: LitServe sets it then.
        worker_id: LitServe writes it if it restarts workers.
        end: How the request ended, once everything has been taken.
        over: Whether the request has ended or failed, and everything has been taken.
    """

    response = None  # for LitServe; APIs that do not stream use it

    def __init__(
        self,
        uid: str,
        event: asyncio.Event,
        bound: Bound,
        give_up: Callable[[str, Exception], None],
        *,
        name: str = "",
        batcher: str = "",
    ) -> None:
        self.uid = uid
        self.name = name or uid
        self._batcher = batcher
        self.timer: RequestTimer | None = None
        self.event = event
        self._unread = UnreadMessages(bound)
        self._max_buffered = bound.max_buffered
        self._give_up = give_up
        self.response_queue: deque[Sequence[Any]] = self._unread.messages
        self.worker_id: int | None = None
        self.end: EndMessage | None = None
        self.over = False

    def expect_output(self) -> None:
        """Note that an output comes, and fail the request if its client has left it no room."""
        if self.timer is not None:
            self.timer.note_output()
        excess = self._unread.excess()
        if excess is not None:
            logger.warning(
                "request %s is cut off: its client has left %s",
                self.name,
                excess,
                extra=fields("slow", self._batcher, [self.name]),
            )
            text = f"the client has left {excess}"
            self.fail(UNKNOWN, SlowConsumerError(text, slot=-1, max_buffered=self._max_buffered))

    def add(self, data: Any, status: str) -> None:
        """Add a message; an output may be merged with the last that waits, or fail the request."""
        if status != LitAPIStatus.OK or isinstance(data, Failure):
            self.response_queue.append((data, status))
        else:
            try:
                self._unread.add((data, status))
            except Exception as error:  # noqa: BLE001 - a function of the user's has raised it
                logger.error(
                    "an error has failed these requests: %s",
                    self.name,
                    exc_info=error,
                    extra=fields("failed", self._batcher, [self.name], reason=type_name(error)),
                )
                self.fail(Failure.of(error), error)
        self.event.set()

    def fail_late(self, error: DeadlineError) -> None:
        """Fail the request for a deadline, with 504, unless it has ended."""
        if not self.has_end:
            logger.warning(
                "request %s is given up: %s",
                self.name,
                error,
                extra=fields("overdue", self._batcher, [self.name]),
            )
            self.fail(Failure(_GATEWAY_TIMEOUT, str(error), None), error)

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

    def fail(self, failure: Failure, error: Exception | None = None) -> None:
        """Fail the request, after what has come, and let the workers give it up.

        Args:
            failure: The answer.
            error: What metrics and traces are told; that answer, if it is None.
        """
        self.close()
        self.response_queue.append((failure, LitAPIStatus.OK))
        self.event.set()
        self._give_up(self.uid, error or HTTPException(failure.status_code, failure.detail))

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
                outputs.append(data_of(data))
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
