"""Races of batchers in an event loop: each scenario in plain order and in many shuffled ones.

An asynchronous model, its batcher and all clients share one loop with a virtual clock, so that a
schedule is decided by its seed alone. Each output names its request. Whatever a scenario is about,
it ends in `Service.end`: each request was answered once, and nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import Counter

import pytest

from batchstream import (
    ClosedError,
    ContinuousBatcher,
    DeadlineError,
    DynamicBatcher,
    FinishReason,
    OverloadedError,
    SlowConsumerError,
)
from support import knobs
from support.racing import (
    SCHEDULES,
    Engine,
    ModelError,
    Tallies,
    cancelled_often,
    explore_schedules,
    output,
    reply,
    together,
    turns,
)
from support.shuffled_loop import explore, noting, run

pytestmark = pytest.mark.usefixtures("short_turns")

THREADED_SCHEDULES = min(SCHEDULES, 150)

ENDLESS = 1000  # more outputs than any consumer reads


@pytest.fixture
def _virtual_clock(monkeypatch):
    """Let batchers read the clock of the loop; between two loops it stands still."""
    last = 0.0

    def now():
        nonlocal last
        with contextlib.suppress(RuntimeError):
            last = asyncio.get_running_loop().time()
        return last

    knobs.set_clock(monkeypatch, now)


in_virtual_time = pytest.mark.usefixtures("_virtual_clock")


class Model:
    """An asynchronous function of a list of requests, such as `"a3"`, which gets three outputs.

    Args:
        wait: What it awaits in each step: called with the requests and the number of the step.
        fails_for: A request whose batch fails, in the step after its last output.
    """

    def __init__(self, *, wait=lambda *_: asyncio.sleep(0), fails_for=None):
        self.batches = []
        self.sent = Counter()
        self.running = 0
        self.closed = 0
        self.given_up = set()
        self._wait = wait
        self._fails_for = fails_for

    async def __call__(self, requests):
        assert requests
        self.batches.append(requests)
        self.sent.update(requests)
        self.running += 1
        assert not self.given_up.intersection(requests), "sent after it was cancelled"
        try:
            live = range(len(requests))
            for number in itertools.count():
                await self._wait(requests, number)
                self._check_failure(requests, number)
                live = yield {slot: output(requests[slot], number) for slot in live}
                assert live, "advanced without a live request"
                left = {requests[slot] for slot in live}
                assert not self.given_up & left, "a cancel was not sent with the next step"
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            self.running -= 1
            self.closed += 1

    def _check_failure(self, requests, number):
        if self._fails_for in requests and number == int(self._fails_for[1:]):
            raise ModelError(self._fails_for)


class Client:
    """Submits a request and reads its stream to the end, undeterred by cancels of its task."""

    def __init__(self, service, request, **timeouts):
        self.request = request
        self.outputs = []
        self.errors = []
        self.stream = None
        self.refusal = None
        self.ended = False
        self.ended_at = None
        self._service = service
        self._timeouts = timeouts
        self._task = None

    def submit(self):
        """Submit the request, and return whether it was accepted."""
        try:
            self.stream = self._service.batcher.astream(self.request, **self._timeouts)
        except (ClosedError, OverloadedError) as error:
            self.refusal = error
        return self.stream is not None

    async def ask(self):
        """Submit the request if it was not, and read to the end."""
        if self.stream is not None or self.submit():
            await self.read()

    async def read(self):
        self._task = asyncio.current_task()
        while not self.ended:
            try:
                output = await anext(self.stream)
            except StopAsyncIteration:
                self.ended = True
            except asyncio.CancelledError:
                self._task.uncancel()
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.errors.append(error)
            else:
                assert not self.errors, "an output came after an error"
                self.outputs.append(output)
        self.ended_at = asyncio.get_running_loop().time()

    def cancel(self):
        """Cancel the task that reads, if it has begun and not ended."""
        if self._task is not None:
            self._task.cancel()

    def give_up(self):
        """Cancel the stream, if there is one."""
        if self.stream is not None:
            self.stream.cancel()
            self._service.model.given_up.add(self.request)

    @property
    def reason(self):
        return self.stream and self.stream.finish_reason

    def check(self, failures):
        """Make sure that the answer is right, and has one end.

        Args:
            failures: The errors that it may be.
        """
        if self.stream is None:
            assert self.refusal is not None
            return
        assert self.outputs == reply(self.request)[: len(self.outputs)], "another's output"
        reason = self.stream.finish_reason
        if reason is FinishReason.EOS:
            assert self.errors == []
            complete = self.outputs == reply(self.request)
            assert complete or not self.ended or self.request in self._service.model.given_up
        elif reason is FinishReason.ERROR:
            error = self.stream.end.error
            assert isinstance(error, failures), error
            if isinstance(error, DeadlineError) and self.stream.slot >= 0:
                of_slot = [self._timeouts.get(f"{kind}timeout") for kind in ("", "first_", "gap_")]
                assert error.timeout in of_slot, "it had not waited too long"
            if self.request not in self._service.model.given_up:
                assert [type(each) for each in self.errors] == [type(error)] * self.ended
                assert all(each is not error for each in self.errors)
        else:
            assert reason is FinishReason.CANCELLED
            assert self.request in self._service.model.given_up
            assert self.errors == []


class Service:
    """A batcher, its model, its metrics and its clients.

    Args:
        wait, fails_for: Options of the model.
        options: Options of the batcher.
    """

    def __init__(self, *, wait=None, fails_for=None, **options):
        self.model = Model(fails_for=fails_for, **({} if wait is None else {"wait": wait}))
        self.metrics = Tallies()
        self.options = {"max_batch_size": 2, "workers": 1, **options}
        self.batcher = DynamicBatcher(
            self._check_batch, metrics=self.metrics, traces=self.metrics.traces, **self.options
        )
        self.clients = []

    async def _check_batch(self, requests):
        assert len(requests) <= self.options["max_batch_size"]
        assert self.model.running < self.options["workers"]
        if (key := self.options.get("key")) is not None:
            assert len({*map(key, requests)}) == 1
        if (cost := self.options.get("cost")) is not None:
            assert sum(map(cost, requests)) <= self.options["max_batch_cost"]
        async with contextlib.aclosing(self.model(requests)) as steps:
            live = None
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    live = yield await steps.asend(live)

    def client(self, request, **timeouts):
        """Return a new client."""
        self.clients.append(Client(self, request, **timeouts))
        return self.clients[-1]

    def new_clients(self, *requests):
        """Return a client for each request."""
        return [self.client(request) for request in requests]

    async def end(self, *failures, closing=True):
        """Close the batcher, and make sure that all were answered and nothing was left behind."""
        if closing:
            await self.batcher.aclose()
        self.check(*failures)

    def check(self, *failures):
        """Make sure that all were answered and nothing was left behind."""
        figures = self.batcher.statistics()
        for client in self.clients:
            client.check(failures)
        self.metrics.check(figures)
        reasons = Counter(client.reason for client in self.clients if client.stream is not None)
        assert Counter(figures.finished) == reasons
        assert figures.opened == self.metrics.accepted
        assert figures.refused == self.metrics.refusals
        assert not self.model.sent or max(self.model.sent.values()) == 1, "sent twice"
        assert self.model.running == 0
        assert self.model.closed == len(self.model.batches)
        knobs.assert_nothing_is_left(self.batcher)


async def later(seconds, then):
    """Do this after so many seconds."""
    await asyncio.sleep(seconds)
    then()


async def after(delay, coroutine):
    """Await this after so many turns."""
    await turns(delay)
    await coroutine


def for_ever(*_):
    """Wait for what never comes."""
    return asyncio.Event().wait()


async def stuck_with_the_endless(requests, _):
    """Wait for what never comes in a batch with the request for endless outputs."""
    await (for_ever() if f"a{ENDLESS}" in requests else asyncio.sleep(0))


def assert_all_served(clients):
    for client in clients:
        assert client.outputs == reply(client.request)
        assert client.reason is FinishReason.EOS


# ---- requests arrive


@pytest.mark.rule(29)
@in_virtual_time
def test_requests_that_arrive_at_any_time_are_answered_once_though_receives_are_cancelled():
    sizes = Counter()

    async def scenario():
        service = Service()
        clients = service.new_clients("a2", "b0", "c3", "d1", "e1")
        await together(
            *[after(delay, client.ask()) for delay, client in enumerate(clients)],
            *[cancelled_often(client) for client in clients],
        )
        assert_all_served(clients)
        await service.end()
        sizes.update(map(len, service.model.batches))

    explore_schedules(scenario)
    assert set(sizes) == {1, 2}


@pytest.mark.rule(29)
@in_virtual_time
def test_a_request_that_arrives_as_the_worker_stops_working_is_not_forgotten():
    async def scenario():
        service = Service(max_batch_size=1)
        clients = service.new_clients("a1", "b1", "c1")
        await together(*[after(5 * delay, it.ask()) for delay, it in enumerate(clients)])
        assert_all_served(clients)
        await service.end()

    explore_schedules(scenario)


@pytest.mark.rule(29)
@in_virtual_time
def test_a_request_that_arrives_as_the_batch_timeout_expires_joins_or_is_next():
    sizes = set()

    async def scenario():
        service = Service(batch_timeout=1.0, max_batch_size=3)
        clients = service.new_clients("a1", "b2", "c1")
        await together(
            clients[0].ask(),
            *[later(1, client.submit) for client in clients[1:]],
        )
        await together(*[client.ask() for client in clients])
        assert_all_served(clients)
        assert service.batcher.statistics().longest_wait <= 1
        await service.end()
        sizes.add(tuple(map(len, service.model.batches)))

    explore_schedules(scenario)
    assert sizes >= {(3,), (1, 2), (2, 1)}


@pytest.mark.rule(29)
@in_virtual_time
def test_two_workers_gather_and_run_batches_of_their_own():
    batches = set()

    async def scenario():
        service = Service(batch_timeout=1.0, workers=2, wait=lambda *_: asyncio.sleep(0.5))
        clients = service.new_clients("a2", "b1", "c1", "d2", "e0", "f1")
        await together(
            *[
                later(seconds, client.submit)
                for seconds, client in zip([0, 1, 1, 1, 2, 2], clients, strict=True)
            ],
        )
        await together(*[client.ask() for client in clients])
        assert_all_served(clients)
        await service.end()
        batches.add(tuple(map(len, service.model.batches)))

    explore_schedules(scenario)
    assert len(batches) > 1


@pytest.mark.rule(29)
@in_virtual_time
def test_a_request_that_waits_as_a_worker_takes_a_batch_is_served_by_another():
    async def scenario():
        service = Service(
            workers=2,
            wait=stuck_with_the_endless,
            batch_timeout=1.0,
            key=lambda request: request[0],
        )
        stuck, *others = clients = service.new_clients(f"a{ENDLESS}", "b1", "c2")
        await together(*[turns(2 * delay, it.submit) for delay, it in enumerate(clients)])
        await together(*[client.ask() for client in others])
        assert_all_served(others)
        stuck.give_up()
        await service.end()

    explore_schedules(scenario)


@pytest.mark.rule(29)
@in_virtual_time
def test_requests_with_equal_keys_share_batches_however_they_arrive():
    async def scenario():
        service = Service(batch_timeout=1.0, workers=2, key=lambda request: request[-1])
        clients = service.new_clients("a1", "b2", "c1", "d2", "e1")
        await together(
            *[after(delay, client.ask()) for delay, client in enumerate(clients)],
            turns(4, clients[2].give_up),
        )
        assert_all_served(it for it in clients if it is not clients[2])
        assert service.batcher.statistics().longest_wait <= 1
        await service.end()

    explore_schedules(scenario)


@pytest.mark.rule(29)
@in_virtual_time
def test_requests_of_tenants_in_bands_are_answered_once_however_they_arrive():
    async def scenario():
        service = Service(
            batch_timeout=1.0,
            key=lambda request: request[-1] == "4",
            priority=lambda request: int(request[0] == "b"),
            tenant=lambda request: request[0],
            share=lambda request: int(request[1:]),
            cost=lambda request: int(request[1:]),
            max_batch_cost=4,
            max_pending_cost=40,
        )
        clients = service.new_clients("a1", "b4", "c2", "a3", "b1", "c4")
        await together(
            *[after(delay, client.ask()) for delay, client in enumerate(clients)],
            turns(5, clients[1].give_up),
            turns(9, clients[3].give_up),
        )
        assert_all_served(it for it in clients if it not in {clients[1], clients[3]})
        await service.end()

    explore_schedules(scenario)


@pytest.mark.rule(29)
@in_virtual_time
def test_costs_never_exceed_the_limit_and_the_dearest_is_not_forgotten():
    async def scenario():
        service = Service(
            max_batch_size=3,
            batch_timeout=1.0,
            cost=lambda request: int(request[1:]),
            max_batch_cost=4,
        )
        clients = service.new_clients("a1", "b4", "c2", "d1", "e3")
        await together(
            *[after(delay, client.ask()) for delay, client in enumerate(clients)],
            turns(6, clients[1].give_up),
        )
        assert_all_served(it for it in clients if it is not clients[1])
        await service.end()

    explore_schedules(scenario)


@pytest.mark.rule(29)
@in_virtual_time
def test_a_refused_request_may_come_again_when_others_have_left():
    refusals = []

    async def insist(service, request):
        for _ in range(100):
            client = service.client(request)
            await client.ask()
            if client.refusal is None:
                return client
            await turns(1)
        raise AssertionError("refused for ever")

    async def scenario():
        service = Service(max_batch_size=1, max_pending=1)
        waiting = service.new_clients("a2", "b1")
        await together(
            *[client.ask() for client in waiting],
            insist(service, "c1"),
            insist(service, "d1"),
            turns(3, waiting[1].give_up),
        )
        served = [client for client in service.clients if client.stream is not None]
        assert_all_served(client for client in served if client not in waiting)
        await service.end()
        refusals.append(service.metrics.refusals)

    explore_schedules(scenario)
    assert max(refusals) > 2


@pytest.mark.rule(29)
@in_virtual_time
def test_requests_that_have_left_do_not_count_as_waiting():
    async def scenario():
        service = Service(max_batch_size=1, max_pending=1, wait=for_ever)
        stuck, leaving, late = service.new_clients(f"a{ENDLESS}", "b1", "c1")
        stuck.submit()
        await turns(20)
        leaving.submit()
        await together(turns(1, leaving.give_up), turns(2))
        assert late.submit(), "refused though no request waits"
        await together(turns(2, stuck.give_up), turns(2, late.give_up))
        await service.end()

    explore(scenario, SCHEDULES // 5, leftovers="fail")


# ---- requests leave


@pytest.mark.rule(12)
@in_virtual_time
def test_requests_that_are_cancelled_at_any_time_are_not_sent_or_end_with_the_next_step():
    lengths, sent = set(), set()

    async def scenario():
        service = Service(max_batch_size=3)
        clients = service.new_clients("a3", "b4", "c2", "d3")
        await together(
            *[after(delay, client.ask()) for delay, client in enumerate(clients)],
            turns(3, clients[1].give_up),
            turns(9, clients[2].give_up),
            turns(4, clients[3].give_up),
        )
        assert_all_served(clients[:1])
        await service.end()
        lengths.add(len(clients[1].outputs))
        sent.add("d3" in service.model.sent)

    explore_schedules(scenario)
    assert {0, 1, 2} <= lengths
    assert sent == {True, False}


@pytest.mark.rule(29)
@in_virtual_time
def test_a_batch_that_loses_all_requests_as_it_is_formed_blocks_no_other_request():
    sent = set()

    async def scenario():
        service = Service(batch_timeout=1.0)
        first, second, third = clients = service.new_clients("a2", "b2", "c2")
        await together(
            first.ask(),
            later(1, first.give_up),
            later(1, second.submit),
            later(1, second.give_up),
            later(1, third.submit),
        )
        await together(*[client.ask() for client in clients[1:]])
        assert_all_served([third])
        await service.end()
        sent.add(("a2" in service.model.sent, "b2" in service.model.sent))

    explore_schedules(scenario)
    assert len(sent) > 2


@pytest.mark.rule(10)
@in_virtual_time
def test_a_model_that_waits_is_broken_off_when_its_last_request_leaves_and_the_next_is_served():
    async def scenario():
        service = Service(max_batch_size=1, wait=stuck_with_the_endless)
        stuck, next_one = service.new_clients(f"a{ENDLESS}", "b2")
        assert stuck.submit()
        await together(stuck.read(), next_one.ask(), turns(4, stuck.give_up))
        assert_all_served([next_one])
        await service.end()

    explore_schedules(scenario)


@pytest.mark.rule(25)
@in_virtual_time
def test_clients_that_leave_drop_their_streams_and_the_others_are_served():
    async def scenario():
        service = Service()

        async def read(request):
            async for _ in service.batcher.astream(request):
                service.model.sent[request] = 1

        leaving = [asyncio.create_task(read(f"{name}{ENDLESS}")) for name in "abc"]
        staying = service.new_clients("d2", "e1")
        reading = asyncio.create_task(together(*[client.ask() for client in staying]))
        for task in leaving:
            await turns(2)
            task.cancel()
        await asyncio.wait(leaving)
        del leaving, task
        await reading
        assert_all_served(staying)
        await service.batcher.aclose()
        figures = service.batcher.statistics()
        service.metrics.check(figures)
        assert figures.finished[FinishReason.EOS] == 2
        assert service.model.running == 0

    explore_schedules(scenario)


# ---- times run out


@pytest.mark.rule(5)
@in_virtual_time
def test_a_request_that_times_out_as_it_joins_or_is_answered_has_one_end():
    ends = Counter()

    async def scenario():
        service = Service(batch_timeout=1.0, wait=lambda *_: asyncio.sleep(1))
        limits = {"a1": (2, None), "b3": (3, 1), "c1": (3, None), "d2": (None, 3), "e2": (4, 4)}
        clients = [
            service.client(request, timeout=timeout, wait_timeout=wait_timeout)
            for request, (timeout, wait_timeout) in limits.items()
        ]
        unread = service.client("f1", wait_timeout=1)
        await together(
            *[after(delay, client.ask()) for delay, client in enumerate(clients)],
            turns(3, unread.submit),
        )
        for client in clients:
            timeout, _ = limits[client.request]
            assert timeout is None or client.ended_at <= timeout, "raised too late"
            ends[client.request, client.reason] += 1
        await service.end(DeadlineError)

    explore_schedules(scenario)
    for request in ("a1", "b3", "c1", "d2"):
        assert ends[request, FinishReason.ERROR]
    assert ends["a1", FinishReason.EOS]
    assert ends["d2", FinishReason.EOS]


@pytest.mark.rule(5)
@in_virtual_time
def test_a_request_that_is_cancelled_as_its_time_is_over_has_one_end():
    ends = set()

    async def scenario():
        service = Service(max_batch_size=1, wait=lambda *_: asyncio.sleep(1))
        first = service.client("a3", timeout=2)
        second = service.client("b3", wait_timeout=2)
        await together(
            first.ask(),
            second.ask(),
            later(2, first.give_up),
            later(2, second.give_up),
            later(2, first.cancel),
        )
        await service.end(DeadlineError)
        ends.add((first.reason, second.reason))

    explore_schedules(scenario)
    assert len(ends) == 4


@pytest.mark.rule(5, 9)
@in_virtual_time
def test_a_request_whose_output_is_late_by_an_instant_has_one_end():
    ends = Counter()

    async def scenario():
        options = {"max_batch_size": 4, "batch_timeout": 1.0}  # the batch is full at once
        service = Service(wait=lambda *_: asyncio.sleep(1), **options)
        clients = [
            service.client("a1", first_timeout=1),
            service.client("b3", gap_timeout=1),
            service.client("c2", first_timeout=2, gap_timeout=0.5),
            service.client("d2", first_timeout=1.5, gap_timeout=1.5, timeout=9),
        ]
        await together(*[client.ask() for client in clients])
        a1, b3, c2, d2 = clients
        assert a1.ended_at <= 1 or a1.reason is FinishReason.EOS
        assert (c2.reason, c2.ended_at, c2.outputs) == (FinishReason.ERROR, 1.5, reply("c2")[:1])
        assert d2.reason is FinishReason.EOS
        assert b3.outputs or b3.reason is FinishReason.EOS
        for client in clients:
            ends[client.request, client.reason] += 1
        await service.end(DeadlineError)

    explore_schedules(scenario)
    for request in ("a1", "b3"):
        assert ends[request, FinishReason.ERROR]
        assert ends[request, FinishReason.EOS]


# ---- the model fails


@pytest.mark.rule(15)
@in_virtual_time
def test_an_error_of_the_model_fails_the_batch_it_was_made_in_and_no_other():
    async def scenario():
        service = Service(fails_for="b1")
        clients = service.new_clients("a3", "b1", "c3", "d2")
        await together(
            *[after(delay, client.ask()) for delay, client in enumerate(clients)],
            turns(5, clients[2].give_up),
            *[cancelled_often(client) for client in clients],
        )
        [failed] = [batch for batch in service.model.batches if "b1" in batch]
        for client in clients:
            if client.request not in failed and client is not clients[2]:
                assert_all_served([client])
        await service.end(ModelError)

    explore_schedules(scenario)


# ---- bounded buffers


@pytest.mark.rule(19)
@in_virtual_time
def test_a_slow_client_is_ended_or_waited_for_and_the_next_batch_comes_all_the_same():
    reasons = Counter()

    def scenario_with(on_overflow):
        async def scenario():
            service = Service(max_buffered=1, on_overflow=on_overflow)
            fast, slow, left, last = service.new_clients("a3", "b3", "c4", "d2")
            for client in (fast, slow, left, last):
                client.submit()
            await together(
                fast.ask(),
                after(8, slow.ask()),
                turns(12, left.give_up),
                last.ask(),
            )
            if on_overflow == "wait":
                assert_all_served([fast, slow])
            reasons[slow.reason] += 1
            await service.end(SlowConsumerError)

        return scenario

    for on_overflow in ("wait", "cancel"):
        explore(scenario_with(on_overflow), SCHEDULES // 2, leftovers="fail")
    assert set(reasons) == {FinishReason.EOS, FinishReason.ERROR}


# ---- the batcher is closed


@pytest.mark.rule(9)
@in_virtual_time
def test_two_closings_at_any_time_end_every_request_and_wait_for_the_model():
    reasons = Counter()

    async def scenario():
        service = Service()
        clients = service.new_clients("a2", "b3", "c2", f"d{ENDLESS}", "e1")

        async def close():
            await turns(8)
            await service.batcher.aclose()
            assert service.model.running == 0, "aclose did not wait for the model"
            assert service.batcher.statistics().live == 0

        await together(
            *[after(delay, client.ask()) for delay, client in enumerate(clients)],
            *[cancelled_often(client) for client in clients],
            close(),
            close(),
        )
        await service.end(ClosedError)
        reasons.update(client.reason for client in clients)

    explore_schedules(scenario)
    assert set(reasons) == {FinishReason.EOS, FinishReason.ERROR, None}


@pytest.mark.rule(9)
@in_virtual_time
def test_a_drain_at_any_time_lets_each_accepted_request_end_and_refuses_the_others():
    refused = set()

    async def scenario():
        service = Service(batch_timeout=100.0, max_batch_size=2)
        clients = service.new_clients("a2", "b3", "c2", "d1", "e1")

        async def drain():
            await turns(8)
            await service.batcher.aclose(drain=1000.0)
            assert service.model.running == 0, "aclose did not wait for the model"
            assert asyncio.get_running_loop().time() < 1000.0, "it waited for nothing"

        await together(
            *[after(delay, client.ask()) for delay, client in enumerate(clients)],
            *[cancelled_often(client) for client in clients],
            turns(9, clients[2].give_up),
            drain(),
            drain(),
        )
        await service.end(ClosedError)
        assert {client.reason for client in clients} <= {
            FinishReason.EOS,
            FinishReason.CANCELLED,
            None,
        }
        refused.add(sum(client.stream is None for client in clients))

    explore_schedules(scenario)
    assert len(refused) > 1


@pytest.mark.rule(9)
@in_virtual_time
def test_what_has_not_ended_when_a_drain_is_over_fails_and_all_else_is_whole():
    whole = set()

    async def scenario():
        service = Service(wait=lambda *_: asyncio.sleep(1.0), max_batch_size=1)
        clients = service.new_clients("a2", "b2", "c2")
        await together(
            *[client.ask() for client in clients],
            turns(2),
            after(2, service.batcher.aclose(drain=4.5)),
        )
        assert asyncio.get_running_loop().time() <= 4.5
        await service.end(ClosedError)
        whole.update(client.reason for client in clients)

    explore_schedules(scenario)
    assert {FinishReason.EOS, FinishReason.ERROR} <= whole <= {*FinishReason, None}


@in_virtual_time
def test_room_goes_from_caller_to_caller_though_some_give_up_their_wait():
    async def scenario():
        service = Service(max_batch_size=1, max_pending=1)
        first = service.new_clients("a2", "b2")
        for client in first:
            client.submit()
            await turns(3)
        waiting = [service.client(request) for request in ("c1", "d1", "e1")]

        async def wait(client, gives_up=None):
            task = asyncio.current_task()
            try:
                if gives_up is not None:
                    asyncio.get_running_loop().call_soon(task.cancel)
                while client.stream is None:
                    await service.batcher.await_for_room()
                    client.refusal = None
                    client.submit()
            except asyncio.CancelledError:
                task.uncancel()
                client.refusal = ClosedError("it has left")
                return
            await client.read()

        await together(
            wait(waiting[0]),
            wait(waiting[1], gives_up=True),
            wait(waiting[2]),
            *[client.read() for client in first],
        )
        assert waiting[0].reason is waiting[2].reason is FinishReason.EOS
        service.clients.clear()
        await service.batcher.aclose()
        knobs.assert_nothing_is_left(service.batcher)

    explore_schedules(scenario)


@pytest.mark.rule(9)
@in_virtual_time
def test_closing_as_a_batch_is_gathered_fails_all_waiting_requests():
    sent = set()

    async def scenario():
        service = Service(batch_timeout=1.0, max_batch_size=3)
        clients = service.new_clients("a2", "b2", "c2")
        closing = []

        def close():
            closing.append(asyncio.create_task(service.batcher.aclose()))

        await together(
            clients[0].ask(),
            clients[1].ask(),
            turns(2, clients[1].give_up),
            later(1, close),
            later(1, clients[2].submit),
        )
        await clients[2].ask()
        await closing[0]
        await service.end(ClosedError)
        sent.add(len(service.model.sent))

    explore_schedules(scenario)
    assert {0, 1} <= sent


@pytest.mark.rule(10)
@in_virtual_time
def test_closing_breaks_a_step_off_that_would_never_end_though_the_closing_is_cancelled():
    async def scenario():
        service = Service(workers=2, wait=for_ever)
        clients = service.new_clients("a2", "b2", "c2", "d1", "e1")
        begun = asyncio.Event()

        async def aclose():
            begun.set()
            await service.batcher.aclose()

        async def close():
            closing = asyncio.create_task(aclose())
            await begun.wait()
            closing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await closing

        await together(*[client.ask() for client in clients], after(4, close()))
        await service.end(ClosedError)

    explore_schedules(scenario)


# ---- the loop, or the worker's task, ends


def explore_to_the_end(make_main, check):
    """Run one of three scenarios whose loops end in the midst, and check what each returns."""
    for seed in (None, *range(SCHEDULES // 3)):
        with noting(seed):
            check(run(make_main(), seed))


@pytest.mark.rule(9)
@in_virtual_time
def test_cancelling_a_workers_task_leaves_no_request_without_an_answer():
    ends = Counter()

    async def scenario():
        service = Service(batch_timeout=1.0)
        clients = service.new_clients("a2", "b3", "c2", "d1")

        async def cancel_workers():
            await turns(3)
            for task in asyncio.all_tasks():
                if task.get_name() == "batchstream pump":
                    task.cancel()

        await together(
            *[after(delay, client.ask()) for delay, client in enumerate(clients)],
            cancel_workers(),
        )
        await service.end(ClosedError)
        ends.update(client.reason for client in clients)

    explore_schedules(scenario)
    assert {FinishReason.EOS, FinishReason.ERROR} <= set(ends)


@pytest.mark.rule(9)
@in_virtual_time
def test_a_loop_that_ends_answers_waiting_and_live_requests():
    def make_main(**options):
        async def main():
            service = Service(**options)
            clients = service.new_clients(f"a{ENDLESS}", f"b{ENDLESS}", "c1", "d1")
            for client in clients:
                await turns(1, client.submit)
            await turns(3)
            return service

        return main

    def check(service):
        # The loop may have ended before a task's last callback.
        knobs.apply_closed_loops(service.batcher)
        for client in service.clients:
            assert client.reason
            client.check(ClosedError)
        service.batcher.close()
        service.check(ClosedError)

    explore_to_the_end(make_main(), check)
    explore_to_the_end(make_main(workers=2, max_batch_size=1, wait=for_ever), check)
    explore_to_the_end(make_main(batch_timeout=1.0, max_batch_size=9), check)


@pytest.mark.rule(22)
@in_virtual_time
def test_a_batcher_whose_loop_has_ended_goes_on_in_the_next():
    async def first(service):
        for client in service.new_clients(f"a{ENDLESS}", f"b{ENDLESS}", "c1"):
            await turns(2, client.submit)

    async def second(service):
        clients = service.new_clients("d2", "e1", "f1")
        await together(*[client.ask() for client in clients])
        assert_all_served(clients)
        await service.end(ClosedError)

    for seed in (None, *range(SCHEDULES)):
        service = Service()
        with noting(seed):
            run(first(service), seed)
            run(second(service), seed, leftovers="fail")


# ---- a model in a thread


class ThreadedService(Service):
    """The same for models that run in threads.

    Args:
        batcher: The batcher.
    """

    def __init__(self, batcher, metrics):
        self.batcher = batcher
        self.metrics = metrics
        self.model = Model()
        self.clients = []

    async def end(self, *failures):
        await super().end(*failures)
        threads = knobs.worker_threads_of(self.batcher)
        assert not any(thread.is_alive() for thread in threads)


def continuous(**options):
    engine, metrics = Engine(), Tallies()
    batcher = ContinuousBatcher(
        engine, max_batch_size=2, metrics=metrics, traces=metrics.traces, **options
    )
    return ThreadedService(batcher, metrics), engine


@pytest.mark.rule(30)
def test_requests_that_join_and_leave_an_engine_at_any_time_get_their_own_outputs_only():
    async def scenario():
        service, engine = continuous(on_overflow="wait", max_buffered=1)
        clients = service.new_clients("a3", "b2", "c4", "d1", "e3")
        await together(
            *[after(2 * delay, client.ask()) for delay, client in enumerate(clients)],
            *[cancelled_often(client) for client in clients],
            turns(6, clients[2].give_up),
            turns(9, clients[4].give_up),
        )
        assert_all_served([clients[0], clients[1], clients[3]])
        await service.end()
        engine.check()

    explore(scenario, THREADED_SCHEDULES, threads=True, leftovers="fail")


@pytest.mark.rule(9)
def test_an_engine_that_is_closed_at_any_time_is_empty_and_every_request_ends():
    async def scenario():
        service, engine = continuous(on_overflow="wait", max_buffered=1)
        clients = service.new_clients(f"a{ENDLESS}", f"b{ENDLESS}", f"c{ENDLESS}", "d1")
        await together(
            *[after(delay, client.ask()) for delay, client in enumerate(clients)],
            after(6, service.batcher.aclose()),
            after(6, service.batcher.aclose()),
            turns(7, clients[0].give_up),
        )
        await service.end(ClosedError)
        engine.check()

    explore(scenario, THREADED_SCHEDULES, threads=True, leftovers="fail")


@pytest.mark.rule(29)
def test_batches_in_threads_answer_every_request_once_though_clients_leave_and_it_is_closed():
    async def scenario():
        metrics, inside = Tallies(), []

        def model(requests):
            inside.append(threading.get_ident())
            try:
                for number in itertools.count():
                    yield [output(request, number) for request in requests]
            finally:
                inside.remove(threading.get_ident())

        batcher = DynamicBatcher(
            model,
            max_batch_size=2,
            workers=2,
            max_buffered=1,
            on_overflow="wait",
            metrics=metrics,
            traces=metrics.traces,
        )
        service = ThreadedService(batcher, metrics)
        clients = service.new_clients("a3", "b2", f"c{ENDLESS}", "d1", f"e{ENDLESS}", "f2")
        await together(
            *[after(2 * delay, client.ask()) for delay, client in enumerate(clients)],
            *[cancelled_often(client) for client in clients],
            turns(20, clients[2].give_up),
            after(30, service.batcher.aclose()),
        )
        await service.end(ClosedError)
        assert inside == []

    explore(scenario, THREADED_SCHEDULES, threads=True, leftovers="fail")
