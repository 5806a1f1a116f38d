"""What a server process reports to metrics and traces, and what it leaves to workers."""

import asyncio
import os
import queue
import subprocess
from contextlib import suppress
from types import SimpleNamespace
from typing import ClassVar

import pytest
from fastapi import HTTPException
from opentelemetry.trace import StatusCode
from test_litserve_link import (
    Server,
    connected,
    send_output,
    sent_disconnects,
    submitted,
)
from test_litserve_spans import PROVIDER, SPANS, InMemoryTraces

from batchstream import Metrics
from batchstream._core.arguments import Bound
from batchstream.integrations.litserve._link.ordering import Ordering
from batchstream.integrations.litserve._server import watch
from batchstream.integrations.litserve._server.asked import Asked
from batchstream.integrations.opentelemetry import OpenTelemetryTraces
from support.serving import SECONDS
from support.shuffled_loop import run

pytestmark = pytest.mark.usefixtures("no_process")

NUMBER = 7  # of the server process, as `submitted` has it


class Told(Metrics):
    """Keeps what the server process tells it."""

    events: ClassVar = []

    def submitted(self, **_):
        self.events.append("submitted")

    def refused(self, reason, **_):
        self.events.append(f"refused {reason}")

    def finished(self, end, *, joined, **_):
        how = end.reason if end.error is None else type(end.error).__name__
        self.events.append(f"{how} {'joined' if joined else 'waited'}")


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """What metrics are told, in the test."""
    monkeypatch.setattr(Told, "events", [])
    SPANS.clear()
    return Told.events


class Claiming(Server):
    """A server whose workers say which requests they take, and which ends they have reported."""

    transport_config = SimpleNamespace(num_consumers=8)


def claim(link, uid, worker=None):
    """Do as a worker does that takes a request."""
    with pytest.MonkeyPatch.context() as patch:
        if worker is not None:
            patch.setattr(os, "getpid", lambda: worker)
        link.pipes.claim(NUMBER, uid)


def fill(link):
    """Let no other line into the pipe of the server process, as if it had not read for long."""
    with suppress(BlockingIOError):
        while True:
            os.write(link.pipes._claim_writers[NUMBER]._pipe.fileno(), b"1 another reported\n")


def observed(server, **options):
    return connected(server, metrics=Told, traces=InMemoryTraces(), **options)


def spans():
    """The spans that have ended: how, and with which error."""
    return [
        (
            span.attributes["gen_ai.response.finish_reasons"],
            span.attributes.get("error.type"),
            span.status.status_code is StatusCode.ERROR,
        )
        for span in SPANS.get_finished_spans()
    ]


CANCELLED = (("cancelled",), None, False)


def failed(error):
    return ("error",), error, True


# ---- requests that no worker has seen


@pytest.mark.parametrize(
    ("options", "payloads", "reason", "error"),
    [
        ({"max_pending": 2}, "??", "pending", "OverloadedError"),
        ({"max_pending": 2}, "???", "pending", "HTTPException"),
        (
            {"ordering": Ordering(tenant=str, max_pending_per_tenant=1)},
            "??",
            "tenant",
            "HTTPException",
        ),
        ({"ordering": Ordering(cost=lambda _: 3, max_pending_cost=5)}, "??", "cost", "CostError"),
    ],
    ids=lambda it: it if isinstance(it, str) else None,
)
def test_each_request_that_is_refused_has_a_span_with_the_error_and_counts(
    options, payloads, reason, error, told
):
    server = Server()
    link = observed(server, **options)
    submitted(server, link, "waits")
    with pytest.raises(HTTPException):
        submitted(server, link, *payloads)
    assert told == ["submitted", *[f"refused {reason}"] * len(payloads)]
    assert spans() == [failed(error)] * len(payloads)


@pytest.mark.usefixtures("drains")
def test_a_request_that_is_refused_by_a_server_that_drains_has_a_span(told):
    async def end():
        server = Server()
        link = observed(server)
        submitted(server, link, "first").close()
        watch.drain_all(lambda: None)
        await asyncio.sleep(0)
        with pytest.raises(HTTPException):
            submitted(server, link, "late")

    run(end())
    assert told[-1] == "refused draining"
    assert spans()[-1] == failed("ClosedError")


@pytest.mark.rule(29)
@pytest.mark.parametrize(
    ("options", "asked"),
    [({"wait_timeout": 2}, {}), ({"first_timeout": 2}, {}), ({}, {"timeout": 2})],
    ids=["of the queue", "for the first output", "the client's"],
)
def test_a_request_whose_deadline_passes_while_it_waits_counts_so_and_has_a_span(
    options, asked, told
):
    async def wait():
        server = Server()
        link = observed(server, max_pending=5, **options)
        responses = submitted(server, link, "?", asked=Asked(request_id="mine", **asked))
        await asyncio.sleep(3)
        assert server.requests.qsize() == 0
        responses.close()

    run(wait())
    assert told == ["submitted", "DeadlineError waited"]
    assert spans() == [failed("DeadlineError")]
    [span] = SPANS.get_finished_spans()
    assert "within 2 seconds" in span.status.description
    assert span.attributes["batchstream.request.id"] == "mine"
    assert span.events == ()


def test_requests_that_leave_while_they_wait_have_spans_below_the_clients_from_the_submission(told):
    server = Server()
    link = observed(server, max_pending=5)
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    seen = []
    link.traces.for_batcher = lambda name: OpenTelemetryTraces(
        tracer_provider=PROVIDER, attributes=lambda request: seen.append(request) or {}
    ).for_batcher(name)
    responses = submitted(server, link, "first", "second", asked=Asked(headers))
    assert spans() == []
    responses.close()
    assert told == ["submitted", "submitted", "cancelled waited", "cancelled waited"]
    assert spans() == [CANCELLED, CANCELLED]
    assert seen == ["first", "second"]
    for span in SPANS.get_finished_spans():
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
        assert span.start_time < span.end_time


def test_what_is_current_in_the_call_that_submits_is_so_where_its_span_begins():
    async def wait():
        server = Server()
        link = observed(server, max_pending=5, wait_timeout=2)
        with PROVIDER.get_tracer("test").start_as_current_span("http") as span:
            responses = submitted(server, link, "?")
        await asyncio.sleep(3)
        responses.close()
        return span

    parent = run(wait())
    request = SPANS.get_finished_spans()[-1]
    assert request.parent.span_id == parent.get_span_context().span_id


def test_requests_that_cannot_be_put_into_the_queue_are_counted_as_far_as_they_are_in_it(told):
    class Full(Server):
        def __init__(self):
            super().__init__()
            self.requests.maxsize = 1
            self.requests.put = lambda element, **_: queue.Queue.put(
                self.requests, element, block=False
            )

    server = Full()
    link = observed(server)
    with pytest.raises(HTTPException, match="500"):
        submitted(server, link, "first", "second")
    assert told == ["submitted"]  # and its end comes from the worker that finds it


# ---- requests that a worker has


def test_a_request_that_a_worker_has_is_the_workers_to_report(told):
    async def leave():
        server = Claiming()
        link = observed(server, first_timeout=2, bound=Bound(1, "cancel"))
        responses = submitted(server, link, "late", "slow", "leaves")
        late, slow, leaves = [queue.uid for queue in responses.queues]
        for uid in (late, slow, leaves):
            claim(link, uid)
        await asyncio.sleep(1)
        send_output(server, link, slow, "a")
        send_output(server, link, slow, "b")
        send_output(server, link, leaves, "a")
        await asyncio.sleep(2)
        responses.close()
        assert sent_disconnects(link) == [
            f"{slow} SlowConsumerError the client has left 1 messages unread (max_buffered)",
            f"{late} DeadlineError no output has come within 2 seconds (first_timeout)",
            leaves,
        ]

    run(leave())
    assert told == ["submitted"] * 3
    assert spans() == []


def test_each_request_of_a_worker_that_has_ended_is_reported_once(told):
    async def lose_a_worker():
        worker = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220, S607
        server = Claiming()
        link = observed(server)
        responses = submitted(server, link, "runs", "reported", "waits")
        runs, reported, waits = responses.queues
        left = submitted(server, link, "left")
        late = submitted(server, link, "late", asked=Asked(timeout=0))
        for each in (runs, reported, *left.queues, *late.queues):
            claim(link, each.uid, worker.pid)
        left.close()
        while not late.queues[0].has_end:
            await late.wait()
        link.pipes.note_reported(NUMBER, reported.uid)  # and its last message is lost
        worker.kill()
        while not reported.has_end:
            await responses.wait()
        assert not waits.has_end
        responses.close()
        worker.wait()

    asyncio.run(lose_a_worker())
    assert told[:5] == ["submitted"] * 5
    assert sorted(told[5:]) == [
        "DeadlineError joined",
        "HTTPException joined",
        "cancelled joined",
    ]
    assert sorted(spans()) == sorted([failed("DeadlineError"), failed("HTTPException"), CANCELLED])


def test_an_end_that_a_worker_reports_while_the_pipe_is_full_is_not_due_for_ever(drains, told):
    async def end():
        server = Claiming()
        link = observed(server)
        responses = submitted(server, link, "ends")
        [queue] = responses.queues
        fill(link)
        claim(link, queue.uid)
        link.pipes.note_reported(NUMBER, queue.uid)
        due = watch.watch_of(link, NUMBER).due_reports()
        assert list(due) == [queue.uid]
        async with asyncio.timeout(SECONDS):
            while due:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0)
        assert responses._reports[queue.uid].worker == os.getpid()  # it was heard first
        watch.drain_all(lambda: drains.append("over"))
        responses.close()
        await over_in(drains)

    asyncio.run(end())
    assert told == ["submitted"]


# ---- the end of the server process


async def over_in(drains):
    """Wait until the server process has drained."""
    while not drains:  # noqa: ASYNC110 - it calls a function
        await asyncio.sleep(0)


@pytest.mark.parametrize("reported", ["before the cut", "behind it", "never"])
def test_what_is_cut_is_reported_by_its_worker_or_at_last_by_the_server(reported, drains, told):
    async def end():
        server = Claiming()
        link = observed(server, grace_period=10**6)
        responses = submitted(server, link, "has it", "waits")
        has_it, waits = [each.uid for each in responses.queues]
        watch.drain_all(lambda: drains.append("over"))
        await asyncio.sleep(0)
        claim(link, has_it)  # at the last moment: the loop has not heard of it
        if reported == "before the cut":
            link.pipes.note_reported(NUMBER, has_it)  # its last message is on its way
        watch.watch_of(link, NUMBER)._cut_off_all()
        text = "HTTPException 503: the server is shutting down"
        assert sent_disconnects(link) == [f"{has_it} {text}", f"{waits} {text} reported"]
        assert drains == (["over"] if reported == "before the cut" else [])
        if reported == "behind it":
            link.pipes.note_reported(NUMBER, has_it)
        await over_in(drains)
        if reported == "never":
            assert sent_disconnects(link) == [f"{has_it} {text} reported"]
        with suppress(HTTPException):
            responses.queues[0].take()
        responses.close()

    asyncio.run(end())
    own = ["HTTPException joined"] if reported == "never" else []
    assert told == ["submitted", "submitted", "HTTPException waited", *own]
    assert spans() == [failed("HTTPException")] * (1 + len(own))


def test_a_server_that_drains_waits_for_the_report_of_a_request_whose_client_has_left(drains, told):
    async def end():
        server = Claiming()
        link = observed(server, grace_period=10**6)
        responses = submitted(server, link, "leaves")
        [queue] = responses.queues
        claim(link, queue.uid)
        watch.drain_all(lambda: drains.append("over"))
        responses.close()
        assert drains == []
        link.pipes.note_reported(NUMBER, queue.uid)
        await over_in(drains)

    asyncio.run(end())
    assert told == ["submitted"]


def test_a_server_has_drained_at_once_when_its_last_client_leaves_while_its_request_waits(
    drains, told
):
    async def end():
        server = Claiming()
        link = observed(server, max_pending=5, grace_period=10**6)
        responses = submitted(server, link, "waits")
        watch.drain_all(lambda: drains.append("over"))
        await asyncio.sleep(0)
        responses.close()
        assert server.requests.qsize() == 0
        assert drains == ["over"]

    asyncio.run(end())
    assert told == ["submitted", "cancelled waited"]
