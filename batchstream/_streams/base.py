"""What streams, and batches of streams, have in common, however their consumers wait."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Generic, NoReturn, Protocol, overload

from typing_extensions import TypeVar

from batchstream._core.errors import consumer_error

if TYPE_CHECKING:
    from batchstream._core.records import FinishReason, Statistics, StreamEnd
    from batchstream._handoff.buffer import Buffer
    from batchstream._handoff.upstream import Upstream
    from batchstream._pumps.fanout import Fanout

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Cancellable(Protocol):
    """What a batch holds: a stream."""

    def cancel(self) -> None:
        """Cancel the stream."""


StreamT = TypeVar("StreamT", bound=Cancellable)


class AnyStream(Generic[T_co]):
    """The side of a stream that reads its buffer's state, and takes nothing out of the buffer."""

    __slots__ = ()
    _buffer: Buffer[T_co]

    def __repr__(self) -> str:
        state = self.finish_reason or "live"
        which = self._buffer.name.removeprefix("stream ")
        upstream: Upstream = self._upstream  # type: ignore[attr-defined] # of the reader's kind
        waits = ", the source waits for it" if upstream.waits_for(self._buffer) else ""
        buffered = len(self._buffer.outputs)
        return f"<{type(self).__name__} {which}, {state}, {buffered} buffered{waits}>"

    def _repr_html_(self) -> str:
        """Return its row in the time line of the batch, and its next outputs, for a notebook.

        It takes none of them.
        """
        from batchstream._streams.html import stream_table  # noqa: PLC0415 - notebooks alone need it

        upstream: Upstream = self._upstream  # type: ignore[attr-defined] # of the reader's kind
        return stream_table(type(self).__name__, self._buffer, upstream)

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


class Batch(Sequence[StreamT], Generic[StreamT, T]):
    """A batch as a sequence of its streams."""

    __slots__ = ()
    _streams: tuple[StreamT, ...]

    @property
    @abstractmethod
    def _fanout(self) -> Fanout[T]:
        """The core and the buffers of the batch, whose streams are there."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        name = type(self).__name__
        article = "an" if name[0] in "AEIOU" else "a"
        raise TypeError(f"{article} {name} cannot be pickled or copied: it holds a running source")

    def __repr__(self) -> str:
        statistics = self.statistics()
        steps = "step" if statistics.steps == 1 else "steps"
        slots = statistics.waiting_for
        waits = f", the source waits for slots {', '.join(map(str, slots))}" if slots else ""
        return (
            f"<{type(self).__name__}, {statistics.live} of {len(self)} streams live, "
            f"{statistics.steps} {steps}, {statistics.buffered} buffered{waits}>"
        )

    def _repr_html_(self) -> str:
        """Return the time line of the batch, for a notebook: a row for each stream, and figures."""
        from batchstream._streams.html import batch_table  # noqa: PLC0415 - notebooks alone need it

        return batch_table(type(self).__name__, self._fanout)

    def __len__(self) -> int:
        return len(self._fanout.buffers)

    @overload
    def __getitem__(self, index: int) -> StreamT: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[StreamT, ...]: ...
    def __getitem__(self, index: int | slice) -> StreamT | tuple[StreamT, ...]:
        len(self)  # raises where there are no streams yet
        return self._streams[index]

    def __iter__(self) -> Iterator[StreamT]:
        len(self)
        return iter(self._streams)

    @property
    def live(self) -> tuple[int, ...]:
        """The slots of the streams that have neither finished nor been cancelled.

        Threads: any.
        """
        return self._fanout.live

    def cancel(self, slot: int) -> None:
        """Cancel one slot, as the `cancel` of its stream does.

        Raises:
            TypeError: It is no slot, but a stream for example.
            IndexError: There is no such slot.

        Blocking: never, but for a synchronous source's own clean-up if this ends a batch that
            consumers pull.
        Cancellation: nothing to cancel.
        Threads: any thread, callback, finalizer or signal handler.
        """
        if not hasattr(type(slot), "__index__"):
            raise TypeError(
                f"cancel takes a slot, a whole number, got {slot!r}: call the cancel of the stream"
            )
        if not 0 <= slot < len(self):
            raise IndexError(f"no slot {slot!r}, expected slots from 0 to {len(self) - 1}")
        self._streams[slot].cancel()

    def _take_all(self) -> list[list[T]]:
        """Take what all streams hold, of which none is live; or raise, and take nothing."""
        for buffer in self._fanout.buffers:
            end = buffer.end
            if end is not None and end.error is not None and not buffer.cancelled:
                own = consumer_error(end.error)
                try:
                    raise own
                finally:
                    del own  # it holds this frame
        return [buffer.take_all() for buffer in self._fanout.buffers]

    def statistics(self) -> Statistics:
        """Return the figures up to now.

        Threads: any.
        """
        return self._fanout.statistics()
