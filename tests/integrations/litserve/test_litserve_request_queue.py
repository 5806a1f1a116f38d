"""The queue of a loop that orders its requests: in this process, and in one of its own."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from queue import Empty

import pytest

from batchstream._batching.waiting.places import ALONE
from batchstream.integrations.litserve._link import request_queue
from batchstream.integrations.litserve._link.ordering import Ordering, Standing
from batchstream.integrations.litserve._link.received import ReceivedRequest
from batchstream.integrations.litserve._link.request_queue import (
    OrderedRequests,
    Refusal,
    start_queue,
)
from support.serving import SECONDS


def element(name):
    return 0, name, 0.0, {"payload": name}


def put(queue, *names, **standing):
    return queue.put_all([element(name) for name in names], Standing(**standing))


def taken(queue, number=1000):
    take = queue.take if isinstance(queue, OrderedRequests) else partial(queue.take, block=False)
    return [take()[0][1] for _ in range(min(number, queue.qsize()))]


def test_a_request_comes_out_as_litserve_puts_it_in():
    queue = OrderedRequests(None, None)
    put(queue, "a")
    assert queue.qsize() == 1
    assert queue.take() == (element("a"), False)
    assert queue.qsize() == 0
    with pytest.raises(Empty):
        queue.take()


def test_one_that_takes_a_request_is_told_whether_there_is_more_to_take():
    queue = OrderedRequests(None, None)
    put(queue, "a", "b")
    queue.put(None)
    assert [queue.take()[1] for _ in range(3)] == [True, True, False]


@pytest.mark.rule(29)
def test_bands_go_in_order_and_each_in_the_order_of_arrival():
    queue = OrderedRequests(None, None)
    for name, priority in [("c", 5), ("d", 5), ("b", 0), ("a", -1), ("e", 5)]:
        put(queue, name, priority=priority)
    assert taken(queue, 1) == ["a"]
    put(queue, "first", priority=-1)
    assert taken(queue) == ["first", "b", "c", "d", "e"]


@pytest.mark.rule(29)
def test_a_flood_of_one_tenant_does_not_hold_another_up():
    queue = OrderedRequests(None, None)
    put(queue, *(f"flood {n}" for n in range(100)), tenant="noisy")
    put(queue, "x", "y", tenant="quiet")
    assert {"x", "y"} <= set(taken(queue, 4))


@pytest.mark.rule(29)
@pytest.mark.parametrize(("share", "cost"), [(3.0, 1.0), (1.0, 1 / 3)])
def test_tenants_take_turns_by_share_and_cost(share, cost):
    queue = OrderedRequests(None, None)
    put(queue, *["big"] * 90, tenant="b", share=share, cost=cost)
    put(queue, *["small"] * 90, tenant="s")
    first = taken(queue, 40)
    assert abs(first.count("big") - 30) <= 1


@pytest.mark.rule(19)
def test_as_many_wait_as_may_of_all_and_of_each_tenant_and_all_of_a_client_or_none():
    queue = OrderedRequests(5, 3)
    put(queue, "a", "b", tenant="one")
    assert put(queue, "c", "d", tenant="one") == Refusal("tenant", None, 2)
    put(queue, "e", "f", tenant="two")
    put(queue, "c", tenant="one")
    assert put(queue, "g", tenant="two") == Refusal("pending", None, 5)
    assert sorted(taken(queue)) == ["a", "b", "c", "e", "f"]
    put(queue, "c", "d", "g", tenant="one")
    assert queue.qsize() == 3


@pytest.mark.rule(19)
def test_no_more_wait_than_may_cost_so_much_and_all_of_a_client_or_none():
    queue = OrderedRequests(None, None, 10)
    put(queue, "a", "b", cost=3.0)
    assert put(queue, "c", "d", cost=3.0) == Refusal("pending_cost", None, 2, 6.0)
    assert put(queue, "c", cost=4.0) is None
    assert put(queue, "d", cost=0.5) == Refusal("pending_cost", None, 3, 10.0)
    assert queue.discard("c")
    assert put(queue, "d", cost=0.5) is None
    assert taken(queue) == ["a", "b", "d"]


def test_a_refusal_says_when_to_come_again_by_the_rate_at_which_requests_leave(monkeypatch):
    queue = OrderedRequests(4, 2)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(request_queue.time, "monotonic", lambda: next(clock))
    put(queue, "a", "b", tenant="one")
    put(queue, "c", "d", tenant="two")
    for first, second in (("a", "c"), ("b", "d")):  # until a rate is known
        assert taken(queue, 2) == [first, second]
        put(queue, first, tenant="one")
        put(queue, second, tenant="two")
    assert taken(queue, 2) == ["a", "c"]
    put(queue, "e", tenant="one")
    seconds = put(queue, "f", tenant="one").retry_after
    put(queue, "f", tenant="two")
    assert put(queue, "g").retry_after == seconds / 2 > 0


def test_a_request_that_is_given_up_leaves_the_queue_unless_it_was_taken():
    queue = OrderedRequests(2, None)
    put(queue, "a", "b")
    assert queue.discard("b")
    put(queue, "c")
    assert taken(queue) == ["a", "c"]
    assert [queue.discard(name) for name in "abc"] == [False] * 3


@pytest.mark.rule(25)
def test_nothing_is_kept_of_tenants_and_requests_that_are_gone():
    queue = OrderedRequests(10, 2)
    for number in range(500):
        put(queue, f"a{number}", f"b{number}", tenant=number)
        assert put(queue, "one too many", tenant=number) is not None
        assert queue.discard(f"a{number}")
        assert taken(queue) == [f"b{number}"]
    assert put(queue, "a", "b", "c", tenant="never accepted") is not None
    assert (queue._accounts, queue._by_uid) == ({}, {})


def test_what_is_no_request_comes_behind_all_requests():
    queue = OrderedRequests(1, None)
    sentinel = (None,) * 4
    queue.put(sentinel)
    put(queue, "a", priority=10**6)
    assert [queue.take()[0] for _ in range(2)] == [element("a"), sentinel]


# ---- where a request stands


def standing(**returned):
    functions = {name: lambda _, value=value: value for name, value in returned.items()}
    arguments = [functions.get(name) for name in ("priority", "tenant", "share", "cost")]
    return Ordering(*arguments).standing_of(ReceivedRequest("payload", {}, "name"))


def test_functions_say_where_a_request_stands():
    assert standing(priority=3) == Standing(3, None, ALONE, 1.0)
    assert standing(tenant="t", share=2, cost=0.5) == Standing(0, "t", 2.0, 0.5)


@pytest.mark.parametrize(
    ("returned", "error", "text"),
    [
        ({"priority": "high"}, TypeError, "priority returns"),
        ({"tenant": ["t"]}, TypeError, "tenant returns text, bytes, a whole number or None"),
        ({"tenant": "t", "share": 0}, ValueError, "share returns"),
        ({"tenant": "t", "cost": 0}, ValueError, "what cost returns must be more than 0 and fin"),
        ({"tenant": "t", "cost": float("inf")}, ValueError, "must be more than 0 and finite"),
        ({"tenant": "t", "cost": "1"}, TypeError, "what cost returns must be a number"),
    ],
)
def test_what_a_function_may_not_return_is_an_error(returned, error, text):
    with pytest.raises(error, match=text):
        standing(**returned)


# ---- in a process of its own


@pytest.fixture(scope="module")
def queue():
    return start_queue(4, None)


@pytest.fixture(autouse=True)
def empty(request):
    if "queue" in request.fixturenames:
        taken(request.getfixturevalue("queue"))


def test_other_processes_see_the_same_as_its_own(queue):
    put(queue, "later", priority=1)
    put(queue, "sooner")
    assert (queue.qsize(), queue.empty()) == (2, False)
    assert [queue.get(timeout=SECONDS)[1] for _ in range(2)] == ["sooner", "later"]
    put(queue, "a", "b")
    assert queue.take(timeout=SECONDS) == (element("a"), True)
    assert queue.take(block=False) == (element("b"), False)
    for take in (queue.get, queue.take):
        with pytest.raises(Empty):
            take(timeout=0)
        with pytest.raises(Empty):
            take(block=False)
    with pytest.raises(Empty):
        queue.get_nowait()
    assert put(queue, *"abcde").reason == "pending"


def test_one_that_waits_is_woken_by_a_request(queue):
    found = []
    waiter = threading.Thread(target=lambda: found.append(queue.get()))
    waiter.start()
    put(queue, "a")
    waiter.join(SECONDS)
    assert found == [element("a")]


def wait_in_vain(queue, started):
    started.set()
    queue.get(timeout=SECONDS)


@pytest.mark.rule(2)
def test_a_worker_that_is_killed_while_it_waits_takes_no_request_with_it(queue):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    worker = context.Process(target=wait_in_vain, args=(queue, started))
    worker.start()
    assert started.wait(SECONDS)
    worker.kill()
    worker.join(SECONDS)
    put(queue, *"abc")
    assert taken(queue) == ["a", "b", "c"]


PROGRAM = """
from batchstream.integrations.litserve._link.request_queue import (
    OrderedRequests,
    Refusal,
    start_queue,
)
queue = start_queue(None, None)
print(queue._manager._process.pid, flush=True)
input()
"""


@pytest.mark.rule(28)
@pytest.mark.skipif(sys.platform != "linux", reason="needs descriptors of processes")
def test_its_process_ends_when_the_main_process_is_killed():
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        process = os.pidfd_open(int(program.stdout.readline()))
        program.kill()
    try:
        assert multiprocessing.connection.wait([process], SECONDS)
    except BaseException:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        raise
    finally:
        os.close(process)
