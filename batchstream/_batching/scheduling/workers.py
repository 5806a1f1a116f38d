"""The workers of a batcher: which of them run, wait, are idle, or have to be woken.

Theory of operation
-------------------

A *worker*, a thread or a task, asks for its next batch until there is none: then it is idle. While
a batch could still grow, one worker waits until a certain time. When a request is submitted, some
worker has to ask when it is time. While all workers are at work none is woken: each asks again when
its batch has ended. A worker that waits longer than that is woken; else an idle one is started.

What the holder of the lock has to do afterwards is queued in `wakeups` *before* anything else is
changed. So an exception that breaks the holder off, of a signal for example, may cost a needless
wake-up, and never a missing one. `waking.py` carries it out.

Not safe for threads: every method is for the holder of the batcher's lock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchstream._batching.scheduling.warm_up_queue import WarmUpQueue
    from batchstream._batching.waiting.queue import WaitingQueue


class Worker:
    """A thread or a task that runs one batch after another.

    Attributes:
        claim: What has started it, an object of the starter's own; None if it was not started. From
            its start on it asks for batches until there is none.
        busy: Whether it has taken a batch, and has not asked since.
        began: Whether its code has begun to run.
        thread_or_task: What it runs in, once it was started.
    """

    __slots__ = ("began", "busy", "claim", "thread_or_task")

    def __init__(self) -> None:
        self.claim: object = None
        self.busy = False
        self.began = False
        self.thread_or_task: Any = None


class WakeUp:
    """What to do without the lock: wake a worker that waits, or start one.

    Each is an object of its own, equal to no other: two threads may carry out the same one, and the
    later of them must not remove the next wake-up of the same worker.

    Attributes:
        worker: The worker.
        waiter: By which to wake it; None if it is to be started.
    """

    __slots__ = ("waiter", "worker")

    def __init__(self, worker: Worker, waiter: Any = None) -> None:
        self.worker = worker
        self.waiter = waiter


class Workers:
    """The workers of one batcher; part of its `Scheduler`.

    Args:
        most: How many there may be.
        are_reused: Whether a worker that is idle can be started again.
        queue: The requests that wait.
        warm_up: The requests of warm-ups.

    Attributes:
        wakeups: What to do without the lock.
        most: How many there may be.
        at_work: The workers that have been woken and are not idle.
        waiting: The workers at work that wait: until when, and by what they can be woken.
    """

    def __init__(
        self, most: int, *, are_reused: bool, queue: WaitingQueue[Any], warm_up: WarmUpQueue[Any]
    ) -> None:
        self.wakeups: deque[WakeUp] = deque()
        self.at_work: set[Worker] = set()
        self.waiting: dict[Worker, tuple[float, Any]] = {}
        self._idle: list[Worker] = []
        self.most = most
        self._are_reused = are_reused
        self._queue = queue
        self._warm_up = warm_up

    def wake_one(self) -> None:
        """Queue the wake-up of a worker, if none would ask for the waiting requests in time."""
        if not self.waiting and len(self.at_work) >= self.most:
            return  # each of them asks again when its batch has ended
        queue = self._warm_up.queue if self._warm_up.live else self._queue
        at = queue.ready_at()
        if at is None:
            return
        for worker, (until, waiter) in self.waiting.items():
            if until > at:
                self.wakeups.append(WakeUp(worker, waiter))  # first: see the top of this module
                del self.waiting[worker]
                return
        if not self.waiting:
            worker = self._idle.pop() if self._idle else Worker()
            self.wakeups.append(WakeUp(worker))
            self.at_work.add(worker)

    def wake_one_waiting(self) -> None:
        """Queue the wake-up of a worker, if any waits: until when to wait is about to change."""
        for worker, (_, waiter) in self.waiting.items():
            self.wakeups.append(WakeUp(worker, waiter))  # first: see the top of this module
            del self.waiting[worker]
            return

    def wake_waiting(self) -> None:
        """Queue the wake-ups of all workers that wait."""
        self.wakeups.extend(WakeUp(it, waiter) for it, (_, waiter) in self.waiting.items())
        self.waiting.clear()

    def let_wait(self, worker: Worker, until: float, waiter: object) -> bool:
        """Let a worker wait that has asked in vain; False if another asks as early."""
        if not all(other > until for other, _ in self.waiting.values()):
            return False
        self.waiting[worker] = until, waiter
        return True

    def claim_start(self, worker: Worker, claim: object) -> bool:
        """Let one caller start a worker; False if another has, or it was taken from work."""
        if worker.claim is not None or worker not in self.at_work:
            return False
        worker.claim = claim
        return True

    def wake_unstarted(self) -> None:
        """Queue the wake-ups again of workers of which it is not sure that they were started."""
        self.wakeups.extend(WakeUp(it) for it in self.at_work if it.claim is None)

    def rest(self, worker: Worker) -> bool:
        """Take a worker from work; False if it was not at work."""
        if worker not in self.at_work:
            return False
        self.at_work.discard(worker)
        self.waiting.pop(worker, None)
        worker.busy = False
        worker.claim = None
        if self._are_reused:
            self._idle.append(worker)
        return True

    def dismiss(self) -> list[Worker]:
        """Forget all workers at work, whose event loop is gone, and return them."""
        gone = list(self.at_work)
        self.at_work.clear()
        self.waiting.clear()
        return gone
