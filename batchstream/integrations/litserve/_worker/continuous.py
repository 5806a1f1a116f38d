"""An engine whose slots are refilled between two steps."""

from __future__ import annotations

from contextlib import suppress
from contextvars import copy_context
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from litserve.callbacks import EventTypes

from batchstream._batching.batches.engine_batch import forgotten_error, stalled_error
from batchstream._batching.engine import Engine
from batchstream._core.cores import core_of, requeued_in
from batchstream._core.errors import INTERRUPTS
from batchstream._core.markers import SAME
from batchstream._text.core import decoding
from batchstream.integrations.litserve._worker.queue import RequestPrefetcher
from batchstream.integrations.litserve._worker.request import (
    ServedRequest,
    fail_all,
    report_joined,
)
from batchstream.integrations.litserve._worker.serving import Serving, fail_step, make_step

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import Queue

    from litserve import LitAPI

    from batchstream import Delivery, StepEngine
    from batchstream.integrations.litserve._worker.context import WorkerContext


class ContinuousBatch:
    """Requests that join an engine and leave it, for as long as the worker lives.

    Args:
        context: What the loop works with.
        make_engine: Makes an engine for the API.
        request_queue: Where requests come from.

    Attributes:
        live: How many slots the last step was made for; 0 if the engine failed before it.
    """

    live = 0

    def __init__(
        self,
        context: WorkerContext,
        make_engine: Callable[[LitAPI], StepEngine[Any, Any]],
        request_queue: Queue[Any],
    ) -> None:
        self._context = context
        self._serving = Serving(context, self)
        self._size = context.lit_api.max_batch_size
        self._variables = copy_context()
        self._engine = Engine(partial(make_engine, context.lit_api)).use(self._variables)
        self._start_over()
        # The request that joins at this moment, if any, so that an interrupt finds it.
        self._joining: list[tuple[Any, ...]] = []
        # For which the engine has no room, ready to be added, with the time of its submission.
        self._first: tuple[ServedRequest, float] | None = None
        # Whose slots the engine has given back, in the order in which they came.
        self._again: list[ServedRequest] = []
        self._one_joins = False  # the first of these alone, as no other is in the engine
        self._spent: float | None = None  # of `max_step_cost`; None if not asked before this step
        self._failure: BaseException | None = None  # of an engine that was asked, and has raised
        self._numbers = count()
        self._joined: list[ServedRequest] = []  # since the last step
        self._prefetcher = RequestPrefetcher(request_queue, context.claim)

    def serve(self) -> None:
        """Serve requests until LitServe stops the loop.

        Raises:
            BaseException: What is meant for the thread, from any hook or the engine; the requests
                have failed. Or what the queue or the transport raises.
        """
        context = self._context
        try:
            self._serving.run()
        except BaseException as error:
            waiting = [*self._joining, *self._prefetcher.close()]
            with suppress(Exception):  # the transport may be gone if the worker is being stopped
                requests = [
                    ServedRequest(context, server, uid, content, submitted)
                    for server, uid, submitted, content in waiting
                ]
                if self._first is not None:
                    requests.append(self._first[0])
                self._serving.fail(requests, error)
                context.outbox.flush(everything=True)
            raise
        finally:
            try:
                self._engine.close()
            finally:
                self._engine.discard()

    def step(self) -> Delivery[Any] | None:
        """Refill the free slots and make a step; None once the loop is over and no slot is live."""
        while True:
            live = self._core.live
            if not live:  # the next request may be a long time away
                self._context.outbox.flush(everything=True)
                if self._serving.steps is not None:
                    self._serving.steps.pause()
            self._spent = None
            self._free += self._vacate(live)
            self._add_held_up()
            self._take_joining()
            if self._joined:
                report_joined(self._joined, self._context)
                self._joined = []
            if self._core.has_live:
                return self._make_step()
            if self._prefetcher.over:
                self._context.outbox.flush(everything=True)  # of those that did not join
                return None

    def vacate(self, slot: int) -> None:
        """Cancel the slot; the engine removes it before the next step."""
        self._core.cancel(slot)
        requeued_in(self._core).pop(slot, None)
        self._fetch_ahead()

    def _take_joining(self) -> None:
        """Take requests out of the queue and add them, one by one.

        None is taken while one waits here for the engine: in the queue an urgent one may overtake
        it, and another worker may take it.
        """
        block = not self._core.has_live
        # One for each slot, also if it fails: else many that do would hold up the next step.
        for _ in range(len(self._free)):
            if self._holds_one:
                self._prefetcher.recall()  # told to fetch when none waited here
                return
            request = self._prefetcher.take(block=block)
            if request is None:
                return
            block = False  # what has been put into the outbox is sent before the next wait
            # Removed last: what interrupts this finds the request, and fails it.
            self._joining.append(request)
            self._let_join(*request)
            self._joining.clear()

    def _fetch_ahead(self) -> None:
        """Let a request be fetched while the step is made, or sent, if it can be added then."""
        if self._holds_one or requeued_in(self._core):
            return
        if len(self._core.live) < self._size:
            self._prefetcher.fetch()

    @property
    def _holds_one(self) -> bool:
        """Whether a request waits in this worker, for which the engine has no room."""
        return self._first is not None or bool(self._again)

    def _vacate(self, live: tuple[int, ...]) -> list[int]:
        """Remove from the engine what has left its slot; return the slots that became free."""
        requeued = requeued_in(self._core)
        if not requeued:
            return self._engine.keep(live)
        given_back, alone = len(requeued), len(self._free) == self._size - 1
        for slot, marker in requeued.items():
            request = self._serving.unseat(slot)
            request.give_back(self._core.given(slot), alone=alone)
            request.is_kept = marker.request is SAME and request.given > 0
            if marker.request is not SAME:
                request.content = marker.request
                request.attempt(self._count_step_again)
            self._again.append(request)
        requeued.clear()
        self._again.sort(key=lambda request: request.number)
        left = self._engine.keep(live)
        if len(left) == given_back:  # no other has left: the engine would give it back again
            self._engine.is_full = bool(live)
            self._one_joins = not live
        return left

    def _add_held_up(self) -> None:
        """Add the requests that wait in this worker for the engine, as far as it takes them."""
        if self._again:
            self._add_again()
        if self._first is not None and not self._again:
            self._retry(*self._first)

    def _add_again(self) -> None:
        """Add requests that were given back; see `batchstream._batching.batches.engine_batch`."""
        first = self._again[0]
        for request in list(self._again):
            if request.stalls > 1:
                fail_all([request], stalled_error())
            if request.ended or not request.context.live:
                self._forget(request)
        if self._again and self._again[0] is not first:
            self._engine.is_full = False  # it was the one that was not to be added
        while self._again and not self._engine.is_full:
            request = self._again[0]
            if not request.attempt(self._reseat):
                self._forget(request)
            elif request in self._again:
                break  # it has to wait, for the engine or for a step that costs less
            elif self._one_joins:
                self._engine.is_full = bool(self._again)
                break
        self._one_joins = False

    def _count_step_again(self, request: ServedRequest) -> None:
        options = self._context.options
        request.step_cost = options.step_cost_of(request.content, joins_again=True)

    def _forget(self, request: ServedRequest) -> None:
        self._again.remove(request)
        self._serving.dismiss(request)

    def _reseat(self, request: ServedRequest) -> None:
        if self._enter(request):
            self._again.remove(request)

    def _start_over(self) -> None:
        options = self._context.options
        self._core: Any = core_of(options.rules, self._size, vacant=True, requeues=True)
        if options.decode is not None:
            self._core = decoding(self._core)
        self._free = list(reversed(range(self._size)))  # the lowest comes last, and is taken first

    def _let_join(self, server: int, uid: object, submitted: float, content: object) -> None:
        """Let a request join, or fail, or wait for room."""
        context = self._context
        request = ServedRequest(context, server, uid, content, submitted)
        context.acknowledge(server, uid)
        if not self._has_given_up(request, submitted) and request.attempt(self._prepare):
            self._add(request, submitted)

    def _has_given_up(self, request: ServedRequest, submitted: float) -> bool:
        """Whether a request that waits needs no answer of the engine's any more."""
        if request.uid in self._context.disconnects:
            request.abandon()
            return True
        if self._context.is_late(submitted):
            request.time_out()
            return True
        return False

    def _retry(self, request: ServedRequest, submitted: float) -> None:
        """Add the request for which the engine had no room, if it may have some now."""
        if self._has_given_up(request, submitted):
            request.release()
        elif self._engine.is_full or self._add(request, submitted):
            return
        self._first = None

    def _add(self, request: ServedRequest, submitted: float) -> bool:
        """Add a request that is ready, or let it wait for room; False if it has failed."""
        return request.attempt(partial(self._seat, submitted=submitted))

    def _seat(self, request: ServedRequest, *, submitted: float) -> None:
        if self._enter(request):
            self._first = None  # last: what interrupts this finds the request, and fails it
        else:
            self._first = request, submitted

    def _enter(self, request: ServedRequest) -> bool:
        """Give a slot to a request, unless the engine, or the next step, has no room for it."""
        if not self._has_room_in_step(request):
            return False
        slot = self._free[-1]  # taken last: if the engine refuses the request, the slot stays free
        if not self._engine.use(self._variables).add(slot, request.content):
            return False
        decoder = {} if request.decoder is None else {"decoder": request.decoder}
        self._core.open(slot, max_outputs=request.limit, is_eos=request.is_eos, **decoder)
        if request.number < 0:
            request.number = next(self._numbers)
        if request.given:
            self._core._go_on(slot, request.given)  # noqa: SLF001 - made for this
        self._serving.seat(self._free.pop(), request)
        self._joined.append(request)
        if self._spent is not None:
            self._spent += request.step_cost
        return True

    def _has_room_in_step(self, request: ServedRequest) -> bool:
        """Whether the next step may cost what it does with another request.

        If the engine cannot say what a request in it costs, it has failed as in a step: the request
        that was to join waits for another engine.
        """
        most = self._context.options.max_step_cost
        if most is None or not self._core.has_live:
            return True
        if self._spent is None and self._failure is None:
            try:
                self._spent = sum(map(self._step_cost, self._core.live))
            except INTERRUPTS:
                raise
            except BaseException as error:  # noqa: BLE001 - the user's engine may raise anything
                self._failure = error
        return self._spent is not None and self._spent + request.step_cost <= most

    def _step_cost(self, slot: int) -> float:
        cost = self._engine.step_cost(slot)
        if cost is not None:
            return cost
        request = self._serving.request_in(slot)
        is_prefilling = self._core.given(slot) == request.given
        return request.step_cost if is_prefilling else 1.0

    def _prepare(self, request: ServedRequest) -> None:
        context = self._context
        request.populate()
        context.trigger(EventTypes.BEFORE_DECODE_REQUEST.value)
        request.decode()
        context.trigger(EventTypes.AFTER_DECODE_REQUEST.value)
        request.step_cost = context.options.step_cost_of(request.content)
        request.begin_encoding(self._serving.look_ahead)

    def _make_step(self) -> Delivery[Any]:
        failure, self._failure = self._failure, None
        if failure is not None:
            self.live = 0
            delivery = fail_step(self._core, failure)
        else:
            self._context.trigger(EventTypes.BEFORE_PREDICT.value)
            self.live = len(self._core.live)
            delivery = make_step(self._core, self._engine)
            self._context.trigger(EventTypes.AFTER_PREDICT.value)
        if not self._core.running:  # the engine has raised, or its step could not be read
            fail_all([it for it in self._again if it.is_kept], forgotten_error())
            self._engine.discard()
            self._start_over()
        if delivery.ends:  # while its outputs are sent: then the request can join the next step
            self._fetch_ahead()
        return delivery
