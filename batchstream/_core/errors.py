"""The errors that batchstream raises: one tree, split by whose fault it is.

Wrong arguments are plain `TypeError` and `ValueError`. What a *source* raises reaches each
consumer with its own type; `consumer_error` makes the copy that each of them gets.
"""

from __future__ import annotations

from types import GetSetDescriptorType, MemberDescriptorType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""Errors meant for the thread in which they are raised: they pass through it."""

_OUR_PACKAGE = __name__.partition(".")[0] + "."

_OWN_TO_A_RAISE = frozenset(
    {"__dict__", "__weakref__", "__traceback__", "__context__", "__cause__", "__suppress_context__"}
)


class BatchStreamError(Exception):
    """The root of every error that this library itself raises."""


class SourceError(BatchStreamError):
    """The source did what a source may not do; the original, if any, is the `__cause__`.

    Raised itself in place of what could not be raised in a consumer without being misunderstood:
    `StopIteration`, which would end it silently, and what is no `Exception`, such as the
    `KeyboardInterrupt` that stopped the source in another consumer's thread.
    """


class StepError(SourceError):
    """The source yielded a step that cannot be read as one output for each slot.

    Attributes:
        step: Which step it was, counted from 0.
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


class MissingEOSError(SourceError):
    """The source ended before this slot's end mark, and `require_eos` was asked for.

    Attributes:
        slot: The slot that was still live.
        outputs: How many outputs it had been given.
    """

    def __init__(self, message: str, *, slot: int, outputs: int) -> None:
        super().__init__(message)
        self.slot = slot
        self.outputs = outputs


class BufferOverflowError(BatchStreamError):
    """Pulling one more step would exceed `max_buffered`; nothing was pulled and nothing is lost.

    Attributes:
        slots: The streams whose buffers are full. Read or cancel them, then go on.
        max_buffered: The bound, in outputs per stream.
    """

    def __init__(self, message: str, *, slots: tuple[int, ...], max_buffered: int) -> None:
        super().__init__(message)
        self.slots = slots
        self.max_buffered = max_buffered


class SlowConsumerError(BatchStreamError):
    """The stream held too many unread outputs, and was ended so that others need not wait.

    Attributes:
        slot: The stream's slot.
        max_buffered: The bound that it exceeded, in outputs.
    """

    def __init__(self, message: str, *, slot: int, max_buffered: int) -> None:
        super().__init__(message)
        self.slot = slot
        self.max_buffered = max_buffered


class ConcurrentConsumerError(BatchStreamError):
    """A second consumer asked a stream for an output while the first was still waiting."""


class OverloadedError(BatchStreamError):
    """As many requests wait as may, and this one was not accepted; try again later.

    Attributes:
        pending: How many requests were waiting.
        max_pending: How many may.
    """

    def __init__(self, message: str, *, pending: int, max_pending: int) -> None:
        super().__init__(message)
        self.pending = pending
        self.max_pending = max_pending


class DeadlineError(BatchStreamError):
    """The request was not finished, or did not join a batch, in the time that it was given.

    Attributes:
        timeout: How long that was, in seconds.
    """

    def __init__(self, message: str, *, timeout: float) -> None:
        super().__init__(message)
        self.timeout = timeout


class ClosedError(BatchStreamError):
    """The object cannot be used any more, and what was asked of it needs it open."""


def consumer_error(error: BaseException) -> Exception:
    """Return an instance of the error for one consumer alone, with the original as its cause.

    Copies share no traceback, context or notes list, so that raising one in many consumers, in
    many threads, neither grows a traceback nor shows one consumer what another was doing.
    """
    own = _copy(error) if isinstance(error, Exception) else None
    if own is None or isinstance(own, StopIteration | StopAsyncIteration):
        own = SourceError(f"the source raised {type(error).__name__}: {_text(error)}")
    own.__cause__ = error
    return own


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an error that cannot be shown still has its type
        return "<no text>"


def _copy(error: Exception) -> Exception | None:
    """Copy an exception without running its `__init__`, which may not accept its own `args`."""
    cls = type(error)
    try:
        own = cls.__new__(cls, *error.args)
        if type(own) is not cls or own is error:
            return None
        own.args = error.args
        for base in cls.__mro__:
            for name, field in vars(base).items():
                if isinstance(field, MemberDescriptorType | GetSetDescriptorType):
                    _copy_field(name, error, own)
        vars(own).update(vars(error))
        if notes := getattr(error, "__notes__", None):
            own.__notes__ = list(notes)
    except Exception:  # noqa: BLE001 - whatever a user's class does, the consumer gets an error
        return None
    return own


def _copy_field(name: str, error: Exception, own: Exception) -> None:
    if name in _OWN_TO_A_RAISE:
        return
    try:
        value = getattr(error, name)
        # An unset field reads as None, but setting it to None would show in the text.
        if getattr(own, name, None) is not value:
            setattr(own, name, value)
    except (AttributeError, TypeError):
        return  # unset in the original, or read-only: derived from what is copied


def begin_in_source(error: BaseException) -> None:
    """Let the traceback of an error of the source begin there, and not with our own frames.

    One that never leaves our own frames keeps the last of them.
    """
    traceback = error.__traceback__
    while (
        traceback is not None
        and traceback.tb_next is not None
        and traceback.tb_frame.f_globals.get("__name__", "").startswith(_OUR_PACKAGE)
    ):
        traceback = traceback.tb_next
    error.__traceback__ = traceback


def forget_context(error: BaseException, handled: BaseException | None) -> None:
    """Cut off what the consumer that pulled was handling, from an error that goes to others too.

    Args:
        error: What was raised while that consumer pulled.
        handled: The exception that it was handling then.
    """
    link, seen = error, {id(error)}
    while (context := link.__context__) is not None and id(context) not in seen:
        if context is handled:
            link.__context__ = None
            return
        seen.add(id(context))
        link = context


def report_unraisable(error: BaseException) -> None:
    """Hand an error that no caller waits for to `sys.unraisablehook`."""
    _Unraisable(error)


def call_quietly(function: Callable[[], object]) -> None:
    """Call a function, and hand what it raises to `sys.unraisablehook`: no caller waits for it.

    Raises:
        BaseException: One of `INTERRUPTS`.
    """
    try:
        function()
    except INTERRUPTS:
        raise
    except BaseException as error:  # noqa: BLE001 - handed on, to the hook
        report_unraisable(error)


class _Unraisable:
    """Raises an error in its finalizer: the interpreter alone can make what the hook is given."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __del__(self) -> None:
        raise self._error
