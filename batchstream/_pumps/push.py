"""The pump that its producer moves: a streamer, a callback or a thread that pushes its steps.

Theory of operation
-------------------

There is no source to ask and none to close. One call at a time has the *turn*, and changes the
core. No call waits while it has the turn: a put that finds no room asks for it, gives the turn
back, and tries again when it is resumed. So a put whose event loop has ended keeps nothing from
other calls. Of several puts that wait, all are resumed, and each asks anew.

Everything else is an *order*: to end a slot, to fail, to close, and to end the batch behind its
last stream. Orders are queued for the call that has the turn, and carried out at once where none
has. To give one never waits, so that finalizers and signal handlers may. The queue is looked at
again behind the turn: what was ordered as the turn was given back is carried out by one of the two.
It is looked at once more where a signal's exception breaks this off: another thread may have left
its order to this call.

What breaks an order off leaves it in the queue. So each order can be carried out again.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import TypeVar

from batchstream._core.errors import (
    ClosedError,
    StepError,
    consumer_error,
    report_unraisable,
)
from batchstream._core.records import FinishReason, StreamEnd
from batchstream._handoff.parking import LOOP_POLL_SECONDS
from batchstream._pumps.background import BackgroundPump
from batchstream._pumps.process import forked_batch_error
from batchstream._pumps.puts import PutInLoop, PutInThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchstream._core.arguments import Bound
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._core.markers import End
    from batchstream._eventloops.base import EventLoop
    from batchstream._handoff.buffer import Buffer
    from batchstream._pumps.puts import Put

T = TypeVar("T")

_BUSY: Final = (-1,)  # no slots
"""What a try to take the turn gives where another call has it."""


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
        self._works_in: int | None = None  # the thread that has the turn
        self._puts: dict[Put, None] = {}  # the puts that wait or may wait, in their order
        self._asked: Sequence[Buffer[Any]] = ()  # for room, by the put that asked last
        self._turns_due: list[None] = []  # not empty until the other tasks of the loop had a turn
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
        self._order(_look)

    def _drop(self) -> None:
        """Do nothing: the pump is never new."""

    # ---- from the producer

    def put(self, step: object) -> Sequence[int]:
        """Hand out a step, and return the slots that are live behind it; see `Channel.put`."""
        self._check_can_put()
        if self._puts:
            self._check_may_wait_in_thread()
        put = PutInThread()
        try:
            while (live := self._try(step, put, wait=True)) is None:
                put.wait()
            self._puts.pop(put, None)
        except BaseException:
            self._puts.pop(put, None)
            self._order(_look)  # what broke it off may have left something undone
            raise
        return live

    async def put_in_loop(self, step: object, loop: EventLoop) -> Sequence[int]:
        """Do the same in an event loop; from within the loop."""
        self._check_can_put()
        if any(it.key is loop.key for it in list(self._puts)):
            raise RuntimeError("another put is under way: await each put before the next")
        put = PutInLoop(loop)
        try:
            self._puts[put] = None
            await self._leave_others_their_turn(loop)
            while (live := self._try(step, put, wait=False)) is None or live is _BUSY:
                if live is None:
                    await put.wait()
                else:  # another thread hands a step out at the moment, which takes no time
                    await loop.checkpoint()
            self._puts.pop(put, None)
        except BaseException:
            self._puts.pop(put, None)
            self._order(_look)
            raise
        return live

    async def _leave_others_their_turn(self, loop: EventLoop) -> None:
        """Let the other tasks of the loop run, if none of them has run since the last put."""
        due = self._turns_due
        if due:
            await loop.checkpoint()
            due.clear()  # if the loop does not: another had the last put, and has ended
        else:
            due.append(None)
            loop.soon(due.clear)

    def end_slot(self, slot: int, end: End) -> None:
        """End the stream of a slot, behind what it was given, unless it has ended."""
        self._order(partial(self._end_slot, slot, end))

    def fail_live(self, error: BaseException) -> None:
        """End the streams that have no end with an error, and the batch."""
        self._finished = True
        self._order(partial(self._fail_live, error))

    def finish(self) -> None:
        """End the streams that have no end, as if a source had no further step."""
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

    def _check_may_wait_in_thread(self) -> None:
        """Refuse a wait that would stop another put, of a signal handler's or a loop's thread."""
        if any(it.is_here for it in list(self._puts)):
            raise RuntimeError(
                "put is called while another put of this thread is under way: "
                "in an event loop await aput"
            )

    # ---- the turn

    def _in_turn(self, work: Callable[[], Any], *, wait: bool) -> Any:
        """Call a function with the turn, and return what it returns.

        Returns:
            `_BUSY` where another call has the turn, and this one does not wait for it.
        """
        taken: list[bool] = []
        try:
            # One call in C takes the turn and records that: a signal's exception finds it.
            taken.extend(filter(None, map(self._turn.acquire, (wait,))))
            if not taken:
                return _BUSY
            try:
                self._works_in = get_ident()
                return work()
            finally:
                self._works_in = None
        finally:
            if taken:
                self._turn.release()

    def _try(self, step: object, put: Put, *, wait: bool) -> Sequence[int] | None:
        """Try to hand out a step.

        Returns:
            The live slots; None if there was no room, and the put is to wait; `_BUSY` as above.
        """
        live: Sequence[int] | None
        live = self._in_turn(partial(self._hand_out_if_room, step, put), wait=wait)
        if self._orders:  # what was ordered behind the last look
            self._carry_out()
        return live

    def _order(self, order: Callable[[], object]) -> None:
        """Have this done by the call that has the turn, or here if none has; without waiting."""
        self._orders.append(order)
        try:
            self._carry_out()
        except BaseException:
            self._carry_out()  # what another thread has left to this call
            raise

    def _carry_out(self) -> None:
        # In a loop: an order may come between the last look and the release.
        while self._orders and not self.forked:
            if self._in_turn(self._goes_on, wait=False) is _BUSY:
                return

    def _resume_puts(self) -> None:
        """Let all puts that wait try again; from any thread."""
        for put in list(self._puts):
            if not put.resume():
                self._puts.pop(put, None)  # it holds the channel

    # ---- with the turn

    def _goes_on(self) -> bool:
        """Do what was ordered, and return whether any stream is live; if none is, end the batch."""
        if self._orders:
            self._resume_puts()  # first: they try again behind this, however it ends
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
        self._stop_asking()
        self._close(None)
        return False

    def _hand_out_if_room(self, step: object, put: Put) -> Sequence[int] | None:
        if self._asked:
            self._look_around()
        if not self._goes_on():
            return ()
        if not (full := self._full()):
            if self._asked:
                self._stop_asking()
            return self._hand_out(step)
        self._puts[put] = None
        put.seconds = self._pause_limit(LOOP_POLL_SECONDS if self._others(put) else None)
        self._ask(full)
        return None

    def _full(self) -> Sequence[Buffer[Any]]:
        """Return the buffers without room for a step; if all have room, count the step."""
        if self.fanout.free_steps:
            self.fanout.free_steps -= 1
            return ()
        return self._without_room()

    def _others(self, put: Put) -> bool:
        """Whether consumers wait in another loop than the put's, which may be closed any time."""
        return self._parking.loops > (put.key is not None)

    def _ask(self, full: Sequence[Buffer[Any]]) -> None:
        """Ask for room, for all puts that wait: what an earlier one asked for is asked anew."""
        self._room.stop_asking(self._asked)
        self._asked = full
        if not self._has_to_wait(full, self._resume_puts):
            self._resume_puts()  # what they wait for has come meanwhile

    def _stop_asking(self) -> None:
        asked, self._asked = self._asked, ()
        self._room.stop_asking(asked)
        self._resume_puts()  # they ask anew

    def _hand_out(self, step: object) -> Sequence[int]:
        fanout = self.fanout
        live = fanout.core.live
        try:
            self._wake(fanout.take(step, live))
        except BaseException as error:
            # An order, so that what breaks it off leaves it to be done: no stream goes on.
            self._orders.append(partial(self._fail_live, error))
            self._goes_on()
            raise
        if self._goes_on():
            return fanout.core.live
        for slot in live:  # a step that is none has failed them all: the producer hears of it, too
            end = fanout.buffers[slot].end
            if end is not None and isinstance(end.error, StepError):
                raise consumer_error(end.error)
        return ()

    def _end_slot(self, slot: int, end: End) -> None:
        fanout, core = self.fanout, self.fanout.core
        buffer = fanout.buffers[slot]
        reason = FinishReason(end.reason)
        if buffer in fanout.live_buffers:
            buffer.finish(StreamEnd(reason, core.given(slot), end.info))
            fanout.live_buffers.discard(buffer)
        # Behind the stream's end: broken off in between, the core hears of it next time.
        if slot in core.live:
            core._end_slot(slot, reason, info=end.info)  # noqa: SLF001 - made for this
        self._wake((buffer,))

    def _fail_live(self, error: BaseException) -> None:
        if self.fanout.live_buffers:
            self._wake(self.fanout.fail(error))

    def _finish(self) -> None:
        fanout = self.fanout
        if fanout.core.running:
            if fanout.departures:
                fanout.apply_departures()
            self._wake(fanout.hand_out(fanout.core.finish()))


def _look() -> None:
    """Look whether any stream is live."""
