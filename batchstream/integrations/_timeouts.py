"""How long a client allows for its request, as headers say it: for any framework of HTTP.

`X-Request-Timeout` has no standard; it is used with seconds. `grpc-timeout` is that of gRPC, see
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from batchstream._core.arguments import check_seconds
from batchstream._core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS: Final = "X-Request-Timeout"
_GRPC: Final = "grpc-timeout"

# No sign, exponent, infinity or underscore, which `float` takes; and no digits of other scripts.
_DECIMAL: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?")
_GRPC_FORM: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
_SHOWN: Final = 40
"""How much of a value an error shows."""

_GRPC_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class HeaderError(RequestError):
    """A header of the request cannot be read: the client has sent what it must not.

    The web integrations answer it with 400, and its text goes to the client.

    Attributes:
        header: The name of the header.
        value: What it says.
    """

    def __init__(self, message: str, *, header: str, value: str) -> None:
        super().__init__(message)
        self.header = header
        self.value = value


def timeout_of(headers: Mapping[str, str], *, at_most: float | None = None) -> float | None:
    """Return for how long a client allows its request to last, in seconds, by its headers.

    For one line in a handler: `batcher.astream(prompt, timeout=timeout_of(request.headers))`.
    `X-Request-Timeout` is a decimal number of seconds, such as `2.5`; `grpc-timeout` is that of
    gRPC, up to eight digits and a unit of `H`, `M`, `S`, `m`, `u` or `n`, such as `2500m`. The
    shorter of the two counts. A time of 0 is always too short, and so gets 504 like any other.

    Args:
        headers: The headers of the request, such as `request.headers` of Starlette and FastAPI. A
            mapping that does not ignore case is searched for both names in any case.
        at_most: The longest time that the server allows, in seconds, and what counts if the client
            says nothing; None for no limit.

    Returns:
        The time; None if neither the client nor the server limits it.

    Raises:
        HeaderError: One of the two cannot be read.
        TypeError, ValueError: `at_most` is no duration.
    """
    times = [] if at_most is None else [check_seconds("at_most", at_most)]
    seconds, grpc = _header(headers, _SECONDS), _header(headers, _GRPC)
    if seconds is not None:
        if _DECIMAL.fullmatch(seconds) is None:
            raise _unreadable(_SECONDS, seconds, "a decimal number of seconds, such as 2.5")
        times.append(float(seconds))
    if grpc is not None:
        found = _GRPC_FORM.fullmatch(grpc)
        if found is None:
            form = "up to 8 digits and a unit, one of H M S m u n, such as 2500m"
            raise _unreadable(_GRPC, grpc, form)
        times.append(int(found[1]) * _GRPC_UNITS[found[2]])
    return min(times, default=None)


def _header(headers: Mapping[str, Any], name: str) -> str | None:
    """Return what a header says, without the white space around it; None if there is none."""
    value = headers.get(name)
    if value is None:
        lower = name.lower()
        value = next((headers[key] for key in headers if str(key).lower() == lower), None)
    return None if value is None else str(value).strip(" \t")


def _unreadable(name: str, value: str, form: str) -> HeaderError:
    return HeaderError(
        f"the header {name} must be {form}, got {value[:_SHOWN]!r}", header=name, value=value
    )
