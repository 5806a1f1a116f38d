"""What a loop works with in its worker, whatever it serves."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from litserve import LitAPI
from litserve.loops.base import _inject_context
from litserve.utils import LitAPIStatus, LoopResponseType

from batchstream._core.errors import INTERRUPTS
from batchstream.integrations.litserve._link.link import link_of
from batchstream.integrations.litserve._link.pipes import WorkerPipes
from batchstream.integrations.litserve._worker.disconnects import Disconnects
from batchstream.integrations.litserve._worker.encoder import RequestEncoder
from batchstream.integrations.litserve._worker.outbox import Outbox, SendWindow
from batchstream.integrations.litserve._worker.reply import Reply, fail_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from litserve.callbacks import CallbackRunner, EventTypes
    from litserve.loops.base import LitLoop
    from litserve.transport.base import MessageTransport

    from batchstream.integrations.litserve._options import LoopOptions
    from batchstream.integrations.litserve._worker.request import ServedRequest


class WorkerContext:
    """An API, its hooks and callbacks, and the ways to and from its clients.

    Args:
        loop: Makes the messages.
        lit_api: The API.
        transport: LitServe's, for messages to the server processes.
        callbacks: LitServe's.
        options: The loop's.
        worker: The number of this worker; without it, no client ever disconnects.

    Attributes:
        lit_api: The API.
        options: The loop's.
        transport: LitServe's.
        outbox: For messages.
        disconnects: The requests whose clients have disconnected.
        encodes: Whether outputs become something else before they are sent.
    """

    def __init__(
        self,
        loop: LitLoop,
        lit_api: LitAPI,
        *,
        transport: MessageTransport,
        callbacks: CallbackRunner,
        options: LoopOptions,
        worker: int | None,
    ) -> None:
        self.lit_api = lit_api
        self.options = options
        self.transport = transport
        self._callbacks = callbacks
        self._put_response: Callable[..., None] = partial(loop.put_response, transport)
        self._link = link = link_of(lit_api.spec)
        if link is None or worker is None:
            self.outbox = Outbox(self._put_response)
            self.disconnects = Disconnects()
        else:
            pipes = link.pipes or WorkerPipes(0)
            self.outbox = Outbox(
                self._put_response,
                router_uid=link.router_uid,
                worker=worker,
                window=SendWindow(_pipe_of(worker, pipes.receipts)),
            )
            self.disconnects = Disconnects(_pipe_of(worker, pipes.disconnects))
        passes_outputs_on = lit_api.spec is None or getattr(
            lit_api.spec, "passes_outputs_on", False
        )
        self.encodes = self.overrides("encode_response") or not passes_outputs_on

    def reply_to(self, server: int, uid: object) -> Reply:
        """Return the way back to a client."""
        return Reply(
            self.outbox,
            server,
            uid,
            formatted=self.lit_api.format_encoded_response,
            link=self._link,
            sends_text=self._link is not None or self.lit_api.spec is None,
        )

    def acknowledge(self, server: int, uid: object) -> None:
        """Say that this worker has a request, to a server that restarts workers."""
        self._put_response(server, uid, (), LitAPIStatus.START, LoopResponseType.STREAMING)

    def is_late(self, submitted: float) -> bool:
        """Return whether a request has waited in LitServe's queue for longer than it may."""
        limit = self.lit_api.request_timeout
        return limit not in (None, -1, False) and time.monotonic() - submitted > limit

    def trigger(self, event: EventTypes) -> None:
        """Run the callbacks for an event."""
        self._callbacks.trigger_event(  # type: ignore[no-untyped-call]
            event.value, lit_api=self.lit_api
        )

    def attempt(self, request: ServedRequest, action: Callable[[ServedRequest], None]) -> bool:
        """Do something for one request, and fail that request alone if it raises.

        Returns:
            Whether it did not raise.
        """
        try:
            action(request)
        except INTERRUPTS:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, the other requests go on
            self.fail(request, error)
            return False
        return True

    def fail(self, request: ServedRequest, error: BaseException) -> None:
        """Fail one request."""
        fail_all([request.reply], error)
        request.release()

    # ---- hooks

    def populate(self, request: ServedRequest) -> None:
        """Let the spec fill a request's context, if it has a method for that."""
        populate = getattr(self.lit_api.spec, "populate_context", None)
        if populate is not None:
            populate(request.context, request.content)

    def decode(self, request: ServedRequest) -> None:
        """Call `decode_request`, and ask for the request's limit."""
        decode = self.lit_api.decode_request
        request.content = _inject_context(request.context, decode, request.content)
        request.limit = self.options.limit_of(request.context)

    def begin_encoding(
        self, request: ServedRequest, look_ahead: Callable[[ServedRequest], bool]
    ) -> None:
        """Call `encode_response` for one request, unless it would only pass outputs on."""
        if self.encodes:
            encode = self.lit_api.encode_response
            request.encoder = RequestEncoder(partial(look_ahead, request))
            request.encoder.begin(partial(_inject_context, request.context, encode))

    def overrides(self, hook: str) -> bool:
        """Return whether the API has a hook of its own."""
        own: Any = getattr(self.lit_api, hook)
        return getattr(own, "__func__", own) is not getattr(LitAPI, hook)


def _pipe_of(worker: int, pipes: list[Connection]) -> Connection | None:
    return pipes[worker] if worker < len(pipes) else None
