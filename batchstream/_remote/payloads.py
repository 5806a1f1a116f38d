"""What the payloads of records hold: pickles, each of one request's.

Each payload is pickled and unpickled by itself, so that what cannot be fails its own request alone.
To unpickle runs code that the other end has chosen: see `_remote/sockets.py` for what that can be.
"""

from __future__ import annotations

import io
import pickle
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from batchstream._core.errors import (
    BatchStreamError,
    RequestError,
    SourceError,
    consumer_error,
    error_text,
    type_name,
)
from batchstream._core.markers import End
from batchstream._remote.errors import RemoteTraceback

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchstream._core.records import StreamEnd

_PICKLE = 5


class Terms(NamedTuple):
    """How a request was submitted.

    Attributes:
        timeout: See `stream` of a batcher, as for the other times.
        wait_timeout: The same.
        first_timeout: The same.
        gap_timeout: The same.
        request_id: What the caller calls it; None if it has only a number.
        is_patient: Whether it waits for room at the model, and is not refused: one of a `map`.
    """

    timeout: float | None = None
    wait_timeout: float | None = None
    first_timeout: float | None = None
    gap_timeout: float | None = None
    request_id: str | None = None
    is_patient: bool = False


def pickled(content: object) -> bytes:
    """Return a request as bytes.

    Raises:
        TypeError: It cannot be pickled.
    """
    try:
        return pickle.dumps(content, _PICKLE)
    except Exception as error:
        raise TypeError(
            f"a request to a model in another process has to be pickled, and "
            f"{type_name(content)} cannot be: {error_text(error)}"
        ) from error


def too_large(content: bytes, most: str) -> RequestError:
    """Return the error of a request that has more bytes than this, as the text has it."""
    return RequestError(
        f"the request has {len(content)} bytes as it is pickled, and with how it is submitted more "
        f"than {most}"
    )


def submission(terms: Terms, content: bytes) -> bytes:
    """Return the payload of a request that was pickled."""
    return pickle.dumps(tuple(terms), _PICKLE) + content


def read_submission(payload: bytes) -> tuple[Terms, Any]:
    """Return how a request was submitted, and the request.

    Raises:
        SourceError: It cannot be unpickled here.
    """
    source = io.BytesIO(payload)
    try:
        terms = Terms(*pickle.load(source))  # noqa: S301 - see above
        return terms, pickle.load(source)  # noqa: S301
    except Exception as error:
        raise SourceError(
            f"the request cannot be unpickled in the model's process: {_said(error)}"
        ) from error


def pickled_outputs(outputs: Sequence[object]) -> bytes:
    """Return the payload of outputs.

    Raises:
        SourceError: One cannot be pickled.
    """
    try:
        return pickle.dumps(outputs, _PICKLE)
    except Exception as error:
        raise SourceError(
            f"an output cannot be pickled for the process that serves its client: {_said(error)}"
        ) from error


def read_outputs(payload: bytes) -> list[Any]:
    """Return outputs.

    Raises:
        SourceError: One cannot be unpickled here.
    """
    try:
        outputs: list[Any] = pickle.loads(payload)  # noqa: S301
    except Exception as error:
        raise SourceError(f"an output cannot be unpickled: {_said(error)}") from error
    return outputs


def pickled_end(end: StreamEnd) -> bytes:
    """Return the payload of an end that is no error.

    Raises:
        SourceError: Its info cannot be pickled.
    """
    try:
        return pickle.dumps((str(end.reason), end.outputs, end.info), _PICKLE)
    except Exception as error:
        raise SourceError(
            f"the info of a stream's end cannot be pickled for the process that serves its client: "
            f"{_said(error)}"
        ) from error


def read_end(payload: bytes) -> tuple[End, int]:
    """Return an end, and how many outputs the model has given by then.

    Raises:
        SourceError: It cannot be unpickled here.
    """
    try:
        reason, outputs, info = pickle.loads(payload)  # noqa: S301
        return End(reason, info), int(outputs)
    except Exception as error:
        raise SourceError(f"the end of a stream cannot be unpickled: {_said(error)}") from error


def pickled_error(error: BaseException) -> bytes:
    """Return the payload of an error: the error if it can be pickled, and else what it says."""
    own = consumer_error(error)
    text = error_text(own)
    try:
        whole = pickle.dumps(own, _PICKLE)
        pickle.loads(whole)  # noqa: S301 - it was pickled a moment ago; its class may refuse
    except Exception:  # noqa: BLE001 - the error is the user's: its text has to do
        whole = b""
    shown = ""
    if error.__traceback__ is not None and not isinstance(error, BatchStreamError):
        shown = "".join(traceback.format_exception(error))
    return pickle.dumps((whole, type_name(error), text, shown), _PICKLE)


def read_error(payload: bytes) -> Exception:
    """Return an error, of its own type if it can be unpickled here."""
    error: object = None
    kind, text, shown = "an error", "it cannot be unpickled", ""
    try:
        whole, kind, text, shown = pickle.loads(payload)  # noqa: S301
        error = pickle.loads(whole) if whole else None  # noqa: S301
    except Exception:  # noqa: BLE001 - its class is not to be had here, perhaps
        error = None
    if not isinstance(error, Exception):
        error = SourceError(f"the model failed with {kind}: {text}")
    if shown:
        error.__cause__ = RemoteTraceback(shown)
    return error


def _said(error: Exception) -> str:
    return f"{type_name(error)}: {error_text(error)}"
