"""The user's iterator, in its context: advanced, sent the live slots, and closed exactly once.

Nothing here is safe for threads: it is for a pump, which alone touches the source.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextvars import Context, copy_context
from functools import partial, reduce
from operator import methodcaller
from types import GeneratorType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from typing_extensions import TypeVar

from batchstream._core.cores import core_of
from batchstream._core.errors import INTERRUPTS, report_unraisable, type_name
from batchstream._core.steps import step_width

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
        Sequence,
    )

    from batchstream._core.demultiplexer import Demultiplexer
    from batchstream._core.rules import EndRules

T = TypeVar("T")


class Source:
    """A synchronous source of steps, which runs in a copy of the context in which this is made.

    Attributes:
        context: That copy.
        advance: A function that is given the live slots and returns the next step. A source with a
            `send` method receives them: `live = yield step`. It raises `StopIteration` after the
            last step, and what the source raises.

    Raises:
        TypeError: It is not a synchronous iterable.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        if hasattr(source, "__anext__") or hasattr(source, "__aiter__"):
            raise TypeError(
                f"source must be a synchronous iterable of steps, got the asynchronous "
                f"{type(source).__name__}: read it with demux(source, size) or AsyncBatchedStream"
            )
        if not _is_iterable(source) or isinstance(source, _NO_SOURCES):
            raise _no_source(source)
        self.context = copy_context()
        self._iterator: Iterator[Any] = self.context.run(iter, source)
        self._unclosed = iter((partial(_CLOSE, self._iterator),))
        # A generator can be sent nothing before its first yield: the first call differs.
        self.advance: Callable[[tuple[int, ...]], object] = self._first

    def _first(self, _: tuple[int, ...]) -> object:
        iterator = self._iterator
        send = getattr(iterator, "send", None)
        if send is None:
            self.advance = self._next
        elif isinstance(iterator, GeneratorType):
            self.advance = self._send
        else:
            self.advance = partial(self.context.run, send)
        return self.context.run(next, iterator)

    def _send(self, live: tuple[int, ...]) -> object:
        # In the midst of `yield from`, what is sent goes to an inner iterator, which may have no
        # `send`: that of a list would raise in the generator.
        inner: Any = self._iterator
        while (inner := inner.gi_yieldfrom) is not None:
            if not isinstance(inner, GeneratorType):
                if not hasattr(inner, "send"):
                    return self.context.run(next, self._iterator)
                break
        return self.context.run(self._iterator.send, live)  # type: ignore[attr-defined]

    def _next(self, _: tuple[int, ...]) -> object:
        return self.context.run(next, self._iterator)

    @property
    def plain_iterator(self) -> Iterator[Any] | None:
        """The iterator, if it is a generator, or is sent nothing: it can be advanced without us."""
        iterator = self._iterator
        if isinstance(iterator, GeneratorType) or not hasattr(iterator, "send"):
            return iterator
        return None

    def peek(self) -> object:
        """Return the first step, which `advance` will return again.

        Raises:
            StopIteration: There is none.
            BaseException: What the source raises.
        """
        first = self._first(())
        advance = self.advance

        def advance_again(_: tuple[int, ...]) -> object:
            self.advance = advance
            return first

        self.advance = advance_again
        return first

    def learn_core(
        self, rules: EndRules[T], max_outputs: int | Sequence[int | None] | None
    ) -> Demultiplexer[T]:
        """Make a core as wide as the first step, which `advance` will return again.

        A source without steps has no slots.

        Raises:
            StepError: The first step does not say how many slots there are.
            ValueError: `max_outputs` has another size.
            BaseException: What the source raises. After each of these errors it is closed.
        """
        try:
            try:
                size = step_width(self.peek())
            except StopIteration:
                size = 0
            return core_of(rules, size, max_outputs if size else None)
        except BaseException:
            self.close_quietly()
            raise

    def close(self) -> None:
        """Close the iterator if it can be closed, the first time this is called.

        Raises:
            BaseException: What the iterator raises.
        """
        self.advance = _advance_closed
        if getattr(self._iterator, "close", None) is None:
            self._unclosed = iter(())  # which holds the iterator
        else:
            # One call in C takes what closes the iterator and calls it, in the context: a signal's
            # exception that strikes before leaves it to the next call.
            reduce(Context.run, self._unclosed, self.context)
        self._iterator = iter(())

    def close_quietly(self) -> None:
        """Close the iterator where no caller waits for it, as Python closes a dropped generator.

        An error goes to `sys.unraisablehook`.
        """
        try:
            self.close()
        except INTERRUPTS:
            raise
        except BaseException as error:  # noqa: BLE001 - handed on, to the hook
            report_unraisable(error)


class StepSource(Protocol):
    """What a pump in a thread advances, and closes in the end: a `Source`, or an engine.

    Attributes:
        advance: See `Source`.
    """

    @property
    def advance(self) -> Callable[[tuple[int, ...]], object]: ...

    def close(self) -> None:
        """See `Source.close`."""


class AsyncStepSource(Protocol):
    """What a pump in a task advances, and closes in the end: an `AsyncSource`.

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
        if not hasattr(source, "__aiter__") or isinstance(source, type):
            raise _no_source(source, "an asynchronous iterable of steps")
        self.context = copy_context()
        self._iterator: AsyncIterator[Any] | None = self.context.run(aiter, source)
        self.advance: Callable[[tuple[int, ...]], Awaitable[object]] = self._first

    def _first(self, live: tuple[int, ...]) -> Awaitable[object]:
        # As with a generator: it can be sent nothing before its first yield.
        asend = getattr(self._iterator, "asend", None)
        self.advance = self._next if asend is None else asend
        return self._next(live)

    def _next(self, _: tuple[int, ...]) -> Awaitable[object]:
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


_CLOSE = methodcaller("close")

_NO_SOURCES = (str, bytes, bytearray, Mapping)
"""What can be iterated over, and holds no steps."""


def _is_iterable(source: object) -> bool:
    # A class has these methods for its instances, and cannot be iterated over itself.
    if isinstance(source, type):
        return hasattr(type(source), "__iter__")
    return hasattr(source, "__iter__") or hasattr(source, "__getitem__")


def _no_source(source: object, expected: str = "an iterable of steps") -> TypeError:
    """Return the error of a source that is none, which says what to pass instead."""
    got, instead = shown(source), "pass what yields the steps"
    name = getattr(source, "__name__", None)
    if isinstance(source, _NO_SOURCES):
        instead = "pass a list of steps, each with one output per slot"
    elif inspect.iscoroutine(source):
        source.close()  # else Python warns that it was never awaited
        got = f"the coroutine of {name}()"
        instead = f"let {name} yield its steps, or await it"
    elif callable(source):
        got = f"the {'class' if isinstance(source, type) else 'function'} {name or shown(source)}"
        instead = f"call it, and pass what it returns: {name or 'source'}(…)"
    return TypeError(f"source must be {expected}, got {got}: {instead}")


def _advance_closed(_: tuple[int, ...]) -> NoReturn:
    raise StopIteration


def shown(source: object) -> str:
    """Return a short text of what is no source, even if its `__repr__` is long or raises."""
    try:
        text = repr(source)
    except Exception:  # noqa: BLE001 - a value that cannot be shown is still named by its type
        text = "<no repr>"
    limit = 80
    if len(text) > limit:
        text = f"{text[:limit]}…"
    return f"{type_name(source)} {text}"
