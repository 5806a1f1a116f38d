"""How long a client allows for its call, as gRPC knows it."""

from __future__ import annotations

from typing import Final, Protocol

from batchstream._core.arguments import check_seconds

_YEARS: Final = 1e9
"""More seconds than a client means: what a server of threads says where there is no deadline."""


class Timed(Protocol):
    """The context of a call, of `grpc.aio` or of threads."""

    def time_remaining(self) -> float | None:
        """Return how many seconds are left for the call; None for any number."""


def timeout_of(context: Timed, *, at_most: float | None = None) -> float | None:
    """Return how long a call may still take, in seconds, by the deadline that its client has set.

    For one line in a method: `batcher.astream(prompt, timeout=timeout_of(context))`.

    Args:
        context: That of the method, of `grpc.aio` or of a server of threads.
        at_most: The longest time that the server allows, in seconds, and what counts if the client
            has set no deadline; None for no limit.

    Returns:
        The time, 0 if the deadline has passed; None if neither the client nor the server limits it.

    Raises:
        TypeError, ValueError: `at_most` is no duration.
    """
    most = None if at_most is None else check_seconds("at_most", at_most)
    left = context.time_remaining()
    if left is None or left >= _YEARS:
        return most
    return left if most is None else min(left, most)
