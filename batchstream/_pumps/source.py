"""The user's iterator, in its context: advanced, told who is live, and closed exactly once.

Nothing here is safe for threads: it is for a pump, which alone touches the source.
"""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from types import GeneratorType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from batchstream._core.errors import INTERRUPTS, report_unraisable

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
    )
    from contextvars import Context


class Source:
    """A synchronous source of steps, which runs in a copy of the context of whoever makes this.

    Attributes:
        advance: A function that is given the live slots and returns the next step. A source that
            listens is told them: `live = yield step`. It raises `StopIteration` after the last
            step, and whatever the source raises.

    Raises:
        TypeError: It is not a synchronous iterable.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        if hasattr(source, "__anext__") or hasattr(source, "__aiter__"):
            raise TypeError(
                f"source must be a synchronous iterable of steps, "
                f"got the asynchronous {type(source).__name__}"
            )
        if not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
            raise TypeError(f"source must be an iterable of steps, got {type(source).__name__}")
        self._context = copy_context()
        self._iterator: Iterator[Any] = self._context.run(iter, source)
        # Called with the live slots, returns the next step. A generator can be told nothing before
        # its first yield, so the first call differs from the others.
        self.advance: Callable[[tuple[int, ...]], object] = self._advance_first

    def _advance_first(self, _: tuple[int, ...]) -> object:
        iterator = self._iterator
        send = getattr(iterator, "send", None)
        if send is None:
            self.advance = self._advance_deaf
        elif isinstance(iterator, GeneratorType):
            self.advance = self._advance_generator
        else:
            self.advance = partial(self._context.run, send)
        return self._context.run(next, iterator)

    def _advance_generator(self, live: tuple[int, ...]) -> object:
        # In the midst of `yield from`, what is sent goes to an inner iterator that may not listen:
        # that of a list would raise in the generator.
        inner: Any = self._iterator
        while (inner := inner.gi_yieldfrom) is not None:
            if not isinstance(inner, GeneratorType):
                if not hasattr(inner, "send"):
                    return self._context.run(next, self._iterator)
                break
        return self._context.run(self._iterator.send, live)  # type: ignore[attr-defined]

    def _advance_deaf(self, _: tuple[int, ...]) -> object:
        return self._context.run(next, self._iterator)

    def peek(self) -> object:
        """Return the first step, which `advance` will return again.

        Raises:
            StopIteration: There is none.
            BaseException: What the source raises.
        """
        first = self._advance_first(())
        advance = self.advance

        def advance_again(_: tuple[int, ...]) -> object:
            self.advance = advance
            return first

        self.advance = advance_again
        return first

    def close(self) -> None:
        """Close the iterator if it can be closed, the first time this is called.

        Raises:
            BaseException: What the iterator raises.
        """
        iterator, self._iterator = self._iterator, iter(())
        self.advance = _advance_closed
        close = getattr(iterator, "close", None)
        if close is not None:
            self._context.run(close)

    def close_quietly(self) -> None:
        """Close the iterator where nobody waits for it, as Python does with a dropped generator.

        An error goes to `sys.unraisablehook`.
        """
        try:
            self.close()
        except INTERRUPTS:
            raise
        except BaseException as error:  # noqa: BLE001 - handed on, to the hook
            report_unraisable(error)


class SyncSource(Protocol):
    """What a pump in a thread moves, and closes once it has ended: a `Source`, or the like.

    Attributes:
        advance: See `Source`.
    """

    @property
    def advance(self) -> Callable[[tuple[int, ...]], object]: ...

    def close(self) -> None:
        """See `Source.close`."""


class AnyAsyncSource(Protocol):
    """What a pump in a task moves, and closes once it has ended: an `AsyncSource`, or the like.

    Attributes:
        context: What the task is to run in.
        advance: See `AsyncSource`.
    """

    context: Context

    @property
    def advance(self) -> Callable[[tuple[int, ...]], Awaitable[object]]: ...

    async def aclose(self) -> None:
        """See `AsyncSource.aclose`."""


class AsyncSource:
    """An asynchronous source of steps. Its methods are called in the task that pumps it.

    Attributes:
        context: A copy of the context in which this object was made, for that task.
        advance: A function that is given the live slots and returns an awaitable of the next
            step, as `Source.advance` returns the step. It raises `StopAsyncIteration` after the
            last one.

    Raises:
        TypeError: It is not an asynchronous iterable.
    """

    def __init__(self, source: AsyncIterable[Any]) -> None:
        if not hasattr(source, "__aiter__"):
            raise TypeError(
                f"source must be an asynchronous iterable of steps, got {type(source).__name__}"
            )
        self.context = copy_context()
        self._iterator: AsyncIterator[Any] | None = self.context.run(aiter, source)
        self.advance: Callable[[tuple[int, ...]], Awaitable[object]] = self._advance_first

    def _advance_first(self, live: tuple[int, ...]) -> Awaitable[object]:
        # As with a generator: it can be told nothing before its first yield.
        asend = getattr(self._iterator, "asend", None)
        self.advance = self._advance_deaf if asend is None else asend
        return self._advance_deaf(live)

    def _advance_deaf(self, _: tuple[int, ...]) -> Awaitable[object]:
        assert self._iterator is not None, "the source was advanced after it was closed"  # noqa: S101
        return anext(self._iterator)

    async def aclose(self) -> None:
        """Close the iterator if it can be closed, the first time this is called.

        Raises:
            BaseException: What the iterator raises.
        """
        iterator, self._iterator = self._iterator, None
        aclose = getattr(iterator, "aclose", None)
        if aclose is not None:
            await aclose()


def _advance_closed(_: tuple[int, ...]) -> NoReturn:
    raise StopIteration
