"""What a step may cost when a request joins: the options of the batcher and of LitServe's loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchstream._core.arguments import check_number
from batchstream._core.errors import CostError

if TYPE_CHECKING:
    from collections.abc import Callable


def check_step_budget(step_cost: Any, max_step_cost: float | None) -> None:
    """Check the two options together.

    Raises:
        TypeError: One of them is of the wrong kind, or is without the other.
        ValueError: No step may cost so little.
    """
    if (step_cost is None) != (max_step_cost is None):
        raise TypeError("step_cost and max_step_cost go together: one was given without the other")
    if step_cost is not None and not callable(step_cost):
        raise TypeError(f"step_cost takes a function of one request, got {step_cost!r}")
    if max_step_cost is not None:
        check_number("max_step_cost", max_step_cost)


def first_step_cost(
    step_cost: Callable[[Any], float], content: object, most: float | None
) -> float:
    """Return what a request's first step costs.

    Args:
        step_cost: The user's function.
        content: The request.
        most: What it may cost; None for any, as a request that joins again does so when it is
            alone.

    Raises:
        CostError: It is more than that: it would wait for ever.
        TypeError, ValueError: The function returned what is no cost.
    """
    found = check_number("what step_cost returns", step_cost(content))
    check_first_step(found, most)
    return found


def check_first_step(cost: float, most: float | None) -> None:
    """Check what a request's first step costs.

    Raises:
        CostError: It is more than a step may cost: the request would wait for ever.
    """
    if most is not None and cost > most:
        raise CostError(
            f"the first step of the request costs {cost!r}, more than a step may cost: "
            f"{most!r} (max_step_cost)"
        )
