"""A user's engine: how it is made, called, driven by one batcher, and closed."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from batchstream._core.arguments import call_text, check_number, takes
from batchstream._core.errors import (
    RequestError,
    SourceError,
    call_quietly,
    report_unraisable,
)
from batchstream._pumps.process import forkable

if TYPE_CHECKING:
    from contextvars import Context

_CLOSE: Final = "close() of the engine"
"""What Python prints of an error of it."""

_drivers: Final[dict[int, weakref.ref[Engine]]] = {}
"""What drives a user's engine at the moment, by the `id` of that engine, which it keeps alive."""


class NotNow(Exception):  # noqa: N818 - it is no error, and reaches no client
    """Raised by `add` of a `StepEngine` that has no room for a request at the moment.

    The request waits on, in front of all others, and none overtakes it. It is added again after a
    request has left the engine. If there is no other in the engine it would wait for ever, and so
    it fails with `RequestError`.
    """


class Model(Protocol):
    """What all batches of a dispatcher share: an engine.

    Attributes:
        is_open: Whether there is one to be closed. It is until `discard` has returned.
        waker: What lets a step return that waits, while a batch runs; None for one that has no such
            method.
    """

    @property
    def is_open(self) -> bool: ...
    @property
    def waker(self) -> Callable[[], object] | None: ...
    def discard(self) -> None:
        """Close it; where that is not this object's to do, do nothing.

        Raises:
            BaseException: One of `INTERRUPTS`.
        """

    def begin_anew(self) -> bool:
        """Get ready for a forked child, in which no request is open; False if that cannot be."""


class Engine:
    """The engine that a user gave, or the present one that the user's function has made.

    Its methods are called in one thread at a time.

    Args:
        engine: A `StepEngine`, or a function without arguments that makes one.

    Attributes:
        is_full: Whether a request was refused with `NotNow`, or was given back, and none has left
            since.
        is_open: Whether there is an engine to be closed: it was made here, and has a `close`. It is
            until that has returned.
        made: How many engines were made here.
        waker: The engine's `wake` from `use` or `drive` on, if it has one; None again from
            `stop_driving` on. Any thread may call it, a moment later too.

    Raises:
        TypeError: It is neither; or its `step` is no plain function, or it needs arguments.
    """

    def __init__(self, engine: Any) -> None:
        self._factory: Callable[[], Any] | None = None
        self._engine: Any = None
        self._wake: Callable[[], object] | None = None
        self.waker: Callable[[], object] | None = None
        if callable(engine) and (isinstance(engine, type) or not _is_engine(engine)):
            self._factory = check_factory("engine", engine)
        else:
            self._engine = _checked(engine, "engine")
            self._wake = _method_of(engine, "wake", "from any thread")
        self._occupied: set[int] = set()
        self.is_full = False
        self.is_open = False
        self.made = 0
        self._driving: int | None = None  # the key in `_drivers`
        self._in_call = False
        self._context: Context
        forkable.add(self)

    @property
    def can_be_made(self) -> bool:
        """Whether another can be made, when this one was discarded."""
        return self._factory is not None

    def use(self, context: Context) -> Engine:
        """Make the engine if there is none; every call of it is made in this context."""
        self._context = context
        if self._engine is None:
            assert self._factory is not None  # noqa: S101 - there is one of the two
            made = context.run(self._factory)
            self.made += 1
            close = _method_of(made, "close", "in the worker's thread")
            try:
                _checked(made, "what the engine's factory returns")
                wake = _method_of(made, "wake", "from any thread")
            except BaseException:
                if close is not None:
                    call_quietly(partial(context.run, close), _CLOSE)
                raise
            self.is_open = close is not None
            self._engine = made
            self._wake = wake
        # Before the batch looks at the queue: a request that comes earlier is seen there.
        self.waker = self._wake
        return self

    def drive(self, context: Context) -> None:
        """Do the same for a batch, and until `close` let no other batcher drive the engine.

        Raises:
            RuntimeError: Another does: its requests are in the same slots.
        """
        self.use(context)
        key, own = id(self._engine), weakref.ref(self)
        driver = _drivers.setdefault(key, own)()  # atomic
        if driver is None:  # it was dropped, and had another engine
            _drivers[key] = own
        elif driver is not self:
            self.waker = None
            engine = self._engine
            if self._factory is not None:
                self._forget()
                self.is_open = False  # it is the other's to close
            raise RuntimeError(
                f"the engine {engine!r} is driven by another ContinuousBatcher, whose "
                f"requests are in the same slots: make an engine for each, or give both a function "
                f"that makes one"
            )
        self._driving = key
        try:
            self.keep(())  # after a fork it may have requests to remove
        except BaseException:
            self.stop_driving()
            raise

    def add(self, slot: int, content: Any) -> bool:
        """Add a request; False if it has to wait until another has left.

        Raises:
            RequestError: There is no other, and it would wait for ever.
            TypeError: The engine returns `NotNow`, and does not raise it.
            BaseException: What the engine raises.
        """
        self._in_call = True
        try:
            returned = self._context.run(self._engine.add, slot, content)
        except NotNow as refusal:
            if not self._occupied:
                raise RequestError(
                    "the request can never be served: the engine has no room for it, although no "
                    "other request is in the engine"
                ) from refusal
            self.is_full = True
            return False
        finally:
            self._in_call = False
        if returned is not None and (returned is NotNow or isinstance(returned, NotNow)):
            raise TypeError(
                f"add of the engine has returned {returned!r}: let it raise NotNow, and not return "
                f"it, where it has no room for a request at the moment"
            )
        self._occupied.add(slot)
        return True

    def advance(self, _: tuple[int, ...]) -> object:
        """Make a step."""
        self._in_call = True
        try:
            return self._context.run(self._engine.step)
        except StopIteration as error:  # which would end all streams, and say nothing
            raise SourceError(f"step of the engine raised StopIteration: {error}") from error
        finally:
            self._in_call = False

    def step_cost(self, slot: int) -> float | None:
        """Return what the next step costs for a slot; None if the engine does not say.

        Raises:
            TypeError, ValueError: It says what is no number, or less than 0.
            SourceError: It raises `StopIteration`, which would end the sum of the costs.
            BaseException: What the engine raises.
        """
        method = getattr(self._engine, "step_cost", None)
        if method is None:
            return None
        try:
            cost = self.run(method, slot)
        except StopIteration as error:
            raise SourceError(f"step_cost of the engine raised StopIteration: {error}") from error
        return check_number("what step_cost of the engine returns", cost)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the user's as the engine's methods are called."""
        self._in_call = True
        try:
            return self._context.run(function, *args)
        finally:
            self._in_call = False

    def keep(self, slots: Sequence[int]) -> list[int]:
        """Remove all requests outside these slots, and return the slots that became free."""
        interrupt: KeyboardInterrupt | None = None
        free = sorted(self._occupied.difference(slots))
        if free:
            self.is_full = False
        for slot in free:
            self._occupied.discard(slot)
            self._in_call = True
            try:
                self._context.run(self._engine.remove, slot)
            except KeyboardInterrupt as error:  # in a program's main thread, where it is meant
                interrupt = error
            except BaseException as error:  # noqa: BLE001 - of a request that has ended
                report_unraisable(error, f"remove({slot}) of the engine")
            finally:
                self._in_call = False
        if interrupt is not None:
            raise interrupt
        return free

    def discard(self) -> None:
        """Close an engine that was made here, and do not use it again: if need be another is made.

        Raises:
            BaseException: One of `INTERRUPTS`, from its `close`; other errors are reported.
        """
        if self._factory is None:
            return
        engine = self._engine
        self._forget()
        if engine is not None and self.is_open:
            self._in_call = True
            try:
                call_quietly(partial(self._context.run, engine.close), _CLOSE)
            finally:
                # Only now: a thread that closes the batcher must not find it ended before.
                self.is_open = self._in_call = False

    def _forget(self) -> None:
        self.stop_driving()  # first: while the engine is there, no other has its `id`
        self._engine = self._wake = None
        self._occupied.clear()
        self.is_full = False

    def close(self) -> None:
        """Remove all requests; the engine stays."""
        try:
            self.keep(())
        finally:
            self.stop_driving()

    def stop_driving(self) -> None:
        """Let another batcher drive the engine."""
        self.waker = None
        driving, self._driving = self._driving, None
        if driving is not None:
            _drivers.pop(driving, None)

    def after_fork(self) -> None:
        """Let a batcher of this child drive the engine: in this process no thread does."""
        self.stop_driving()

    def begin_anew(self) -> bool:
        """Get ready for a forked child, in which no request is open; False if that cannot be.

        What the engine has still to remove is removed with its next use. An engine that was in the
        midst of a call at the fork never ends that call here, and is replaced. So is one that has a
        `close`: what it closes, threads for example, is the parent's, and is not closed here.
        """
        in_call, self._in_call = self._in_call, False
        if in_call or self.is_open:
            if self._factory is None:
                return False
            self._forget()
            self.is_open = False
        return True


def check_factory(
    name: str, factory: Callable[..., Any], *, argument: str | None = None
) -> Callable[..., Any]:
    """Return a function or class that makes an engine, if it can be called as it will be.

    Args:
        name: What the argument is called, for the message.
        factory: The function or class.
        argument: What it is called with, if anything.

    Raises:
        TypeError: It takes something else, or is the class of what is no engine.
    """
    if isinstance(factory, type):
        _checked(factory, f"the class {name}")
    if not takes(factory, 0 if argument is None else 1):
        if inspect.isgeneratorfunction(factory) and argument is None:
            instead = "a generator function of a list of requests is for DynamicBatcher"
        elif argument is None:
            instead = "pass an engine, or a function without arguments that makes one"
        else:
            instead = "let it take that, though it may not need it"
        raise TypeError(
            f"{name} is called {'without arguments' if argument is None else f'with {argument}'}, "
            f"which {call_text(factory)} does not take: {instead}"
        )
    return factory


def _method_of(engine: Any, name: str, called: str) -> Callable[[], object] | None:
    """Return a method that an engine may have, and that is called without arguments.

    Args:
        engine: The engine.
        name: The method.
        called: Where it is called, for the message.

    Raises:
        TypeError: It is a coroutine function, or needs arguments.
    """
    method: Callable[[], object] | None = getattr(engine, name, None)
    if not callable(method):
        return None
    wrong = None if takes(method, 0) else call_text(method)
    if inspect.iscoroutinefunction(method):
        wrong = "a coroutine function"
    if wrong is not None:
        raise TypeError(
            f"{name} of an engine is called without arguments {called}, got {engine!r} whose "
            f"{name} is {wrong}: let it be a plain function without arguments, or give it another "
            f"name"
        )
    return method


def _is_engine(engine: Any) -> bool:
    return hasattr(engine, "add") and hasattr(engine, "step") and hasattr(engine, "remove")


def _checked(engine: Any, name: str) -> Any:
    if not _is_engine(engine):
        missing = [method for method in ("add", "step", "remove") if not hasattr(engine, method)]
        raise TypeError(
            f"{name} must have the methods add, step and remove, "
            f"got {engine!r} without {', '.join(missing)}"
        )
    for method, arguments in _CALLS.items():
        # Of a class it is not known: what its instances have may be set when they are made.
        if not isinstance(engine, type) and not takes(getattr(engine, method), len(arguments)):
            call = f"{method}({', '.join(arguments)})"
            raise TypeError(
                f"{name} is called by {call}, got {engine!r} whose {method} is "
                f"{call_text(getattr(engine, method))}: give it the parameters of {call}"
            )
    for kind, is_it in _WRONG_STEPS.items():
        if is_it(engine.step):
            raise TypeError(
                f"{name} must make one step at each call of step, got {engine!r} whose step is "
                f"{kind}: let it return the step, such as {{slot: output}}"
            )
    return engine


_CALLS: Final[dict[str, tuple[str, ...]]] = {
    "add": ("slot", "request"),
    "step": (),
    "remove": ("slot",),
}
"""What each method of an engine is called with."""

_WRONG_STEPS: Final[dict[str, Callable[[object], bool]]] = {
    "a coroutine function": inspect.iscoroutinefunction,
    "a generator function": inspect.isgeneratorfunction,
    "an asynchronous generator function": inspect.isasyncgenfunction,
}
