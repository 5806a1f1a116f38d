"""How the limits of a batcher are changed while it serves requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from batchstream._batching.dispatching.waking import wake_workers
from batchstream._batching.requests.request import closed_error
from batchstream._batching.waiting.limits import check_limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchstream._batching.dispatching.dispatcher import Dispatcher
    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.waiting.limits import Limits

_NEEDS: Final = {
    "max_batch_cost": ("have a cost", "cost and max_batch_cost"),
    "max_pending_cost": ("have a cost each", "cost and max_batch_cost"),
    "max_pending_per_tenant": ("have a tenant", "tenant"),
    "max_step_cost": ("say what their first step costs", "step_cost and max_step_cost"),
}
"""What a limit needs, and the arguments of the batcher that bring it."""


def reconfigure(dispatcher: Dispatcher[Any], **changes: Any) -> None:
    """Change the limits that are not None, all at once, or none of them.

    Raises:
        TypeError, ValueError: One is of the wrong kind, or cannot work.
        ClosedError: The batcher was closed.
        ForkedError: The batcher had requests when this process was forked.
        RuntimeError: A signal's handler has interrupted the batcher.
    """
    changes = check_limits(**{name: it for name, it in changes.items() if it is not None})
    _check_needs(dispatcher.options, changes)
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


def _check_needs(options: BatcherOptions[Any, Any], changes: Iterable[str]) -> None:
    """Refuse limits on what the requests of the batcher do not have.

    Raises:
        TypeError: There is one.
    """
    lacks = {
        "max_batch_cost": not options.has_cost,
        "max_pending_cost": options.cost is None,
        "max_pending_per_tenant": options.places is None or options.places.tenant is None,
        "max_step_cost": options.step_cost is None,
    }
    for name in changes:
        if lacks.get(name):
            what, arguments = _NEEDS[name]
            raise TypeError(
                f"{name} of a batcher that runs needs requests that {what}, and this one was made "
                f"without: make it with {arguments}"
            )


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
