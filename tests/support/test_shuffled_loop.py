"""The shuffled loop finds what it is there to find, and finds it again."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading

import pytest

from support.shuffled_loop import Deadlock, explore, run
from support.sources import TIMEOUT, run_in_threads


class LossyMailbox:
    """A mailbox with a planted fault: the reader looks, pauses, and only then registers."""

    def __init__(self):
        self.items = []
        self.waiter = None

    async def get(self):
        if not self.items:
            await asyncio.sleep(0)
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        return self.items.pop()

    def put(self, item):
        self.items.append(item)
        if self.waiter is not None:
            self.waiter.set_result(None)


async def read_and_write_lossily():
    mailbox = LossyMailbox()

    async def write():
        await asyncio.sleep(0)
        mailbox.put("letter")

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(mailbox.get(), name="reader")
        group.create_task(write())
    return reader.result()


def seed_of(error):
    [note] = [note for note in error.__notes__ if note.startswith("schedule: seed=")]
    return int(note.removeprefix("schedule: seed="))


async def three_in_some_order():
    order = []

    async def append(name):
        order.append(name)
        await asyncio.sleep(0)
        order.append(name.upper())

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(append(name))
    return "".join(order)


def test_a_lost_wake_up_that_plain_order_hides_is_found_and_replayed():
    assert run(read_and_write_lossily()) == "letter"
    with pytest.raises(Deadlock) as caught:
        explore(read_and_write_lossily)
    with pytest.raises(Deadlock):
        run(read_and_write_lossily(), seed_of(caught.value))


def test_a_deadlock_names_each_pending_task_and_where_it_waits():
    with pytest.raises(Deadlock) as caught:
        explore(read_and_write_lossily)
    message = str(caught.value)
    assert "nothing is ready and no timer is set" in message
    assert "task reader: LossyMailbox.get at LossyMailbox.get, line " in message
    assert ": read_and_write_lossily at TaskGroup.__aexit__, line " in message
    assert "write" not in message.replace("read_and_write_lossily", "")


def test_an_order_dependence_is_found():
    async def scenario():
        assert await three_in_some_order() == "abcABC"

    run(scenario())
    with pytest.raises(AssertionError) as caught:
        explore(scenario)
    with pytest.raises(AssertionError):
        run(scenario(), seed_of(caught.value))


def test_plain_order_is_that_of_asyncio_and_comes_first():
    assert explore(three_in_some_order, 0) == [asyncio.run(three_in_some_order())]


def test_exploring_reaches_every_order():
    results = explore(three_in_some_order, 3000)
    assert len(results) == 3001
    assert {"".join(order) for order in itertools.permutations("abc")} <= {r[:3] for r in results}
    possible = {
        "".join(order)
        for order in itertools.permutations("abcABC")
        if all(order.index(name) < order.index(name.upper()) for name in "abc")
    }
    assert set(results) == possible


@pytest.mark.parametrize("seed", range(20))
def test_the_same_seed_gives_the_same_order(seed):
    # Task groups keep their tasks in a set, and leftovers come from a weak set: both by hash.
    async def scenario(trace):
        async def work(name):
            try:
                for count in range(3):
                    trace.append((name, count))
                    await asyncio.sleep(count)
                if name == 3:
                    raise ValueError
                await asyncio.sleep(100)
            finally:
                trace.append((name, "left"))

        tasks = [asyncio.create_task(work(name)) for name in range(10, 20)]
        try:
            async with asyncio.TaskGroup() as group:
                for name in range(10):
                    group.create_task(work(name))
        except* ValueError:
            trace.append("failed")
        return tasks[0].done()

    traces = [], [], []
    for trace in traces:
        run(scenario(trace), seed)
    assert len(traces[0]) == 81
    assert traces[0] == traces[1] == traces[2]


def test_timers_go_off_in_the_order_of_their_time_and_take_none():
    async def scenario():
        loop = asyncio.get_running_loop()
        order = []

        async def sleep(seconds):
            await asyncio.sleep(seconds)
            order.append((seconds, loop.time()))

        await asyncio.gather(*map(sleep, [3600, 1, 0.1, 60]))
        return order

    for result in explore(scenario, 50):
        assert result == [(0.1, 0.1), (1, 1), (60, 60), (3600, 3600)]


def test_timers_of_the_same_time_go_off_in_any_order():
    async def scenario():
        order = []

        async def sleep(name):
            await asyncio.sleep(1)
            order.append(name)

        await asyncio.gather(sleep("a"), sleep("b"))
        return "".join(order)

    assert set(explore(scenario, 50)) == {"ab", "ba"}


def test_time_stands_still_while_anything_is_ready():
    async def scenario():
        async with asyncio.timeout(0.001):
            for _ in range(1000):
                await asyncio.sleep(0)
        assert asyncio.get_running_loop().time() == 0

    explore(scenario, 10)


def test_a_timeout_and_what_it_guards_can_come_at_the_same_time():
    async def scenario():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_later(1, future.set_result, "result")
        try:
            async with asyncio.timeout(1):
                return await asyncio.shield(future)
        except TimeoutError:
            return "timeout"

    assert set(explore(scenario, 50)) == {"result", "timeout"}


def test_a_cancelled_timer_moves_no_clock():
    async def scenario():
        loop = asyncio.get_running_loop()
        loop.call_later(1, pytest.fail, "a cancelled timer went off").cancel()
        await asyncio.sleep(2)
        loop.call_later(10, pytest.fail, "a cancelled timer went off").cancel()
        await asyncio.sleep(0)
        return loop.time()

    assert explore(scenario, 10) == [2] * 11


def test_callbacks_run_in_the_context_of_the_caller():
    variable = contextvars.ContextVar("variable")

    async def scenario():
        seen = []
        loop = asyncio.get_running_loop()
        for value in range(3):
            variable.set(value)
            loop.call_soon(lambda: seen.append(variable.get()))
            loop.call_later(1, lambda: seen.append(variable.get()))
        await asyncio.sleep(2)
        return sorted(seen)

    assert explore(scenario, 10) == [[0, 0, 1, 1, 2, 2]] * 11


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_an_error_that_is_never_retrieved_is_raised(seed):
    async def fail():
        raise ValueError("lost")

    async def scenario(keep):
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        keep.append(task)

    for keep in [], [None] * 3:
        with pytest.raises(ValueError, match="lost") as caught:
            run(scenario(keep), seed)
        assert "never retrieved" in str(caught.value.__notes__)


def test_an_error_in_a_callback_is_raised_and_others_go_along_as_notes():
    async def scenario(*, fail):
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)
        assert not fail, "the scenario's own"

    with pytest.raises(ZeroDivisionError) as caught:
        run(scenario(fail=False))
    assert "Exception in callback" in caught.value.__notes__[0]
    with pytest.raises(AssertionError, match="own") as caught:
        run(scenario(fail=True))
    assert "ZeroDivisionError" in caught.value.__notes__[0]


def test_the_error_of_the_scenario_is_raised_as_it_is():
    error = ValueError()

    async def scenario():
        raise error

    with pytest.raises(ValueError) as caught:
        run(scenario())
    assert caught.value is error
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_leftovers_are_cancelled_and_awaited(seed):
    left = []

    async def stay(name):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            left.append(name)

    async def yield_for_ever():
        try:
            while True:
                yield
        finally:
            await asyncio.sleep(1)
            left.append("generator")

    async def scenario(generator):
        tasks = [asyncio.create_task(stay("task")) for _ in range(3)]
        await anext(generator)
        await asyncio.sleep(0)
        await asyncio.sleep(1)
        return len(tasks)

    generator = yield_for_ever()
    assert run(scenario(generator), seed) == 3
    assert left == ["task"] * 3 + ["generator"]


def test_leftovers_fail_if_they_shall_and_tasks_that_end_by_themselves_are_none():
    async def scenario(work):
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        return task

    async def end():
        for _ in range(10):
            await asyncio.sleep(0)

    async def stay():
        await asyncio.sleep(1)

    explore(lambda: scenario(end), 20, leftovers="fail")
    explore(lambda: scenario(stay), 20)
    with pytest.raises(AssertionError, match=r"left over: task .*stay at sleep"):
        explore(lambda: scenario(stay), 20, leftovers="fail")


def test_a_leftover_that_shrugs_off_its_cancel_is_reported():
    async def stay():
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    async def scenario():
        task = asyncio.create_task(stay())
        await asyncio.sleep(1)
        return task

    with pytest.raises(Deadlock, match="stay") as caught:
        run(scenario())
    assert "while cancelling what was left over" in caught.value.__notes__
    caught.value.__traceback__ = None


def test_a_scenario_that_never_ends_is_reported(monkeypatch):
    monkeypatch.setattr("support.shuffled_loop.MANY_CALLBACKS", 1000)

    async def scenario():
        for count in itertools.count():
            await asyncio.sleep(count)

    with pytest.raises(Deadlock, match="no end after 1000 callbacks"):
        run(scenario())


def call_from_thread(function, *arguments):
    """Call in a thread that is never joined."""
    threading.Thread(target=function, args=arguments, daemon=True).start()


def answer_from_thread(asked):
    """Return a future that a thread resolves once the event is set."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def answer():
        assert asked.wait(TIMEOUT)
        loop.call_soon_threadsafe(future.set_result, "answer")

    call_from_thread(answer)
    return future


def test_a_loop_waits_for_a_thread_that_works():
    async def scenario():
        asked = threading.Event()
        future = answer_from_thread(asked)
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, asked.set)
        async with asyncio.timeout(TIMEOUT):
            return await future

    assert explore(scenario, 50, threads=True) == ["answer"] * 51


def test_a_thread_pool_works():
    async def scenario():
        return await asyncio.gather(*(asyncio.to_thread(pow, 2, n) for n in range(4)))

    assert run(scenario(), 1, threads=True) == [1, 2, 4, 8]


def test_a_timer_goes_off_while_a_thread_is_held_back_and_jumps_when_there_is_none():
    async def scenario():
        opened = threading.Event()
        future = answer_from_thread(opened)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.shield(future)
        opened.set()
        answer = await future
        await asyncio.sleep(3600)
        return answer

    assert run(scenario(), 1, threads=True) == "answer"


def test_a_thread_that_ends_without_a_call_leaves_a_deadlock():
    async def scenario():
        call_from_thread(lambda: None)
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match="nothing is ready"):
        run(scenario(), 1, threads=True)


def test_a_thread_that_is_silent_for_too_long_is_named():
    opened = threading.Event()

    async def scenario():
        threading.Thread(target=opened.wait, args=[TIMEOUT], name="silent", daemon=True).start()
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match=r"no thread has called for 0.02 s(?s:.*)thread silent"):
        run(scenario(), 1, threads=True, patience=0.02)
    opened.set()


def test_a_loop_without_threads_sees_the_calls_of_joined_threads():
    async def scenario():
        future = asyncio.get_running_loop().create_future()
        call = asyncio.get_running_loop().call_soon_threadsafe
        run_in_threads(lambda: call(future.set_result, "answer"))
        return await future

    assert explore(scenario, 10) == ["answer"] * 11


def test_call_soon_from_another_thread_is_an_error():
    async def scenario():
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="from another thread"):
            run_in_threads(lambda: loop.call_soon(print))

    run(scenario())
