"""From a worker to a server process: what is no output, in nothing but plain data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from batchstream import StreamEnd

_FINAL_STATUS = range(200, 600)


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer to a request that has failed.

    Attributes:
        status_code: The HTTP status.
        detail: Goes into the body as JSON.
        headers: Sent along.
    """

    status_code: int
    detail: Any
    headers: dict[str, str] | None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return what an `HTTPException` says, and for any other error that there was one."""
        if isinstance(error, HTTPException):
            try:
                status = int(error.status_code)
                if status in _FINAL_STATUS:
                    return cls(status, _plain_json(error.detail), _plain_headers(error.headers))
            except Exception:  # noqa: BLE001, S110 - a status or headers that are none
                pass
        return UNKNOWN


UNKNOWN = Failure(500, "Internal server error", None)
"""What a client is told of an error that is none of its business."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended that has not failed.

    Attributes:
        reason: A `FinishReason`, as text.
        info: What the model sent along.
    """

    reason: str
    info: dict[str, Any]

    @classmethod
    def of(cls, end: StreamEnd) -> Ending:
        """Return what there is to tell of an end; `info` as JSON has it."""
        info = _plain_json(None if end.info is None else dict(end.info))
        return cls(str(end.reason), info if isinstance(info, dict) else {})


def text_of(thing: object) -> str:
    """Return `str(thing)`, or its type where that raises."""
    try:
        return str(thing)
    except Exception:  # noqa: BLE001 - users' objects, some of which cannot be shown
        return f"<{type(thing).__name__} that cannot be shown>"


def _plain_json(detail: object) -> Any:
    try:
        return json.loads(json.dumps(detail, allow_nan=False))
    except Exception:  # noqa: BLE001 - what JSON cannot say is said in words
        return text_of(detail)


def _plain_headers(headers: Any) -> dict[str, str] | None:
    if not headers:
        return None
    encoded = {str(name): str(value).encode("latin-1") for name, value in headers.items()}
    return {name: value.decode("latin-1") for name, value in encoded.items()}
