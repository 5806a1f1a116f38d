"""What a batcher calls as things happen, for users' figures, in a way that cannot hurt it."""

from __future__ import annotations

from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Protocol

from batchstream._core.errors import report_unraisable

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class MetricsCaller:
    """Calls a user's metrics, and lets no error of theirs out."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def __call__(self, event: str, *args: object, **kwargs: object) -> None:
        """Call the method of this name."""
        try:
            getattr(self._metrics, event)(*args, **kwargs)
        except BaseException as error:
            # Whatever it is, it is not the batch's; but an interrupt is meant for the caller.
            if isinstance(error, KeyboardInterrupt) and current_thread() is main_thread():
                raise
            report_unraisable(error)
