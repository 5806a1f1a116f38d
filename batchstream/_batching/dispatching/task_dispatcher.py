"""The dispatcher whose workers are tasks in one event loop, there while there is work."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._batching.dispatching.dispatcher import Dispatcher
from batchstream._core.errors import ClosedError, SourceError
from batchstream._eventloops.base import LoopClosedError
from batchstream._eventloops.current import current_loop
from batchstream._handoff.parking import LOOP_POLL_SECONDS, earliest
from batchstream._pumps.task import TaskPump

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream._batching.batches.request_batch import RequestBatch
    from batchstream._batching.options import BatcherOptions
    from batchstream._batching.requests.request import Request
    from batchstream._batching.scheduling.workers import Worker
    from batchstream._eventloops.base import EventLoop, PumpTask, Waiter

T = TypeVar("T")


class TaskDispatcher(Dispatcher[T]):
    """A dispatcher with tasks in one event loop: the first in which a request was submitted.

    When that loop was closed, the next one in which a request is submitted takes its place. A
    worker's task that is cancelled from outside is a sign that its loop is about to be closed.

    Args:
        options: What the batcher was made with.
        open_batch: Makes the pump and the hooks of a batch: called with this dispatcher and the
            requests of the batch.
    """

    needs_loop = True
    _reuses_workers = False

    def __init__(
        self,
        options: BatcherOptions[Any, T],
        open_batch: Callable[
            [TaskDispatcher[T], list[Request[T]]], tuple[TaskPump[T], RequestBatch[T]]
        ],
    ) -> None:
        super().__init__(options)
        self._open_batch = open_batch
        self._loop: EventLoop | None = None
        self._dead_loop: object = None  # the key of the last loop that was given up

    def prepare(self) -> None:
        """Take the event loop that runs the calling code for the workers, unless there is one.

        Raises:
            RuntimeError: No event loop runs here.
            ClosedError: It is the one that is about to be closed.
        """
        self.poll()
        if self._loop is None:
            try:
                loop = current_loop()
            except RuntimeError:
                raise RuntimeError(
                    "an asynchronous function runs in the event loop that first submits a request "
                    "to it, and none has: use astream, acall or amap there, or make the function "
                    "synchronous"
                ) from None
            if loop.key is self._dead_loop:
                raise _loop_closed()
            with self.lock:
                if self._loop is None:
                    self._loop = loop

    def start(self, worker: Worker) -> None:
        loop = self._loop
        if loop is None or loop.closed:
            raise _loop_closed()
        if loop.is_here:
            self._spawn(worker, loop)
        else:
            try:
                loop.call(partial(self._spawn, worker, loop))
            except LoopClosedError:
                raise _loop_closed() from None

    def _spawn(self, worker: Worker, loop: EventLoop) -> None:
        try:
            main, at_end = (
                partial(self._work, worker, loop),
                partial(self._task_ended, worker, loop),
            )
            worker.thread_or_task = loop.spawn(main, at_end, self.context.copy())
        except BaseException as error:
            with self.lock:
                waiting = self.scheduler.waiting_requests()
            self.fail_all(waiting, error)
            self.rest(worker)
            raise

    def resume(self, waiter: Waiter) -> None:
        loop = self._loop
        if loop is not None:
            try:
                loop.resume([waiter])
            except LoopClosedError:
                return  # and the worker with it

    # ---- in a worker's task

    async def _work(self, worker: Worker, loop: EventLoop, task: PumpTask) -> None:
        worker.began = True
        try:
            while (decision := self.next_batch(worker, waiter := loop.new_waiter())) is not None:
                if decision.requests:
                    # No await between forming a batch and its first step: a request that is
                    # cancelled in between would be sent to the model.
                    await self._run_batch(decision.requests, loop, task)
                    del decision
                    await loop.checkpoint()  # there may have been no step, and no other turn
                elif decision.wait is None:
                    return
                else:
                    await loop.wait(waiter, decision.wait)
        except BaseException as error:
            if task.destroyed or task.was_cancelled(error):
                self._give_up_loop(loop)
            raise

    async def _run_batch(self, requests: list[Request[T]], loop: EventLoop, task: PumpTask) -> None:
        try:
            pump, batch = self._open_batch(self, requests)
            self.add_batch(batch)
            requests.clear()  # which have buffers in the pump: none is kept until the batch ends
        except BaseException as error:  # noqa: BLE001 - fails the requests: the task has no caller
            self.fail_all(requests, error)
            return
        try:
            await pump.run(loop, task)
        finally:
            self.end_batch(batch)

    def _task_ended(self, worker: Worker, loop: EventLoop) -> None:
        """Start another worker after a task has ended, if need be, unless the loop ends."""
        worker.thread_or_task = None  # which refers to this dispatcher
        if not worker.began:  # it was cancelled before
            self._give_up_loop(loop)
        # No other worker is between taking requests and running them: none awaits anything there.
        with self.lock:
            lost = self.scheduler.lost_requests()
        if lost:
            self.fail_all(lost, SourceError("the worker was broken off as it formed this batch"))
        self.rest(worker)

    def _give_up_loop(self, loop: EventLoop) -> None:
        """Fail the waiting requests, as no worker will go on in that loop; end the batches there.

        Batches in a loop that is not closed yet end by themselves.
        """
        closed = loop.closed
        with self.lock:
            if self._loop is not loop:  # another thread has, and there may be another loop
                return
            self._loop, self._dead_loop = None, loop.key
            waiting = self.scheduler.waiting_requests()
            workers = self.scheduler.workers.dismiss()
            batches = list(self.scheduler.batches) if closed else []
        self.fail_all(waiting, _loop_closed())
        for batch in batches:
            batch.pump.poll()
            self.end_batch(batch)
        for worker in workers:
            if closed and worker.thread_or_task is not None:
                worker.thread_or_task.forget()
        self.check_ended()

    # ---- from a consumer

    def check_waitable(self, loop: EventLoop | None) -> None:
        """Refuse to wait in vain, and to block the event loop that would have to go on.

        Raises:
            RuntimeError: The calling code is a batch's, or runs in that loop and in no task of it.
            ForkedError: The batcher had requests when this process was forked.
        """
        super().check_waitable(loop)
        ours = self._loop  # once: another thread may give it up
        if loop is None and ours is not None and ours.is_here:
            raise RuntimeError(
                "to wait for this stream would block the event loop that its function runs in: "
                "use astream, acall or amap there"
            )

    def poll_after(self, seconds: float | None, loop: EventLoop | None) -> float | None:
        """Poll in other loops and threads: the workers' loop may be closed any time."""
        ours = self._loop
        if loop is not None and ours is not None and ours.key is loop.key:
            return seconds
        return earliest(seconds, LOOP_POLL_SECONDS)

    def poll(self) -> None:
        """Fail all requests if the workers' loop was closed."""
        loop = self._loop
        if loop is not None and loop.closed:
            self._give_up_loop(loop)

    def interrupts_of(self, worker: Worker) -> tuple[type[BaseException], ...]:
        """Return what ends the event loop, where a task may do that."""
        task = worker.thread_or_task
        may_raise = task is not None and task.may_raise
        return (KeyboardInterrupt, SystemExit) if may_raise else ()

    def may_block(self) -> bool:
        loop = self._loop
        goes_on = loop is None or (loop.runs and not loop.is_here)
        return goes_on and super().may_block()

    def _begin_anew(self) -> None:
        self._loop = self._dead_loop = None
        super()._begin_anew()


def _loop_closed() -> ClosedError:
    return ClosedError(
        "the event loop in which the function of this batcher ran has ended: "
        "let its requests end before, or submit them in the loop that runs now"
    )
