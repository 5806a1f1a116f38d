"""What a batcher calls as things happen, for users' figures, in a way that cannot hurt it."""

from __future__ import annotations

from threading import RLock, current_thread, main_thread
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from batchstream._core.errors import report_unraisable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextvars import Context

    from batchstream._core.records import StreamEnd


class Metrics(Protocol):
    """What a batcher calls as things happen; `statistics()` has the same as totals.

    What a method raises goes to `sys.unraisablehook`, and the batch goes on. One that takes long
    holds up the worker or the caller that it is called in, and no lock.

    Threads: `submitted` and `refused` are called in the thread that submits, the others mostly in a
        worker's; so in several at the same time.
    """

    def submitted(self) -> None:
        """A request was accepted, and waits."""

    def refused(self) -> None:
        """A request was refused with `OverloadedError`."""

    def joined(self, waited: Sequence[float]) -> None:
        """So many requests joined a batch together, each after so many seconds."""

    def stepped(self, live: int, capacity: int) -> None:
        """A step was made for so many live slots out of `max_batch_size`."""

    def finished(self, end: StreamEnd, *, joined: bool, lasted: float) -> None:
        """A request has ended, once for each that was submitted.

        Args:
            end: How it ended.
            joined: Whether it had joined a batch.
            lasted: How many seconds after it was submitted this was noticed.
        """


MetricsOrFactory: TypeAlias = "Metrics | Callable[[], Metrics]"

_EVENTS: Final = ("submitted", "refused", "joined", "stepped", "finished")


class MetricsCaller:
    """Calls a user's metrics, and lets no error of theirs out.

    Args:
        metrics: The metrics; or a function without arguments that makes them, such as their class.

    Raises:
        TypeError: They have not all methods of `Metrics`.

    Attributes:
        unmade: Whether they are still to be made, by `make`.
    """

    def __init__(self, metrics: MetricsOrFactory) -> None:
        is_factory = callable(metrics) and (
            isinstance(metrics, type) or not hasattr(metrics, "submitted")
        )
        self._metrics = None if is_factory else _check_methods(metrics)
        self._factory = metrics if is_factory else None
        self.unmade = is_factory
        # Guards the factory alone, which is called once: whatever else comes meanwhile has to wait.
        self._making = RLock()

    def make(self, context: Context) -> None:
        """Call the factory in a context, unless another thread has; before any event.

        Raises:
            TypeError: It returns what has not the methods.
            Exception: What it raises. The next call tries again.
        """
        with self._making:
            if self.unmade and callable(self._factory):
                self._metrics = _check_methods(context.run(self._factory))
                self.unmade = False

    def after_fork(self) -> None:
        """Forget that another thread, which is not in this process, was in the factory."""
        self._making = RLock()

    def __call__(self, event: str, *args: object, **kwargs: object) -> None:
        """Call the method of this name."""
        try:
            getattr(self._metrics, event)(*args, **kwargs)
        except BaseException as error:
            # Whatever it is, it is not the batch's; but an interrupt is meant for the caller.
            if isinstance(error, KeyboardInterrupt) and current_thread() is main_thread():
                raise
            report_unraisable(error)


def _check_methods(metrics: object) -> object:
    """Return what has all methods of `Metrics`.

    Raises:
        TypeError: Some are missing.
    """
    missing = [event for event in _EVENTS if not callable(getattr(metrics, event, None))]
    if missing:
        raise TypeError(
            f"metrics must have the methods {', '.join(_EVENTS[:-1])} and {_EVENTS[-1]}, "
            f"got {metrics!r} without {', '.join(missing)}: derive its class from "
            f"batchstream.Metrics, which has them all"
        )
    return metrics
