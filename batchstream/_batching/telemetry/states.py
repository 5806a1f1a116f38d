"""The states of the batchers that share an object for metrics, for metrics that show them.

Theory of operation
-------------------

A batcher's state is no event that could be counted: what is to be shown is what it is when the
figures are read, and a batcher that was dropped has none. So such metrics have an attribute
`states`, which knows the batchers, and asks them. Where the figures are kept in files, which other
processes read, the metrics are told of a change as well.

Batchers are known by weak references: metrics may be there for as long as the process.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol, get_args

from batchstream._batching.life import BatcherState

if TYPE_CHECKING:
    from collections.abc import Callable

STATES: Final[tuple[BatcherState, ...]] = get_args(BatcherState)
"""All of them, in the order in which a batcher has them."""


class Watched(Protocol):
    """What has a state: a dispatcher.

    Attributes:
        forked: Whether it is a copy in a forked child, of no use there.
    """

    forked: bool

    @property
    def state(self) -> BatcherState: ...


class States:
    """The states of some batchers.

    Args:
        added: Called when there is another batcher.
        changed: Called when one of them may have another state than before. That may be amid
            whatever a signal's handler has interrupted, which holds locks: so it must take none.

    Attributes:
        changed: The same.

    Threads: any.
    """

    def __init__(self, added: Callable[[], None], changed: Callable[[], None]) -> None:
        self._added = added
        self.changed = changed
        # Its calls are atomic: a batcher may be dropped in the midst of any.
        self._batchers: list[weakref.ref[Watched]] = []

    def watch(self, batcher: Watched) -> None:
        """Count a batcher in from now on, until it is dropped."""
        if all(known() is not batcher for known in list(self._batchers)):
            self._batchers.append(weakref.ref(batcher, self._forget))
        self._added()

    def _forget(self, known: weakref.ref[Watched]) -> None:
        with suppress(ValueError):
            self._batchers.remove(known)

    def counts(self) -> dict[BatcherState, int]:
        """Return how many of the batchers have each of the states."""
        counts = dict.fromkeys(STATES, 0)
        for known in list(self._batchers):
            batcher = known()
            if batcher is not None and not batcher.forked:
                counts[batcher.state] += 1
        return counts
