"""In the worker: the way back to one client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litserve.utils import LitAPIStatus, PickleableHTTPException
from starlette.exceptions import HTTPException

from batchstream.integrations.litserve._link.link import exchange_of
from batchstream.integrations.litserve._link.messages import Ending, Failure, text_of
from batchstream.integrations.litserve._log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from litserve.specs.base import LitSpec

    from batchstream import StreamEnd
    from batchstream.integrations.litserve._worker.outbox import Outbox


class Reply:
    """Any number of outputs, then exactly one end. What comes after the end is ignored.

    The methods that end it raise what the transport raises.

    Args:
        outbox: Where its messages go.
        server: LitServe's number for the server process that waits for them.
        uid: LitServe's name for the request, text or a UUID.
        spec: What the API's endpoint is made by.
    """

    __slots__ = ("_exchange", "_outbox", "_server", "_spec", "begun", "ended", "uid")

    def __init__(self, outbox: Outbox, server: int, uid: object, spec: LitSpec | None) -> None:
        self._outbox = outbox
        self._server = server
        self._spec = spec
        self._exchange = exchange_of(spec)
        self.uid = uid
        self.begun = False
        self.ended = False

    def put(self, output: object, formatted: Callable[[Any], object]) -> None:
        """Send an output.

        Raises:
            Exception: It cannot be formatted or sent.
        """
        if self.ended:
            return
        data = formatted(output)
        if self._spec is None or self._exchange is not None:
            data = _plain(data)
        self._outbox.put(self._server, self.uid, data, LitAPIStatus.OK)
        self.begun = True

    def finish(self, end: StreamEnd) -> None:
        """Let the response end in the proper way."""
        if not self.ended:
            tells = self._exchange is not None and self._exchange.tells_ends
            self._end(Ending.of(end) if tells else "", LitAPIStatus.FINISH_STREAMING)

    def fail(self, error: BaseException) -> None:
        """Let the response end as failed."""
        if self.ended:
            return
        failure = Failure.of(error)
        if self._exchange is not None:
            self._end(failure, LitAPIStatus.OK)
        else:
            answer = PickleableHTTPException(failure.status_code, failure.detail)
            self._end(answer, LitAPIStatus.ERROR)

    def give_up(self) -> None:
        """Send nothing more: nobody is there to take it."""
        self.ended = True

    def time_out(self, limit: float | None) -> None:
        """Let the response end as that of a request which no worker has taken in time."""
        logger.error("request %s waited for a worker longer than %s seconds", self.uid, limit)
        self.fail(HTTPException(504, "Request timed out"))

    def _end(self, data: object, status: str) -> None:
        # An end that cannot be sent is none: the request is failed in its stead. If that cannot be
        # sent either, what the transport raises stops the worker, as it does in LitServe's loop.
        self._outbox.put(self._server, self.uid, data, status)
        self.ended = True


def fail(replies: Iterable[Reply], error: BaseException) -> None:
    """Fail the requests that have not ended, and log the error once for all of them.

    Raises:
        Exception: What the transport raised first, after each request was told, or tried to be.
    """
    concerned = [reply for reply in replies if not reply.ended]
    if concerned:
        _log(error, concerned)
    unsent: list[Exception] = []
    for reply in concerned:
        try:
            reply.fail(error)
        except Exception as transport_error:  # noqa: BLE001 - raised below
            unsent.append(transport_error)
    if unsent:
        raise unsent[0]


def _log(error: BaseException, replies: list[Reply]) -> None:
    uids = ", ".join(str(reply.uid) for reply in replies)
    if not isinstance(error, HTTPException | KeyboardInterrupt):
        logger.error("failed, and with it these requests: %s", uids, exc_info=error)
    elif any(reply.begun for reply in replies):
        # Before the first output it is an answer like another; now it comes too late to be seen.
        logger.warning("requests cut off in mid-stream by %s: %s", text_of(error), uids)


def _plain(data: object) -> str | bytes:
    """Return an output as what every transport and every client can take.

    Raises:
        TypeError: It is neither text nor bytes.
        UnicodeEncodeError: It is text with half a surrogate pair.
    """
    if isinstance(data, str):
        text = str.__str__(data)  # of a subclass the text alone: its class may not unpickle
        if not text.isascii():
            text.encode()
        return text
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    hint = ""
    if isinstance(data, list | tuple):
        hint = " (where it is called for each request, it yields one element at a time)"
    raise TypeError(
        f"encode_response gives each request str, bytes, a dict, a pydantic model or a marker, "
        f"got {type(data).__name__}{hint}"
    )
