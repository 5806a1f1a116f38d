"""The id that a client or a proxy gave a request, for errors and logs."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

from batchstream.integrations._headers import given_id

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection


def request_id(request: HTTPConnection) -> str:
    """Return the id of a request, for `request_id` of a batcher's `astream`.

    That is what the header `X-Request-ID` says, if it is 128 visible ASCII characters at most; else
    a random one. It is the same at each call for one request.

    Args:
        request: The request, or a WebSocket.

    Blocking: never.
    Threads: any.
    """
    state = request.scope.setdefault("state", {})
    found: str | None = state.get(_KEY)
    if found is None:
        found = given_id(request.headers) or uuid.uuid4().hex
        state[_KEY] = found
    return found


_KEY: Final = "batchstream.request_id"
