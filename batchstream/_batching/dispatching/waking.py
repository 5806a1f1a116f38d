"""Starting and waking workers, as the scheduler has decided; without the batcher's lock.

The functions below are for any thread: several may carry out the same wake-up, which does no harm.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from batchstream._batching.requests.request import closed_error
from batchstream._core.errors import ClosedError, report_unraisable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from batchstream._batching.requests.request import Request
    from batchstream._batching.scheduling.scheduler import Scheduler
    from batchstream._batching.scheduling.workers import Worker


class WorkersOwner(Protocol):
    """What has workers: a dispatcher.

    Attributes:
        scheduler: What decides, for the holder of the lock.
    """

    scheduler: Scheduler[Any]

    @property
    def lock(self) -> AbstractContextManager[object]: ...

    def start(self, worker: Worker) -> None:
        """Let a worker ask for batches until there is none."""

    def resume(self, waiter: Any) -> None:
        """Wake a worker that waits; harmless if it was woken already."""

    def fail_all(self, requests: Iterable[Request[Any]], error: BaseException) -> None:
        """Fail requests that are in no batch."""

    def check_ended(self) -> None:
        """Set the event of the end, if it has come."""


def wake_workers(owner: WorkersOwner) -> None:
    """Start or wake the workers queued in the `wakeups` of the scheduler's workers."""
    wakeups = owner.scheduler.workers.wakeups
    while wakeups:
        try:
            wakeup = wakeups[0]
        except IndexError:  # another thread has just carried it out
            return
        # Carried out before it is removed: a signal's exception in between costs a second
        # wake-up, and no wake-up is lost.
        if wakeup.waiter is None:
            _try_to_start(owner, wakeup.worker)
        else:
            owner.resume(wakeup.waiter)
        with suppress(ValueError):  # another thread has carried it out as well
            wakeups.remove(wakeup)


def wake_unstarted(owner: WorkersOwner) -> None:
    """Start all workers of which it is not sure that they were started."""
    with owner.lock:
        owner.scheduler.workers.wake_unstarted()
    wake_workers(owner)


def wake_another(owner: WorkersOwner) -> None:
    """Start or wake another worker, if that is possible; from a worker."""
    if owner.scheduler.workers.wakeups:
        try:
            wake_workers(owner)
        except Exception as error:  # noqa: BLE001 - the system refuses a thread, perhaps
            report_unraisable(error)


def _try_to_start(owner: WorkersOwner, worker: Worker) -> None:
    claim = object()
    try:
        with owner.lock:
            if not owner.scheduler.workers.claim_start(worker, claim):
                return
        if owner.scheduler.state == "closed":
            raise closed_error(owner.scheduler.closing)  # noqa: TRY301 - it ends as the others
        owner.start(worker)
    except BaseException as error:
        with owner.lock:
            if worker.claim is claim:
                owner.scheduler.workers.rest(worker)
            stuck = [] if owner.scheduler.workers.at_work else owner.scheduler.waiting_requests()
        owner.fail_all(stuck, error)  # for no worker would ever ask for them
        owner.check_ended()
        if not isinstance(error, ClosedError):
            raise
