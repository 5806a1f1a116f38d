"""A daemon thread that does one job after another."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING

from typing_extensions import TypeVar

from batchstream._core.errors import report_unraisable
from batchstream._pumps.process import running

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


class WorkerThread:
    """A daemon thread that does one thing after another, until `end`.

    A daemon, because a program may exit while a source is stuck in a step.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], object], bool]] = SimpleQueue()  # is it the last
        self._thread = threading.Thread(target=self._work, name="batchstream pump", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self.end()  # a signal's exception may come when it has started
            raise

    def _work(self) -> None:
        last = False
        while not last:
            job, last = self._jobs.get()
            job()
            del job  # it may hold much, and the next one may be long in coming

    def do(self, job: Callable[[], object]) -> None:
        """Do this next. It must not raise."""
        self._jobs.put((job, False))

    def end(self) -> None:
        """End when all that was asked for is done."""
        self.end_after(_do_nothing)

    def call(self, function: Callable[[], R]) -> Future[R]:
        """Do this next; return where its result can be waited for."""
        result: Future[R] = Future()
        theirs = [result]

        def work() -> None:
            mine = theirs.pop()
            try:
                mine.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                mine.set_exception(error)
            finally:
                del mine  # an error of it holds this frame

        self.do(work)
        return result

    def end_after(self, job: Callable[[], object]) -> None:
        """Do this, and then end. It must not raise."""
        # One call: broken off between two, the thread would never end.
        self._jobs.put((job, True))

    @property
    def is_current(self) -> bool:
        """Whether the calling code runs in this thread."""
        return threading.current_thread() is self._thread

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended."""
        self._thread.join(timeout)


class LastJob:
    """What a thread does last, for an object that was dropped: the end of the program waits for it.

    Args:
        job: The job. What it raises goes to `sys.unraisablehook`.

    Attributes:
        ended: Whether it is done.
        forked: False: in a forked child the thread has ended.
    """

    forked = False

    def __init__(self, job: Callable[[], object]) -> None:
        self._job = job
        self._thread: WorkerThread | None = None
        self.ended = False

    def do_in(self, thread: WorkerThread) -> None:
        """Let a thread do it, and then end."""
        self._thread = thread
        running.add(self)
        thread.end_after(self._do)

    def _do(self) -> None:
        try:
            self._job()
        except BaseException as error:  # noqa: BLE001 - the thread has no caller
            report_unraisable(error)
        finally:
            self.ended = True
            running.discard(self)

    def request_exit(self) -> None:
        """Do nothing: it is the last job."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended."""
        if self._thread is not None:
            self._thread.join(timeout)


def _do_nothing() -> None:
    pass
