"""What LitServe's health check says while a server drains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchstream.integrations.litserve._server.watch import is_ending

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from litserve import LitAPI


class Health:
    """An API's `health`, but false from the moment at which the process is told to end.

    LitServe's `/health` asks every API, and answers 503 if one says False.

    Args:
        lit_api: The API.
    """

    def __init__(self, lit_api: LitAPI) -> None:
        self._lit_api = lit_api
        self._own = vars(lit_api).get("health")  # if it is no method of the class

    def __call__(self) -> bool | Awaitable[bool]:
        """Return whether the API is ready for requests, or what says it when it is awaited."""
        if is_ending():
            return False
        return self._own() if self._own is not None else type(self._lit_api).health(self._lit_api)


def watch_health(lit_api: LitAPI) -> None:
    """Let an API count as unhealthy while its server drains."""
    if not isinstance(lit_api.health, Health):
        lit_api.health = Health(lit_api)  # type: ignore[method-assign]
