"""Wire format of the messages between workers and server processes: plain data only.

A message crosses a third process on its way, and its client need not have the user's classes. So
it holds text, bytes and JSON values, and nothing that might not pickle or unpickle.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from starlette.exceptions import HTTPException

from batchstream import DeadlineError, RequestError, SlowConsumerError
from batchstream.integrations._timeouts import HeaderError

if TYPE_CHECKING:
    from batchstream import StreamEnd

Message: TypeAlias = "tuple[object, object, str]"
"""The uid of a request, an output or an end, and the LitServe status that belongs to it."""

MessageBatch: TypeAlias = "tuple[int | None, int, list[Message]]"
"""Messages that travel together: the worker, the server process, and the messages in order."""

_DASHES_OF_UUID: Final = 4

_FINAL_STATUS: Final = range(200, 600)

# A uid, two words, two numbers and what the pipe adds take less than 110 more.
_MOST_BYTES_OF_TEXT: Final = 400

_BAD_REQUEST: Final = 400
_UNPROCESSABLE: Final = 422


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer to a request that has failed.

    Attributes:
        status_code: The HTTP status.
        detail: Goes into the body as JSON.
        headers: Sent along.
        rejects: Whether the request itself is at fault, by a `RequestError`.
    """

    status_code: int
    detail: Any
    headers: dict[str, str] | None
    rejects: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return what an `HTTPException` or a `RequestError` says; `UNKNOWN` for other errors."""
        if isinstance(error, RequestError):
            status = _BAD_REQUEST if isinstance(error, HeaderError) else _UNPROCESSABLE
            return cls(status, text_of(error), None, rejects=True)
        if isinstance(error, HTTPException):
            try:
                status = int(error.status_code)
                if status in _FINAL_STATUS:
                    return cls(status, _plain_json(error.detail), _plain_headers(error.headers))
            except Exception:  # noqa: BLE001, S110 - the status or the headers are invalid
                pass
        return UNKNOWN


UNKNOWN: Final = Failure(500, "Internal server error", None)
"""The answer that keeps the text of an error from the client."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A request on its way to a worker, with what the worker has to know besides.

    A request with nothing besides goes without one.

    Attributes:
        payload: The request, as the endpoint received it.
        request_id: The client's name for it.
        tenant: Whose it is.
        carrier: The trace context of the call that received it.
    """

    payload: Any
    request_id: str
    tenant: str | bytes | int | None = None
    carrier: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class EndMessage:
    """How a request ended that has not failed: a `StreamEnd` as plain data.

    Attributes:
        reason: A `FinishReason`, as text.
        info: What the model sent along.
    """

    reason: str
    info: dict[str, Any]

    @classmethod
    def of(cls, end: StreamEnd) -> EndMessage:
        """Return the reason and the info of an end, `info` converted to JSON values."""
        info = _plain_json(None if end.info is None else dict(end.info))
        return cls(str(end.reason), info if isinstance(info, dict) else {})


class Departure(NamedTuple):
    """What a server process tells workers of a request that nothing waits for any more.

    Attributes:
        uid: The request's.
        error: With what the server process has failed it; None if its client has left. In the
            worker it is a `DeadlineError`, a `SlowConsumerError`, a `RequestError`, or for any
            other an `HTTPException` that says the answer.
        is_reported: Whether the server process has reported its end to the metrics.
    """

    uid: str
    error: Exception | None = None
    is_reported: bool = False

    def as_bytes(self) -> bytes:
        """Return what is written into a pipe: short enough to go in one piece."""
        kind, number, text = _words_of(self.error)
        encoded = text.encode(errors="replace")[:_MOST_BYTES_OF_TEXT]
        encoded = encoded.decode(errors="ignore").encode()  # without half a character
        return f"{self.uid} {self.is_reported:d} {kind} {number} ".encode() + encoded

    @classmethod
    def of(cls, message: bytes) -> Departure:
        """Return what was written.

        Raises:
            ValueError: It is nothing of the kind.
        """
        uid, is_reported, kind, number, text = message.decode().split(" ", 4)
        return cls(uid, _error_of(kind, number, text), is_reported == "1")


_LEFT: Final = "left"
_DEADLINE: Final = "deadline"
_SLOW: Final = "slow"
_REQUEST_ERROR: Final = "request_error"
_ERROR: Final = "error"


def _words_of(error: Exception | None) -> tuple[str, float, str]:
    """Return what an error is called in a departure, a number of its own, and its text."""
    if error is None:
        return _LEFT, 0, ""
    if isinstance(error, DeadlineError):
        return _DEADLINE, error.timeout, text_of(error)
    if isinstance(error, SlowConsumerError):
        return _SLOW, error.max_buffered, text_of(error)
    failure = Failure.of(error)
    kind = _REQUEST_ERROR if failure.rejects else _ERROR
    return kind, failure.status_code, text_of(failure.detail)


def _error_of(kind: str, number: str, text: str) -> Exception | None:
    """Return the error of which `_words_of` has returned this.

    Raises:
        ValueError: It has not.
    """
    if kind == _LEFT:
        return None
    if kind == _DEADLINE:
        return DeadlineError(text, timeout=float(number))
    if kind == _SLOW:
        return SlowConsumerError(text, slot=-1, max_buffered=int(number))
    if kind == _REQUEST_ERROR:
        return RequestError(text)
    if kind == _ERROR:
        return HTTPException(int(number), text)
    raise ValueError(f"a departure for no known reason: {kind!r}")


def new_uid() -> str:
    """Return a name for a request, which also says which server process it waits in."""
    return f"{os.getpid()}-{uuid.uuid4()}"


def server_pid_of(uid: object) -> int | None:
    """Return the id of the server process that has named a request; None if it is not ours."""
    pid, _, name = str(uid).partition("-")
    # A plain UUID has four dashes; what follows ours has these.
    return int(pid) if name.count("-") == _DASHES_OF_UUID and pid.isdecimal() else None


def text_of(thing: object) -> str:
    """Return `str(thing)`, or the name of its type if that raises."""
    try:
        return str(thing)
    except Exception:  # noqa: BLE001 - the __str__ of a user's object may raise anything
        return f"<{type(thing).__name__} that cannot be shown>"


def _plain_json(detail: object) -> Any:
    try:
        return json.loads(json.dumps(detail, allow_nan=False))
    except Exception:  # noqa: BLE001 - not JSON: its text is sent instead
        return text_of(detail)


def _plain_headers(headers: Any) -> dict[str, str] | None:
    if not headers:
        return None
    encoded = {str(name): str(value).encode("latin-1") for name, value in headers.items()}
    return {name: value.decode("latin-1") for name, value in encoded.items()}
