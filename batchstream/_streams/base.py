"""What every stream tells of itself, however its consumer waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NoReturn

from typing_extensions import TypeVar

if TYPE_CHECKING:
    from batchstream._core.records import FinishReason, StreamEnd
    from batchstream._handoff.buffer import Buffer

T = TypeVar("T")


class AnyStream(Generic[T]):
    """The side of a stream that looks at its buffer and takes nothing out of it."""

    __slots__ = ()
    _buffer: Buffer[T]

    def __repr__(self) -> str:
        state = self.finish_reason or "live"
        which = self._buffer.name.removeprefix("stream ")
        return f"<{type(self).__name__} {which}, {state}, {self._buffer.buffered} buffered>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"{self._buffer.name} cannot be pickled or copied: it is one end of a running batch"
        )

    @property
    def slot(self) -> int:
        """The position of this stream's outputs in a step; -1 while its request waits for one."""
        return self._buffer.slot

    @property
    def end(self) -> StreamEnd | None:
        """How the stream ended, or None while it is live.

        It is known as soon as the source has said so, which may be before all outputs have been
        received.
        """
        return self._buffer.end

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the stream ended, or None while it is live."""
        end = self._buffer.end
        return None if end is None else end.reason
