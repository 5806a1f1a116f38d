"""How a pump waits until the streams that have no room are read.

Theory of operation
-------------------

The pump asks each full buffer to call back when its consumer has taken something, checks once more,
and waits. The last of these buffers to have room resumes the pump. A cancel, a close and a deadline
resume it at once. Resumed for whatever reason, it looks at the buffers anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchstream._core.arguments import UNLIMITED
from batchstream._core.errors import SlowConsumerError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from batchstream._core.arguments import Bound
    from batchstream._handoff.buffer import Buffer


def ways_out(unbounded: str | None, other_policy: str, bound: str = "max_buffered") -> str:
    """Return what to do about streams that are read too slowly, in words.

    Args:
        unbounded: What reads all streams without a bound, if anything does.
        other_policy: What else to pass as `on_overflow`, and its effect.
        bound: What else to pass as the bound.
    """
    collect = "" if unbounded is None else f"or take all outputs with {unbounded}; "
    return (
        f"read the streams at the same time; or pass a larger {bound}; {collect}"
        f"or pass on_overflow={other_policy}"
    )


class Room:
    """The bound on what a live stream holds, and the pump's wait for it.

    Args:
        bound: How much a live stream may hold.
        unbounded: What reads all streams without a bound, in words; None if nothing does.

    Attributes:
        limit: How many outputs make a stream full. One that is ended for being slow may exceed its
            bound by the step that shows it.
        ends_slow: Whether a stream that is full is ended.
        end_limit: How many outputs make a stream full that is ended for it: any number, where they
            are merged.
        merges: Whether what comes for a stream that is full is merged.
        full: The buffers that the pump waits for.
        watched: The buffers of which each resumes the pump when it has room, though others have
            none.
    """

    __slots__ = (
        "_bound",
        "_resume",
        "_unbounded",
        "end_limit",
        "ends_slow",
        "full",
        "limit",
        "merges",
        "watched",
    )

    def __init__(self, bound: Bound, unbounded: str | None) -> None:
        self._unbounded = unbounded
        self._bound = bound
        self.ends_slow = bound.on_overflow == "cancel" or bound.ends_streams
        self.merges = bound.on_overflow == "merge"
        self.limit = bound.max_buffered + (bound.on_overflow == "cancel")
        self.end_limit = UNLIMITED if self.merges else self.limit
        self.full: set[Buffer[Any]] = set()
        self.watched: Container[Buffer[Any]] = ()
        self._resume: Callable[[], object] | None = None  # while the pump waits: it refers to it

    def ask(self, full: Sequence[Buffer[Any]], resume: Callable[[], object]) -> None:
        """Ask these buffers for room; the pump then waits, if `full` is not empty.

        Args:
            full: The buffers.
            resume: Resumes the pump; from any thread, and more than once perhaps.
        """
        self.full.update(full)
        self._resume = resume
        for buffer in full:
            buffer.on_room = self.made_in
        for buffer in full:  # behind the requests: a consumer that came before did not see them
            self.made_in(buffer)

    def made_in(self, buffer: Buffer[Any]) -> None:
        """Resume the pump if this buffer has room, and is the last that it waits for.

        A watched buffer with room resumes it in any case.
        """
        # Not reset here: the pump may have asked anew meanwhile. And what breaks this off leaves it
        # to the next receive, as it may be called again and again.
        if not buffer.is_full(self.limit):
            self.full.discard(buffer)
            if not self.full or buffer in self.watched:
                self.resume_pump()

    def stop_asking(self, full: Sequence[Buffer[Any]]) -> None:
        """Clean up after a wait."""
        self._resume = None
        self.full.clear()
        for buffer in full:
            buffer.on_room = None

    def resume_pump(self) -> None:
        """Resume the pump if it waits, whatever room there is; from any thread."""
        if (resume := self._resume) is not None:
            resume()

    def slow_error(self, buffer: Buffer[Any]) -> SlowConsumerError:
        """Return the error of a stream that is ended for being slow."""
        bound, unread, sizes = self._bound, len(buffer.outputs), buffer.sizes
        name, holds, most = "max_buffered", f"{unread} unread outputs", str(bound.max_buffered)
        if unread < self.end_limit and sizes is not None:
            name, most = "max_buffered_bytes", f"{bound.max_buffered_bytes} bytes"
            holds += f" of {sizes.held(unread)} bytes"
        instead = ways_out(self._unbounded, "'wait' to let the source wait for it", name)
        return SlowConsumerError(
            f"{buffer.name} holds {holds}, more than {most} ({name}), and was ended for it "
            f"(on_overflow={bound.on_overflow!r}): {instead}",
            slot=buffer.slot,
            max_buffered=bound.max_buffered,
        )
