"""Races of batchers between threads: the workers', and the ones that submit, read and cancel.

Each scenario is run under many interleavings, see `interleaving`; that needs Python 3.12. Each
output names its request. Whatever a scenario is about, it ends in `end`: each request was answered
once, and nothing is left. Time stands still while any thread can run.
"""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial

import pytest

from batchstream import (
    ClosedError,
    ContinuousBatcher,
    DeadlineError,
    DynamicBatcher,
    FinishReason,
    NotNow,
    OverloadedError,
    SlowConsumerError,
)
from support import knobs
from support.interleaving import explore_threads, pass_time, run_together
from support.racing import Engine, ModelError, Tallies, output, reply

SCHEDULES = {"opcode": 10, "line": 50}
"""How many interleavings are tried: of opcodes, which is slow, and of whole lines."""

MANY_SCHEDULES = {"line": 160}
"""How many it takes to strike between two given lines, in a scenario of few."""

ENDLESS = 50  # more outputs than any consumer reads


def explore(scenario, schedules=SCHEDULES, **options):
    for granularity, number in schedules.items():
        explore_threads(scenario, number, granularity=granularity, **options)


class Model:
    """A function of a list of requests, such as `"a3"`, which gets three outputs.

    Args:
        on_step: Called with the number of each step of a batch.
        workers: How many batches may run at once.
    """

    def __init__(self, on_step=lambda _: None, *, workers=1):
        self.batches = []
        self.running = []
        self.closed = []
        self._on_step = on_step
        self._workers = workers

    def __call__(self, requests):
        assert requests
        self.batches.append(requests)
        self.running.append(requests)
        assert len(self.running) <= self._workers, "too many batches at once"
        try:
            live = range(len(requests))
            for number in itertools.count():
                self._on_step(number)
                live = yield {slot: output(requests[slot], number) for slot in live}
                assert live, "advanced without a live request"
        finally:
            self.running.remove(requests)
            self.closed.append(requests)

    def check(self):
        assert self.running == []
        assert len(self.closed) == len(self.batches)
        sent = Counter(request for batch in self.batches for request in batch)
        assert not sent or max(sent.values()) == 1, "sent twice"


class Client:
    """Submits a request, and reads its stream to the end."""

    def __init__(self, batcher, request, **timeouts):
        self.request = request
        self.outputs = []
        self.errors = []
        self.stream = None
        self.refusal = None
        self.cancelled = False
        self._batcher = batcher
        self._timeouts = timeouts

    def submit(self):
        try:
            self.stream = self._batcher.stream(self.request, **self._timeouts)
        except (ClosedError, OverloadedError) as error:
            self.refusal = error

    def read(self):
        while True:
            try:
                self.outputs.append(next(self.stream))
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001 - the test looks at it
                assert not self.errors, "an error came twice"
                self.errors.append(error)

    def ask(self):
        self.submit()
        if self.stream is not None:
            self.read()

    def give_up(self):
        self.cancelled = True
        self.stream.cancel()

    def drop(self):
        self.cancelled = True
        self.stream = None

    @property
    def reason(self):
        return self.stream and self.stream.finish_reason

    @property
    def served(self):
        return self.reason is FinishReason.EOS and self.outputs == reply(self.request)

    def check(self, failures):
        assert self.outputs == reply(self.request)[: len(self.outputs)], "another's output"
        if self.stream is None:
            assert self.refusal is not None or self.cancelled
        elif self.reason is FinishReason.EOS:
            assert self.errors == []
        elif self.reason is FinishReason.CANCELLED:
            assert self.cancelled
            assert self.errors == []
        else:
            error = self.stream.end.error
            assert isinstance(error, failures), error
            assert [type(each) for each in self.errors] == [type(error)] * (not self.cancelled) or (
                self.cancelled
            )


def dynamic(model=None, **options):
    """Return a batcher, and its model."""
    model = Model() if model is None else model
    options = {"max_batch_size": 2, **observed(), **options}
    return DynamicBatcher(model, **options), model


def continuous(engine=None, **options):
    """Return a batcher, and its engine."""
    engine = Engine() if engine is None else engine
    options = {"max_batch_size": 2, **observed(), **options}
    return ContinuousBatcher(engine, **options), engine


def observed():
    """Return metrics and traces that `end` looks at."""
    metrics = Tallies()
    return {"metrics": metrics, "traces": metrics.traces}


def clients_of(batcher, *requests, **timeouts):
    return [Client(batcher, request, **timeouts) for request in requests]


def end(batcher, model, clients, *failures):
    """Close the batcher, and make sure that all were answered and nothing is left behind."""
    batcher.close()
    figures = batcher.statistics()
    for client in clients:
        client.check(failures)
    model.check()
    knobs.metrics_of(batcher).check(figures)
    assert figures.opened + figures.refused >= sum(it.stream is not None for it in clients)
    knobs.assert_nothing_is_left(batcher)


# ---- submissions, and the worker


@pytest.mark.rule(29)
def test_a_request_that_comes_as_the_worker_finds_nothing_to_do_is_not_forgotten():
    def scenario():
        batcher, model = dynamic(max_batch_size=1)
        first, second = clients = clients_of(batcher, "a1", "b1")
        run_together(first.ask, second.ask)
        assert first.served
        assert second.served
        end(batcher, model, clients)

    explore(scenario, SCHEDULES | MANY_SCHEDULES)


@pytest.mark.rule(29)
def test_a_request_that_comes_as_the_worker_waits_for_more_rings_it_in_time():
    def scenario():
        batcher, model = dynamic(batch_timeout=1.0)
        first, second, third = clients = clients_of(batcher, "a1", "b1", "c1")
        run_together(first.ask, second.ask, third.ask)
        assert all(client.served for client in clients)
        assert sorted(map(len, model.batches)) == [1, 2]
        assert batcher.statistics().waited == 1, "a full batch waited"
        end(batcher, model, clients)

    explore(scenario)


@pytest.mark.rule(29)
def test_a_worker_that_times_out_as_it_is_woken_takes_every_request_once():
    def scenario():
        batcher, model = dynamic(batch_timeout=1.0)
        first, *others = clients = clients_of(batcher, "a1", "b1", "c1")
        first.submit()

        def ask(client):
            pass_time(1.0)
            client.ask()

        run_together(*[partial(ask, client) for client in others])
        first.read()
        assert all(client.served for client in clients)
        assert batcher.statistics().longest_wait <= 1
        end(batcher, model, clients)

    explore(scenario)


@pytest.mark.rule(29)
def test_two_workers_share_the_requests_of_two_threads():
    def scenario():
        batcher, model = dynamic(Model(workers=2), workers=2)
        clients = clients_of(batcher, "a1", "b2", "c0", "d1")

        def ask(*mine):
            for client in mine:
                client.submit()
            for client in mine:
                client.read()

        run_together(lambda: ask(*clients[:2]), lambda: ask(*clients[2:]))
        assert all(client.served for client in clients)
        assert max(map(len, model.batches)) <= 2
        end(batcher, model, clients)

    explore(scenario)


@pytest.mark.rule(29)
def test_limits_that_change_as_requests_come_and_a_worker_waits_are_gone_by_in_time():
    def scenario():
        batcher, model = dynamic(max_batch_size=4, batch_timeout=9.0, cost=len, max_batch_cost=8)
        clients = clients_of(batcher, "a0", "b0")

        def lower():
            batcher.reconfigure(max_batch_size=1, max_pending=2)

        def shorten():
            batcher.reconfigure(batch_timeout=1.0, max_batch_cost=4, max_pending_cost=6)

        run_together(*[client.ask for client in clients], lower, shorten)
        assert batcher.max_batch_size == 1, "a change is lost"
        assert (batcher.batch_timeout, batcher.max_batch_cost) == (1.0, 4), "a change is lost"
        assert batcher.max_pending_cost == 6, "a change is lost"
        assert all(client.served or client.refusal for client in clients)
        assert batcher.statistics().longest_wait <= 1
        end(batcher, model, clients)

    explore(scenario)


@pytest.mark.rule(29)
def test_two_workers_measure_batches_as_requests_come_leave_and_limits_change():
    def scenario():
        batcher, model = dynamic(
            Model(workers=2),
            workers=2,
            max_batch_size=4,
            batch_timeout=1.0,
            batch_cost=lambda requests: 2 * len(requests),
            max_batch_cost=4,
        )
        first, second, third = clients = clients_of(batcher, "a0", "b0", "c0")

        def leave():
            third.submit()
            third.give_up()

        def change():
            batcher.reconfigure(max_batch_cost=2)

        run_together(first.ask, second.ask, leave, change)
        assert first.served
        assert second.served
        assert max(map(len, model.batches)) <= 2
        end(batcher, model, clients)

    explore(scenario)


@pytest.mark.rule(29)
def test_two_requests_with_equal_keys_share_a_batch_as_the_keys_are_tidied_up(monkeypatch):
    knobs.set_many_keys(monkeypatch, 0)

    def scenario():
        batcher, model = dynamic(batch_timeout=1.0, key=lambda request: (request[1:],))
        first, *others = clients = clients_of(batcher, "a0", "b1", "c1")
        first.ask()
        run_together(others[0].ask, others[1].ask)
        assert all(client.served for client in clients)
        assert sorted(map(len, model.batches)) == [1, 2]
        end(batcher, model, clients)

    explore(scenario, SCHEDULES | MANY_SCHEDULES)


@pytest.mark.rule(29)
def test_requests_of_tenants_are_served_once_as_the_tenants_are_tidied_up(monkeypatch):
    knobs.set_many_keys(monkeypatch, 0)

    def scenario():
        batcher, model = continuous(
            max_batch_size=1,
            tenant=lambda request: (request[0],),
            priority=lambda request: int(request[1:]) % 2,
            max_pending_per_tenant=1,
        )
        clients = clients_of(batcher, "a1", "a2", "b1", "b0")

        def ask(*mine):
            for client in mine:
                client.submit()
            for client in mine:
                if client.refusal is None:
                    client.read()

        run_together(lambda: ask(*clients[:2]), lambda: ask(*clients[2:]))
        assert all(client.served for client in clients if client.stream is not None)
        end(batcher, model, clients)

    explore(scenario)


@pytest.mark.rule(30)
def test_requests_that_come_as_an_engine_goes_idle_or_on_join_it():
    def scenario():
        batcher, engine = continuous()
        clients = clients_of(batcher, "a2", "b1", "c0")
        run_together(*[client.ask for client in clients])
        assert all(client.served for client in clients)
        end(batcher, engine, clients)

    explore(scenario)


@pytest.mark.rule(29)
def test_a_request_that_is_refused_as_others_leave_was_not_admitted():
    def scenario():
        batcher, model = dynamic(max_batch_size=1, max_pending=1)
        first, second, third = clients = clients_of(batcher, "a1", "b1", "c1")
        first.submit()

        def ask_and_leave():
            second.submit()
            if second.stream is not None:
                second.give_up()

        run_together(ask_and_leave, third.ask, first.read)
        assert first.served
        assert third.served or third.refusal is not None
        assert batcher.statistics().refused == sum(it.refusal is not None for it in clients)
        end(batcher, model, clients)

    explore(scenario)


@pytest.mark.rule(29)
def test_the_figures_add_up_at_any_time():
    def scenario():
        batcher, model = dynamic(max_batch_size=1)
        first, second = clients = clients_of(batcher, "a1", "b1")

        def look():
            opened = finished = 0
            for _ in range(4):
                figures = batcher.statistics()
                assert figures.opened == figures.live + sum(figures.finished.values())
                assert 0 <= figures.waiting <= figures.live
                assert figures.opened >= opened
                assert sum(figures.finished.values()) >= finished
                opened, finished = figures.opened, sum(figures.finished.values())

        def ask_and_leave():
            second.submit()
            second.give_up()

        run_together(first.ask, ask_and_leave, look)
        assert first.served
        end(batcher, model, clients)

    explore(scenario)


# ---- requests that leave


@pytest.mark.rule(29)
def test_a_request_that_is_cancelled_as_it_is_taken_is_answered_once():
    def scenario():
        batcher, model = dynamic()
        first, second = clients = clients_of(batcher, f"a{ENDLESS}", "b1")
        first.submit()
        run_together(first.read, first.give_up, second.ask)
        assert second.served
        end(batcher, model, clients)

    explore(scenario)


@pytest.mark.rule(30)
def test_a_request_that_is_cancelled_as_it_joins_an_engine_is_removed():
    def scenario():
        batcher, engine = continuous(on_overflow="wait", max_buffered=1)
        first, second = clients = clients_of(batcher, f"a{ENDLESS}", "b2")
        first.submit()
        run_together(first.give_up, second.ask)
        assert second.served
        assert engine.made[first.request] <= 2, "the engine worked on"
        end(batcher, engine, clients)

    explore(scenario, SCHEDULES | MANY_SCHEDULES)


@pytest.mark.rule(30)
def test_a_cancel_that_comes_too_late_does_not_hurt_the_next_in_the_slot():
    def scenario():
        batcher, engine = continuous(max_batch_size=1)
        first, second = clients = clients_of(batcher, "a0", "b4")
        for client in clients:
            client.submit()
        run_together(first.give_up)
        second.read()
        assert second.served
        end(batcher, engine, clients)

    explore(scenario, SCHEDULES | MANY_SCHEDULES)


@pytest.mark.rule(25)
def test_a_stream_that_is_dropped_as_its_batch_is_formed_blocks_no_request():
    def scenario():
        batcher, model = dynamic(max_batch_size=1, on_overflow="wait", max_buffered=1)
        first, second = clients = clients_of(batcher, f"a{ENDLESS}", "b1")
        first.submit()
        run_together(first.drop, second.ask)
        assert second.served
        end(batcher, model, clients)

    explore(scenario)


@pytest.mark.rule(19)
def test_a_stream_that_is_cancelled_as_it_overflows_has_one_end_and_blocks_no_other():
    def scenario():
        batcher, model = dynamic(max_buffered=1)
        first, second = clients = clients_of(batcher, f"a{ENDLESS}", "b1")
        for client in clients:
            client.submit()
        run_together(first.give_up, second.read)
        assert second.served
        end(batcher, model, clients, SlowConsumerError)

    explore(scenario)


# ---- engines without room, and engines that are closed


class Narrow(Engine):
    """Has room for one request, whatever slots there are; once closed it is left alone."""

    def __init__(self):
        super().__init__()
        self.makings = self.closings = 0

    def make(self):
        self.makings += 1
        return self

    def add(self, slot, request):
        assert not self.closings
        if self.seats:
            raise NotNow
        super().add(slot, request)

    def step(self):
        assert not self.closings
        return super().step()

    def close(self):
        assert not self.seats
        self.closings += 1


def narrow(**options):
    """Return a batcher that makes such an engine, which is returned as well."""
    engine = Narrow()
    return continuous(engine.make, **options)[0], engine


@pytest.mark.rule(29)
def test_a_request_that_is_told_not_now_as_others_come_and_leave_is_served_once():
    def scenario():
        batcher, engine = narrow(max_batch_size=3)
        first, second, third = clients = clients_of(batcher, f"a{ENDLESS}", "b1", "c1")
        first.submit()
        run_together(first.give_up, second.ask, third.ask)
        assert second.served
        assert third.served
        assert max(engine.added.values()) == 1
        end(batcher, engine, clients)
        assert engine.closings == 1

    explore(scenario)


@pytest.mark.rule(29)
def test_a_request_that_is_cancelled_as_it_is_told_not_now_holds_up_no_other():
    def scenario():
        batcher, engine = narrow(on_overflow="wait", max_buffered=1)
        first, second, third = clients = clients_of(batcher, "a2", "b1", "c1")
        first.submit()
        second.submit()
        run_together(first.read, second.give_up, third.ask)
        assert first.served
        assert third.served
        end(batcher, engine, clients)
        assert engine.closings == 1

    explore(scenario)


@pytest.mark.rule(10, 29)
def test_a_batcher_that_closes_as_a_request_is_told_not_now_fails_it_and_closes_its_engine_once():
    def scenario():
        batcher, engine = narrow()
        first, second = clients = clients_of(batcher, "a2", "b1")
        first.submit()
        run_together(batcher.close, second.ask, batcher.close)
        first.read()
        end(batcher, engine, clients, ClosedError)
        assert engine.closings == engine.makings <= 1

    explore(scenario, SCHEDULES | MANY_SCHEDULES)


# ---- times run out


@pytest.mark.rule(5)
def test_a_request_that_times_out_with_its_last_output_has_one_end():
    def scenario():
        batcher, model = dynamic(Model(lambda _: pass_time(0.5)))
        first, second = clients = clients_of(batcher, "a1", "b4", timeout=1.0)
        run_together(first.ask, second.ask)
        assert [type(error) for error in second.errors] == [DeadlineError]
        end(batcher, model, clients, DeadlineError)

    explore(scenario)


@pytest.mark.rule(29)
def test_a_request_that_may_wait_no_longer_as_the_worker_is_free_joins_or_fails():
    def scenario():
        batcher, model = dynamic(Model(lambda _: pass_time(0.5)), max_batch_size=1)
        first, second = clients = [
            Client(batcher, "a1"),
            Client(batcher, "b1", wait_timeout=1.0),
        ]
        first.submit()
        run_together(first.read, second.ask)
        assert first.served
        assert second.served == any("b1" in batch for batch in model.batches) or second.errors
        end(batcher, model, clients, DeadlineError)

    explore(scenario)


@pytest.mark.rule(29)
def test_a_request_that_has_joined_is_not_failed_for_waiting_while_its_model_is_slow_to_begin():
    def scenario():
        model = Model()

        def slow(requests):
            pass_time(2.0)
            return model(requests)

        batcher, _ = dynamic(slow)
        [client] = clients_of(batcher, "a1", wait_timeout=1.0)
        run_together(client.ask)
        assert client.served
        end(batcher, model, [client])

    explore(scenario, {"line": 20})


@pytest.mark.rule(5)
def test_a_request_that_times_out_as_it_is_cancelled_or_closed_has_one_end():
    def scenario():
        batcher, engine = continuous(on_overflow="wait", max_buffered=1)
        first, second = clients = clients_of(batcher, f"a{ENDLESS}", f"b{ENDLESS}", timeout=1.0)
        for client in clients:
            client.submit()

        def close_late():
            pass_time(1.0)
            batcher.close()

        def leave_late():
            pass_time(1.0)
            second.give_up()

        run_together(close_late, leave_late)
        first.read()
        end(batcher, engine, clients, DeadlineError, ClosedError)

    explore(scenario)


# ---- the batcher is closed


@pytest.mark.rule(9)
def test_closing_as_requests_are_submitted_and_served_answers_or_refuses_each():
    def scenario():
        batcher, model = dynamic(max_batch_size=1)
        clients = clients_of(batcher, "a1", "b1")
        run_together(*[client.ask for client in clients], batcher.close)
        end(batcher, model, clients, ClosedError)

    explore(scenario, SCHEDULES | MANY_SCHEDULES)


@pytest.mark.rule(9)
@pytest.mark.parametrize("kind", [dynamic, continuous])
def test_draining_as_requests_are_submitted_and_served_serves_or_refuses_each(kind):
    def scenario():
        batcher, model = kind(max_batch_size=1)
        clients = clients_of(batcher, "a1", "b1")
        run_together(*[client.ask for client in clients], lambda: batcher.close(drain=3600.0))
        assert all(client.served or client.refusal is not None for client in clients)
        end(batcher, model, clients)

    explore(scenario, SCHEDULES)


@pytest.mark.rule(9)
@pytest.mark.parametrize("kind", [dynamic, continuous])
def test_closing_as_requests_join_a_batch_fails_them_though_no_consumer_reads(kind):
    def scenario():
        batcher, model = kind(on_overflow="wait", max_buffered=1)
        clients = clients_of(batcher, f"a{ENDLESS}", f"b{ENDLESS}")
        for client in clients:
            client.submit()
        run_together(batcher.close)
        for client in clients:
            client.read()
            assert [type(error) for error in client.errors] == [ClosedError]
        end(batcher, model, clients, ClosedError)

    explore(scenario, MANY_SCHEDULES)


@pytest.mark.rule(9)
def test_two_closings_as_the_worker_waits_for_more_end_it_and_fail_its_request():
    def scenario():
        batcher, model = dynamic(batch_timeout=1.0)
        [client] = clients = clients_of(batcher, "a1")
        client.submit()
        run_together(client.read, batcher.close, batcher.close)
        assert model.batches == []
        assert [type(error) for error in client.errors] == [ClosedError]
        end(batcher, model, clients, ClosedError)

    explore(scenario)


@pytest.mark.rule(15)
def test_an_engine_that_fails_as_it_is_closed_fails_each_request_once(monkeypatch):
    # An error in a step without live requests goes to the hook.
    monkeypatch.setattr("sys.unraisablehook", lambda about: about.exc_type is ModelError or 1 / 0)

    def scenario():
        engine = Engine(fails_at=2)
        batcher, _ = continuous(engine)
        clients = clients_of(batcher, "a3", "b3")
        run_together(*[client.ask for client in clients], batcher.close)
        end(batcher, engine, clients, ClosedError, ModelError)

    explore(scenario)


@pytest.mark.rule(15)
def test_a_request_that_comes_as_an_engine_fails_is_served_by_the_next_one():
    def scenario():
        engines = []

        def make():
            engines.append(Engine(fails_at=None if engines else 2))
            return engines[-1]

        batcher, _ = continuous(make)
        first, second = clients = clients_of(batcher, "a3", "b1")
        run_together(first.ask, second.ask)
        assert len(engines) <= 2
        assert any(client.errors for client in clients)
        assert all(client.served or client.errors for client in clients)
        end(batcher, engines[-1] if len(engines) > 1 else Engine(), clients, ModelError)
        assert engines[0].faults == []

    explore(scenario)
