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
from batchstream._batching.runs import BatchRun
from batchstream._batching.workers import AnyWorker
from batchstream._core.errors import report_unraisable
from batchstream._pumps.process import running
from batchstream._pumps.thread import ThreadPump
from batchstream._pumps.worker_thread import WorkerThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchstream._batching.options import Terms
    from batchstream._batching.request import Request
    from batchstream._pumps.source import SyncSource

T = TypeVar("T")


class AnyThreadRun(BatchRun[T], ThreadPump[T]):
    """What runs a batch in a worker's thread."""


class ThreadRun(AnyThreadRun[T]):
    """One batch while it runs in a worker's thread."""

    def __init__(
        self,
        dispatcher: Dispatcher[T],
        source: SyncSource,
        requests: list[Request[T]],
        thread: WorkerThread,
    ) -> None:
        terms = dispatcher.terms
        super().__init__(
            source,
            terms.core([request.max_outputs for request in requests]),
            max_buffered=terms.max_buffered,
            on_overflow=terms.on_overflow,
            worker=thread,
            places=dispatcher.places,
            buffers=requests,
        )
        self._serve(dispatcher, requests)


class ThreadDispatcher(Dispatcher[T]):
    """A dispatcher with threads of its own, started when they are needed first.

    Args:
        terms: What the batcher was made with.
        open_run: Given the dispatcher, the requests of a batch and the thread, makes what runs it.
    """

    def __init__(
        self,
        terms: Terms[Any, T],
        open_run: Callable[[Any, list[Request[T]], WorkerThread], AnyThreadRun[T]],
    ) -> None:
        super().__init__(terms)
        self._open_run = open_run
        self._threads: list[WorkerThread] = []
        # A thread that has nothing to do knows nobody, so that a dropped dispatcher is freed.
        weakref.finalize(self, _end_all, self._threads).atexit = False

    def _new_worker(self) -> _ThreadWorker:
        return _ThreadWorker()

    def _start(self, worker: _ThreadWorker) -> None:
        running.add(self)
        thread = worker.thread
        try:
            if thread is None:
                thread = WorkerThread()
                self._threads.append(thread)
                worker.thread = thread
            thread.do(partial(self._work, worker))
        except BaseException:  # a signal's exception, perhaps, and nobody may know the thread yet
            if thread is not None and worker.thread is None:
                thread.end()
            raise

    def _is_waited_for(self) -> bool:
        return any(thread.is_current for thread in self._threads)

    def _ring(self, waiter: Any) -> None:
        waiter.release()

    # ---- a worker's thread

    def _work(self, worker: _ThreadWorker) -> None:
        try:
            while True:
                waiter = Lock()
                waiter.acquire()
                found = self.look(worker, waiter)
                if found is None:
                    return
                if isinstance(found, float):
                    waiter.acquire(True, min(found, threading.TIMEOUT_MAX))  # noqa: FBT003
                else:
                    assert worker.thread is not None  # noqa: S101 - this one
                    self._run(found, worker.thread)
                del found
        except BaseException as error:  # noqa: BLE001 - of ours, out of memory perhaps
            report_unraisable(error)
            self._leave(worker)

    def _run(self, requests: list[Request[T]], thread: WorkerThread) -> None:
        try:
            run = self._open_run(self, requests, thread)
            self.add(run)
        except BaseException as error:  # noqa: BLE001 - told to all requests; nobody else is here
            self.fail_all(requests, error)
            return
        try:
            run.run()
        finally:
            self.remove(run)

    # ---- the end

    def _look_whether_ended(self) -> None:
        if not self._workers.at_work:
            running.discard(self)
            if self._workers.at_work:  # since
                running.add(self)
        if self.ended:
            _end_all(self._threads)
        super()._look_whether_ended()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the threads have ended, of a dispatcher that was closed."""
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(until - time.monotonic(), 0.0))


class _ThreadWorker(AnyWorker):
    """One that works in a thread.

    Attributes:
        thread: Where, once it has begun.
    """

    thread: WorkerThread | None = None


def _end_all(threads: Sequence[WorkerThread]) -> None:
    for thread in threads:
        thread.end()
