"""Waking tasks from another thread: bare asyncio and trio against libraries that serve both.

Tasks wait; a thread wakes all of them, and wakes them again when the last of them waits again.
Nothing is handed over. *One call* is one call of the event loop for all tasks, in which they are
woken one by one; *call each* is what a primitive does that may be woken from any thread and knows
nothing of the others.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial

import aiologic.lowlevel
import anyio
import trio
from harness import machine, ratios, run, spread, table, take_turns

SIZES = {64: 160, 256: 50}  # how often all are woken, by the number of tasks
QUICK_SIZES = {256: 20}
ROUNDS = 7
PATIENCE = 60.0

Prepared = tuple[object, Awaitable[object]]  # what is woken, and what is awaited until then
BARE = "bare, one call"


def future() -> Prepared:
    """Prepare a wait as asyncio itself does."""
    made = asyncio.get_running_loop().create_future()
    return made, made


def trio_task() -> Prepared:
    """Prepare a wait as trio's own primitives do."""
    wait = trio.lowlevel.wait_task_rescheduled(aborted)  # noqa: ASYNC105 - the caller awaits it
    return trio.lowlevel.current_task(), wait


def aborted(_: object) -> trio.lowlevel.Abort:
    """Let trio cancel the wait."""
    return trio.lowlevel.Abort.SUCCEEDED


def waiter() -> Prepared:
    """Prepare the smallest thing that aiologic offers; it forgets a wake-up that no task awaits."""
    made = aiologic.lowlevel.create_async_waiter()
    return made, made


def event() -> Prepared:
    """Prepare the smallest thing of aiologic's that remembers a wake-up."""
    made = aiologic.lowlevel.create_async_event()
    return made, made


def anyio_event() -> Prepared:
    """Prepare an event of anyio's, which serves for one wait."""
    made = anyio.Event()
    return made, made.wait()


def wake_each(wake: Callable[[object], object], waiting: list[object]) -> None:
    """Wake one by one."""
    for one in list(waiting):  # the woken task takes its next wait in place of this one
        wake(one)


# How a wait is prepared, how it is woken, and whether that takes place in one call of the loop.
Way = tuple[Callable[[], Prepared], Callable[[object], object], bool]
BOTH: dict[str, Way] = {
    "aiologic waiter, one call": (waiter, lambda made: made.wake(), True),
    "aiologic waiter, call each": (waiter, lambda made: made.wake(), False),
    "aiologic event, one call": (event, lambda made: made.set(), True),
    "aiologic event, call each": (event, lambda made: made.set(), False),
    "anyio event, one call": (anyio_event, lambda made: made.set(), True),
}
ASYNCIO: dict[str, Way] = {BARE: (future, lambda made: made.set_result(None), True), **BOTH}
TRIO: dict[str, Way] = {BARE: (trio_task, trio.lowlevel.reschedule, True), **BOTH}


class Waking:
    """Tasks that wait again and again, and the thread that wakes them."""

    def __init__(self, way: Way, size: int, times: int, call: Callable[..., object]) -> None:
        self.prepare, self.wake, self.one_call = way
        self.waiting: list[object] = [None] * size
        self.left = size
        self.times = times
        self.call = call
        self.all_wait = threading.Lock()
        self.all_wait.acquire()
        self.woken = 0

    async def sleeper(self, place: int) -> None:
        """Wait as often as the thread wakes."""
        for _ in range(self.times):
            self.waiting[place], wait = self.prepare()
            self.left -= 1
            if not self.left:
                self.left = len(self.waiting)
                self.all_wait.release()
            await wait
            self.woken += 1

    def waker(self) -> None:
        """Wake all whenever all wait. Runs in a thread."""
        for _ in range(self.times):
            assert self.all_wait.acquire(timeout=PATIENCE)
            if self.one_call:
                self.call(wake_each, self.wake, self.waiting)
            else:
                wake_each(self.wake, self.waiting)

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self.waker, daemon=True).start()

    def check(self) -> None:
        """Check that every task was woken every time."""
        assert self.woken == self.times * len(self.waiting)


async def in_asyncio(way: Way, size: int, times: int) -> float:
    """Return the seconds for waking this many tasks that often."""
    waking = Waking(way, size, times, asyncio.get_running_loop().call_soon_threadsafe)
    waking.start()
    begin = time.perf_counter()
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        for place in range(size):
            group.create_task(waking.sleeper(place))
    seconds = time.perf_counter() - begin
    waking.check()
    return seconds


async def in_trio(way: Way, size: int, times: int) -> float:
    """Return the same for trio."""
    waking = Waking(way, size, times, trio.lowlevel.current_trio_token().run_sync_soon)
    waking.start()
    begin = time.perf_counter()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for place in range(size):
                nursery.start_soon(waking.sleeper, place)
    seconds = time.perf_counter() - begin
    waking.check()
    return seconds


def main(*, quick: bool = False) -> None:
    """Print the table."""
    rounds = 1 if quick else ROUNDS
    rows = []
    for size, times in (QUICK_SIZES if quick else SIZES).items():
        runs = {
            ("asyncio", name): partial(run, in_asyncio, way, size, times)
            for name, way in ASYNCIO.items()
        }
        runs |= {
            ("trio", name): partial(trio.run, in_trio, way, size, times)
            for name, way in TRIO.items()
        }
        seconds = take_turns(runs, rounds)
        for (library, name), took in seconds.items():
            per_wake = spread(took, 1e6 / (size * times), 2)
            of_bare = spread(ratios(took, seconds[library, BARE]), 1, 2)
            rows.append([library, str(size), name, per_wake, of_bare])
    print(f"Waking a task from another thread ({machine(rounds)}):\n")
    print(table(["loop", "tasks", "way", "µs per wake-up", "in terms of bare"], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one size, one short round")
    main(quick=parser.parse_args().quick)
