"""The dispatcher whose workers are threads, one for each batch at a time."""

from __future__ import annotations

import threading
import time
import weakref
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._batching.dispatcher import Dispatcher
from batchstream._core.errors import report_unraisable
from batchstream._pumps.process import running
from batchstream._pumps.thread import ThreadPump
from batchstream._pumps.worker_thread import WorkerThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.request import Request
    from batchstream._batching.request_batch import RequestBatch
    from batchstream._batching.scheduler import Worker

T = TypeVar("T")


class ThreadDispatcher(Dispatcher[T]):
    """A dispatcher with threads of its own, started when they are needed first.

    Args:
        options: What the batcher was made with.
        open_batch: Makes the pump and the hooks of a batch: called with this dispatcher, the
            requests of the batch and the worker's thread.
        can_begin_anew: See `Dispatcher`.
    """

    def __init__(
        self,
        options: BatcherOptions[Any, T],
        open_batch: Callable[
            [ThreadDispatcher[T], list[Request[T]], WorkerThread],
            tuple[ThreadPump[T], RequestBatch[T]],
        ],
        can_begin_anew: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(options, can_begin_anew)
        self._open_batch = open_batch
        self._threads: list[WorkerThread] = []
        # An idle thread refers to no dispatcher, so that a dropped dispatcher is freed.
        weakref.finalize(self, _end_all, self._threads).atexit = False

    def _start(self, worker: Worker) -> None:
        running.add(self)
        thread: WorkerThread | None = worker.thread_or_task
        try:
            if thread is None:
                thread = WorkerThread()
                self._threads.append(thread)
                worker.thread_or_task = thread
            thread.do(partial(self._work, worker))
        except BaseException:  # a signal's exception, perhaps: the thread may be known only here
            if thread is not None and worker.thread_or_task is None:
                thread.end()
            raise

    def _runs_here(self) -> bool:
        return any(thread.is_current for thread in self._threads)

    def _resume(self, waiter: Any) -> None:
        try:
            waiter.release()
        except RuntimeError:
            pass  # another thread has released it

    # ---- in a worker's thread

    def _work(self, worker: Worker) -> None:
        try:
            while True:
                waiter = Lock()
                waiter.acquire()
                decision = self.next_batch(worker, waiter)
                if decision is None:
                    return
                if decision.requests:
                    self._run_batch(decision.requests, worker.thread_or_task)
                elif decision.wait is None:
                    return
                else:
                    waiter.acquire(True, min(decision.wait, threading.TIMEOUT_MAX))  # noqa: FBT003
                del decision  # it may hold much, and the next one may be long in coming
        except BaseException as error:  # noqa: BLE001 - of ours, out of memory perhaps
            report_unraisable(error)
            self._rest(worker)

    def _run_batch(self, requests: list[Request[T]], thread: WorkerThread) -> None:
        try:
            pump, batch = self._open_batch(self, requests, thread)
            self.add_batch(batch)
            requests.clear()  # which have buffers in the pump: none is kept until the batch ends
        except BaseException as error:  # noqa: BLE001 - fails the requests: the thread has no caller
            self.fail_all(requests, error)
            return
        try:
            pump.run()
        finally:
            self.end_batch(batch)

    # ---- the end

    def _check_ended(self) -> None:
        if not self.scheduler.at_work:
            running.discard(self)
            if self.scheduler.at_work:  # another thread has started a worker in between
                running.add(self)
        if self.ended:
            _end_all(self._threads)
        super()._check_ended()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the threads have ended, of a dispatcher that was closed."""
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(until - time.monotonic(), 0.0))

    def _begin_anew(self) -> None:
        running.discard(self)
        self._threads.clear()
        super()._begin_anew()


def _end_all(threads: Sequence[WorkerThread]) -> None:
    for thread in threads:
        thread.end()
