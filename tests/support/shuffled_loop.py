"""An event loop for tests: its ready queue is shuffled by a seed, and its clock is virtual.

asyncio runs what is ready in one order, and a machine's load decides what is ready together. Here
a seed decides: whatever could run next may run next, so a wrong assumption about order fails in
milliseconds, and fails again with the same seed. Time stands still while anything is ready, then
jumps to the next timer. Where nothing is ready and no timer is set, no task can ever be woken:
that is a lost wake-up, and it is reported at once instead of after a timeout.

The order is freer than asyncio's, which promises that `call_soon` keeps order; trio promises
nothing. Code that passes here relies on neither.

Same seed, same order, unless the scenario itself varies: other threads, real clocks, and sets of
objects that hash by address (tasks do not, here).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random
import threading
import time
import weakref
from asyncio import events
from heapq import heappop

from support.sources import TIMEOUT

MANY_CALLBACKS = 100_000
"""A scenario that runs more callbacks than this is taken to run for ever."""

SLICE = 0.01
"""How often a loop that waits for other threads looks whether they still live, in seconds."""


class Deadlock(AssertionError):
    """Nothing can ever run again, and tasks are waiting; or they run for ever."""


class NumberedTask(asyncio.Task):
    """A task whose hash is its number, so that a set of tasks has the same order in each run."""

    def __init__(self, coroutine, *, number, **options):
        self.number = number
        super().__init__(coroutine, **options)

    def __hash__(self):
        return self.number


class ShuffledLoop(asyncio.BaseEventLoop):
    """An event loop that picks at random among what is ready.

    Args:
        seed: Of the order; None runs first what was ready first, as asyncio does.
        threads: Whether other threads may wake this loop. Then, as long as a thread lives that was
            started after the loop was made, the loop waits for it, and time passes as on the wall:
            a timer must not overtake a thread that works.
        patience: How long other threads may be silent before that is a deadlock, in seconds.
    """

    def __init__(self, seed=None, *, threads=False, patience=TIMEOUT):
        super().__init__()
        self._ready = []
        self._random = None if seed is None else random.Random(seed).random  # noqa: S311
        self._callbacks_left = MANY_CALLBACKS
        self._stops_when_idle = False
        self._jumped = 0.0
        self._started = time.monotonic() if threads else None
        self._threads_before = frozenset(threading.enumerate()) if threads else None
        # Re-entrant, because a collected async generator may call while its thread holds it.
        self._called = threading.Condition(threading.RLock())
        self._patience = patience
        self._silence = 0.0
        self._numbers = itertools.count()
        # Weak, so that nothing lives longer here than in another loop.
        self._made = []
        self._foreign = weakref.WeakSet()
        self.unhandled = []

    # What asyncio asks of a loop.

    def time(self):
        if self._started is None:
            return self._jumped
        return self._jumped + time.monotonic() - self._started

    def call_soon(self, callback, *args, context=None):
        # Another loop would sleep on without noticing: always worth an error.
        if self._thread_id not in {None, threading.get_ident()}:
            raise RuntimeError("call_soon was called from another thread")
        task = getattr(callback, "__self__", None)
        if isinstance(task, asyncio.Task) and not isinstance(task, NumberedTask):
            self._note_foreign(task)
        return super().call_soon(callback, *args, context=context)

    def call_soon_threadsafe(self, callback, *args, context=None):
        with self._called:
            self._check_closed()
            handle = events.Handle(callback, args, self, context)
            self._ready.append(handle)
            self._called.notify()
        return handle

    def create_task(self, coro, **options):
        self._check_closed()
        task = NumberedTask(coro, number=next(self._numbers), loop=self, **options)
        self._made.append(weakref.ref(task))
        return task

    def _note_foreign(self, task):
        """Note a task that was not made by `create_task`, when it is to begin."""
        if task not in self._foreign:
            self._foreign.add(task)
            self._made.append(weakref.ref(task))

    def create_future(self):
        future = super().create_future()
        self._made.append(weakref.ref(future))
        return future

    def default_exception_handler(self, context):
        error = context.get("exception") or RuntimeError(context["message"])
        if context["message"] not in getattr(error, "__notes__", ()):
            error.add_note(context["message"])
        self.unhandled.append(error)

    def _process_events(self, event_list):
        raise NotImplementedError("this loop has no selector")

    # One round: run one callback, or find out why there is none.

    def _run_once(self):
        if self._scheduled:
            self._ring()
        ready = self._ready
        if not ready:
            self._idle()
            return
        choose = self._random
        # One call, because other threads append: a swap with the last would lose theirs.
        handle = ready.pop(int(choose() * len(ready)) if choose else 0)
        if handle._cancelled:
            return
        self._callbacks_left -= 1
        if self._callbacks_left < 0:
            raise self._deadlock(f"no end after {MANY_CALLBACKS} callbacks")
        self._silence = 0.0
        handle._run()
        handle = None  # a traceback may hold this frame, and the handle whose traceback it is

    def _ring(self):
        """Make ready the timers that are due; forget the cancelled ones."""
        timers, now = self._scheduled, self.time()
        while timers and (timers[0]._cancelled or timers[0]._when <= now):
            handle = heappop(timers)
            handle._scheduled = False
            if not handle._cancelled:
                self._ready.append(handle)

    def _idle(self):
        if self._stops_when_idle:
            self._stopping = True
        elif self._started is not None and self._other_threads():
            self._wait_for_other_threads()
        elif self._ready:
            return  # the last of the threads called before it ended
        elif self._scheduled:
            when = self._scheduled[0]._when
            # A sum could be rounded to just before the timer, for ever.
            self._jumped = when if self._started is None else self._jumped + when - self.time()
        else:
            raise self._deadlock("nothing is ready and no timer is set")

    def _other_threads(self):
        here = threading.current_thread()
        return [t for t in threading.enumerate() if t is not here and t not in self._threads_before]

    def _wait_for_other_threads(self):
        if self._silence > self._patience:
            raise self._deadlock(f"no thread has called for {self._patience} s")
        until_timer = self._scheduled[0]._when - self.time() if self._scheduled else SLICE
        with self._called:
            if not self._ready:
                self._called.wait(max(0.0, min(SLICE, until_timer)))
        self._silence += SLICE

    def _deadlock(self, reason):
        waiting = [f"  {describe(task)}" for task in self.pending_tasks()]
        if self._started is not None:
            waiting += [f"  thread {thread.name}" for thread in self._other_threads()]
        return Deadlock("\n".join([f"{reason}; pending:", *waiting]))

    # Before and after a scenario.

    def pending_tasks(self):
        """Return the tasks that are not done, in the order in which they were made."""
        made = [reference() for reference in self._made]
        return [it for it in made if isinstance(it, asyncio.Task) and not it.done()]

    def settle(self):
        """Run what is ready until nothing is; time stands still."""
        self._callbacks_left = MANY_CALLBACKS
        self._stops_when_idle = True
        try:
            self.run_forever()
        finally:
            self._stops_when_idle = False

    def clean_up(self):
        """Cancel and await whatever is left over, as `asyncio.run` does."""
        self._callbacks_left = MANY_CALLBACKS
        while tasks := self.pending_tasks():
            for task in tasks:
                task.cancel()
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            for task in tasks:
                if not task.cancelled() and (error := task.exception()):
                    self._note(f"{describe(task)}: raised while it was cancelled", error)
        if self._asyncgens:
            self.run_until_complete(self.shutdown_asyncgens())
        if self._default_executor is not None:
            self.run_until_complete(self.shutdown_default_executor())

    def collect_unretrieved(self):
        """Record errors that were never retrieved and that no garbage collection has found yet."""
        for reference in self._made:
            future = reference()
            if future is not None and future.done() and future._log_traceback:
                message = f"{describe(future)}: its exception was never retrieved"
                self._note(message, future._exception)
                future._log_traceback = False

    def abandon(self):
        """Let tasks that would not end go without a word: that has been reported already."""
        for task in self.pending_tasks():
            task._log_destroy_pending = False

    def _note(self, message, error):
        self.call_exception_handler({"message": message, "exception": error})


def describe(future):
    """Return what a task runs and the line at which it waits."""
    if not isinstance(future, asyncio.Task):
        return repr(future)
    coroutine = future.get_coro()
    name = getattr(coroutine, "__qualname__", repr(coroutine))
    frame = None
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", getattr(coroutine, "gi_frame", None)) or frame
        coroutine = getattr(coroutine, "cr_await", getattr(coroutine, "gi_yieldfrom", None))
    place = f" at {frame.f_code.co_qualname}, line {frame.f_lineno}" if frame else ""
    return f"task {future.get_name()}: {name}{place}"


def run(main, seed=None, *, threads=False, leftovers="cancel", patience=TIMEOUT):
    """Run a coroutine to its end in a loop of its own, and return its result.

    What the scenario left unhandled is raised, too: a task's error that was never retrieved, a
    callback that raised. If there are several errors, the first carries the others as notes.

    Args:
        main: The coroutine.
        seed: Of the order; None is the plain one, see `ShuffledLoop`.
        threads: Whether other threads may wake the loop, see `ShuffledLoop`.
        leftovers: What becomes of tasks that are still pending after main: "cancel" cancels them,
            as asyncio does; "fail" runs whatever is ready, and fails if any task is pending then.
        patience: See `ShuffledLoop`.
    """
    loop = ShuffledLoop(seed, threads=threads, patience=patience)
    errors = []
    result = None
    # A collection in between would finalize things at places that no seed controls.
    collected_by_itself = gc.isenabled()
    gc.disable()
    try:
        try:
            result = loop.run_until_complete(main)
            if leftovers == "fail":
                loop.settle()
                left = loop.pending_tasks()
                assert not left, "left over: " + ", ".join(map(describe, left))
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
        try:
            loop.clean_up()
        except BaseException as error:  # noqa: BLE001 - raised below
            error.add_note("while cancelling what was left over")
            errors.append(error)
            loop.abandon()
        loop.collect_unretrieved()
    finally:
        loop.close()
        if collected_by_itself:
            gc.enable()
    errors += [error for error in loop.unhandled if error not in errors]
    if errors:
        for other in errors[1:]:
            errors[0].add_note(f"and {other!r}: {getattr(other, '__notes__', '')}")
        raise errors[0]
    return result


@contextlib.contextmanager
def noting(seed):
    """Let an error say the seed of the schedule in which it was raised."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"schedule: seed={seed}")
        raise


def explore(make_main, schedules=5000, **options):
    """Run a scenario in plain order and with so many seeds; return the results in that order.

    If one fails, a note at the error says the seed: `run(make_main(), seed)` does it again.

    Args:
        make_main: Makes the scenario: called without arguments, returns a new coroutine.
        schedules: How many seeds: 0, 1, 2, ….
        options: For `run`.
    """
    results = []
    for seed in (None, *range(schedules)):
        with noting(seed):
            results.append(run(make_main(), seed, **options))
    return results
