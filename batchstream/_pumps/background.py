"""What the pumps that run by themselves share: ahead of their consumers, who wait to be woken.

Theory of operation
-------------------

How consumers wait, and are woken, is told in `_places`. The pump waits the same way. It pauses
where live streams have no room. It leaves a row of tokens, as many as there are full buffers, the
last of which is its own waiter; lets each of these buffers be *watched*; looks once more, and
waits. The consumer of a watched buffer takes one output by itself and then a token; so whoever is
last resumes the pump. A cancel takes all tokens.

The pump begins with the first receive, or when a batcher lets it run, and ends with the last live
stream. Whoever has taken `_begun` either starts it or closes a source that was never started.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from itertools import islice, repeat
from operator import length_hint
from threading import Lock
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._core.arguments import OnOverflow
from batchstream._core.errors import SlowConsumerError, SourceError, report_unraisable
from batchstream._core.records import Delivery, FinishReason, StreamEnd
from batchstream._handoff.buffer import SEGMENT_LENGTH, Buffer
from batchstream._handoff.parking import Place, Places
from batchstream._pumps.pump import Pump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._eventloops.base import EventLoop

T = TypeVar("T")


class RunningPump(Pump[T]):
    """A pump that runs by itself.

    Args:
        core: Tells what a step gives to whom.
        max_buffered: How many outputs a live stream may hold.
        on_overflow: Whether the pump waits for one that holds so many, or ends it.
        places: Where its consumers wait, if not in places of its own.
        buffers: One for each slot, where they were made before.

    Attributes:
        steps: The deliveries, where the batch is read by time.
        ended: Whether the pump has ended and the source is closed.
        awaiting_end: What those wait for who wait for that, and other keys to wake then.
    """

    def __init__(
        self,
        core: Demultiplexer[T],
        *,
        max_buffered: int,
        on_overflow: OnOverflow,
        places: Places | None = None,
        buffers: Iterable[Buffer[T]] | None = None,
    ) -> None:
        super().__init__(core, max_buffered=max_buffered, buffers=buffers)
        self._cancels_slow = on_overflow == "cancel"
        # One that is ended for being slow may exceed its bound by the step that shows it.
        self._limit = max_buffered + self._cancels_slow
        self._begun = Lock()
        self._closing = False
        self._over = False
        self._close_error: BaseException | None = None
        self._untold: BaseException | None = None
        self.ended = False
        self.steps: Buffer[Delivery[T]] = Buffer(core.size, "the batch")
        self._places = Places() if places is None else places
        self.awaiting_end: list[object] = [self.steps]
        self._tokens: Iterator[Any] = iter(())

    # ---- from any thread, never waiting

    def cancel(self, buffer: Buffer[T]) -> None:
        """Give one stream up."""
        if self.forked or buffer.cancelled:
            return
        self._note_cancel(buffer)
        if self._over:  # nobody will apply it
            buffer.discard()
        self._wake((buffer,))
        self._after_departure()

    def break_off(self, buffer: Buffer[T], error: BaseException) -> None:
        """Let one stream fail, after what is buffered, unless it has ended."""
        if not buffer.ends:
            self._fail_stream(buffer, error)
            self.note_departure(buffer)
            self._wake((buffer,))

    def note_departure(self, buffer: Buffer[T]) -> None:
        """Take note that one stream has ended, by whomever."""
        self._note_departure(buffer)
        self._after_departure()

    # Resumes the pump, given its waiter.
    _unpark: Callable[[Any], object]

    @abstractmethod
    def begin(self, loop: EventLoop | None) -> None:
        """Let the pump begin, if it has not; from within the loop of the first consumer, if any.

        Where it cannot, the streams fail with the reason.

        Raises:
            RuntimeError: The source waits for a step of its own.
            ClosedError: This is a fork of the process that opened the batch.
        """

    def _refuse_to_wait_for_itself(self) -> None:
        if self.forked:
            raise self._forked_error()
        if self._runs_here:
            raise RuntimeError("the source of this batch waits for a step of its own")

    @abstractmethod
    def _interrupt(self) -> None:
        """Let a pump that nobody needs any more end as soon as it can."""

    @abstractmethod
    def _end_unbegun(self) -> None:
        """Close a source that was never asked for a step; with `_begun` taken."""

    def _after_departure(self) -> None:
        self._resume_pump()
        if not self._endless:
            if self._begun.acquire(False):  # noqa: FBT003 - by keyword it takes four times as long
                self._end_unbegun()
            else:
                self._interrupt()

    def _resume_pump(self) -> None:
        deque(self._resuming(self._tokens), maxlen=0)

    def request_close(self) -> None:
        """Cancel what is live, for a caller who then waits for the end."""
        if self.forked:
            return
        self._closing = True
        self._note_all_cancels()
        self._wake(self.buffers)
        self._after_departure()

    def raise_close_error(self) -> None:
        error, self._close_error = self._close_error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it holds this frame

    # ---- from a consumer

    def place_in(self, loop: EventLoop) -> Place:
        """Return where the consumers of a loop wait; from within that loop."""
        return self._places.in_loop(loop)

    def patience(self, buffer: Buffer[Any] | None, loop: EventLoop) -> float | None:  # noqa: ARG002 - see _task
        """Return after how many seconds whoever waits in this loop is to `look_after`, if ever."""
        return None

    def look_after(self, buffer: Buffer[Any] | None) -> None:
        """Settle everybody if the pump has gone without having told them."""

    async def wait_if_idle(self, loop: EventLoop) -> None:
        """Wait until the source is closed, if no stream is live any more; from within the loop.

        Raises:
            BaseException: See `wait_for_end`.
        """
        if not self.live:
            await self.wait_for_end(loop)

    async def wait_for_end(self, loop: EventLoop) -> None:
        """Wait until the source is closed; from within the loop.

        Raises:
            BaseException: What the source raised when it was closed for this.
        """
        if self.forked or self._never_ends_before_this():
            return
        await self._places.wait_for_end(loop, self)
        self.join()
        self.raise_close_error()

    def join(self, timeout: float | None = None) -> None:
        """Wait for what the pump still has to do after its end; next to nothing."""

    def _never_ends_before_this(self) -> bool:
        """Whether the end waits for the calling code: that of a source that closes its batch."""
        return self._runs_here

    @property
    @abstractmethod
    def _runs_here(self) -> bool:
        """Whether the calling code is the source's."""

    # ---- the pump itself

    def _goes_on(self) -> bool:
        """Apply what was asked for meanwhile, and tell whether another step is needed."""
        if self._closing:
            self._note_all_cancels()
            # Whoever closes may have set an end, and not have noted it yet.
            self._departed.extend(self.buffers)
        if self._departed:
            self._apply_departures()
        if self._cancels_slow and not self._room and self._view.get("view") != "by time":
            for slot in self._full_slots(self._limit):
                self._end_slow(slot)
        return self._core.has_live

    def _without_room(self) -> Sequence[Buffer[Any]]:
        """Return the buffers to wait for before the next step."""
        if self._room:  # for a plain step in every live stream, as is mostly known
            self._room -= 1
            return ()
        if self._view["view"] == "by time":
            return (self.steps,) if self.steps.buffered >= self._limit else ()
        return [self.buffers[slot] for slot in self._full_slots(self._limit)]

    def _has_to_wait(self, full: Sequence[Buffer[Any]], waiter: object) -> bool:
        """Leave the pump's waiter, look once more, and tell whether to wait."""
        tokens = self._tokens = iter([*repeat(None, len(full) - 1), waiter])
        for buffer in full:
            buffer.watch(self._resuming(islice(tokens, 1)))
        for buffer in full:
            if buffer.buffered < self._limit and (telling := buffer.telling) is not None:
                deque(telling, maxlen=0)  # unless its consumer has
        return bool(length_hint(tokens)) and not (self._closing or self._departed)

    def _resuming(self, tokens: Iterator[Any]) -> Iterator[object]:
        """Return what takes these tokens by being run through, and resumes the pump by the last."""
        return map(self._unpark, filter(None, tokens))

    def _patience_in_pause(self, seconds: float | None) -> float | None:
        """Return for how long to pause, where nothing but this asks for a limit."""
        return seconds

    def _go_on_from(self, full: Sequence[Buffer[Any]]) -> None:
        """Clean up after a pause."""
        self._tokens = iter(())
        for buffer in full:
            buffer.telling = None

    def _end_slow(self, slot: int) -> None:
        buffer = self.buffers[slot]
        limit = self._max_buffered
        assert limit is not None  # noqa: S101 - for the type checker
        error = SlowConsumerError(
            f"{buffer.name} holds {buffer.buffered} unread outputs, more than {limit} "
            f"(max_buffered), and was ended for it (on_overflow='cancel')",
            slot=slot,
            max_buffered=limit,
        )
        self._fail_stream(buffer, error)
        self._core.cancel(slot)
        self._wake((buffer,))

    def _give(self, step: object, live: tuple[int, ...]) -> None:
        """Hand out a step, and wake who waits for it."""
        given_to = self._given_to  # if the step is a plain one
        delivery = self._take(step, live)
        if delivery is None:
            self._wake(given_to)
        else:
            self._tell(delivery)

    def _finish(self) -> None:
        """Hand out what the end of the source means."""
        delivery = self._core.finish()
        self._hand_out(delivery)
        self._tell(delivery)

    def _break_off(self, error: BaseException) -> None:
        """Let the streams that have no end yet fail."""
        try:
            ends = self._settle_with(error)
            if not ends:
                self._untold = error
            self._tell(Delivery((), (), ends))
        except BaseException as another:  # noqa: BLE001 - of ours, out of memory perhaps
            report_unraisable(another)  # and `_end` settles what is left

    def _tell(self, delivery: Delivery[T]) -> None:
        if self._view.get("view") == "by time":
            self._add_delivery(self._with_reported(delivery))
        slots = [*delivery.slots, *[slot for slot, _ in delivery.ends]]
        self._wake([*map(self.buffers.__getitem__, slots)])

    def _add_delivery(self, delivery: Delivery[T]) -> None:
        if len(self.steps.tail) >= SEGMENT_LENGTH:
            self.steps.turn_over()
        self.steps.tail.append(delivery)
        self._wake((self.steps,))

    def _end(self) -> None:
        """Let nobody wait for another output; the source is still to be closed."""
        self._over = True
        if self._departed:
            self._apply_departures()
        for buffer in list(self._endless):  # never, unless the pump itself has failed
            self._fail_stream(buffer, SourceError("the pump has ended unexpectedly"))
        self._let_go_of_tails()
        if self._unreported and self._view.get("view") == "by time":
            self._add_delivery(self._with_reported(Delivery((), ())))
        self.steps.finish(StreamEnd(FinishReason.EXHAUSTED, 0))
        self._wake_all()

    def _closed(self, error: BaseException | None) -> None:
        """Tell who closed the batch that the source is closed, and what it has raised last."""
        last, self._untold = error or self._untold, None
        if last is not None:
            if self._closing:
                self._close_error = last
            else:
                report_unraisable(last)
        self.ended = True
        self._wake_all()

    def _wake(self, keys: Sequence[object]) -> None:
        self._places.wake(keys)

    def _wake_all(self) -> None:
        self._wake([*self.buffers, *self.awaiting_end])

    # ---- after a fork, in the child

    def refuse_after_fork(self) -> None:
        """Let every use fail: the pump runs in the parent only."""
        super().refuse_after_fork()
        self.steps.refuse_after_fork()
        error = self._forked_error()
        for buffer in self.buffers:
            if not buffer.ends:
                self._fail_stream(buffer, error)
        self.steps.finish(StreamEnd(FinishReason.ERROR, 0, error=error))
