"""In the main process, before any other starts: what an endpoint and its workers will share."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from batchstream.integrations.litserve._link.link import link_of
from batchstream.integrations.litserve._link.pipes import WorkerPipes
from batchstream.integrations.litserve._link.request_queue import start_queue
from batchstream.integrations.litserve._server.cuts import guard_count
from batchstream.integrations.litserve._server.router import MessageRouter
from batchstream.integrations.litserve._server.watch import begin_anew, drain_all
from batchstream.integrations.litserve._shutdown import install_signal_handlers

if TYPE_CHECKING:
    from litserve import LitServer

    from batchstream.integrations.litserve._link.link import Link

_SECONDS_TO_CUT: Final = 4.0
"""How much longer than the grace period a server process may take: to cut, and to clean up."""

_SECONDS_OF_LITSERVE: Final = 30.0

NEEDED_OF_SERVER: Final = ("response_buffer", "_get_request_queue", "_callback_runner")
"""What `responses.py` uses of a server, as LitServe's own `OpenAISpec` does."""

_UNORDERED: Final = (
    "; requests wait in the order of arrival, any number of them and for any time, whatever "
    "max_pending, priority, tenant, wait_timeout and the like say"
)


def check_server(link: Link, server: LitServer | None) -> None:
    """Find out whether an endpoint can use this server, and warn if it cannot."""
    guard_count(server)
    link.server = server
    if server is not None:
        _limit_shutdown(server)
    own_queue = () if link.ordering is None else ("litapi_request_queues",)
    missing = [name for name in (*NEEDED_OF_SERVER, *own_queue) if not hasattr(server, name)]
    link.usable = not missing
    if missing:
        unordered = "" if link.ordering is None else _UNORDERED
        warnings.warn(
            f"this LitServe has no LitServer.{missing[0]}: streams go on, but a client that "
            f"leaves is not noticed, and one whose stream fails gets status 200 and a response "
            f"that ends early{unordered}",
            RuntimeWarning,
            stacklevel=2,
        )


def _limit_shutdown(server: LitServer) -> None:
    """Let server processes end soon after the grace periods; LitServe gives them 30 seconds."""
    links = [link_of(lit_api.spec) for lit_api in getattr(server, "litapi_connector", ())]
    periods = [link.grace_period for link in links if link is not None]
    limit = max(periods, default=0.0) + _SECONDS_TO_CUT
    if None in links:  # requests of other APIs may take as long as before
        limit = max(limit, _patience_of(server))
    server.uvicorn_graceful_timeout = limit  # type: ignore[assignment]


def _patience_of(server: LitServer) -> float:
    """Return how many seconds LitServe lets its server processes take to end."""
    return getattr(server, "uvicorn_graceful_timeout", _SECONDS_OF_LITSERVE)


def connect(link: Link, server: LitServer, api_path: str) -> None:
    """Prepare for the workers that the main process is about to start, or to start again."""
    if not link.usable or link.response_buffer is server.response_buffer:
        return
    begin_anew()
    install_signal_handlers(partial(_has_started, link.server), drain_all, _patience_of(server))
    buffer: dict[Any, Any] = server.response_buffer
    link.response_buffer = buffer
    link.router_uid = f"batchstream:{api_path}"
    if link.ordering is not None:
        # Before the pipes: its process shall not have their ends.
        server.litapi_request_queues[api_path] = start_queue(
            link.max_pending, link.ordering.max_pending_per_tenant, link.ordering.max_pending_cost
        )
    try:
        workers = len(server._inference_workers_config_for_api(api_path))  # noqa: SLF001
    except AttributeError as error:
        warnings.warn(
            f"this LitServe does not say how many workers there are ({error}): streams go on, "
            f"but a client that leaves is not noticed",
            RuntimeWarning,
            stacklevel=2,
        )
    else:
        link.pipes = WorkerPipes(workers, _servers_of(link.server))
    buffer[link.router_uid] = MessageRouter(buffer, link.pipes)


def _has_started(server: LitServer | None) -> bool:
    """Return whether LitServe has begun to start server processes: it numbers them in its app."""
    return server is not None and getattr(server.app, "response_queue_id", None) is not None


def _servers_of(server: LitServer | None) -> int:
    """Return how many server processes LitServe will start; 0 if it does not say."""
    config = getattr(server, "transport_config", None)
    return int(getattr(config, "num_consumers", 0))
