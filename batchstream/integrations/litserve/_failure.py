"""From the worker to the server process: an error as its client may know it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

_FINAL_STATUS = range(200, 600)


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer to a request that has failed, in nothing but plain data.

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
        return cls(500, "Internal server error", None)


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
