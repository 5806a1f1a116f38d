"""The dispatcher whose workers are threads, one for each batch at a time."""

from __future__ import annotations

import sys
import threading
import time
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._batching.dispatching.dispatcher import Dispatcher
from batchstream._core.errors import report_unraisable
from batchstream._pumps.process import running, with_models
from batchstream._pumps.thread import ThreadPump
from batchstream._pumps.worker_thread import LastJob, WorkerThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchstream._batching.batches.request_batch import RequestBatch
    from batchstream._batching.engine import Model
    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.requests.request import Request
    from batchstream._batching.scheduling.workers import Worker

T = TypeVar("T")


class ThreadDispatcher(Dispatcher[T]):
    """A dispatcher with threads of its own, started when they are needed first.

    Args:
        options: What the batcher was made with.
        open_batch: Makes the pump and the hooks of a batch: called with this dispatcher, the
            requests of the batch and the worker's thread.
        model: See `Dispatcher`. Its dispatcher has one worker.
    """

    def __init__(
        self,
        options: BatcherOptions[Any, T],
        open_batch: Callable[
            [ThreadDispatcher[T], list[Request[T]], WorkerThread],
            tuple[ThreadPump[T], RequestBatch[T]],
        ],
        model: Model | None = None,
    ) -> None:
        # An idle thread refers to no dispatcher, so that a dropped dispatcher is freed.
        self._threads: list[WorkerThread] = []
        self._thread_of_model: WorkerThread | None = None  # in which batches were run, and are
        super().__init__(options, model)
        self._open_batch = open_batch

    @property
    def has_open_model(self) -> bool:
        """Whether the thread has still to close the model."""
        return not self.forked and self.model is not None and self.model.is_open

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not hasattr(self, "_open_batch") or _is_finalizing() or self.forked:
            return  # half made, or without threads in this process
        model, thread = self.model, self._thread_of_model
        if self.has_open_model and model is not None and thread is not None:
            LastJob(model.discard).do_in(thread)
        _end_all(self._threads)

    def start(self, worker: Worker) -> None:
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

    def runs_here(self) -> bool:
        return any(thread.is_current for thread in self._threads)

    def resume(self, waiter: Any) -> None:
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
            self.rest(worker)

    def _run_batch(self, requests: list[Request[T]], thread: WorkerThread) -> None:
        if self.model is not None:
            self._thread_of_model = thread
            with_models.add(self)
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

    def check_ended(self) -> None:
        if not self._is_at_work:
            running.discard(self)
            if self._is_at_work:  # another thread has started a worker in between
                running.add(self)
        if self.ended:
            if self.has_open_model and (thread := self._thread_of_model) is not None:
                # Only then has it ended: a caller in an event loop must not wait for the thread.
                # Where two threads come here, the second job finds nothing to do.
                thread.do(self._close_model)
                return
            _end_all(self._threads)
        super().check_ended()

    @property
    def _is_at_work(self) -> bool:
        return bool(self.scheduler.workers.at_work) or (
            self.scheduler.state == "closed" and self.has_open_model
        )

    def _close_model(self) -> None:
        model = self.model
        assert model is not None  # noqa: S101 - for the type checker
        try:
            model.discard()
        except BaseException as error:  # noqa: BLE001 - the thread has no caller
            report_unraisable(error)
        self.check_ended()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the threads have ended, of a dispatcher that was closed."""
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(until - time.monotonic(), 0.0))

    def _begin_anew(self) -> None:
        running.discard(self)
        self._threads.clear()
        self._thread_of_model = None
        super()._begin_anew()


def _end_all(threads: Sequence[WorkerThread]) -> None:
    for thread in threads:
        thread.end()
