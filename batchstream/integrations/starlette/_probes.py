"""What a load balancer or Kubernetes asks: whether to send requests to this server."""

from __future__ import annotations

from typing import TYPE_CHECKING

# FastAPI reads the types of an endpoint as the application starts.
from starlette.requests import Request
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batchstream import ContinuousBatcher, DynamicBatcher


def readiness(
    *batchers: DynamicBatcher | ContinuousBatcher,
) -> Callable[[Request], Awaitable[JSONResponse]]:
    """Return an endpoint that says whether batchers accept requests, and are warm.

    It responds with 200 if all of them are `ready`, else with 503, and always with the state of
    each, and its name if it has one, in their order:
    `{"ready": false, "batchers": [{"name": "chat", "state": "draining", "ready": false}]}`.
    It is a readiness probe. A server that drains is alive, so let a liveness probe ask another
    endpoint.

    Args:
        batchers: The batchers that the server needs; at least one.

    Raises:
        TypeError: There is none, or one is no batcher.

    Example:
        >>> import batchstream
        >>> from starlette.routing import Route
        >>> from batchstream.integrations.starlette import readiness
        >>> @batchstream.batched
        ... def spell(words):
        ...     yield from words
        >>> route = Route("/ready", readiness(spell))
    """
    if not batchers:
        raise TypeError("readiness takes the batchers of the server, got none")
    for batcher in batchers:
        if not (hasattr(batcher, "ready") and hasattr(batcher, "state")):
            raise TypeError(
                f"readiness takes batchers, which have a state, got {batcher!r}: "
                f"pass readiness(batcher) or readiness(one, other)"
            )

    async def ready(_: Request) -> JSONResponse:
        states = [_state_of(batcher) for batcher in batchers]
        is_ready = all(state["ready"] for state in states)
        return JSONResponse(
            {"ready": is_ready, "batchers": states},
            200 if is_ready else 503,
            {"cache-control": "no-store"},
        )

    return ready


def _state_of(batcher: DynamicBatcher | ContinuousBatcher) -> dict[str, str | bool]:
    name = {} if batcher.name is None else {"name": batcher.name}
    return {**name, "state": batcher.state, "ready": batcher.ready}
