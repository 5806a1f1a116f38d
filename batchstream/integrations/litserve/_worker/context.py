"""What everything in a worker works with."""

from __future__ import annotations

import time
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from litserve import LitAPI
from litserve.utils import LitAPIStatus, LoopResponseType

from batchstream._batching.telemetry.metrics import MetricsCaller
from batchstream._batching.telemetry.traces import TracesCaller
from batchstream.integrations.litserve._link.link import link_of
from batchstream.integrations.litserve._worker.disconnects import Disconnects
from batchstream.integrations.litserve._worker.outbox import Outbox, SendWindow

if TYPE_CHECKING:
    from collections.abc import Callable

    from litserve.callbacks import CallbackRunner
    from litserve.loops.base import LitLoop
    from litserve.transport.base import MessageTransport

    from batchstream.integrations.litserve._options import LoopOptions


class WorkerContext:
    """An API, its callbacks, and the ways to and from its clients.

    Args:
        loop: Makes the messages.
        lit_api: The API.
        options: The loop's.
        transport: LitServe's, for messages to the server processes.
        callbacks: LitServe's.
        worker: The number of this worker; without it, no client ever disconnects.

    Attributes:
        lit_api: The API.
        options: The loop's.
        name: What metrics and the log call the API.
        transport: LitServe's.
        trigger: Runs the callbacks for an event.
        format_output: The API's `format_encoded_response`.
        link: To an endpoint that understands the messages of this package.
        outbox: For messages.
        disconnects: The requests whose clients have disconnected.
        metrics: Calls the user's metrics, which are made here; None for no metrics.
        traces: Calls the user's traces; None for no traces.
        encodes: Whether outputs become something else before they are sent.
        sends_text: Whether what is sent has to be text or bytes: an endpoint of this package takes
            nothing else, and neither does LitServe's own.
        marks_json: Whether what is sent of a dict is marked as JSON, for functions of the user's
            that are called in the server process.

    Raises:
        Exception: What the loop's `metrics` raises.
    """

    def __init__(
        self,
        loop: LitLoop,
        lit_api: LitAPI,
        options: LoopOptions,
        *,
        transport: MessageTransport,
        callbacks: CallbackRunner,
        worker: int | None,
    ) -> None:
        self.lit_api = lit_api
        self.options = options
        self.name = options.name or lit_api.api_path or ""
        self.transport = transport
        self.format_output: Callable[[Any], object] = lit_api.format_encoded_response
        self.trigger: Callable[[str], None] = partial(callbacks.trigger_event, lit_api=lit_api)
        self._put_response: Callable[..., None] = partial(loop.put_response, transport)
        self.link = link = link_of(lit_api.spec)
        if link is None or worker is None:
            self.outbox = Outbox(self._put_response)
            self.disconnects = Disconnects()
        else:
            receipts, disconnects = link.pipes_of(worker)
            window = SendWindow(receipts)
            self.outbox = Outbox(self._put_response, link.router_uid, worker, window)
            self.disconnects = Disconnects(disconnects)
        self.metrics: MetricsCaller | None = None
        if options.metrics is not None:
            self.metrics = MetricsCaller(options.metrics, self.name)
            self.metrics.make(copy_context())
        self.traces: TracesCaller | None = None
        if options.traces is not None:
            self.traces = TracesCaller(options.traces, options.name or lit_api.api_path or "")
        has_spec = lit_api.spec is not None
        passes_outputs_on = getattr(lit_api.spec, "passes_outputs_on", not has_spec)
        self.encodes = self.overrides("encode_response") or not passes_outputs_on
        self.sends_text = link is not None or not has_spec
        functions = () if link is None else (link.bound.merge, link.bound.size_of)
        calls_functions = any(function is not None for function in functions)
        self.marks_json = calls_functions and not self.overrides("format_encoded_response")

    def claim(self, server: int, uid: object) -> None:
        """Let a server process know that this worker has a request, and watch that process.

        If either of them is killed, the other one is not served, or serves, in vain.

        Threads: from any.
        """
        if self.link is not None and self.link.pipes is not None:
            self.link.pipes.claim(server, uid)
            self.disconnects.watch_server_of(uid)

    def note_reported(self, server: int, uid: object) -> None:
        """Let a server process know that this worker has reported the end of a request."""
        if self.link is not None and self.link.pipes is not None:
            self.link.pipes.note_reported(server, uid)

    def acknowledge(self, server: int, uid: object) -> None:
        """Say that this worker has a request, to a server that restarts workers."""
        self._put_response(server, uid, (), LitAPIStatus.START, LoopResponseType.STREAMING)

    def is_late(self, submitted: float) -> bool:
        """Return whether a request has waited in LitServe's queue for longer than it may."""
        limit = self.lit_api.request_timeout
        return limit not in (None, -1, False) and time.monotonic() - submitted > limit

    def overrides(self, hook: str) -> bool:
        """Return whether the API has a hook of its own."""
        own: Any = getattr(self.lit_api, hook)
        return getattr(own, "__func__", own) is not getattr(LitAPI, hook)
