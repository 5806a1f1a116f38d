"""In the worker: an engine whose slots are refilled between two steps."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from litserve.callbacks import EventTypes

from batchstream import Delivery, Demultiplexer
from batchstream._batching.engine import Engine
from batchstream._core.errors import INTERRUPTS
from batchstream.integrations.litserve._worker.queue import Arrivals
from batchstream.integrations.litserve._worker.request import Member
from batchstream.integrations.litserve._worker.serving import Serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import Queue

    from litserve import LitAPI

    from batchstream import StepEngine
    from batchstream.integrations.litserve._worker.context import Desk


class ContinuousServing(Serving):
    """Requests that join an engine and leave it, for as long as the worker lives.

    Args:
        desk: What the loop works with.
        make_engine: Makes an engine for the API.
        request_queue: Where requests come from.
    """

    def __init__(
        self,
        desk: Desk,
        make_engine: Callable[[LitAPI], StepEngine[Any, Any]],
        request_queue: Queue[Any],
    ) -> None:
        super().__init__(desk)
        self._size = desk.lit_api.max_batch_size
        self._context = copy_context()
        self._engine = Engine(partial(make_engine, desk.lit_api)).use(self._context)
        self._start_over()
        self._joining: deque[tuple[int, object, float, Any]] = deque()
        self._arrivals = Arrivals(request_queue, self._size)

    def serve(self) -> None:
        """Serve requests until LitServe stops the loop.

        Raises:
            BaseException: What stops a program, from any hook or the engine; the requests have
                been told. Or what the queue or the transport raises.
        """
        try:
            self._run()
        except BaseException as error:
            waiting = [*self._joining, *self._arrivals.close()]
            with suppress(Exception):  # where a worker is being stopped, its transport may be gone
                self._break_off([self._desk.reply_to(*request[:2]) for request in waiting], error)
                self._desk.outbox.flush(entirely=True)
            raise
        finally:
            self._engine.close()

    def _start_over(self) -> None:
        self._core: Demultiplexer[Any] = Demultiplexer(
            self._size, vacant=True, **self._desk.options.ends
        )
        self._free = list(reversed(range(self._size)))  # the lowest comes last, and is taken first

    def _pull(self) -> Delivery[Any] | None:
        while True:
            if not self._core.has_live:  # it may wait for long
                self._desk.outbox.flush(entirely=True)
            self._free += self._engine.keep(self._core.live)
            self._joining.extend(self._arrivals.take(block=not self._core.has_live))
            while self._joining:
                if not self._let_join(*self._joining[0]):
                    self._arrivals.free_seat()
                self._joining.popleft()
            if self._core.has_live:
                return self._step()
            if self._arrivals.over:
                return None

    def _vacate(self, slot: int) -> None:
        if self._core.cancel(slot).ends:
            self._arrivals.free_seat()

    def _let_join(self, server: int, uid: object, submitted: float, request: object) -> bool:
        """Let a request join, and tell whether it did."""
        desk = self._desk
        member = Member(desk.reply_to(server, uid), request)
        desk.acknowledge(server, uid)
        if uid in desk.departures:
            return False
        if desk.is_late(submitted):
            member.reply.time_out(desk.lit_api.request_timeout)
            return False
        return desk.attempt(member, self._join)

    def _join(self, member: Member) -> None:
        desk = self._desk
        desk.populate(member)
        desk.trigger(EventTypes.BEFORE_DECODE_REQUEST)
        desk.decode(member)
        desk.trigger(EventTypes.AFTER_DECODE_REQUEST)
        desk.begin_encoding(member, self._look_ahead)
        slot = self._free[-1]
        self._engine.use(self._context).add(slot, member.value)
        self._core.open(slot, max_outputs=member.limit)
        self._seat(self._free.pop(), member)

    def _step(self) -> Delivery[Any]:
        desk, core = self._desk, self._core
        desk.trigger(EventTypes.BEFORE_PREDICT)
        try:
            step = self._engine.advance(core.live)
        except INTERRUPTS:
            raise
        except BaseException as error:  # noqa: BLE001 - told to those whom it concerns
            delivery = core.fail(error)
        else:
            delivery = core.feed(step)
        desk.trigger(EventTypes.AFTER_PREDICT)
        if not core.running:  # the engine has failed, or yielded what is no step
            self._engine.discard()
            self._start_over()
        for _ in delivery.ends:  # now: it takes a while until there is a request
            self._arrivals.free_seat()
        return delivery
