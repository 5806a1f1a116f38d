"""The core and the buffers of one batch: hands each step out to the streams.

Theory of operation
-------------------

Every pump has a fan-out, and moves the source for it. No lock guards any state: `cancel`, `live`
and `statistics` never wait. A cancel sets the stream's end at once, and queues the buffer in
`departures`; the pump applies it to the core before the next step. Of two ends for one stream the
first wins, in every thread: see `Buffer.ends`.

A batch is read by slot, each stream for itself, or by time: then each step is one `Delivery` in a
buffer of its own, which a reader receives like the outputs of a stream. The first receive decides.

Most steps are plain: one output for each live slot. For these, the buffers' `append` methods are
kept in the order of the slots, until the live slots change.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias

from typing_extensions import TypeVar

from batchstream._core.arguments import UNLIMITED
from batchstream._core.errors import (
    StepError,
    begin_in_source,
    closed_batch_error,
    forget_context,
)
from batchstream._core.records import Delivery, FinishReason, StreamEnd
from batchstream._handoff.buffer import Buffer
from batchstream._native.selection import native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._core.records import Statistics
    from batchstream._pumps.intake import Intake

T = TypeVar("T")

View: TypeAlias = Literal["by slot", "by time"]
"""How a batch is read: stream by stream, or step by step."""

_REFUSALS: Final[dict[View, str]] = {
    "by slot": "a batch is read by slot or by time: steps() has begun, streams cannot be read",
    "by time": "a batch is read by slot or by time: a stream has been read, steps() cannot begin",
}


class Fanout(Generic[T]):
    """The core and the buffers of one batch.

    Args:
        core: Decides what a step gives to which slot.
        buffers: One for each slot, where they exist already.
        view: How the batch is read, if that is decided.

    Attributes:
        core: The same.
        buffers: One for each slot: that of its present occupant, or of the last it had.
        live_buffers: The buffers of streams that have no end. Adding and discarding are atomic.
        departures: Buffers of streams that ended otherwise than by a step, for the core to cancel.
        deliveries: What each step gave, where the batch is read by time.
        free_steps: How many plain steps every live stream has room for at least.
        waiting_for: The buffers that had no room when the pump looked last.
        limit: How many outputs leave no room.
        intake: What merges and measures outputs, where the bound asks for that.
        careful: Whether each output of the next step goes through it.
        measures: Whether bytes have a bound: then no number of steps is known to be free.
        view: How the batch is read; None before the first receive.
    """

    def __init__(
        self,
        core: Demultiplexer[T],
        *,
        buffers: Iterable[Buffer[T]] | None = None,
        view: View | None = None,
    ) -> None:
        self.core = core
        self.buffers = list(map(Buffer, range(core.size)) if buffers is None else buffers)
        self.live_buffers = {buffer for buffer in self.buffers if not buffer.ends}
        self.departures: deque[Buffer[T]] = deque()
        self.deliveries: Buffer[Delivery[T]] = Buffer(len(self.buffers), "the batch")
        self.free_steps = 0
        self.waiting_for: Sequence[Buffer[Any]] = ()
        self.limit = UNLIMITED
        self.intake: Intake | None = None
        self.careful = self.measures = False
        self.view = view
        # A dict, because setting a default is atomic.
        self._decided: dict[str, View] = {} if view is None else {"view": view}
        # For plain steps: the live slots, the core's own tuple; their buffers; how to append there.
        self._plain_slots: tuple[int, ...] = ()
        self._plain_buffers: Sequence[Buffer[T]] = ()
        self._plain_appends: Sequence[Callable[[T], None]] = ()
        # Ends for the next delivery: of streams that were cancelled.
        self._unreported: list[tuple[int, StreamEnd]] = []
        self._cut_short = False  # whether the batch was closed while streams were live
        self._takes_natively = native is not None and isinstance(core, native.Core)

    # ---- from any thread, never waiting

    @property
    def live(self) -> tuple[int, ...]:
        """The slots that have neither finished nor been cancelled."""
        return tuple(buffer.slot for buffer in self.buffers if buffer.end is None)

    def cancel(self, buffer: Buffer[T]) -> None:
        """End a stream as cancelled, and queue it for the core; let nothing more be received."""
        if buffer in self.live_buffers:
            buffer.cancel(StreamEnd(FinishReason.CANCELLED, self._given_now(buffer)))
            self.depart(buffer)
        else:  # it has ended; or its slot was just given back, and the caller ends it
            buffer.shut()

    def cancel_all(self) -> None:
        """Cancel all streams that have not ended."""
        for buffer in self.buffers:
            if buffer in self.live_buffers:
                self.cancel(buffer)

    def close_all(self) -> None:
        """Fail all streams that have not ended, behind what they hold: their batch was closed."""
        for buffer in self.buffers:
            if buffer in self.live_buffers:
                self._cut_short = True
                self.fail_stream(buffer, closed_batch_error(buffer.name))

    def fail_stream(self, buffer: Buffer[T], error: BaseException) -> None:
        """End a stream with an error, unless it has ended, and queue it for the core."""
        if buffer in self.live_buffers:
            self._set_error(buffer, error)
            self.depart(buffer)

    def _set_error(self, buffer: Buffer[T], error: BaseException) -> None:
        buffer.finish(StreamEnd(FinishReason.ERROR, self._given_now(buffer), error=error))

    def _given_now(self, buffer: Buffer[Any]) -> int:
        """Return how many outputs a stream was given, even if its slot was just given back."""
        slot = buffer.slot  # once: another thread may give it back
        if slot >= 0:
            given = self.core.given(slot)
            if self.buffers[slot] is buffer:  # behind the count, as in `release`
                return given
        before: int = getattr(buffer, "given_before", 0)
        return before

    def depart(self, buffer: Buffer[T]) -> None:
        """Queue a stream for the core that has ended otherwise than by a step."""
        self.departures.append(buffer)
        # Last: what was broken off before, by a signal's exception, can be made again.
        self.live_buffers.discard(buffer)

    def statistics(self) -> Statistics:
        """Return the figures up to now."""
        # In one pass over the ends, which no thread takes back: live and finished always add up.
        ends = [buffer.end for buffer in self.buffers]
        reasons = Counter(end.reason for end in ends if end is not None)
        return replace(
            self.core.statistics(),
            opened=len(ends),
            live=ends.count(None),
            finished={reason: reasons[reason] for reason in FinishReason if reasons[reason]},
            buffered=sum(len(buffer.outputs) for buffer in self.buffers),
            waiting_for=self.slots_waited_for,
        )

    @property
    def slots_waited_for(self) -> tuple[int, ...]:
        """The slots of the live streams in which the source waits for room."""
        return tuple(it.slot for it in self.waiting_for if self.waits_for(it))

    def waits_for(self, buffer: Buffer[Any]) -> bool:
        """Whether the source waits for room in the stream of a buffer."""
        waits = buffer in self.waiting_for and buffer in self.live_buffers
        return waits and buffer.is_full(self.limit)  # still: the pump waits for all of them

    def given(self, buffer: Buffer[Any]) -> int:
        """How many outputs the stream of a buffer was given."""
        given = self._given_now(buffer)
        end = buffer.end  # behind the count: the slot may have its next occupant since
        return given if end is None else end.outputs

    # ---- from a consumer

    def read(self, view: View) -> None:
        """Decide how the batch is read, if this is the first receive.

        Raises:
            RuntimeError: The batch is read by the other view.
        """
        if self._decided.setdefault("view", view) != view:
            raise RuntimeError(_REFUSALS[view])
        if view == "by slot":
            self.deliveries.refusal = _REFUSALS["by time"]
        else:
            for buffer in self.buffers:
                buffer.refusal = _REFUSALS["by slot"]
        # Last: where it is decided, a consumer relies on the refusals.
        self.view = view

    def read_buffer(self, buffer: Buffer[Any]) -> None:
        """Do the same for the view to which a buffer belongs."""
        self.read("by time" if buffer is self.deliveries else "by slot")

    # ---- from the code that moves the pump

    def apply_departures(self) -> None:
        """Cancel in the core the slots of streams that ended otherwise than by a step."""
        while self.departures:
            buffer = self.departures[0]
            slot = buffer.slot
            is_occupant = self.buffers[slot] is buffer  # and there is no other since
            if is_occupant and self.core.cancel(slot).ends and self.view != "by slot":
                self._unreported.append((slot, buffer.ends[0]))
            self.departures.popleft()  # last: what breaks this off leaves it to the next call

    def occupy(
        self,
        slot: int,
        buffer: Buffer[T],
        max_outputs: int | None,
        is_eos: Callable[[T], object] | None,
        decoder: object = None,
        *,
        given: int = 0,
    ) -> None:
        """Give a slot, whose last occupant has left it, to the stream of a buffer.

        With a decoder for its outputs only where the core takes one; and with the number of outputs
        that it was given before, if its slot was given back.
        """
        if decoder is None:
            self.core.open(slot, max_outputs=max_outputs, is_eos=is_eos)
        else:
            core: Any = self.core
            core.open(slot, max_outputs=max_outputs, is_eos=is_eos, decoder=decoder)
        if given:
            self.core._go_on(slot, given)  # noqa: SLF001 - made for this
            self.free_steps = 0  # it may hold outputs already
        self.buffers[slot] = buffer
        self.live_buffers.add(buffer)

    def release(self, slot: int, vacancy: Buffer[Any]) -> None:
        """Take the stream out of a slot that was given back, and leave another buffer there.

        Its stream has no end, and is no stream of this batch any more.
        """
        buffer = self.buffers[slot]
        self.buffers[slot] = vacancy
        buffer.slot = vacancy.slot
        # Last: a thread that does not find it here any more ends it as one that waits.
        self.live_buffers.discard(buffer)

    def full_slots(self, limit: int) -> tuple[int, ...]:
        """Return the live slots whose streams hold so many outputs; if none does, count a step."""
        if not self.free_steps:
            live = [self.buffers[slot] for slot in self.core.live]
            full = tuple(buffer.slot for buffer in live if buffer.is_full(limit))
            if full:
                return full
            most = max((len(buffer.outputs) for buffer in live), default=0)
            # One without a bound may hold more than the limit.
            self.free_steps = 1 if self.measures else max(limit - most, 1)
        self.free_steps -= 1
        return ()

    def take(self, step: object, live: tuple[int, ...]) -> Sequence[object]:
        """Hand out a step, and return the buffers that got something or ended."""
        if self.careful and self.view != "by time":
            return self.hand_out(self.core.feed(step))
        if self._takes_natively:
            return self._take_natively(step)
        values = self.core.feed_plain(step)
        if values is None:
            return self.hand_out(self.core.feed_other(step))
        if live is not self._plain_slots:
            if self.view == "by time":
                return self.hand_out(Delivery(live, values))
            self._plain_buffers = [self.buffers[slot] for slot in live]
            self._plain_appends = [buffer.outputs.append for buffer in self._plain_buffers]
            self._plain_slots = live
        for append, value in zip(self._plain_appends, values, strict=True):
            append(value)
        return self._plain_buffers

    def _take_natively(self, step: object) -> Sequence[object]:
        core: Any = self.core
        if self.view == "by time":
            return self.hand_out(core.feed(step))
        try:
            touched: Sequence[object] = core.take(step, self.buffers, self.live_buffers)
        except StepError as error:
            begin_in_source(error)
            return self.hand_out(core.fail(error))
        if core.gave_many:
            self.free_steps = 0  # as in `hand_out`
        return touched

    def hand_out(self, delivery: Delivery[T]) -> Sequence[object]:
        """Hand out what the core decided, and return the buffers that got something or ended."""
        slots, values, ends = delivery
        if self.view == "by time":
            self._finish_streams(ends)
            self._add_delivery(delivery)
            return (self.deliveries,)
        given_to = [self.buffers[slot] for slot in slots]
        if self.careful:
            self._give_carefully(given_to, values)
        else:
            for buffer, value in zip(given_to, values, strict=True):
                buffer.outputs.append(value)
        if len(set(slots)) < len(slots):
            self.free_steps = 0  # a stream got more than one output: count anew
        # Behind the outputs: a consumer asks for the end before it finds no output.
        return given_to + self._finish_streams(ends)

    def _give_carefully(self, buffers: Sequence[Buffer[T]], values: Sequence[T]) -> None:
        """Merge and measure outputs; fail a stream alone whose output cannot be."""
        intake = self.intake
        assert intake is not None  # noqa: S101 - for the type checker
        failed: set[Buffer[T]] = set()
        for buffer, value in zip(buffers, values, strict=True):
            if buffer in failed:  # of several outputs in one step
                continue
            try:
                intake.give(buffer, value)
            except Exception as error:  # noqa: BLE001 - the user's function has raised it
                failed.add(buffer)
                begin_in_source(error)
                self.end_stream(buffer, error)
                self.core.cancel(buffer.slot)

    def _finish_streams(self, ends: Sequence[tuple[int, StreamEnd]]) -> list[Buffer[T]]:
        finished = []
        for slot, end in ends:
            buffer = self.buffers[slot]
            buffer.finish(end)
            self.live_buffers.discard(buffer)
            finished.append(buffer)
        return finished

    def end_stream(self, buffer: Buffer[T], error: BaseException) -> StreamEnd:
        """End a stream with an error, unless it has an end, and return its end."""
        self._set_error(buffer, error)
        self.live_buffers.discard(buffer)
        return buffer.ends[0]

    def fail(self, error: BaseException) -> Sequence[object]:
        """Fail the streams that have no end yet, and return their buffers.

        In a batch that is read by time the ends are one more delivery.
        """
        forget_context(error, sys.exception())
        begin_in_source(error)
        if self.core.running:
            self.core.fail(error)
        else:  # broken off between its end and the streams'
            for slot in self.core.live:
                self.core.cancel(slot)
        # Not the core's ends: something may have broken off between the core and the buffers.
        endless = [buffer for buffer in self.buffers if not buffer.ends]
        ends = [(buffer.slot, self.end_stream(buffer, error)) for buffer in endless]
        if not ends:
            return ()
        if self.view == "by time":
            self._add_delivery(Delivery((), (), ends))
            return [*endless, self.deliveries]
        return endless

    def end_deliveries(self) -> None:
        """End the deliveries, behind one with the ends that are in none yet."""
        if self._unreported and self.view != "by slot":
            self._add_delivery(Delivery((), ()))
        end = StreamEnd(FinishReason.EXHAUSTED, 0)
        if self._cut_short:
            end = StreamEnd(FinishReason.ERROR, 0, error=closed_batch_error("its steps"))
        self.deliveries.finish(end)

    def forget_live(self) -> None:
        """Free what cancelled streams held: no step follows."""
        self._plain_slots, self._plain_buffers, self._plain_appends = (), (), ()

    def _add_delivery(self, delivery: Delivery[T]) -> None:
        if self._unreported or delivery.ends:
            # The ends that stand: a slot has one, and another thread may have set it first.
            ends = [(slot, self.buffers[slot].ends[0]) for slot, _ in delivery.ends]
            delivery = delivery._replace(ends=[*self._unreported, *ends])
            self._unreported.clear()
        self.deliveries.outputs.append(delivery)

    # ---- after a fork, in the child

    def refuse_after_fork(self) -> None:
        """Send every consumer to the pump, which refuses."""
        for buffer in self.buffers:
            buffer.refuse_after_fork()
        self.deliveries.refuse_after_fork()

    def end_after_fork(self, error: BaseException) -> None:
        """End all streams that no pump of this process will ever end."""
        for buffer in self.buffers:
            if not buffer.ends:
                self.end_stream(buffer, error)
        self.deliveries.finish(StreamEnd(FinishReason.ERROR, 0, error=error))
