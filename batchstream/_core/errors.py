"""The errors that batchstream raises: one tree, split by where the fault lies.

Wrong arguments raise a plain `TypeError` or `ValueError`. An error of the *source* reaches each
consumer with its own type, as a copy that `consumer_error` makes for each.
"""

from __future__ import annotations

import copy
import sys
import warnings
from types import GetSetDescriptorType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

INTERRUPTS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""Errors meant for the thread in which they are raised: they pass through it."""

_OUR_PACKAGE = __name__.partition(".")[0] + "."

_OWN_TO_A_RAISE = frozenset(
    {"__dict__", "__weakref__", "__traceback__", "__context__", "__cause__", "__suppress_context__"}
)


# The interpreter's own fields, read and set past the class of a user's exception: that of a frozen
# dataclass refuses every attribute.
_TRACEBACK: Final[Any] = vars(BaseException)["__traceback__"]
_CONTEXT: Final[Any] = vars(BaseException)["__context__"]
_CAUSE: Final[Any] = vars(BaseException)["__cause__"]
_ARGS: Final[Any] = vars(BaseException)["args"]


class BatchStreamError(Exception):
    """The root of every error that this library itself raises.

    Every one can be pickled, and arrives with its type, text and data; not with its `__cause__`.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is by default made anew from its `args` alone, which lack the data.
        return _restored, (type(self), self.args), vars(self)


def _restored(cls: type[BatchStreamError], args: tuple[object, ...]) -> BatchStreamError:
    """Make an unpickled error without its `__init__`, which asks for the data."""
    error = cls.__new__(cls, *args)
    error.args = args
    return error


class SourceError(BatchStreamError):
    """The source did what a source may not do; the original error, if any, is the `__cause__`.

    Consumers also get it in place of an error that they would misunderstand: `StopIteration`, which
    would end them silently, and what is no `Exception`, such as the `KeyboardInterrupt` that
    stopped the source in another consumer's thread.
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
    """The source ended before this slot's end mark, and `require_eos` was set.

    Attributes:
        slot: The slot that was still live.
        outputs: How many outputs it had been given.
    """

    def __init__(self, message: str, *, slot: int, outputs: int) -> None:
        super().__init__(message)
        self.slot = slot
        self.outputs = outputs


def missing_eos_error(slot: int, given: int) -> MissingEOSError:
    """Return the error of a slot that is live when the source ends, with `require_eos`."""
    return MissingEOSError(
        f"the batch ended after {given} outputs for slot {slot}, before its end mark (require_eos)",
        slot=slot,
        outputs=given,
    )


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
    """The stream held too many unread outputs, and was ended so that other streams go on.

    Attributes:
        slot: The stream's slot; -1 in the LitServe loops, where it is ended in another process.
        max_buffered: The bound that it exceeded, in outputs.
    """

    def __init__(self, message: str, *, slot: int, max_buffered: int) -> None:
        super().__init__(message)
        self.slot = slot
        self.max_buffered = max_buffered


class ConcurrentConsumerError(BatchStreamError):
    """A second consumer asked a stream for an output while the first was still waiting."""


def concurrent_error(name: str, consumer: str) -> ConcurrentConsumerError:
    """Return the error of a consumer that comes while another thread or task waits."""
    return ConcurrentConsumerError(
        f"{name} has one consumer at a time, and another {consumer} waits for it: "
        f"let one {consumer} receive, and hand on what others need"
    )


OverloadReason: TypeAlias = Literal["pending", "pending_cost", "tenant"]


class OverloadedError(BatchStreamError):
    """The request was not accepted: as many requests wait as are allowed. Try again later.

    Attributes:
        pending: How many requests were waiting; of the same tenant, if that is the reason.
        max_pending: How many may wait; of one tenant, if that is the reason.
        reason: Which bound it is: `"pending"` for `max_pending`, `"pending_cost"` for
            `max_pending_cost`, `"tenant"` for `max_pending_per_tenant`.
        pending_cost: What the requests that were waiting cost, if that is the reason; or None.
        max_pending_cost: What they may cost together, if that is the reason; or None.
        retry_after: In how many seconds the requests that were waiting will have left the queue, at
            the rate at which requests have left it of late while others waited; None as long as
            that is unknown. It is what the web integrations send as `Retry-After`.
    """

    def __init__(
        self,
        message: str,
        *,
        pending: int,
        max_pending: int,
        reason: OverloadReason = "pending",
        pending_cost: float | None = None,
        max_pending_cost: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.pending = pending
        self.max_pending = max_pending
        self.reason: OverloadReason = reason
        self.pending_cost = pending_cost
        self.max_pending_cost = max_pending_cost
        self.retry_after = retry_after


class RequestError(BatchStreamError):
    """The request cannot be served as it is, and the fault is the client's.

    Raise it, or a subclass, where a request is looked at: in `add` of an engine, in `cost`, `key`,
    `max_outputs` or `decode`, or in `Fail` by a function of many requests. The web integrations
    answer it with 422, and its text goes to the client; any other error of the model is answered
    with 500, and its text stays on the server.

    A request that costs more than `max_batch_cost` raises a subclass that is a `ValueError` too.
    """


class CostError(RequestError, ValueError):
    """The request costs more than a batch may: it would wait for ever."""


class DeadlineError(BatchStreamError):
    """The request did not finish, join a batch or get an output in the time that it was given.

    The text says which of its deadlines has passed.

    Attributes:
        timeout: How long that was, in seconds.
    """

    def __init__(self, message: str, *, timeout: float) -> None:
        super().__init__(message)
        self.timeout = timeout


class ClosedError(BatchStreamError):
    """The object was closed, and the call needs it open."""


class ForkedError(BatchStreamError):
    """The object was in use when this process was forked, and works in the parent process alone.

    Not a `ClosedError`: the server is set up in the wrong order, and no later try will succeed.
    """


def batch_over_error(event: str, state: str, failure: BaseException | None) -> ClosedError:
    """Return the error of a call that a batch which has ended or failed refuses."""
    error = ClosedError(
        f"cannot {event}: the batch has {state}; make another Demultiplexer for the next batch"
    )
    error.__cause__ = failure
    return error


def closed_batch_error(cut_short: str) -> ClosedError:
    """Return the error of a stream, or of the steps, that closing the batch has cut short."""
    return ClosedError(
        f"the batch was closed before {cut_short} had ended: "
        f"read to the end before the batch is closed or its block ends"
    )


def no_slot_error(slot: object, size: int) -> IndexError:
    """Return the error of a call that names a slot which does not exist."""
    return IndexError(f"no slot {slot!r}, expected slots from 0 to {size - 1}")


def consumer_error(error: BaseException) -> Exception:
    """Return a copy of the error for one consumer alone, with the original as its cause.

    Copies share no traceback, context or list of notes: raising them in many consumers and threads
    neither makes one traceback grow nor shows one consumer what another was doing.
    """
    own = None
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        own = _copy(error)
        if own is None:
            own = _copy_as_its_class_does(error)
    if own is None:
        own = SourceError(f"the stream failed with {type_name(error)}: {error_text(error)}")
    # An error of the library's own that no code of the source's has raised would be shown twice.
    _CAUSE.__set__(own, error.__cause__ if _was_made_here(error) else error)
    return own


def _was_made_here(error: BaseException) -> bool:
    kind = type(error)
    if not (issubclass(kind, BatchStreamError) and kind.__module__.startswith(_OUR_PACKAGE)):
        return False
    begin_in_source(error)
    return error.__traceback__ is None


def error_text(error: BaseException) -> str:
    """Return the text of an error, even if its `__str__` raises."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an error that cannot be shown still has its type
        return "<no text>"


def uncalled_marker_error(marker: type, slot: int, step: int) -> StepError:
    """Return the error of a slot that was given the class of a marker."""
    name = marker.__name__
    call = {"Last": "Last(output)", "Fail": "Fail(error)", "Many": "Many(outputs)"}
    return StepError(
        f"step {step} holds the class {name} for slot {slot}, expected an instance: "
        f"yield {call.get(name, f'{name}()')}",
        step=step,
    )


def requeue_error(slot: int, step: int) -> StepError:
    """Return the error of a slot that was given back where no request is added again."""
    return StepError(
        f"step {step} gives slot {slot} back with Requeue, which only the engine of a "
        f"ContinuousBatcher or of a ContinuousBatchLoop may do, as it is added again there: yield "
        f"SKIP for a slot that goes on later, or Fail(error)",
        step=step,
    )


def type_name(value: object) -> str:
    """Return the name of a user's type, whose metaclass may raise where it is asked for it."""
    name: str = vars(type)["__name__"].__get__(type(value))
    return name


def _copy(error: Exception) -> Exception | None:
    """Copy an exception without running its `__init__`, which may not accept its own `args`."""
    cls = type(error)
    try:
        args = _ARGS.__get__(error)
        own = cls.__new__(cls, *args)
        if type(own) is not cls or own is error:
            return None
        _ARGS.__set__(own, args)
        for base in cls.__mro__:
            for name, field in vars(base).items():
                if isinstance(field, MemberDescriptorType | GetSetDescriptorType):
                    _copy_field(name, field, error, own)
        attributes = vars(own)
        attributes.update(vars(error))
        if notes := attributes.get("__notes__"):
            attributes["__notes__"] = list(notes)
    except Exception:  # noqa: BLE001 - the class is the user's; `consumer_error` has another way
        return None
    return own


def _copy_as_its_class_does(error: Exception) -> Exception | None:
    """Copy an exception that `_copy` cannot make with `copy.copy`, and so its own `__reduce__`."""
    try:
        own = copy.copy(error)
        if type(own) is not type(error) or own is error:
            return None
        _TRACEBACK.__set__(own, None)
        _CONTEXT.__set__(own, None)
        if notes := vars(error).get("__notes__"):
            vars(own)["__notes__"] = list(notes)
    except Exception:  # noqa: BLE001 - the class is the user's; `consumer_error` has another error
        return None
    return own


def _copy_field(
    name: str,
    field: MemberDescriptorType | GetSetDescriptorType,
    error: Exception,
    own: Exception,
) -> None:
    if name in _OWN_TO_A_RAISE:
        return
    try:
        value = field.__get__(error)
        # An unset field reads as None, but setting it to None would show in the text.
        if _read(field, own) is not value:
            field.__set__(own, value)
    except (AttributeError, TypeError):
        return  # unset in the original, or read-only: derived from what is copied


def _read(field: MemberDescriptorType | GetSetDescriptorType, own: Exception) -> object:
    try:
        return field.__get__(own)
    except AttributeError:  # unset
        return None


def begin_in_source(error: BaseException) -> None:
    """Cut our own frames from the start of an error's traceback, so that it begins in the source.

    The traceback of an error that never left our own frames is cut as a whole: a frame that it kept
    would keep its callers' frames, and with them the pump and a consumer's variables.
    """
    traceback: TracebackType | None = _TRACEBACK.__get__(error)
    while traceback is not None:
        if not str(traceback.tb_frame.f_globals.get("__name__")).startswith(_OUR_PACKAGE):
            break
        traceback = traceback.tb_next
    _TRACEBACK.__set__(error, traceback)


def forget_context(error: BaseException, handled: BaseException | None) -> None:
    """Cut the exception that a pulling consumer was handling off an error's chain of contexts.

    The error reaches other consumers too, which have nothing to do with that exception.

    Args:
        error: What was raised while the consumer pulled.
        handled: The exception that the consumer was handling then.
    """
    link, seen = error, {id(error)}
    while (context := _CONTEXT.__get__(link)) is not None and id(context) not in seen:
        if context is handled:
            _CONTEXT.__set__(link, None)
            return
        seen.add(id(context))
        link = context


_NO_CALLER: Final = "a call by batchstream that no caller waits for"


def report_unraisable(error: BaseException, place: str = _NO_CALLER) -> None:
    """Hand an error that no caller waits for to `sys.unraisablehook`.

    Args:
        error: The error.
        place: What raised it, as Python prints it: "Exception ignored in: " stands in front.
    """
    holder = _Unraisable(error, place)
    del error  # or its traceback, which has this frame, would keep it
    del holder


def report_or_raise(errors: Iterable[BaseException]) -> None:
    """Hand errors to `sys.unraisablehook`, but raise an interrupt: the calling thread is meant.

    Raises:
        BaseException: One of `INTERRUPTS`.
    """
    interrupt: BaseException | None = None
    for error in errors:
        if isinstance(error, INTERRUPTS):
            interrupt = error
        else:
            report_unraisable(error)
    del errors
    if interrupt is not None:
        try:
            raise interrupt
        finally:
            del interrupt  # it holds this frame


def call_quietly(function: Callable[[], object], place: str = _NO_CALLER) -> None:
    """Call a function, and hand what it raises to `sys.unraisablehook`: no caller waits for it.

    Args:
        function: The function.
        place: See `report_unraisable`.

    Raises:
        BaseException: One of `INTERRUPTS`.
    """
    try:
        function()
    except INTERRUPTS:
        raise
    except BaseException as error:  # noqa: BLE001 - handed on, to the hook
        report_unraisable(error, place)


def warn_user(message: str) -> None:
    """Warn at the line of the program that has called the library, or at the thread's first line.

    Raises:
        RuntimeWarning: A filter makes errors of warnings.
    """
    level, frame = 1, sys._getframe()  # noqa: SLF001 - as warnings does
    while str(frame.f_globals.get("__name__")).startswith(_OUR_PACKAGE):
        level += 1
        if frame.f_back is None:
            break
        frame = frame.f_back
    warnings.warn(message, RuntimeWarning, stacklevel=level)


class _Unraisable:
    """Raises an error in its finalizer: only the interpreter can make the hook's argument."""

    def __init__(self, error: BaseException, place: str) -> None:
        self._finalizer = _Finalizer(error, place)

    @property
    def __del__(self) -> _Finalizer:  # a function would be printed as itself, and not as the place
        return self._finalizer


class _Finalizer:
    def __init__(self, error: BaseException, place: str) -> None:
        self._error = error
        self._place = place

    def __repr__(self) -> str:
        return self._place

    def __call__(self) -> None:
        error = self.__dict__.pop("_error")
        try:
            raise error
        finally:
            del error  # its traceback has this frame
