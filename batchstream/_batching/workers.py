"""Who works on batches, who listens for more, and who has to be called: decided, and not done.

A worker *looks* until it finds nothing to do: then it rests. While a batch could still grow it
*listens* until a certain time. Whoever submits a request sees to it that somebody looks when it is
time: nobody has to be called if all are at work, for each looks again when its batch has ended; a
listener that would wake too late is rung; else one that rests is called.

For the holder of the batcher's lock. What is to be done is noted in `calls`, before anything else
is changed, so that what breaks off the holder may cost a needless call and never a missing one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable


class AnyWorker:
    """Who works on one batch after another.

    Attributes:
        called: Whether it has been told to look; from then on it looks until it finds nothing.
        busy: Whether it has taken a batch, and not looked since.
        reusable: Whether it may be called again after it has rested.
    """

    reusable = True
    called = False
    busy = False


W = TypeVar("W", bound=AnyWorker)


class Workers(Generic[W]):
    """The workers of one batcher.

    Args:
        limit: How many there may be.
        make: Makes one.

    Attributes:
        calls: What is to be done without the lock: pairs of a worker and what to ring it by, or
            None where it is to be called.
    """

    def __init__(self, limit: int, make: Callable[[], W]) -> None:
        self._limit = limit
        self._make = make
        self._at_work: set[W] = set()
        self._listening: dict[W, tuple[float, Any]] = {}
        self._resting: list[W] = []
        self.calls: deque[tuple[W, Any]] = deque()

    @property
    def at_work(self) -> int:
        """How many have been called and do not rest."""
        return len(self._at_work)

    @property
    def free(self) -> int:
        """How many could take a batch."""
        return self._limit - sum(worker.busy for worker in self._at_work)

    def __contains__(self, worker: object) -> bool:
        return worker in self._at_work

    def note_call(self, wake_at: Callable[[], float | None]) -> None:
        """Note whom to call, so that somebody looks at that time.

        Args:
            wake_at: Tells the time, or None if nobody need look; asked only if need be.
        """
        if not self._listening and len(self._at_work) >= self._limit:
            return
        at = wake_at()
        if at is None:
            return
        for worker, (until, waiter) in self._listening.items():
            if until > at:
                self.calls.append((worker, waiter))
                del self._listening[worker]
                return
        if not self._listening:
            worker = self._resting.pop() if self._resting else self._make()
            self.calls.append((worker, None))
            self._at_work.add(worker)

    def note_calls_again(self) -> None:
        """Note those again who were to be called, where that may have been broken off."""
        self.calls.extend((worker, None) for worker in self._at_work if not worker.called)

    def listen(self, worker: W, at: float, waiter: Any) -> bool:
        """Let a worker listen until then, unless another does."""
        if any(until <= at for until, _ in self._listening.values()):
            return False
        self._listening[worker] = at, waiter
        return True

    def look(self, worker: W) -> None:
        """Take note that a worker looks."""
        worker.busy = False
        self._listening.pop(worker, None)

    def rest(self, worker: W) -> None:
        """Take note that a worker has nothing more to do."""
        if worker in self._at_work:
            self._at_work.discard(worker)
            self._listening.pop(worker, None)
            worker.busy = worker.called = False
            if worker.reusable:
                self._resting.append(worker)

    def dismiss_all(self) -> list[W]:
        """Forget all who are at work, and return them: they have gone without a word."""
        gone = list(self._at_work)
        self._at_work.clear()
        self._listening.clear()
        return gone

    def ring_all(self) -> None:
        """Note all who listen to be rung."""
        self.calls.extend((worker, waiter) for worker, (_, waiter) in self._listening.items())
        self._listening.clear()
