"""Calling a user's engine: in its context, and with note of who is in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from batchstream._core.errors import SourceError, report_unraisable

if TYPE_CHECKING:
    from contextvars import Context


class Engine:
    """The engine that is there, or the next one that is made.

    Its methods are called in one thread at a time. A model may be a `StepEngine`, or a function
    without arguments that makes one.

    Raises:
        TypeError: It is neither, or its `step` is asynchronous.
    """

    def __init__(self, engine: Any) -> None:
        self._factory: Callable[[], Any] | None = None
        self._engine: Any = None
        if callable(engine) and (isinstance(engine, type) or _missing_in(engine)):
            self._factory = engine
        else:
            self._engine = _checked(engine, "engine")
        self._occupied: set[int] = set()
        self._context: Context

    def use(self, context: Context) -> Engine:
        """Make the engine if there is none; every call of it is made in this context."""
        self._context = context
        if self._engine is None:
            assert self._factory is not None  # noqa: S101 - there is one of the two
            self._engine = _checked(context.run(self._factory), "what the engine's factory returns")
        return self

    def add(self, slot: int, content: Any) -> None:
        """Let a request join."""
        self._context.run(self._engine.add, slot, content)
        self._occupied.add(slot)

    def advance(self, _: tuple[int, ...]) -> object:
        """Make a step."""
        try:
            return self._context.run(self._engine.step)
        except StopIteration as error:  # which would end all streams, and say nothing
            raise SourceError(f"step of the engine raised StopIteration: {error}") from error

    def keep(self, slots: Sequence[int]) -> list[int]:
        """Remove all others, and return the slots that have become free."""
        interrupt: KeyboardInterrupt | None = None
        free = sorted(self._occupied.difference(slots))
        for slot in free:
            self._occupied.discard(slot)
            try:
                self._context.run(self._engine.remove, slot)
            except KeyboardInterrupt as error:  # in a program's main thread, where it is meant
                interrupt = error
            except BaseException as error:  # noqa: BLE001 - of a request that nobody has any more
                report_unraisable(error)
        if interrupt is not None:
            raise interrupt
        return free

    def discard(self) -> None:
        """Do not use an engine again that has failed, if another can be made."""
        if self._factory is not None:
            self._engine = None
            self._occupied.clear()

    def close(self) -> None:
        """Remove everybody; the engine stays."""
        self.keep(())


def _missing_in(engine: Any) -> list[str]:
    return [name for name in ("add", "step", "remove") if not hasattr(engine, name)]


def _checked(engine: Any, name: str) -> Any:
    if missing := _missing_in(engine):
        raise TypeError(
            f"{name} must have the methods add, step and remove, "
            f"got {engine!r} without {', '.join(missing)}"
        )
    if inspect.iscoroutinefunction(engine.step):
        raise TypeError(
            f"{name} must make a step by itself, got {engine!r} whose step is a coroutine function"
        )
    return engine
