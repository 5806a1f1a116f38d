"""What the pumps share that run by themselves, ahead of their consumers: in a thread or in a task.

Theory of operation
-------------------

Two questions are independent of each other. *What moves the pump* is answered by the subclasses: a
thread (`thread.py`) or a task (`task.py`). *What happens between two steps* is answered by `Hooks`:
nothing in a batch that a user opened; deadlines, counting and refilling in a batch of requests.

`_handoff/parking.py` says how consumers wait and are woken; `room.py`, how the pump waits where
live streams have no room; `stall.py`, when it warns that it does. Its life
is the table in `life.py`: the first receive, or the worker of a batcher, starts it, and it drains
with the last live stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, Protocol

from typing_extensions import TypeVar

from batchstream._core.errors import (
    ClosedError,
    SourceError,
    call_quietly,
    report_unraisable,
)
from batchstream._handoff.buffer import Buffer
from batchstream._handoff.event import Event
from batchstream._handoff.parking import ParkingLot, earliest
from batchstream._pumps.fanout import Fanout, View
from batchstream._pumps.intake import Intake, sizes_of
from batchstream._pumps.life import Life
from batchstream._pumps.process import forkable, forked_batch_error
from batchstream._pumps.room import Room
from batchstream._pumps.stall import StallWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from batchstream._core.arguments import Bound
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._eventloops.base import EventLoop
    from batchstream._handoff.parking import Lot

T = TypeVar("T")


class Hooks(Protocol):
    """What happens between two steps of a batch; called by the code that moves the pump.

    Attributes:
        next_deadline: When the deadline of a stream passes next, if any.
    """

    next_deadline: float | None

    def before_step(self) -> None:
        """Fail streams whose deadline has passed; called before cancels are applied."""

    def refill(self) -> tuple[int, ...]:
        """Let others join, behind the cancels, and return the live slots."""

    def after_step(self, live: tuple[int, ...]) -> None:
        """Count a step that was made for these slots."""

    def pause_limit(self) -> float | None:
        """Return for how many seconds the pump may wait for room, if not for ever."""

    def failed(self) -> None:
        """Discard what an error of the source has made unusable."""

    def drained(self) -> None:
        """End what no step will follow for; called before the streams are ended."""


class BackgroundPump(ABC, Generic[T]):
    """A pump that runs by itself.

    Args:
        core: Decides what a step gives to which slot.
        bound: How much a live stream may hold.
        hooks: What happens between two steps, if anything.
        parking: Where its consumers wait, if not in a lot of its own.
        buffers: One for each slot, where they exist already.
        unbounded: What reads all streams without a bound, in words; None if nothing does.

    Attributes:
        fanout: The core and the buffers.
        closed: Set when the pump has drained and the source is closed.
        forked: Whether this is a copy in a forked child, of no use there.
        consumers: Which thread waits for which buffer.
        times_out: Whether a receive can have a timeout.
        wake_source: Called when a stream has ended otherwise than by a step, where a step may wait
            for something else; any thread may call it.
    """

    times_out = True

    def __init__(
        self,
        core: Demultiplexer[T],
        bound: Bound,
        *,
        hooks: Hooks | None = None,
        parking: ParkingLot | None = None,
        buffers: Iterable[Buffer[T]] | None = None,
        unbounded: str | None = "collect()",
    ) -> None:
        view: View | None = None if hooks is None else "by slot"
        self.fanout: Fanout[T] = Fanout(core, buffers=buffers, view=view)
        self.forked = False
        self.wake_source: Callable[[], object] | None = None
        self._exits = False  # whether the streams were cancelled as the interpreter exits
        self.consumers: dict[Buffer[Any], int] = {}
        self._parking = ParkingLot() if parking is None else parking
        self.closed = Event(self._parking)
        self._hooks = hooks
        unbounded = unbounded if hooks is None else "map() or amap()"
        self._room = Room(bound, unbounded)
        self.fanout.limit = self._room.limit
        self._stall = StallWatch(unbounded)
        # Tokens of callers that take all outputs, whatever the bound: adding one is atomic.
        self._collectors: set[object] = set()
        measures = bound.max_buffered_bytes is not None
        self.fanout.free_steps = 0 if measures else self._room.limit  # all streams are empty
        if measures or self._room.merges:
            self._give_carefully(bound, has_own_buffers=hooks is None)
        # A worker moves a batch of requests from here on: were its last request to end before the
        # first step, no other thread may drop the pump.
        self._life = Life(started=hooks is not None)
        self._closing = False  # whether a caller of close waits, and gets what the source raises
        self._close_error: BaseException | None = None
        self._last_error: BaseException | None = None
        forkable.add(self)

    def _give_carefully(self, bound: Bound, *, has_own_buffers: bool) -> None:
        """Let outputs be merged and measured, as the bound asks for."""
        fanout = self.fanout
        fanout.intake = Intake(bound, self._room.limit, self._collectors)
        fanout.measures = fanout.careful = bound.max_buffered_bytes is not None
        if has_own_buffers:  # a request comes with its own
            for buffer in fanout.buffers:
                buffer.sizes = sizes_of(bound)

    # ---- from any thread, never waiting

    def cancel(self, buffer: Buffer[Any]) -> None:
        """Cancel one stream."""
        if not self.forked:
            self.fanout.cancel(buffer)
            self._follow_up(buffer)

    def fail_stream(self, buffer: Buffer[Any], error: BaseException) -> None:
        """Fail one stream, behind what is buffered, unless it has ended."""
        self.fanout.fail_stream(buffer, error)
        self._follow_up(buffer)

    def _follow_up(self, buffer: Buffer[Any]) -> None:
        """Wake the consumer and the pump; also of a stream that an earlier call has ended.

        That call may have been broken off by a signal's exception.
        """
        if not self.ended:
            self._wake((buffer,))
            self._after_departure()

    def waits_for(self, buffer: Buffer[Any]) -> bool:
        """Whether the pump waits for room in this buffer."""
        return self.fanout.waits_for(buffer)

    def given(self, buffer: Buffer[Any]) -> int:
        """How many outputs a stream was given."""
        return self.fanout.given(buffer)

    def resume_for_room_in(self, buffers: Container[Buffer[Any]]) -> None:
        """Look around when one of these has room, though others have none: see `Room`."""
        self._room.watched = buffers

    def depart(self, buffer: Buffer[Any]) -> None:
        """Queue a stream for the core that has ended otherwise than by a step."""
        self.fanout.depart(buffer)
        self._after_departure()

    def close_streams(self) -> None:
        """Fail what is live, for a caller that then waits for the end."""
        self._close_with(self.fanout.close_all)

    def _close_with(self, end_all: Callable[[], None]) -> None:
        if self.forked:
            return
        self._closing = True
        end_all()
        self._wake(self.fanout.buffers)
        self._after_departure()

    def request_exit(self) -> None:
        """Cancel what is live, as the interpreter exits: consumers end without an error there."""
        self._exits = True
        self._close_with(self.fanout.cancel_all)

    @property
    def ended(self) -> bool:
        """Whether the pump has drained and the source is closed."""
        return self.closed.is_set

    @abstractmethod
    def _interrupt(self) -> None:
        """Make a pump without live streams end as soon as it can."""

    @abstractmethod
    def _drop(self) -> None:
        """End the streams, and close a source that was never asked for a step."""

    def _after_departure(self) -> None:
        self._room.resume_pump()
        if (wake := self.wake_source) is not None:  # read once: the pump may be closed meanwhile
            call_quietly(wake)
        if not self.fanout.live_buffers:
            if self._life.state == "new":
                self._life.leave_new(self._drop)
            else:
                self._interrupt()

    # ---- from a consumer

    def wait(self, buffer: Buffer[Any], deadline: float | None) -> None:
        """Wait in a thread until the buffer holds something, or its stream has ended.

        Raises:
            TimeoutError: The deadline has passed.
            RuntimeError: The batch is read by the other view, or its source waits for itself.
            ForkedError: This is a fork of the process that opened the batch.
        """
        self._check_waitable(buffer)
        self.start(None)
        if not self._parking.wait_in_thread(buffer, deadline):
            raise TimeoutError("no output came within the timeout; the stream is unchanged")

    @abstractmethod
    def start(self, loop: EventLoop | None) -> None:
        """Start the pump, if it is new; from within the loop of the first consumer, if any.

        Where it cannot start, the streams fail with the reason.
        """

    def attach(self, buffer: Buffer[Any], loop: EventLoop) -> Lot:
        """Start the pump, and return the lot in which the consumers of a loop wait.

        Raises:
            RuntimeError: The batch is read by the other view, or its source waits for itself.
            ForkedError: This is a fork of the process that opened the batch.
        """
        self._check_waitable(buffer)
        self.start(loop)
        return self._parking.in_loop(loop)

    def _check_waitable(self, buffer: Buffer[Any]) -> None:
        """Refuse to wait for a buffer in vain."""
        if self.fanout.view is None or buffer.refusal is not None:
            self.fanout.read_buffer(buffer)
        if self.forked:
            raise forked_batch_error()
        if self.runs_here:
            raise RuntimeError("the source of this batch waits for a step of its own")

    def poll_after(self, buffer: Buffer[Any] | None, loop: EventLoop) -> float | None:  # noqa: ARG002 - see TaskPump
        """Return after how many seconds a consumer that waits in this loop polls, if ever."""
        return None

    def poll(self, buffer: Buffer[Any] | None = None) -> None:
        """End all streams if the pump has gone without doing so."""

    async def wait_closed_if_idle(self, loop: EventLoop) -> None:
        """Wait until the source is closed, if no stream is live any more; from within the loop.

        Raises:
            BaseException: What the source raised when it was closed for this.
        """
        if not self.fanout.live:
            await self.wait_until_closed(loop)

    async def wait_until_closed(self, loop: EventLoop) -> None:
        """Wait until the source is closed; from within the loop.

        Raises:
            BaseException: What the source raised when it was closed for this.
        """
        if self.forked or self._waits_for_caller:
            return
        await self.closed.wait_in_loop(loop, lambda: self.poll_after(None, loop), self.poll)
        self.join()
        self.raise_close_error()

    def raise_close_error(self) -> None:
        """Raise what the source raised when it was closed for the caller, once."""
        error, self._close_error = self._close_error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it holds this frame

    def join(self, timeout: float | None = None) -> None:
        """Wait for what the pump still has to do after its end; next to nothing."""

    @property
    def _waits_for_caller(self) -> bool:
        """Whether the end waits for the calling code: that of a source that closes its batch."""
        return self.runs_here

    @property
    @abstractmethod
    def runs_here(self) -> bool:
        """Whether the calling code is the source's."""

    async def collect_in_loop(self, loop: EventLoop) -> None:
        """Let all streams end, whatever they hold, and wait for it; from within the loop.

        Raises:
            RuntimeError, ClosedError: See `attach`.
        """
        self._check_collectable()
        self.start(loop)
        with self._without_bound():
            await self.closed.wait_in_loop(loop, lambda: self.poll_after(None, loop), self.poll)
        self._check_collected()

    def _check_collectable(self) -> None:
        if self.fanout.live or not self.forked:
            for buffer in self.fanout.buffers[:1]:
                self._check_waitable(buffer)

    def _check_collected(self) -> None:
        """Refuse what was cut short behind the back of the caller."""
        if self._exits:
            raise ClosedError(
                "the interpreter exits: the streams of this batch were cut short; "
                "let the main thread wait for the one that collects them"
            )

    @contextmanager
    def _without_bound(self) -> Iterator[None]:
        """Let streams hold any number of outputs meanwhile."""
        token = object()
        self._collectors.add(token)
        try:
            self._room.resume_pump()
            yield
        finally:
            self._collectors.discard(token)

    # ---- from the code that moves the pump

    def _prepare_step(self) -> tuple[int, ...]:
        """Do what was asked for meanwhile, and return the live slots: none ends the pump."""
        fanout, hooks = self.fanout, self._hooks
        if hooks is not None and hooks.next_deadline is not None:
            hooks.before_step()
        if self._closing:
            fanout.close_all()
        if fanout.departures:
            fanout.apply_departures()
        if self._room.ends_slow and not (
            fanout.free_steps or self._collectors or fanout.view == "by time"
        ):
            for slot in fanout.full_slots(self._room.end_limit):
                self._end_slow(fanout.buffers[slot])
        return fanout.core.live if hooks is None else hooks.refill()

    def _without_room(self) -> Sequence[Buffer[Any]]:
        """Return the buffers to wait for before the next step; if there are none, count a step."""
        fanout = self.fanout
        if fanout.view == "by time":
            full = fanout.deliveries.is_full(self._room.limit)
            return (fanout.deliveries,) if full else ()
        # Where all is collected no step is free, so that the bound holds again after that.
        slots = () if self._collectors else fanout.full_slots(self._room.limit)
        if self._room.merges:  # it waits for no stream: full ones get merged outputs
            fanout.careful, slots = fanout.measures or bool(slots), ()
        if not slots:
            self._stall.over()
        fanout.waiting_for = [fanout.buffers[slot] for slot in slots]
        return fanout.waiting_for

    def _has_to_wait(self, full: Sequence[Buffer[Any]], resume: Callable[[], object]) -> bool:
        """Ask for room, and return whether to wait until `resume` is called."""
        self._room.ask(full, resume)
        if self._closing or self.fanout.departures or self._collectors:
            return False
        if self.fanout.view != "by time":  # by time there is one consumer, and no other waits
            self._stall.begin(full)
        return bool(self._room.full)

    def _pause_limit(self, seconds: float | None) -> float | None:
        """Return for how many seconds to wait for room, where nothing but this is a limit."""
        limit = None if self._hooks is None else self._hooks.pause_limit()
        return earliest(seconds, limit, self._stall.time_left())

    def _look_around(self) -> None:
        """See to what no consumer tells the pump, after a wait for room."""
        self._parking.cancel_closed_loops()
        # A consumer may have taken an output a moment ago, and not have called `made_in` yet.
        full = [it for it in list(self._room.full) if it.is_full(self._room.limit)]
        self._stall.look(full, self._waited_for)

    def _waited_for(self) -> list[Buffer[Any]]:
        """Return the streams that consumers wait for, and that wait for the next step."""
        waited_for: list[Buffer[Any]] = []
        for key in self._parking.waited_for():
            if isinstance(key, Buffer):
                waited_for.append(key)
            else:  # a consumer that waits for several, if it says so
                waited_for.extend(getattr(key, "live", ()))
        # A request without a slot waits for a batch to end, of this batcher.
        own: Any = self.fanout.live_buffers
        return [it for it in waited_for if it in own or it.slot < 0]

    def _end_slow(self, buffer: Buffer[Any]) -> None:
        self.fanout.end_stream(buffer, self._room.slow_error(buffer))
        self.fanout.core.cancel(buffer.slot)
        self._wake((buffer,))

    def _fail(self, error: BaseException) -> None:
        """Fail the streams that have no end yet."""
        try:
            failed = self.fanout.fail(error)
            if not failed:
                self._last_error = error
            self._wake(failed)
        except BaseException as another:  # noqa: BLE001 - of ours, out of memory perhaps
            report_unraisable(another)  # and `_drain` fails the live streams
        hooks = self._hooks  # once: another thread may close the pump of a closed event loop
        if hooks is not None:
            hooks.failed()

    def _drain(self) -> None:
        """End all streams: no step follows. The source is closed next."""
        fanout = self.fanout
        self._life.advance("drain")
        hooks = self._hooks
        if hooks is not None:
            hooks.drained()
        if fanout.departures:
            fanout.apply_departures()
        for buffer in list(fanout.live_buffers):  # none, unless the pump itself has failed
            fanout.end_stream(buffer, SourceError("the pump has ended unexpectedly"))
        fanout.forget_live()
        fanout.end_deliveries()
        self._wake([*fanout.buffers, fanout.deliveries])

    def _drain_surely(self) -> list[BaseException]:
        """Do the same, once more if it is broken off, and return what has broken it off."""
        errors: list[BaseException] = []
        for _ in range(2):  # by a signal's exception, or out of memory
            try:
                self._drain()
                break
            except BaseException as error:  # noqa: BLE001 - handed to the caller
                errors.append(error)
        return errors

    def _close(self, error: BaseException | None) -> None:
        """Record that the source is closed, and what it has raised last."""
        last, self._last_error = error or self._last_error, None
        if last is not None:
            if self._closing:
                self._close_error = last
            else:
                report_unraisable(last)
        self._life.advance("close")
        self._hooks = None  # which refer to this pump
        self.wake_source = None
        self.closed.set()
        # Once more: `_drain` may have failed before it did so, out of memory perhaps.
        self._wake([*self.fanout.buffers, self.fanout.deliveries])

    def _wake(self, keys: Sequence[object]) -> None:
        self._parking.wake(keys)

    # ---- after a fork, in the child

    def after_fork(self) -> None:
        """Make every use fail: the pump runs in the parent only."""
        self.forked = True
        self.consumers = {}
        self.fanout.refuse_after_fork()
        self.fanout.end_after_fork(forked_batch_error())
