"""What `priority` and the other functions of a loop are called with that order its queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request as a server process has received it, before any hook has seen it.

    Attributes:
        payload: What `decode_request` will be given: the JSON of the body, or what FastAPI has made
            of it by the annotation.
        headers: The headers of the HTTP request; their names in lower case.
        request_id: The client's name for it, as its `X-Request-ID` says; LitServe's uid without
            one.
    """

    payload: Any
    headers: Mapping[str, str]
    request_id: str
