"""The exploration of threads finds what it is there to find."""

from __future__ import annotations

import threading
from collections import deque
from threading import Lock
from time import monotonic

import pytest

import batchstream
from support.interleaving import explore_threads, run_together
from support.interrupts import needs_lines
from support.sources import ScriptedSource

interleave_test = pytest.importorskip("interleave_test", reason="needs Python 3.12 or later")


class Mailbox:
    """A mailbox whose reader registers itself; what it does after that is up to a subclass."""

    def __init__(self):
        self.items = deque()
        self.waiter = None

    def get(self):
        while not self.items:
            wake_up = Lock()
            wake_up.acquire()
            self.waiter = wake_up
            if not self.may_wait():
                break
            wake_up.acquire()
        return self.items.popleft()

    def put(self, item):
        self.items.append(item)
        if (waiter := self.waiter) is not None:
            waiter.release()


class LossyMailbox(Mailbox):
    """With a planted fault: an item may have come before the reader was registered."""

    def may_wait(self):
        return True


class SafeMailbox(Mailbox):
    def may_wait(self):
        return not self.items


class CarelessCache:
    """A cache with a planted fault: two may find that a key is missing."""

    def __init__(self):
        self.values = {}
        self.made = 0

    def get(self, key):
        if key not in self.values:
            self.values[key] = object()
            self.made += 1
        return self.values[key]


class LockedCache(CarelessCache):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def get(self, key):
        with self.lock:
            return super().get(key)


def read_and_write(mailbox_type):
    mailbox = mailbox_type()
    received = []
    run_together(lambda: received.append(mailbox.get()), lambda: mailbox.put("letter"))
    assert received == ["letter"]


def ask_twice(cache_type):
    cache = cache_type()
    values = []
    run_together(*[lambda: values.append(cache.get("key"))] * 2)
    assert values[0] is values[1]


@pytest.mark.parametrize("strategy", ["pct", "random", "dfs"])
def test_a_lost_wake_up_is_found_where_there_is_one(strategy):
    with pytest.raises(interleave_test.DeadlockError, match="blocked on Lock") as caught:
        explore_threads(lambda: read_and_write(LossyMailbox), strategy=strategy, trace=[__file__])
    assert caught.value.result.schedules_run < 50
    explore_threads(lambda: read_and_write(SafeMailbox), strategy=strategy, trace=[__file__])


@pytest.mark.parametrize("strategy", ["pct", "random", "dfs"])
def test_a_check_then_act_is_found_where_there_is_one(strategy):
    with pytest.raises(interleave_test.RaceFound) as caught:
        explore_threads(lambda: ask_twice(CarelessCache), strategy=strategy, trace=[__file__])
    assert isinstance(caught.value.__cause__, AssertionError)
    assert caught.value.result.schedules_run < 50
    explore_threads(lambda: ask_twice(LockedCache), strategy=strategy, trace=[__file__])


def test_the_same_seed_finds_the_same_interleaving():
    def search():
        with pytest.raises(interleave_test.RaceFound) as caught:
            explore_threads(lambda: ask_twice(CarelessCache), seed=7, trace=[__file__])
        return caught.value.failure.schedule.choices

    assert search() == search()


def test_all_interleavings_with_two_forced_switches_are_tried():
    # Without a trace only the locks' operations are places to switch at.
    result = explore_threads(lambda: read_and_write(SafeMailbox), strategy="dfs")
    assert result.exhausted
    assert 20 < result.schedules_run < 300


@pytest.mark.parametrize(("early", "outcomes"), [(False, {True}), (True, {True, False})])
def test_a_timed_acquire_may_fail_early_if_it_shall(early, outcomes):
    seen = set()

    def scenario():
        lock = Lock()
        lock.acquire()
        run_together(lock.release, lambda: seen.add(lock.acquire(timeout=5)))

    explore_threads(scenario, 50, early_timeouts=early)
    assert seen == outcomes


def test_a_timed_acquire_of_a_lock_that_stays_locked_takes_no_time():
    def scenario():
        lock = Lock()
        lock.acquire()
        begun = monotonic()
        assert not lock.acquire(timeout=3600)
        assert monotonic() - begun == 3600

    explore_threads(scenario, 2)
    assert Lock is threading.Lock, "the real names were not put back"


def test_a_thread_has_started_when_start_returns_and_knows_itself():
    def scenario():
        idents = []
        thread = threading.Thread(target=lambda: idents.append(threading.get_ident()), daemon=True)
        thread.start()
        ident = thread.ident
        thread.join()
        assert idents == [ident]

    explore_threads(scenario, 50)


def test_a_daemon_that_waits_for_ever_is_a_deadlock():
    def scenario():
        threading.Thread(target=threading.Event().wait, daemon=True).start()

    with pytest.raises(interleave_test.DeadlockError, match=r"blocked on Event\.wait"):
        explore_threads(scenario, 1)


@needs_lines
def test_two_consumers_share_a_batch_whose_locks_are_modelled():
    def scenario():
        source = ScriptedSource([["a", "x"], ["b", "y"]])
        first, second = batchstream.demux(source, 2)
        received = {}
        run_together(
            lambda: received.update({0: list(first)}),
            lambda: received.update({1: list(second)}),
        )
        assert received == {0: ["a", "b"], 1: ["x", "y"]}
        assert source.closed == 1

    assert explore_threads(scenario, 50).schedules_run == 50
