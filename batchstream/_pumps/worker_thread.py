"""A daemon thread that does one job after another."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING

from typing_extensions import TypeVar

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


def _do_nothing() -> None:
    pass
