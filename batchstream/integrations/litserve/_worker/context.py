"""In the worker: what a loop works with, whatever it serves."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from litserve import LitAPI
from litserve.loops.base import _inject_context
from litserve.utils import LitAPIStatus, LoopResponseType

from batchstream._core.errors import INTERRUPTS
from batchstream.integrations.litserve._link.link import exchange_of
from batchstream.integrations.litserve._server.endpoint import StreamingEndpoint
from batchstream.integrations.litserve._worker.disconnects import Departures
from batchstream.integrations.litserve._worker.outbox import Outbox
from batchstream.integrations.litserve._worker.reply import Reply, fail
from batchstream.integrations.litserve._worker.request import Encoding

if TYPE_CHECKING:
    from collections.abc import Callable

    from litserve.callbacks import CallbackRunner, EventTypes
    from litserve.loops.base import LitLoop
    from litserve.transport.base import MessageTransport

    from batchstream.integrations.litserve._options import Options
    from batchstream.integrations.litserve._worker.request import Member


class Desk:
    """An API, its hooks and callbacks, and the ways to and from its clients.

    Args:
        loop: Whose messages they are.
        lit_api: The API.
        transport: LitServe's, for messages to the server processes.
        callbacks: LitServe's.
        options: How the ends of streams are told.
        worker_id: Which worker this is; without it, no client ever leaves.

    Attributes:
        lit_api: The API.
        options: How the ends of streams are told.
        transport: LitServe's.
        outbox: For messages.
        departures: Who has left.
    """

    def __init__(
        self,
        loop: LitLoop,
        lit_api: LitAPI,
        *,
        transport: MessageTransport,
        callbacks: CallbackRunner,
        options: Options,
        worker_id: int | None,
    ) -> None:
        self.lit_api = lit_api
        self.options = options
        self._callbacks = callbacks
        self.transport = transport
        self._put: Callable[..., None] = partial(loop.put_response, transport)
        self.outbox = Outbox(self._put)
        self.departures = Departures()
        exchange = exchange_of(lit_api.spec)
        if exchange is not None and worker_id is not None:
            self.outbox = exchange.outbox(self._put, worker_id)
            self.departures = exchange.departures(worker_id)

    def reply_to(self, server: int, uid: object) -> Reply:
        """Return the way back to a client."""
        return Reply(self.outbox, server, uid, self.lit_api.spec)

    def acknowledge(self, server: int, uid: object) -> None:
        """Tell who has a request, for a server that restarts workers."""
        self._put(server, uid, (), LitAPIStatus.START, LoopResponseType.STREAMING)

    def is_late(self, submitted: float) -> bool:
        """Tell whether a request has waited in LitServe's queue for longer than it may."""
        limit = self.lit_api.request_timeout
        return limit not in (None, -1, False) and time.monotonic() - submitted > limit

    def trigger(self, event: EventTypes) -> None:
        """Run the callbacks for an event."""
        self._callbacks.trigger_event(  # type: ignore[no-untyped-call]
            event.value, lit_api=self.lit_api
        )

    def attempt(self, member: Member, action: Callable[[Member], None]) -> bool:
        """Do something for one request, tell whether it went well, and fail that request if not."""
        try:
            action(member)
        except INTERRUPTS:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, the others go on
            fail([member.reply], error)
            member.leave()
            return False
        return True

    # ---- hooks

    def populate(self, member: Member) -> None:
        """Let the spec fill a request's context, if it does that."""
        populate = getattr(self.lit_api.spec, "populate_context", None)
        if populate is not None:
            populate(member.context, member.value)

    def decode(self, member: Member) -> None:
        """Call `decode_request`, and ask for the request's limit."""
        decode = self.lit_api.decode_request
        member.value = _inject_context(member.context, decode, member.value)
        member.limit = self.options.limit_of(member.context)

    def begin_encoding(self, member: Member, look_ahead: Callable[[Member], bool]) -> None:
        """Call `encode_response` for one request, unless it would only pass outputs on."""
        if not self.encodes:
            return
        encode = self.lit_api.encode_response
        member.encoding = Encoding(partial(look_ahead, member))
        member.encoding.begin(partial(_inject_context, member.context, encode))

    @property
    def encodes(self) -> bool:
        """Whether outputs become something else before they are sent."""
        passes_on = self.lit_api.spec is None or isinstance(self.lit_api.spec, StreamingEndpoint)
        return self.overrides("encode_response") or not passes_on

    def overrides(self, hook: str) -> bool:
        """Whether the API has a hook of its own."""
        own = getattr(self.lit_api, hook)
        return getattr(own, "__func__", own) is not getattr(LitAPI, hook)
