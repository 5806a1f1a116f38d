"""The way back to one client, and the failure of several requests at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litserve.utils import LitAPIStatus, PickleableHTTPException
from starlette.exceptions import HTTPException

from batchstream.integrations.litserve._link.messages import EndMessage, Failure, text_of
from batchstream.integrations.litserve._log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from batchstream import StreamEnd
    from batchstream.integrations.litserve._link.link import Link
    from batchstream.integrations.litserve._worker.outbox import Outbox


class Reply:
    """Any number of outputs, then exactly one end. What comes after the end is ignored.

    The methods that end it raise what the transport raises.

    Args:
        outbox: For its messages.
        server: LitServe's number for the server process that waits for them.
        uid: LitServe's name for the request, text or a UUID.
        formatted: The API's `format_encoded_response`.
        link: To an endpoint that understands the messages of this package.
        sends_text: Whether outputs have to be text or bytes, as they have for an endpoint of this
            package and for LitServe's own.

    Attributes:
        uid: LitServe's name for the request.
        begun: Whether an output has been sent.
        ended: Whether an end has been sent, or nothing more is to be.
    """

    __slots__ = (
        "_formatted",
        "_link",
        "_outbox",
        "_sends_text",
        "_server",
        "begun",
        "ended",
        "uid",
    )

    def __init__(
        self,
        outbox: Outbox,
        server: int,
        uid: object,
        *,
        formatted: Callable[[Any], object],
        link: Link | None,
        sends_text: bool,
    ) -> None:
        self._outbox = outbox
        self._server = server
        self._formatted = formatted
        self._link = link
        self._sends_text = sends_text
        self.uid = uid
        self.begun = False
        self.ended = False

    def put(self, output: object) -> None:
        """Send an output.

        Raises:
            Exception: It cannot be formatted or sent.
        """
        if self.ended:
            return
        data = self._formatted(output)
        if self._sends_text and not (type(data) is str and data.isascii()):
            data = _text_or_bytes(data)
        self._outbox.put(self._server, self.uid, data, LitAPIStatus.OK)
        self.begun = True

    def finish(self, end: StreamEnd) -> None:
        """End the response as complete."""
        if not self.ended:
            sends_ends = self._link is not None and self._link.sends_ends
            self._end(EndMessage.of(end) if sends_ends else "", LitAPIStatus.FINISH_STREAMING)

    def fail(self, error: BaseException) -> None:
        """End the response as failed."""
        if self.ended:
            return
        failure = Failure.of(error)
        if self._link is not None:
            self._end(failure, LitAPIStatus.OK)
        else:
            exception = PickleableHTTPException(failure.status_code, failure.detail)
            self._end(exception, LitAPIStatus.ERROR)

    def abandon(self) -> None:
        """Send nothing more: the client has disconnected."""
        self.ended = True

    def time_out(self, limit: float | None) -> None:
        """Fail a request that no worker has taken in time."""
        logger.error("request %s waited for a worker longer than %s seconds", self.uid, limit)
        self.fail(HTTPException(504, "Request timed out"))

    def _end(self, data: object, status: str) -> None:
        # An end that cannot be sent does not count: the request fails instead. If the failure
        # cannot be sent either, the transport's error stops the worker, as in LitServe's loop.
        self._outbox.put(self._server, self.uid, data, status)
        self.ended = True


def fail_all(replies: Iterable[Reply], error: BaseException) -> None:
    """Fail the requests that have not ended, and log the error once for all of them.

    Raises:
        Exception: What the transport raised first, after every request has been tried.
    """
    open_replies = [reply for reply in replies if not reply.ended]
    if open_replies:
        _log(error, open_replies)
    transport_errors: list[Exception] = []
    for reply in open_replies:
        try:
            reply.fail(error)
        except Exception as transport_error:  # noqa: BLE001 - raised below
            transport_errors.append(transport_error)
    if transport_errors:
        raise transport_errors[0]


def _log(error: BaseException, replies: list[Reply]) -> None:
    uids = ", ".join(str(reply.uid) for reply in replies)
    if not isinstance(error, HTTPException | KeyboardInterrupt):
        logger.error("an error has failed these requests: %s", uids, exc_info=error)
    elif any(reply.begun for reply in replies):
        # Before the first output it is an answer like any other; now its client cannot see it.
        logger.warning("requests cut off in mid-stream by %s: %s", text_of(error), uids)


def _text_or_bytes(data: object) -> str | bytes:
    """Return an output as a type that every transport and every client can take.

    Raises:
        TypeError: It is neither text nor bytes.
        UnicodeEncodeError: It is text with half a surrogate pair.
    """
    if isinstance(data, str):
        text = str.__str__(data)  # the text of a subclass alone: its class may not unpickle
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
