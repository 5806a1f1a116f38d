"""What happens to pumps and batchers when their process forks or exits.

A forked child has copies of them, and none of their threads: there every use of a copy fails, but
that of a batcher which had no request at the fork, and begins anew. An exiting interpreter closes
the sources of batches that were abandoned, as far as that takes no time.
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from typing import Final, Protocol

from batchstream._core.errors import ForkedError, call_quietly

EXIT_SECONDS: Final = 1.0
"""For how long an exiting interpreter waits for all threads together."""


class Forkable(Protocol):
    """What has threads, or tasks, that a forked child has not."""

    def after_fork(self) -> None:
        """Make every use in this process, a forked child, fail; or begin anew, if that is right."""


class Running(Protocol):
    """What has running threads.

    Attributes:
        forked: Whether the threads run in another process.
    """

    forked: bool

    @property
    def ended(self) -> bool:
        """Whether its threads have done all their work."""

    def request_exit(self) -> None:
        """Cancel all streams and make the threads end, without waiting for them.

        An error would be printed by each daemon thread that reads a stream.
        """

    def join(self, timeout: float | None = None) -> None:
        """Wait until the threads have ended."""


class RunningWithModel(Running, Protocol):
    """What has threads, one of which may have to close a model, such as an engine.

    Attributes:
        forked: See `Running`.
    """

    @property
    def has_open_model(self) -> bool:
        """Whether one has."""


def forked_batch_error() -> ForkedError:
    """Return the error of every use of a batch in a forked child."""
    return ForkedError(
        "this batch was opened in another process, and cannot be used in a fork of it: "
        "open one in each process"
    )


forkable: Final[weakref.WeakSet[Forkable]] = weakref.WeakSet()
"""All pumps, and what else another thread may hold at a fork."""

forkable_batchers: Final[weakref.WeakSet[Forkable]] = weakref.WeakSet()
"""All dispatchers."""

running: Final[set[Running]] = set()
"""All pumps and dispatchers with threads at work; this set keeps them alive."""

with_models: Final[weakref.WeakSet[RunningWithModel]] = weakref.WeakSet()
"""All dispatchers whose threads may have a model to close, though they are not at work."""


def _after_fork() -> None:
    # Batchers first: each asks whether a request is open, and the pumps end open requests.
    for each in [*forkable_batchers, *forkable]:
        # One that another thread was making may be half made: it keeps no other from refusing.
        call_quietly(each.after_fork)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _close_all() -> None:
    abandoned = {*running, *(each for each in with_models if each.has_open_model)}
    for each in abandoned:
        if not (each.forked or each.ended):
            call_quietly(each.request_exit)
    until = time.monotonic() + EXIT_SECONDS
    for each in abandoned:
        each.join(max(0.0, until - time.monotonic()))
