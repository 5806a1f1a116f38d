"""What a whole batch costs, by a function of the user's: `batch_cost`.

Theory of operation
-------------------

The costs of single requests can be added up under the batcher's lock. A `batch_cost` is the user's
code, and is never called there: it may take long, raise, or submit a request to the batcher. So a
worker that asks for a batch does it in three moves:

1. With the lock it reads the `candidates`: the requests that would join if the cost allowed it.
   They stay in the queue: they can be cancelled and run into their deadlines, and a worker that is
   broken off leaves nothing to be put back.
2. Without the lock it measures how many of them fit: the largest number of the oldest ones whose
   cost is within the bound.
3. With the lock it takes these, unless others have joined a batch or the limits were changed
   meanwhile: then it begins anew. So two workers that measure the same requests do not put one of
   them into two batches, and none is overtaken by a later one of its group.

Whether a batch is full is known only once it was measured. While a worker waits for others to join,
each request that comes wakes it, and it measures again: a batch that is full does not wait for its
timeout. One that is not is taken when that is over.

The cost should not fall when a request is added. It is measured by halving: for n requests the
function is called once if they all fit, and else about log2(n) times. Where it falls, or raises for
some lists and not for longer ones, a batch still costs no more than the bound, and may be smaller
than it could be.

A request with which the function raises, behind others with which it does not, fails with that
error, and the others go on without it. What one request costs alone was measured as it was
submitted: it is not measured again.

An interrupt in a task that may raise it is no such error: it leaves the task, as that of a model
does, and all requests wait on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple

from typing_extensions import TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchstream._batching.requests.request import Request
    from batchstream._batching.waiting.limits import Limits

T = TypeVar("T")


class Candidates(NamedTuple, Generic[T]):
    """Requests that join a batch together if its cost allows it.

    Attributes:
        requests: The requests, the oldest first; at least one. They wait in the queue.
        contents: What the callers have submitted.
        first_cost: What the first costs alone, as it was submitted.
        limits: The limits by which they would join.
    """

    requests: list[Request[T]]
    contents: list[Any]
    first_cost: float
    limits: Limits


class Measured(NamedTuple, Generic[T]):
    """Requests that fit into a batch.

    Attributes:
        requests: The requests, the oldest first; at least one.
        limits: The limits by which they fit.
        is_full: Whether no other fits.
    """

    requests: list[Request[T]]
    limits: Limits
    is_full: bool


def measure(
    candidates: Candidates[T],
    cost_of: Callable[[list[Any]], float],
    fail: Callable[[Sequence[Request[T]], BaseException], object],
    passing: tuple[type[BaseException], ...] = (),
) -> Measured[T]:
    """Return the candidates that fit into a batch; without the batcher's lock.

    The first one always does: where a lowered bound is less than its cost, it goes alone.

    Args:
        candidates: The requests.
        cost_of: The user's function.
        fail: Fails requests with which the function raises.
        passing: What it may raise that fails no request.

    Raises:
        BaseException: One of `passing`.
    """
    requests, contents = list(candidates.requests), list(candidates.contents)
    most = candidates.limits.max_batch_cost
    assert most is not None  # noqa: S101 - for the type checker
    if candidates.first_cost > most:
        return Measured(requests[:1], candidates.limits, is_full=True)
    fit, too_many = 1, len(requests) + 1
    error: BaseException | None = None  # what the function raises for `too_many`
    tried = len(requests)
    while too_many - fit > 1:
        try:
            fits, raised = cost_of(contents[:tried]) <= most, None
        except passing:
            raise
        except BaseException as caught:  # noqa: BLE001 - fails one request, and not the queue
            fits, raised = False, caught
        if fits:
            fit = tried
        else:
            too_many, error = tried, raised
        if too_many - fit == 1 and error is not None:
            fail([requests.pop(too_many - 1)], error)
            del contents[too_many - 1]
            too_many, error = len(requests) + 1, None
            tried = len(requests)
        else:
            tried = (fit + too_many) // 2
    return Measured(requests[:fit], candidates.limits, is_full=too_many <= len(requests))
