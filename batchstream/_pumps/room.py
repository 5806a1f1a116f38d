"""How a pump waits until the streams that have no room are read.

Theory of operation
-------------------

The pump leaves a row of tokens, as many as there are full buffers, the last of which is its own
waiter. It asks each of these buffers for room, checks them once more, and waits. The consumer of
such a buffer takes one output by itself, and then a token; so the last of them resumes the pump. A
cancel takes all tokens.
"""

from __future__ import annotations

from collections import deque
from itertools import islice, repeat
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final

from batchstream._core.errors import SlowConsumerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from batchstream._core.arguments import Bound
    from batchstream._handoff.buffer import Buffer

_NO_TOKENS: Final[Iterator[Any]] = iter(())


class Room:
    """The bound on what a live stream holds, and the pump's wait for it.

    Args:
        bound: How many outputs a live stream may hold.

    Attributes:
        limit: How many outputs make a stream full. One that is ended for being slow may exceed its
            bound by the step that shows it.
        ends_slow: Whether a stream that is full is ended.
    """

    __slots__ = ("_max_buffered", "_resume", "_tokens", "ends_slow", "limit")

    def __init__(self, bound: Bound) -> None:
        self.ends_slow = bound.on_overflow == "cancel"
        self.limit = bound.max_buffered + self.ends_slow
        self._max_buffered = bound.max_buffered
        # While the pump waits, and not longer: it refers to the pump.
        self._resume: Callable[[Any], object] = _do_nothing
        self._tokens: Iterator[Any] = _NO_TOKENS

    def ask(
        self, full: Sequence[Buffer[Any]], waiter: object, resume: Callable[[Any], object]
    ) -> bool:
        """Ask these buffers for room, and return whether the pump has to wait.

        Args:
            full: The buffers.
            waiter: The pump's waiter.
            resume: Resumes the pump, given its waiter; from any thread.
        """
        self._resume = resume
        tokens = self._tokens = iter([*repeat(None, len(full) - 1), waiter])
        for buffer in full:
            buffer.ask_room(self._resuming(islice(tokens, 1)))
        for buffer in full:  # behind the requests: a consumer that came before did not see them
            if buffer.unread < self.limit and (on_room := buffer.on_room) is not None:
                deque(on_room, maxlen=0)  # unless its consumer has run it through
        return bool(length_hint(tokens))

    def stop_asking(self, full: Sequence[Buffer[Any]]) -> None:
        """Clean up after a wait."""
        self._tokens = _NO_TOKENS
        self._resume = _do_nothing
        for buffer in full:
            buffer.on_room = None

    def resume_pump(self) -> None:
        """Resume the pump if it waits, whatever room there is; from any thread."""
        deque(self._resuming(self._tokens), maxlen=0)

    def slow_error(self, buffer: Buffer[Any]) -> SlowConsumerError:
        """Return the error of a stream that is ended for being slow."""
        return SlowConsumerError(
            f"{buffer.name} holds {buffer.buffered} unread outputs, more than {self._max_buffered} "
            f"(max_buffered), and was ended for it (on_overflow='cancel')",
            slot=buffer.slot,
            max_buffered=self._max_buffered,
        )

    def _resuming(self, tokens: Iterator[Any]) -> Iterator[object]:
        """Return what takes these tokens by being run through, and resumes the pump by the last."""
        return map(self._resume, filter(None, tokens))


def _do_nothing(_: object) -> None:
    pass
