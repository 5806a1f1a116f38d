"""Scenarios under many interleavings of their threads, chosen by a seed.

interleave-test lets one thread run at a time and decides before each opcode of the package, and at
each operation of a lock, which thread runs next. A deadlock is found when it happens, without a
timeout. It replaces names in the module `threading`; the package imports these names, so here they
are replaced where they were imported to, and the module itself is left alone.

A scenario makes everything it uses, and ends every thread it starts: one that waits for ever is a
deadlock, even if it is a daemon. It must not touch an event loop or a real file: a thread that
blocks there blocks all. Not replaced are names that a class or a default argument holds.
"""

from __future__ import annotations

import _thread
import gc
import queue
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

import batchstream
from support import sources

PACKAGE = str(Path(batchstream.__file__).parent)

POLLS = 3
"""How often an impatient lock is tried before it times out."""


def explore_threads(
    scenario,
    schedules=300,
    *,
    seed=0,
    strategy="pct",
    granularity="opcode",
    trace=(),
    early_timeouts=False,
):
    """Run a scenario under so many interleavings; raise at the first that fails.

    Skips the test where interleave-test is not installed, which is so before Python 3.12.

    Args:
        scenario: A function without arguments.
        schedules: How many interleavings at most.
        seed: Of the search. The same seed finds the same interleavings.
        strategy: "pct" switches rarely, at random places; "random" switches all the time; "dfs"
            tries all interleavings with at most two forced switches, in their order.
        granularity: "line" switches between lines only, which is faster and finds less.
        trace: Files whose opcodes are places to switch at, besides the package's.
        early_timeouts: Whether `lock.acquire(timeout=...)` may fail at any time. Otherwise it
            fails only if no thread can run.

    Returns:
        interleave_test's `Result`: `schedules_run`, and `exhausted` if "dfs" has tried all.

    Raises:
        interleave_test.RaceFound: From what the scenario, or a thread of it, raised.
        interleave_test.DeadlockError: Says which thread waits for what.
    """
    interleave_test = pytest.importorskip("interleave_test")
    names = modelled_names(early_timeouts=early_timeouts)
    modules = [it for name, it in sys.modules.items() if name.split(".")[0] == "batchstream"]
    modules += [queue, sources, sys.modules[__name__], sys.modules[scenario.__module__]]

    def model():
        scenario()
        # Finalizers use locks too, and these work in the run they were made in.
        gc.collect()

    collected_by_itself = gc.isenabled()
    gc.disable()  # a finalizer must not start inside the scheduler
    gc.freeze()  # what was there before makes each collection slow
    try:
        with replaced(modules, names), unheard_if_broken_off(), simultaneous_timeouts():
            return interleave_test.explore(
                model,
                iterations=schedules,
                seed=seed,
                strategy=strategy,
                granularity=granularity,
                include=[PACKAGE, *trace],
                patch_modules=False,
                patch_time=False,
            )
    finally:
        gc.unfreeze()
        if collected_by_itself:
            gc.enable()


def run_together(*functions):
    """Run the functions in a thread each, in a scenario; what one raises fails the schedule."""
    from interleave_test import spawn  # noqa: PLC0415 - not there before Python 3.12

    for task in [spawn(function) for function in functions]:
        task.join()


@contextmanager
def unheard_if_broken_off():
    """Say nothing of finalizers that end because their run has failed: that is reported itself."""
    from interleave_test._scheduler import _Abort  # noqa: PLC0415

    hook = sys.unraisablehook

    def hear(unraisable):
        if not isinstance(unraisable.exc_value, _Abort):
            hook(unraisable)

    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = hook


@contextmanager
def simultaneous_timeouts():
    """Let all timeouts of one time expire at once, so that the woken threads race each other."""
    from interleave_test._scheduler import Scheduler, Status  # noqa: PLC0415

    pick_next = Scheduler._pick_next

    def pick_next_and_wake_others(scheduler, current, kind):
        before = scheduler._vnow
        chosen = pick_next(scheduler, current, kind)
        if scheduler._vnow != before:
            for each in scheduler._recs:
                if each.deadline is not None and each.deadline <= scheduler._vnow:
                    each.blocked_on.waiters.remove(each)
                    each.blocked_on = each.deadline = None
                    each.woke_by_timeout = True
                    each.status = Status.READY
        return chosen

    Scheduler._pick_next = pick_next_and_wake_others
    try:
        yield
    finally:
        Scheduler._pick_next = pick_next


def pass_time(seconds):
    """Let so many seconds pass, in a scenario; `time.sleep` lets others run, and takes no time."""
    waiter = threading.Lock()
    waiter.acquire()
    waiter.acquire(timeout=seconds)


@contextmanager
def replaced(modules, names):
    """Give these modules other things under the names by which they know the real ones."""
    real_things = {id(thing): model for thing, model in names}
    saved = [
        (module, name, thing)
        for module in modules
        for name, thing in vars(module).items()
        if id(thing) in real_things
    ]
    for module, name, thing in saved:
        setattr(module, name, real_things[id(thing)])
    try:
        yield
    finally:
        for module, name, thing in saved:
            setattr(module, name, thing)


def modelled_names(*, early_timeouts):
    """Return pairs of a real thing and its model."""
    from interleave_test import _primitives as models  # noqa: PLC0415

    lock = lock_model(models, early_timeouts=early_timeouts)
    same = ("Condition", "Event", "BoundedSemaphore")
    changes = {
        threading: {name: getattr(models, name) for name in same}
        | {"Lock": lock, "RLock": rlock_model(models)}
        | {"Semaphore": semaphore_model(models), "Thread": thread_model(models)},
        _thread: {"allocate_lock": lock},
        time: {name: getattr(models, name) for name in ("sleep", "monotonic", "time")},
    }
    pairs = [(queue.SimpleQueue, queue._PySimpleQueue)]
    for module, names in changes.items():
        pairs += [(getattr(module, name), model) for name, model in names.items()]
        copy = ModuleType(module.__name__)
        vars(copy).update(vars(module), **names)
        pairs.append((module, copy))
    return pairs


def lock_model(models, *, early_timeouts):
    """Return interleave-test's lock, which may be impatient and survives its run."""
    from interleave_test._scheduler import current_scheduler  # noqa: PLC0415

    class Lock(models.Lock):
        def acquire(self, blocking=True, timeout=-1):
            if current_scheduler() is None:
                return True  # a finalizer, after a run that failed: no thread is left
            if not early_timeouts or timeout <= 0:
                return super().acquire(blocking, timeout)
            for _ in range(POLLS):
                if super().acquire(blocking=False):
                    return True
                models.sleep(0)
            return False

        def release(self):
            if current_scheduler() is not None:
                super().release()

    return Lock


def rlock_model(models):
    """Return interleave-test's re-entrant lock, which survives its run."""
    from interleave_test._scheduler import current_scheduler  # noqa: PLC0415

    class RLock(models.RLock):
        def acquire(self, blocking=True, timeout=-1):
            return current_scheduler() is None or super().acquire(blocking, timeout)

        def release(self):
            if current_scheduler() is not None:
                super().release()

        def _is_owned(self):
            scheduler = current_scheduler()
            return scheduler is not None and self._is_owned_by(scheduler.me())

    return RLock


def semaphore_model(models):
    """Return interleave-test's semaphore, which a queue is made of and which survives its run."""
    from interleave_test._scheduler import current_scheduler  # noqa: PLC0415

    class Semaphore(models.Semaphore):
        def acquire(self, blocking=True, timeout=None):
            return current_scheduler() is None or super().acquire(blocking, timeout)

        def release(self, n=1):
            if current_scheduler() is not None:
                super().release(n)

    return Semaphore


def thread_model(models):
    """Return interleave-test's thread, but as a real one has begun when `start` returns.

    Its ident is what `get_ident` says in it; interleave-test counts from 0, which is no ident.
    """

    class Thread(models.Thread):
        ident = None

        def start(self):
            self.begun = models.Event()
            super().start()
            self.begun.wait()

        def run(self):
            self.ident = threading.get_ident()
            self.begun.set()
            super().run()

    return Thread
