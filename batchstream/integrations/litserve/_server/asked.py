"""What a client asks for besides its request, in the headers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException

from batchstream.integrations._headers import REQUEST_ID, given_id
from batchstream.integrations._timeouts import HeaderError, timeout_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request


@dataclass(frozen=True, slots=True)
class Asked:
    """What the headers of a request say.

    Attributes:
        headers: All of them.
        request_id: The client's, or a proxy's, name for the request.
        timeout: After how many seconds the request has to have ended; None for any time.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None
    timeout: float | None = None

    @classmethod
    def of(cls, request: Request) -> Asked:
        """Read the headers.

        Raises:
            HTTPException: 400, a timeout cannot be read.
        """
        headers = request.headers
        name = given_id(headers)
        try:
            timeout = timeout_of(headers)
        except HeaderError as error:
            answered = None if name is None else {REQUEST_ID: name}
            raise HTTPException(400, str(error), answered) from error
        return cls(headers, name, timeout)


NOTHING: Final = Asked()
