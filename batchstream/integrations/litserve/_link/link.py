"""What an API's endpoint and its workers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from batchstream._core.arguments import UNLIMITED, Bound
from batchstream.integrations.litserve._link.ordering import Ordering

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from litserve import LitServer
    from litserve.specs.base import LitSpec

    from batchstream import Metrics, Traces
    from batchstream.integrations.litserve._link.pipes import WorkerPipes


DEFAULT_GRACE_PERIOD: Final = 5.0
"""Less than what Docker and others give a program between SIGTERM and SIGKILL."""

UNBOUNDED: Final = Bound(UNLIMITED, "cancel")
"""Any number of messages may wait for a client."""


class Link:
    """The options of the endpoint, and the ways from the workers to it and back.

    It is made with the API in the main process. Server processes inherit it by fork, workers get
    it by spawn, without what belongs to the server.

    Args:
        max_pending: How many requests may wait in LitServe's queue; None for any number.
        bound: How much may wait for a client, and what happens to what comes then.
        sends_ends: Whether a worker sends how each request ended, as an `EndMessage`.
        grace_period: How many seconds open responses may take when the server is told to end.
        decodes: Whether the workers look for the stop strings that a client asks for.
        first_timeout: After how many seconds a request has to have an output; None for any time.
        gap_timeout: How many seconds there may be between two outputs; None for any time.
        metrics: Makes the metrics of a process; None for no metrics.
        traces: The user's; None for no traces.
        name: What metrics call the API; its path without one.
        ordering: Says where each request stands among the waiting requests; None for the order of
            arrival.
        wait_timeout: After how many seconds a request has to have reached a worker; None for any
            time.

    Attributes:
        usable: Whether the endpoint understands the messages of this package.
        router_uid: The key of the message router in LitServe's response buffer; without it, each
            message is sent by itself.
        pipes: To the workers; None if LitServe does not say how many there are.
        server: LitServe's, which the endpoint belongs to.
        response_buffer: LitServe's, of the server that the link was last set up for.
        ordering: That of the API's own queue; None if it has LitServe's. Its own is one for all
            server processes, so that bounds count what waits in all of them, and what is given up
            can be taken out.
    """

    def __init__(
        self,
        max_pending: int | None,
        bound: Bound,
        *,
        sends_ends: bool = False,
        grace_period: float = DEFAULT_GRACE_PERIOD,
        decodes: bool = False,
        first_timeout: float | None = None,
        gap_timeout: float | None = None,
        metrics: Callable[[], Metrics] | None = None,
        traces: Traces | None = None,
        name: str | None = None,
        ordering: Ordering | None = None,
        wait_timeout: float | None = None,
    ) -> None:
        self.max_pending = max_pending
        self.bound = bound
        self.sends_ends = sends_ends
        self.grace_period = grace_period
        self.decodes = decodes
        self.first_timeout = first_timeout
        self.gap_timeout = gap_timeout
        self.metrics = metrics
        self.traces = traces
        self.name = name
        if ordering is None and any(it is not None for it in (max_pending, wait_timeout)):
            ordering = Ordering()
        self.ordering = ordering
        self.wait_timeout = wait_timeout
        self.usable = True
        self.router_uid: str | None = None
        self.pipes: WorkerPipes | None = None
        self.server: LitServer | None = None
        self.response_buffer: dict[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"server": None, "response_buffer": None}

    def pipes_of(self, worker: int) -> tuple[Connection | None, Connection | None]:
        """Return a worker's ends of its pipes: of receipts, and of disconnects."""
        pipes = self.pipes
        if pipes is None:
            return None, None
        return _of_worker(worker, pipes.receipts), _of_worker(worker, pipes.disconnects)


def link_of(spec: LitSpec | None) -> Link | None:
    """Return the link of an endpoint that understands the messages of this package."""
    link = getattr(spec, "link", None)
    return link if isinstance(link, Link) and link.usable else None


def _of_worker(worker: int, pipes: list[Connection]) -> Connection | None:
    return pipes[worker] if worker < len(pipes) else None
