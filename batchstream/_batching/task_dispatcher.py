"""The dispatcher whose workers are tasks in one event loop, there while there is work."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._batching.dispatcher import Dispatcher
from batchstream._batching.runs import BatchRun
from batchstream._batching.workers import AnyWorker
from batchstream._core.errors import ClosedError
from batchstream._eventloops.base import LoopClosedError
from batchstream._eventloops.current import current_loop
from batchstream._handoff.parking import PAUSE
from batchstream._pumps.task import TaskPump

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchstream._batching.options import Terms
    from batchstream._batching.request import Request
    from batchstream._eventloops.base import EventLoop, PumpTask
    from batchstream._pumps.source import AnyAsyncSource

T = TypeVar("T")


class TaskRun(BatchRun[T], TaskPump[T]):
    """One batch while it runs in a worker's task."""

    def __init__(
        self, dispatcher: Dispatcher[T], source: AnyAsyncSource, requests: list[Request[T]]
    ) -> None:
        terms = dispatcher.terms
        super().__init__(
            source,
            terms.core([request.max_outputs for request in requests]),
            max_buffered=terms.max_buffered,
            on_overflow=terms.on_overflow,
            places=dispatcher.places,
            buffers=requests,
        )
        self._serve(dispatcher, requests)

    async def run_in(self, loop: EventLoop, task: PumpTask) -> None:
        """Make every step, and close the source, in this task, which runs in this loop."""
        self._loop, self._task = loop, task
        try:
            await self.run(task)
        finally:
            self._settle_if_not_ended()


class TaskDispatcher(Dispatcher[T]):
    """A dispatcher at home in one event loop: the first in which a request was submitted.

    When that loop was closed, the next one in which a request is submitted takes its place. That a
    worker's task is cancelled from outside is taken for a sign that its loop is about to be closed.

    Args:
        terms: What the batcher was made with.
        open_run: Given the dispatcher and the requests of a batch, makes what runs it.
    """

    def __init__(
        self, terms: Terms[Any, T], open_run: Callable[[Any, list[Request[T]]], TaskRun[T]]
    ) -> None:
        super().__init__(terms)
        self._open_run = open_run
        self._home: EventLoop | None = None
        self._left: object = None  # the key of the last loop that was left

    def prepare(self) -> None:
        """Be at home in the event loop that runs the calling code, unless there is another.

        Raises:
            RuntimeError: There is none.
            ClosedError: It is the one that is about to be closed.
        """
        self.look_after(None)
        if self._home is None:
            try:
                loop = current_loop()
            except RuntimeError:
                raise RuntimeError(
                    "an asynchronous function runs in the event loop that first submits a request "
                    "to it, and none has: use astream there, or make the function synchronous"
                ) from None
            if loop.key is self._left:
                raise _home_closed()
            with self._lock:
                if self._home is None:
                    self._home = loop

    def _new_worker(self) -> _TaskWorker:
        return _TaskWorker()

    def _start(self, worker: _TaskWorker) -> None:
        home = self._home
        if home is None or home.closed:
            raise _home_closed()
        if home.is_here:
            self._spawn(worker, home)
        else:
            try:
                home.call(partial(self._spawn, worker, home))
            except LoopClosedError:
                raise _home_closed() from None

    def _spawn(self, worker: _TaskWorker, home: EventLoop) -> None:
        try:
            main, at_end = partial(self._work, worker, home), partial(self._let_go, worker, home)
            worker.task = home.spawn(main, at_end, self.context.copy())
        except BaseException as error:
            with self._lock:
                waiting = self._admission.take_all()
            self.fail_all(waiting, error)
            self._leave(worker)
            raise

    def _ring(self, waiter: Any) -> None:
        home = self._home
        if home is not None:
            try:
                home.resume([waiter])
            except LoopClosedError:
                return  # and the worker with it

    # ---- a worker's task

    async def _work(self, worker: _TaskWorker, home: EventLoop, task: PumpTask) -> None:
        worker.began = True
        try:
            while (found := self.look(worker, waiter := home.new_waiter())) is not None:
                if isinstance(found, float):
                    await home.wait(waiter, found)
                else:
                    await self._run(found, home, task)
                    del found
                    await home.checkpoint()  # there may have been no step, and no other turn
        except BaseException as error:
            if task.destroyed or task.was_cancelled(error):
                self._leave_home(home)
            raise

    async def _run(self, requests: list[Request[T]], home: EventLoop, task: PumpTask) -> None:
        try:
            run = self._open_run(self, requests)
            self.add(run)
        except BaseException as error:  # noqa: BLE001 - told to all requests; nobody else is here
            self.fail_all(requests, error)
            return
        try:
            await run.run_in(home, task)
        finally:
            self.remove(run)

    def _let_go(self, worker: _TaskWorker, home: EventLoop) -> None:
        """See to it that somebody works after a task has ended, unless the loop does."""
        if not worker.began:  # it was cancelled before
            self._leave_home(home)
        self._leave(worker)

    def _leave_home(self, home: EventLoop) -> None:
        """Settle everybody, as nothing of this dispatcher will go on in that loop."""
        closed = home.closed
        with self._lock:
            if self._home is not home:  # somebody else has, and may have found another home
                return
            self._home, self._left = None, home.key
            waiting = self._admission.take_all()
            workers = self._workers.dismiss_all()
            runs = list(self._runs) if closed else []  # or they end by themselves
        self.fail_all(waiting, _home_closed())
        for run in runs:
            run.look_after(None)
            self.remove(run)
        for worker in workers:
            if closed and worker.task is not None:
                worker.task.forget()
        self._look_whether_ended()

    # ---- from a consumer

    def begin(self, loop: EventLoop | None) -> None:
        """Refuse to wait for ever, and to block the event loop that would have to go on.

        Raises:
            RuntimeError: The calling code is a batch's, or in that loop and no task of it.
            ClosedError: This is a fork of the process that uses the batcher.
        """
        super().begin(loop)
        home = self._home
        if loop is None and home is not None and home.is_here:
            raise RuntimeError(
                "to wait for this stream would block the event loop that its function runs in: "
                "use astream there"
            )

    def patience(self, request: Request[T] | None, loop: EventLoop | None) -> float | None:
        """Return after how many seconds whoever waits here is to `look_after`, if ever."""
        home = self._home
        at_home = loop is not None and home is not None and home.key is loop.key
        times = [super().patience(request, loop), None if at_home else PAUSE]
        return min((time for time in times if time is not None), default=None)

    def look_after(self, request: Request[T] | None) -> None:
        """Settle everybody if the loop was closed, too."""
        home = self._home
        if home is not None and home.closed:
            self._leave_home(home)
        super().look_after(request)

    def _may_block(self) -> bool:
        home = self._home
        goes_on = home is None or (home.runs and not home.is_here)
        return goes_on and super()._may_block()


class _TaskWorker(AnyWorker):
    """One that works in a task, and then is not called again.

    Attributes:
        task: Where, once it was called.
        began: Whether the task was not cancelled before it could.
    """

    reusable = False
    task: PumpTask | None = None
    began = False


def _home_closed() -> ClosedError:
    return ClosedError("the event loop in which the function of this batcher ran has ended")
