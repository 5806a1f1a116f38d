"""The messages that wait for one client: how much may, and what happens to what comes then.

The rules are the same as for a batcher's streams, see `batchstream._pumps.intake`. But what waits
here are messages, and the user's functions take outputs. So each is called through a function that
takes messages. All of it happens in the event loop of the server process.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from litserve.utils import LitAPIStatus

from batchstream._handoff.buffer import Buffer
from batchstream._pumps.intake import Intake, bytes_of, sizes_of
from batchstream.integrations.litserve._link.outputs import Sent, data_of, output_of, sent_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchstream._core.arguments import Bound

OutputMessage: TypeAlias = "tuple[Sent, str]"
"""An output, and LitServe's status for it."""


class UnreadMessages:
    """What waits for one client.

    Args:
        bound: How much may, and what happens to an output that comes then.

    Attributes:
        messages: The outputs, the oldest first, and the end behind them.
    """

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._buffer: Buffer[Sequence[Any]] = Buffer(0)
        self._buffer.sizes = sizes_of(bound)
        self.messages = self._buffer.outputs
        self._intake: Intake | None = None
        if bound.merge is not None or bound.max_buffered_bytes is not None:
            merge = None if bound.merge is None else partial(_merged, bound.merge)
            about_messages = bound._replace(merge=merge, size_of=partial(_size_of, bound.size_of))
            self._intake = Intake(about_messages, bound.max_buffered, ())

    def excess(self) -> str | None:
        """Return what the client has left unread, in words; None if another output may come."""
        bound, sizes, unread = self._bound, self._buffer.sizes, len(self.messages)
        if bound.on_overflow == "cancel" and unread >= bound.max_buffered:
            return f"{unread} messages unread (max_buffered)"
        if sizes is not None and sizes.are_full(unread):
            return f"{unread} messages of {sizes.held(unread)} bytes unread (max_buffered_bytes)"
        return None

    def add(self, message: OutputMessage) -> None:
        """Add an output, or merge it with the last one that waits.

        Raises:
            Exception: What a function of the user's raises; or it returns what cannot be.
        """
        if self._intake is None:
            self.messages.append(message)
        else:
            self._intake.give(self._buffer, message)


def _merged(
    merge: Callable[[Any, Any], Any], earlier: OutputMessage, later: OutputMessage
) -> OutputMessage:
    output = merge(output_of(earlier[0]), output_of(later[0]))
    return sent_of(output, "merge returns text, bytes, a dict or a pydantic model"), LitAPIStatus.OK


def _size_of(size_of: Callable[[Any], Any] | None, message: OutputMessage) -> Any:
    sent, _ = message
    return bytes_of(data_of(sent)) if size_of is None else size_of(output_of(sent))
