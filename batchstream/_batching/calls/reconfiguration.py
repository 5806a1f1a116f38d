"""How the limits of a batcher are changed while it serves requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchstream._batching.dispatching.waking import wake_workers
from batchstream._batching.requests.request import closed_error
from batchstream._batching.waiting.limits import check_limits

if TYPE_CHECKING:
    from collections.abc import Container

    from batchstream._batching.dispatching.dispatcher import Dispatcher
    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.waiting.limits import Limits


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


def _check_needs(options: BatcherOptions[Any, Any], changes: Container[str]) -> None:
    """Refuse limits on what the requests of the batcher do not have.

    Raises:
        TypeError: There is one.
    """
    has_costs, has_step_costs = options.cost is not None, options.step_cost is not None
    has_tenants = options.places is not None and options.places.tenant is not None
    needs = {  # whether there is what a limit needs, what that is, and the arguments that bring it
        "max_batch_cost": (options.has_cost, "have a cost", "cost and max_batch_cost"),
        "max_pending_cost": (has_costs, "have a cost each", "cost and max_batch_cost"),
        "max_pending_per_tenant": (has_tenants, "have a tenant", "tenant"),
        "max_step_cost": (has_step_costs, "say what a step costs", "step_cost and max_step_cost"),
    }
    for name, (has_it, what, arguments) in needs.items():
        if name in changes and not has_it:
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
