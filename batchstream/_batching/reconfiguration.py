"""How the limits of a batcher are changed while it serves requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchstream._batching.limits import check_limits
from batchstream._batching.request import closed_error
from batchstream._batching.waking import wake_workers

if TYPE_CHECKING:
    from batchstream._batching.dispatcher import Dispatcher
    from batchstream._batching.limits import Limits


def reconfigure(dispatcher: Dispatcher[Any], **changes: Any) -> None:
    """Change the limits that are not None, all at once, or none of them.

    Raises:
        TypeError, ValueError: One is of the wrong kind, or cannot work.
        ClosedError: The batcher was closed.
        ForkedError: The batcher had requests when this process was forked.
        RuntimeError: A signal's handler has interrupted the batcher.
    """
    changes = check_limits(**{name: it for name, it in changes.items() if it is not None})
    if "max_batch_cost" in changes and not dispatcher.options.has_cost:
        raise TypeError(
            "max_batch_cost of a batcher that runs needs requests that have a cost, and this one "
            "was made without: make it with cost and max_batch_cost"
        )
    dispatcher.check_not_forked()
    if dispatcher.lock._is_owned():  # type: ignore[attr-defined] # noqa: SLF001 - as Condition asks
        raise RuntimeError("a signal's handler has interrupted the batcher it reconfigures")
    try:
        while not _replace(dispatcher, changes):
            pass  # another thread has changed others meanwhile
    finally:
        wake_workers(dispatcher)
        dispatcher.ends.tell_of_room()
        dispatcher.ends.wake_model()


def _replace(dispatcher: Dispatcher[Any], changes: dict[str, Any]) -> bool:
    """Replace the limits in force; False if they were changed since they were checked."""
    options, scheduler = dispatcher.options, dispatcher.scheduler
    before: Limits = options.limits.now
    after = before._replace(**changes)
    options.check_together(after)
    with dispatcher.lock:
        is_closed = scheduler.state == "closed"
        is_current = options.limits.now is before
        if is_current and not is_closed:
            scheduler.change_limits(after)
    if is_closed:
        raise closed_error(scheduler.closing)
    return is_current
