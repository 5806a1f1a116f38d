"""Headers that every integration of HTTP reads and sends in the same way."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUEST_ID: Final = "x-request-id"

_FIT: Final = re.compile(r"[!-~]{1,128}")
"""Visible ASCII, and not much of it: what stands in logs must not be able to look like a line."""

_LEAST: Final = 1


def given_id(headers: Mapping[str, str]) -> str | None:
    """Return the id that a client or a proxy gave its request, as `X-Request-ID`.

    None if there is none, or none that can be logged.

    Args:
        headers: The headers of the request; the mapping ignores case.
    """
    value = headers.get(REQUEST_ID, "")
    return value if _FIT.fullmatch(value) else None


def retry_after(seconds: float | None) -> str:
    """Return what `Retry-After` says: whole seconds, and one at least.

    It says one where nothing was measured: another server may be free, or this one be back, at any
    time.

    Args:
        seconds: After how many there may be room; None if that is unknown.
    """
    return str(max(math.ceil(seconds or 0.0), _LEAST))
