"""What requests that join may cost together, counted as they join."""

from __future__ import annotations


class Budget:
    """What a batch, or its next step, may cost.

    Args:
        most: The bound.
        spent: What it costs without the requests that join; None if no request is in it. Then the
            first that joins may cost more: no other batch could take it either.
    """

    __slots__ = ("_most", "_spent")

    def __init__(self, most: float, spent: float | None) -> None:
        self._most = most
        self._spent = spent

    def admit(self, cost: float) -> bool:
        """Count a request that costs so much, and return True; False if it may not join."""
        spent = cost if self._spent is None else self._spent + cost
        if self._spent is not None and spent > self._most:
            return False
        self._spent = spent
        return True
