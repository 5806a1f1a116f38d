"""The limits of a batcher that may change while it serves requests.

Theory of operation
-------------------

All that reads such a limit, the queue for example, shares one `LimitsInForce`, and reads it there
each time. A change replaces the `Limits` as a whole, with one assignment: so a signal's exception
leaves all that were in force before, or all new ones. What has to be done so that no reader misses
the change is done before it; see `Scheduler.change_limits`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from batchstream._core.arguments import UNLIMITED, check_count, check_number, check_seconds


class Limits(NamedTuple):
    """How large batches are, how long requests wait for them, and how many may.

    Attributes:
        max_batch_size: How many requests a batch has at most.
        max_pending: How many may wait.
        batch_timeout: For how long a request waits for others at most, while a worker is free.
        max_batch_cost: What the requests of a batch may cost together; None if they cost nothing.
        max_pending_cost: What the requests that wait may cost together; None for any cost.
        max_pending_per_tenant: How many requests of one tenant may wait; None for any number.
        max_step_cost: What the next step may cost when a request joins; None for any cost.
    """

    max_batch_size: int
    max_pending: int
    batch_timeout: float = 0.0
    max_batch_cost: float | None = None
    max_pending_cost: float | None = None
    max_pending_per_tenant: int | None = None
    max_step_cost: float | None = None


_COSTS: Final = ("max_batch_cost", "max_pending_cost", "max_step_cost")


def slots_of_step(limits: Limits, live: int, batch: int) -> int:
    """Return how many slots a step could have filled.

    Where nothing but its cost limits a batch, that is as many as requests have begun it.

    Args:
        limits: What holds at the moment; a batch may be larger than a limit that was lowered.
        live: For how many slots the step is made.
        batch: How many slots the batch has.
    """
    most = limits.max_batch_size
    return max(live, batch if most >= UNLIMITED else most)


def check_limits(**limits: Any) -> dict[str, Any]:
    """Return limits by name as plain numbers, of no class of a user's.

    Raises:
        TypeError, ValueError: One is no number, or none that it can be.
    """
    checked: dict[str, Any] = {}
    for name, value in limits.items():
        if name == "batch_timeout":
            checked[name] = check_seconds(name, value)
        elif name in _COSTS:
            number = check_number(name, value)
            checked[name] = value if type(value) is int else number  # as it was given, for texts
        else:
            checked[name] = check_count(name, value, at_least=1)
    return checked


class LimitsInForce:
    """The limits that count at the moment.

    Attributes:
        now: They themselves; replaced as a whole, under the batcher's lock.
    """

    __slots__ = ("now",)

    def __init__(self, limits: Limits) -> None:
        self.now = limits
