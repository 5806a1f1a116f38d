"""How a consumer in an event loop reads a buffer, and waits for it.

Theory of operation
-------------------

Three ways lead to an output, the cheapest first. What is buffered is read in C, a turn's worth in
one go: `for output in reader: return output`. A consumer that waited finds one output, as a rule,
and takes it by itself. All else is looked up anew in the buffer, by `_next_turn`.

How much of a segment was received is known to its gate; `_received` repeats it where only this
consumer has counted since, and is unknown otherwise.
"""

from __future__ import annotations

from itertools import islice
from operator import length_hint
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Self

from typing_extensions import TypeVar

from batchstream._buffers import GATE, Buffer, View
from batchstream._current_loop import current_loop
from batchstream._errors import ConcurrentConsumerError
from batchstream._loops import TURN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from batchstream._feeds import AsyncFeed
    from batchstream._places import Place

T = TypeVar("T")

_UNKNOWN: Final = -2  # no length, and not one less than a length either
_EXHAUSTED: Final[Iterator[Any]] = iter(())


class Receiver(Generic[T]):
    """One consumer's end of a buffer, in an event loop.

    Args:
        buffer: What it reads.
        pump: What fills the buffer, and begins with the first wait.
    """

    __slots__ = (
        "__weakref__",
        "_at_home",
        "_buffer",
        "_busy",
        "_checkpoint",
        "_gate",
        "_left",
        "_outputs",
        "_place",
        "_pump",
        "_reader",
        "_received",
        "_waiter",
        "_waiting",
    )

    _view: ClassVar[View] = "by slot"

    def __init__(self, buffer: Buffer[T], pump: AsyncFeed) -> None:
        self._buffer = buffer
        self._pump = pump
        self._reader: Iterator[T] = _EXHAUSTED
        # The segment being read, and how many of its outputs were received; the gate knows better.
        self._outputs: Sequence[T] = ()
        self._gate: Iterator[bool] = _EXHAUSTED
        self._received = _UNKNOWN
        self._left = TURN
        self._busy = False
        # Known from the first wait on, which settles the event loop that this belongs to.
        self._place: Place | None = None
        self._waiting: dict[object, Any] = {}
        self._waiter: Any = None
        self._at_home = True
        self._checkpoint: Callable[[], Awaitable[None]]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:  # noqa: C901, PLR0912 - one frame per receive, for its speed
        for output in self._reader:
            return output
        if self._busy:
            raise self._concurrent()
        buffer = self._buffer
        outputs, received = self._outputs, self._received
        while True:
            while len(outputs) == received and len(buffer.segments) == 1 and not buffer.ends:
                waiter = self._waiter or self._settle_here()
                self._waiting[buffer] = waiter
                self._busy = True
                try:
                    # Once more: what came meanwhile wakes nobody.
                    if len(outputs) == received and not buffer.ends:
                        await (waiter if self._at_home else self._wait_with_patience())
                except BaseException as error:
                    self._waiting.pop(buffer, None)
                    if isinstance(error, RuntimeError | TypeError):  # of asyncio, and of trio
                        self._check_loop()
                    raise
                finally:
                    self._busy = False
                self._left = TURN
                # By far the most: one output came meanwhile, and nothing else.
                if len(outputs) == received + 1 and not buffer.ends:
                    self._received = received + 1
                    for _ in self._gate:
                        if buffer.watches != buffer.told:  # asked after the output was counted
                            buffer.tell()
                        return outputs[received]
            if not self._left:
                if self._waiter is None:
                    self._settle_here()
                self._busy = True
                try:
                    await self._checkpoint()
                finally:
                    self._busy = False
                self._left = TURN
            self._reader = self._next_turn()
            for output in self._reader:
                return output
            outputs, received = self._outputs, self._received

    def _next_turn(self) -> Iterator[T]:
        """Return what to read next; it is empty if there is nothing yet.

        Raises:
            StopAsyncIteration: The stream has ended.
            Exception: The stream's error, once.
        """
        buffer = self._buffer
        # Asked before the outputs are looked at: whoever ends a stream has added its last one.
        ended = bool(buffer.ends)
        # In locals, as a cancel from another thread lets go of the attributes.
        outputs, gate = segment = buffer.first_unread()
        received = GATE - length_hint(gate)
        unread = len(outputs) - received
        if ended and (not unread or buffer.cancelled):
            self._pump.check_view(self._view)
            self._outputs = ()
            buffer.conclude()
            raise StopAsyncIteration
        self._outputs, self._gate, self._received = outputs, gate, received
        if not unread:
            return _EXHAUSTED
        self._received = _UNKNOWN  # until the gate is asked again
        if buffer.watches != buffer.told:
            output = outputs[received]
            self._left -= 1
            next(gate)
            buffer.tell()
            return iter((output,))
        turn = min(unread, self._left)
        self._left -= turn
        return islice(buffer.read(segment), turn)

    def drain(self) -> list[T]:
        """Return every buffered output at once."""
        if self._busy:
            raise self._concurrent()
        self._let_go()
        return self._buffer.take_all()

    def _let_go(self) -> None:
        """Look the buffer up anew next time; from any thread."""
        self._outputs, self._received = (), _UNKNOWN

    def _settle_here(self) -> Any:
        """Belong to the event loop that runs this, let the pump begin, and return a waiter."""
        pump, buffer = self._pump, self._buffer
        loop = current_loop()
        pump.read_by(self._view)
        pump.begin(loop)
        place = pump.place_in(loop)
        place.residents.add(self)
        self._waiting = place.waiting
        self._place = place
        self._waiter = loop.new_waiter()
        self._checkpoint = loop.checkpoint
        self._at_home = pump.patience(buffer, loop) is None
        return self._waiter

    async def _wait_with_patience(self) -> None:
        """Wait, but not for ever where it may be that nobody tells."""
        assert self._place is not None  # noqa: S101 - for the type checker
        loop = self._place.loop
        assert loop is not None  # noqa: S101
        await loop.wait(self._waiter, self._pump.patience(self._buffer, loop))
        self._pump.look_after(self._buffer)

    def _leave(self) -> None:
        """Give the stream up if it has not ended, as the event loop was closed."""
        if not self._buffer.ends:
            self._pump.cancel(self._buffer)

    def _check_loop(self) -> None:
        """Say so where an output is waited for in another loop than the first."""
        place = self._place
        if place is not None and place.loop is not None and not place.loop.is_here:
            raise RuntimeError(
                f"{self._buffer.name} belongs to the event loop that first waited for it, "
                f"and cannot be waited for in another"
            ) from None

    def _concurrent(self) -> ConcurrentConsumerError:
        return ConcurrentConsumerError(
            f"{self._buffer.name} has one consumer at a time, and another task waits for it"
        )
