"""The pump that consumers move: a receive that finds nothing buffered makes the next step.

Theory of operation
-------------------

The pump has one *role*: the thread that holds it may touch the source and the core. It is taken
with a lock, so that of several consumers in several threads one makes a step while the others wait,
and then check what it gave them. The lock guards no state that another thread needs while the
source runs.

A queued cancel is applied by the next holder of the role: at once by the thread that cancels if the
role is free, otherwise by its holder after the step. A holder checks the queue once more after it
has given the role back, so that no cancel is overlooked. No part of this blocks: a cancel may come
from a signal handler or a finalizer that interrupted the holder itself.

A step that is broken off fails the batch. Where even that is broken off, at the recursion limit or
without memory, the role remembers the step, and its next holder fails the batch: until then no
stream has missed an output and goes on.
"""

from __future__ import annotations

from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, Final, Generic

from typing_extensions import TypeVar

from batchstream._core.errors import (
    INTERRUPTS,
    BufferOverflowError,
    SourceError,
    report_unraisable,
)
from batchstream._core.records import FinishReason, StreamEnd
from batchstream._native.selection import native
from batchstream._pumps.fanout import Fanout
from batchstream._pumps.process import forkable, forked_batch_error

if TYPE_CHECKING:
    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._handoff.buffer import Buffer
    from batchstream._pumps.source import Source

T = TypeVar("T")

NO_THREAD: Final = 0


class Role:
    """The right to touch the source and the core.

    Attributes:
        lock: Taken by the thread that has the role.
        holder: That thread, or `NO_THREAD`.
        in_step: Whether a step was begun, and neither handed out nor failed. For a thread that has
            just taken the role: whether the last step was broken off.
    """

    __slots__ = ("holder", "in_step", "lock")

    def __init__(self) -> None:
        self.lock = Lock()
        self.holder = NO_THREAD
        self.in_step = False


class _EndOfAll:
    """What a caller waits for that takes the outputs of all streams: it has none, and ends last.

    Args:
        fanout: The core and the buffers; there is a buffer.
    """

    __slots__ = ("_fanout",)
    outputs = ()

    def __init__(self, fanout: Fanout[Any]) -> None:
        self._fanout = fanout

    @property
    def ends(self) -> bool:
        """Whether all streams have ended."""
        return not self._fanout.core.has_live

    @property
    def refusal(self) -> str | None:
        """Why the streams cannot be read."""
        return self._fanout.buffers[0].refusal


class PullPump(Generic[T]):
    """Moves a source as its consumers ask for outputs.

    Args:
        source: Closed by the pump, as soon as no slot is live.
        core: Decides what a step gives to which slot.
        max_buffered: How many outputs a live stream may hold before a step is refused.

    Attributes:
        fanout: The core and the buffers.
        role: The right to touch the source and the core.
        times_out: Whether a receive can have a timeout: no, as the source runs in its thread.
        forked: Whether this is a copy in a forked child, of no use there.
        consumers: Which thread waits for which buffer.
    """

    times_out = False

    def __init__(
        self, source: Source, core: Demultiplexer[T], *, max_buffered: int | None = None
    ) -> None:
        self.fanout: Fanout[T] = Fanout(core)
        self.forked = False
        self.consumers: dict[Buffer[Any], int] = {}
        self._source = source
        self._max_buffered = max_buffered
        # Tokens of callers that take all outputs, whatever the bound: adding one is atomic.
        self._collectors: set[object] = set()
        self._closed = False  # whether the source was closed, as no stream was live any more
        self.role = Role()
        # With this a receive makes steps by itself, once the first one was made here.
        self._native_role: Any = None
        if native is not None:
            fanout = self.fanout
            self.role = native.Role(core, fanout.buffers, fanout.live_buffers, fanout.departures)
            self._native_role = self.role if max_buffered is None else None
        forkable.add(self)
        self._close_if_idle()

    # ---- from any thread, never waiting

    def cancel(self, buffer: Buffer[Any]) -> None:
        """Cancel one stream."""
        if not self.forked:
            self.fanout.cancel(buffer)
            # Also the rest of a cancel that was broken off by a signal's exception.
            if self.fanout.departures or not (self.fanout.live_buffers or self._closed):
                self._apply_departures_if_free()

    def waits_for(self, buffer: Buffer[Any]) -> bool:  # noqa: ARG002 - see BackgroundPump
        """Whether the source waits for a stream: never, as a pull too many is refused."""
        return False

    def given(self, buffer: Buffer[Any]) -> int:
        """How many outputs a stream was given."""
        return self.fanout.given(buffer)

    # ---- from a consumer

    def wait(self, buffer: Buffer[Any], deadline: float | None) -> None:
        """Make the next step, unless another consumer's has given the buffer something meanwhile.

        Raises:
            BufferOverflowError: A live stream has no room for another step.
            RuntimeError: The batch is read by the other view, or its source waits for itself.
            ForkedError: This is a fork of the process that opened the batch.
        """
        del deadline  # see `times_out`
        me = get_ident()
        if self.role.holder == me or self.forked:
            raise self._refusal()
        fanout = self.fanout
        try:
            with self.role.lock:
                self.role.holder = me
                try:
                    if fanout.view is None or buffer.refusal is not None:
                        fanout.read_buffer(buffer)
                    if fanout.departures:
                        self._apply_departures()
                    if self.role.in_step:
                        self._fail_broken_step()
                    if not (buffer.outputs or buffer.ends):
                        if self._max_buffered is not None:
                            self._check_room(self._max_buffered)
                        self._make_step()
                finally:
                    self.role.holder = NO_THREAD
        finally:
            # Behind the role: a cancel during the step was queued, for this thread to apply.
            if fanout.departures:
                self._apply_departures_if_free()

    def close(self) -> None:
        """Fail what is live and close the source, once no thread is in it.

        Raises:
            BaseException: What the source raises when it is closed here.
        """
        if self.forked:
            return
        self.fanout.close_all()
        me = get_ident()
        # A source that closes its own batch leaves the rest to the holder, after this step.
        if self.role.holder == me:
            return
        try:
            with self.role.lock:
                self.role.holder = me
                try:
                    try:
                        self._source.close()
                    finally:
                        self.fanout.apply_departures()
                        self._close_if_idle()
                finally:
                    self.role.holder = NO_THREAD
        finally:
            if self.fanout.departures:
                self._apply_departures_if_free()

    def collect(self) -> None:
        """Make steps until all streams have ended, whatever they hold.

        Raises:
            RuntimeError, ClosedError: See `wait`.
        """
        everything: Any = _EndOfAll(self.fanout)
        token = object()
        self._collectors.add(token)
        try:
            while self.fanout.live_buffers and self.fanout.core.has_live:
                self.wait(everything, None)
        finally:
            self._collectors.discard(token)

    # ---- the role

    def _refusal(self) -> Exception:
        if self.forked:
            return forked_batch_error()
        return RuntimeError("the source of this batch waits for a step of its own")

    def _apply_departures_if_free(self) -> None:
        """Apply the cancels queued by now, unless the role's holder will."""
        while not self.forked:
            taken: list[bool] = []
            try:
                # One call in C takes the role and records that: a signal's exception finds it.
                taken.extend(filter(None, map(self.role.lock.acquire, (False,))))
                if not taken:
                    return
                self.role.holder = get_ident()
                self._apply_departures()
            finally:
                if taken:
                    self.role.holder = NO_THREAD
                    self.role.lock.release()
            if not self.fanout.departures:
                return

    # ---- with the role

    def _apply_departures(self) -> None:
        self.fanout.apply_departures()
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if not self.fanout.core.has_live:
            self.fanout.forget_live()
            self.fanout.end_deliveries()
            if self._native_role is not None:
                self._native_role.slow_down()
            self._source.close_quietly()
            self._closed = True

    def _check_room(self, limit: int) -> None:
        """Refuse a step that a live stream has no room for, before the source is touched."""
        if self._collectors:
            self.fanout.free_steps = 0  # when they have gone the bound holds again
            return
        full = self.fanout.full_slots(limit)
        # Not one that was cancelled a moment ago, of which the core does not know yet.
        full = tuple(slot for slot in full if not self.fanout.buffers[slot].ends)
        if full:
            which, them = ("streams", "them") if len(full) > 1 else ("stream", "it")
            hold = "hold" if len(full) > 1 else "holds"
            raise BufferOverflowError(
                f"{which} {', '.join(map(str, full))} {hold} {limit} unread outputs or more "
                f"(max_buffered): read or cancel {them} before another step is pulled, or take all "
                f"outputs with collect()",
                slots=full,
                max_buffered=limit,
            )

    def _make_step(self) -> None:
        """Advance the source, hand out what it gives, and close it after its last step.

        What breaks this off, a signal's exception for example, fails the streams that have no end
        yet: no stream misses an output silently.
        """
        fanout = self.fanout
        live = fanout.core.live
        self.role.in_step = True
        failure: BaseException | None = None
        try:
            try:
                step = self._source.advance(live)
            except StopIteration:
                fanout.hand_out(fanout.core.finish())
            else:
                fanout.take(step, live)
        except BaseException as error:  # noqa: BLE001 - goes to all streams, and is raised if need be
            failure = error
        if failure is not None:
            self._fail(failure)
            return
        self.role.in_step = False
        if not fanout.live_buffers:
            self._close_if_idle()
        elif self._native_role is not None and fanout.view == "by slot" and not self.forked:
            source = self._source
            self._native_role.quicken(source, source.plain_iterator, source.context)

    def _fail_broken_step(self) -> None:
        """Fail the streams that have no end yet: they may have missed an output."""
        error = SourceError("a step of this batch was broken off, and its outputs are lost")
        if self.fanout.view == "by time":  # the delivery with the ends may be among what is lost
            self.fanout.deliveries.finish(StreamEnd(FinishReason.ERROR, 0, error=error))
        self._fail(error)

    # ---- for a receive that makes steps by itself; with the role

    def _source_over(self) -> None:
        try:
            self.fanout.hand_out(self.fanout.core.finish())
        except BaseException as error:  # noqa: BLE001 - as in `_make_step`
            self._fail(error)
        else:
            self.role.in_step = False
            self._close_if_idle()

    def _fail(self, error: BaseException) -> None:
        failed = self.fanout.fail(error)
        self.role.in_step = False
        self._close_if_idle()
        if isinstance(error, INTERRUPTS):
            raise error
        if not failed:  # all streams were cancelled during the step
            report_unraisable(error)

    # ---- after a fork, in the child

    def after_fork(self) -> None:
        """Make every use fail: the source belongs to the parent, and so may the role."""
        if self._native_role is not None:
            self._native_role.slow_down()
        self.role = Role()
        self.forked = True
        self.consumers = {}
        self.fanout.refuse_after_fork()
