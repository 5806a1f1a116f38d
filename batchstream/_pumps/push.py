"""The pump that its producer moves: a streamer, a callback or a thread that pushes its steps.

Theory of operation
-------------------

There is no source to ask and none to close. One call at a time has the *turn*, and changes the
core. A put keeps its turn while it waits for room: the puts of several threads take turns.

Everything else is an *order*: to end a slot, to fail, to close, and to end the batch behind its
last stream. Orders are queued for the call that has the turn, and carried out at once where none
has. To give one never waits, so that finalizers and signal handlers may. The queue is looked at
again behind the turn: what was ordered as the turn was given back is carried out by one of the two.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._core.errors import ClosedError, StepError, consumer_error, report_unraisable
from batchstream._pumps.background import BackgroundPump
from batchstream._pumps.process import forked_batch_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchstream._core.arguments import Bound
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._core.markers import End
    from batchstream._eventloops.base import EventLoop
    from batchstream._handoff.buffer import Buffer

T = TypeVar("T")


class PushPump(BackgroundPump[T]):
    """A pump without a source.

    Args:
        core: Decides what a step gives to which slot.
        bound: How many outputs a live stream may hold.
    """

    def __init__(self, core: Demultiplexer[T], bound: Bound) -> None:
        super().__init__(core, bound, unbounded=None)
        self.fanout.read("by slot")
        self._turn = Lock()
        self._works_in: int | None = None  # the thread that changes the core at the moment
        self._puts_in: int | None = None  # the thread in which a put is under way
        self._orders: deque[Callable[[], object]] = deque()
        self._finished = False  # by the producer, after which it has nothing to put
        self._life.advance("start")
        if not self.fanout.buffers:
            self._interrupt()

    # ---- from a consumer

    def start(self, loop: EventLoop | None) -> None:
        """Do nothing: the producer begins when it likes."""

    @property
    def runs_here(self) -> bool:
        """Whether the calling code is called by a put: `is_eos`, for example."""
        return self._works_in == get_ident()

    def _interrupt(self) -> None:
        self._order(_nothing)

    def _drop(self) -> None:
        """Do nothing: the pump is never new."""

    # ---- from the producer

    def put(self, step: object) -> Sequence[int]:
        """Hand out a step, and return the slots that are live behind it; see `Channel.put`."""
        self._check_can_put()
        if self._puts_in == get_ident():
            raise RuntimeError("put is called while another put of this thread is under way")
        self._turn.acquire()
        try:
            self._puts_in = get_ident()
            while self._goes_on():
                if not (full := self._full()):
                    return self._hand_out(step)
                self._pause_in_thread(full)
        finally:
            self._give_turn_back()
        return ()

    async def put_in_loop(self, step: object, loop: EventLoop) -> Sequence[int]:
        """Do the same in an event loop; from within the loop."""
        self._check_can_put()
        while not self._turn.acquire(blocking=False):
            if self._puts_in is not None:
                raise RuntimeError("another put is under way: await each put before the next")
            # Another thread carries an order out at the moment, which takes no time.
            await loop.checkpoint()
        try:
            self._puts_in = -1  # no thread: other tasks of this one go on meanwhile
            while self._goes_on():
                if not (full := self._full()):
                    return self._hand_out(step)
                await self._pause_in_loop(full, loop)
        finally:
            self._give_turn_back()
        return ()

    def end_slot(self, slot: int, end: End) -> None:
        """End the stream of a slot, behind what it was given, unless it has ended."""
        self._order(partial(self._end_slot, slot, end))

    def fail_live(self, error: BaseException) -> None:
        """End the streams that have no end with an error, and the batch."""
        self._finished = True
        self._order(partial(self._fail_live, error))

    def finish(self) -> None:
        """End the streams that have no end as those of a source without a further step."""
        self._finished = True
        self._order(self._finish)

    def _check_can_put(self) -> None:
        if self.forked:
            raise forked_batch_error()
        if self.runs_here:
            raise RuntimeError("put is called by a put: by is_eos, for example")
        if self._finished:
            raise ClosedError(
                "put into a channel that its producer has closed or failed: "
                "make a channel for each batch"
            )

    # ---- the turn

    def _give_turn_back(self) -> None:
        self._puts_in = None
        self._turn.release()
        self._carry_out()  # what was ordered behind the last look

    def _order(self, order: Callable[[], object]) -> None:
        """Have this done by the call that has the turn, or here if none has; without waiting."""
        self._orders.append(order)
        self._room.resume_pump()
        self._carry_out()

    def _carry_out(self) -> None:
        # In a loop: an order may come between the last look and the release.
        while self._orders and not self.forked and self._turn.acquire(blocking=False):
            try:
                self._goes_on()
            finally:
                self._turn.release()

    # ---- with the turn

    def _goes_on(self) -> bool:
        """Do what was ordered, and return whether any stream is live; if none is, end the batch."""
        self._works_in = get_ident()
        try:
            while self._orders:
                try:
                    self._orders[0]()
                except Exception as failure:  # noqa: BLE001 - a warning that is an error, perhaps
                    self._fail(failure)
                self._orders.popleft()  # last: what breaks an order off leaves it to the next call
            if self.ended:
                return False
            if self.fanout.core.running and self._prepare_step():
                return True
            for error in self._drain_surely():
                report_unraisable(error)
            self._close(None)
            return False
        finally:
            self._works_in = None

    def _full(self) -> Sequence[Buffer[Any]]:
        """Return the buffers without room for a step; if all have room, count the step."""
        if self.fanout.free_steps:
            self.fanout.free_steps -= 1
            return ()
        return self._without_room()

    def _hand_out(self, step: object) -> Sequence[int]:
        fanout = self.fanout
        live = fanout.core.live
        self._works_in = get_ident()
        try:
            self._wake(fanout.take(step, live))
        except BaseException as error:
            self._fail(error)
            self._goes_on()
            raise
        finally:
            self._works_in = None
        if self._goes_on():
            return fanout.core.live
        for slot in live:  # a step that is none has failed them all: the producer hears of it, too
            end = fanout.buffers[slot].end
            if end is not None and isinstance(end.error, StepError):
                raise consumer_error(end.error)
        return ()

    def _end_slot(self, slot: int, end: End) -> None:
        fanout = self.fanout
        if fanout.core.running and slot in fanout.core.live:
            self._wake(fanout.hand_out(fanout.core.feed({slot: end})))

    def _fail_live(self, error: BaseException) -> None:
        if self.fanout.live_buffers:
            self._fail(error)

    def _finish(self) -> None:
        fanout = self.fanout
        if fanout.core.running:
            if fanout.departures:
                fanout.apply_departures()
            self._wake(fanout.hand_out(fanout.core.finish()))


def _nothing() -> None:
    """Be an order to look whether any stream is live."""
