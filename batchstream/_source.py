"""The user's iterator, in its context: advanced, told who is live, and closed exactly once."""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from batchstream._errors import PASSING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Source:
    """A synchronous source of steps, for whoever pumps it. Nothing here is safe for threads.

    It runs in a copy of the context in which this object was made.

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
        else:
            self.advance = partial(self._context.run, send)
        return self._context.run(next, iterator)

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
        except PASSING:
            raise
        except BaseException as error:  # noqa: BLE001 - handed on, to the hook
            _Unheard(error)


def _advance_closed(_: tuple[int, ...]) -> NoReturn:
    raise StopIteration


class _Unheard:
    """Hands an error to `sys.unraisablehook`, whose argument only the interpreter can make."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __del__(self) -> None:
        raise self._error
