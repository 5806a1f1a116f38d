"""The pull-driven pump: a consumer that finds nothing buffered lets the source go one step on.

Theory of operation
-------------------

The pump has one *role*, and whoever holds it may touch the source and the core: advance, feed,
deliver, close. It is taken with a lock, so that of several consumers in several threads one pulls
while the others wait, and then look again at what they have got. No state is guarded by it that
another thread would need while the source runs.

A noted cancel is settled by whoever holds the role next: by the canceller at once if the role is
free, otherwise by its holder after the step. A holder looks for notes once more after it gave the
role back, so that none is left lying. Nothing in it blocks, so a cancel may come from a signal
handler or a finalizer that interrupted the holder itself.
"""

from __future__ import annotations

from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import TypeVar

from batchstream._core.errors import INTERRUPTS, BufferOverflowError, report_unraisable
from batchstream._core.records import Delivery
from batchstream._pumps.pump import Pump

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._handoff.buffer import Buffer
    from batchstream._pumps.source import Source

R = TypeVar("R")
T = TypeVar("T")

_NOBODY: Final = 0
_NOTHING: Final[Delivery[Any]] = Delivery((), ())


class PullPump(Pump[T]):
    """The pump that consumers move, and the role of whoever moves it.

    Args:
        source: Closed by the pump, as soon as no slot is live.
        core: Tells what a step gives to whom.
        max_buffered: How many outputs a live stream may hold before a pull is refused.
    """

    def __init__(
        self, source: Source, core: Demultiplexer[T], *, max_buffered: int | None = None
    ) -> None:
        super().__init__(core, max_buffered=max_buffered)
        self._source = source
        self._role = Lock()
        self._holder = _NOBODY
        # What could not be delivered by time because something was raised instead.
        self._withheld: Delivery[T] | None = None
        self._close_if_idle()

    # ---- from any thread, never waiting

    def cancel(self, buffer: Buffer[T]) -> None:
        """Give one stream up."""
        if self.forked or buffer.cancelled:
            return
        self._note_cancel(buffer)
        self._settle()

    # ---- from a consumer

    def check_timeouts(self) -> None:
        """Refuse them.

        Raises:
            ValueError: Nobody can break off the source in the consumer's own thread.
        """
        raise ValueError(
            "timeout needs a batch with background=True: here the source runs in the thread of "
            "whoever receives, and cannot be broken off"
        )

    def pull(self, buffer: Buffer[T], moves: int, deadline: float | None) -> None:
        """Let the source go one step on, unless it has done so since `moves` was read.

        Raises:
            BufferOverflowError: A live stream has no room for another step.
            RuntimeError: The batch is read by time, or its source waits for itself.
            ClosedError: This is a fork of the process that opened the batch.
        """
        # This is `_with_role`, written out: it is run for every step.
        del deadline  # see check_timeouts
        me = get_ident()
        if self._holder == me or self.forked:
            raise self._refusal()
        try:
            with self._role:
                self._holder = me
                try:
                    if not self._view or self._view["view"] != "by slot":
                        self.read_by("by slot")
                    if self._departed:
                        self._apply_departures_and_close()
                    if self.moves == moves and not buffer.ends:
                        if self._max_buffered is not None:
                            self._check_room(self._max_buffered)
                        self._move()
                finally:
                    self._holder = _NOBODY
        finally:
            if self._departed:
                self._settle()

    def pull_by_time(self) -> Delivery[T] | None:
        """Return what the next step gives to whom, or None after the last.

        Raises:
            RuntimeError: The batch is read by slot, or its source waits for itself.
            ClosedError: This is a fork of the process that opened the batch.
        """
        return self._with_role(self._pull_by_time)

    def close(self) -> None:
        """Cancel what is live and close the source, once nobody is in it.

        Raises:
            BaseException: What the source raises when it is closed here.
        """
        self._note_all_cancels()
        # A source that closes its own batch leaves the rest to the holder, after this step.
        if not (self.forked or self._holder == get_ident()):
            self._with_role(self._close)

    # ---- the role

    def _with_role(self, action: Callable[[], R]) -> R:
        """Take the role, do something, and give it back."""
        me = get_ident()
        if self._holder == me or self.forked:
            raise self._refusal()
        try:
            with self._role:
                self._holder = me
                try:
                    return action()
                finally:
                    self._holder = _NOBODY
        finally:
            if self._departed:
                self._settle()

    def _refusal(self) -> Exception:
        if self.forked:
            return self._forked_error()
        return RuntimeError("the source of this batch waits for a step of its own")

    def _settle(self) -> None:
        """Apply the cancels noted by now, unless the role's holder will."""
        while self._departed and not self.forked:
            taken: list[bool] = []
            try:
                # One call in C takes the role and says so: a signal's exception finds it noted.
                taken.extend(filter(None, map(self._role.acquire, (False,))))
                if not taken:
                    return
                self._holder = get_ident()
                self._apply_departures_and_close()
            finally:
                if taken:
                    self._holder = _NOBODY
                    self._role.release()

    # ---- with the role

    def _pull_by_time(self) -> Delivery[T] | None:
        self.read_by("by time")
        if self._withheld is not None:
            withheld, self._withheld = self._withheld, None
            return withheld
        if self._departed:
            self._apply_departures_and_close()
        core = self._core
        delivery: Delivery[T] = self._move() if core.has_live else Delivery((), ())
        delivery = self._with_reported(delivery)
        if core.has_live or delivery.values or delivery.ends:
            return delivery
        return None

    def _close(self) -> None:
        try:
            self._source.close()
        finally:
            self._apply_departures_and_close()
            self._unreported.clear()

    def _apply_departures_and_close(self) -> None:
        self._apply_departures()
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if not self._core.has_live:
            self._let_go_of_tails()
            self._source.close_quietly()

    def _check_room(self, limit: int) -> None:
        """Refuse to pull what a live stream has no room for, before the source is touched."""
        if full := self._full_slots(limit):
            raise BufferOverflowError(
                f"streams {', '.join(map(str, full))} hold {limit} unread outputs or more "
                f"(max_buffered): read or cancel them before another step is pulled",
                slots=full,
                max_buffered=limit,
            )

    def _move(self) -> Delivery[T]:
        """Let the source go one step on, hand out what it gives, and close it after its last.

        Whatever breaks this off, be it a signal in the midst of it, fails the streams that have no
        end yet: nobody misses an output without being told.
        """
        live = self._core.live
        failure: BaseException | None = None
        try:
            try:
                step = self._source.advance(live)
            except StopIteration:
                delivery = self._core.finish()
                self._hand_out(delivery)
            else:
                taken = self._take(step, live)
                if taken is None:
                    return _NOTHING
                delivery = taken
        except BaseException as error:  # noqa: BLE001 - told to all streams, and raised on if need be
            failure = error
        if failure is not None:
            return self._break_off(failure)
        if delivery.ends:
            try:
                self._close_if_idle()
            except BaseException:
                if self._view["view"] == "by time":
                    self._withheld = delivery
                raise
        return delivery

    def _break_off(self, error: BaseException) -> Delivery[T]:
        ends = self._settle_with(error)
        self._close_if_idle()
        if isinstance(error, INTERRUPTS):
            self._unreported.extend(ends)
            raise error
        if not ends:  # all were cancelled during the step
            report_unraisable(error)
        return Delivery((), (), ends)

    # ---- after a fork, in the child

    def refuse_after_fork(self) -> None:
        """Let every use fail: the source belongs to the parent, and so may the role."""
        self._role = Lock()
        super().refuse_after_fork()
