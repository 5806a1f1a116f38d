"""Messages from a worker's outbox to the responses in a server process, without either process."""

import asyncio
import contextlib
import gc
import itertools
import os
import pickle
import queue
import subprocess
import threading
import time
import weakref
from types import SimpleNamespace
from typing import ClassVar

import pytest
from fastapi import HTTPException
from litserve.callbacks import EventTypes
from litserve.utils import LitAPIStatus

from batchstream import Metrics
from batchstream._batching.reporting.log import QUIET_SECONDS
from batchstream._core.arguments import Bound
from batchstream.integrations._http import CutError
from batchstream.integrations.litserve._link import request_queue
from batchstream.integrations.litserve._link.link import UNBOUNDED, Link
from batchstream.integrations.litserve._link.messages import (
    UNKNOWN,
    Departure,
    EndMessage,
    Envelope,
    Failure,
)
from batchstream.integrations.litserve._link.ordering import Ordering
from batchstream.integrations.litserve._link.pipes import WorkerPipes
from batchstream.integrations.litserve._server import reports, setup, watch
from batchstream.integrations.litserve._server.asked import Asked
from batchstream.integrations.litserve._server.endpoint import TextBody
from batchstream.integrations.litserve._server.response_queue import FailedError
from batchstream.integrations.litserve._server.submit import submit
from batchstream.integrations.litserve._worker.outbox import Outbox, SendWindow
from support.shuffled_loop import run
from support.sources import TIMEOUT

OK, FINISH, ERROR = LitAPIStatus.OK, LitAPIStatus.FINISH_STREAMING, LitAPIStatus.ERROR


class Server:
    """What an endpoint needs of a server, and no process."""

    def __init__(self, workers=1):
        self.response_buffer = {}
        self.litapi_request_queues = {"/predict": queue.Queue()}
        self.active_requests = 0
        self.events = []
        self._callback_runner = self
        self._workers = workers

    def _get_request_queue(self, api_path):
        return self.litapi_request_queues[api_path]

    @property
    def requests(self):
        return self.litapi_request_queues["/predict"]

    def _inference_workers_config_for_api(self, api_path):
        return [None] * self._workers

    def trigger_event(self, name, **_):
        self.events.append(name)

    def deliver(self, uid, data, status=OK):
        """Do as LitServe does with a message."""
        entry = self.response_buffer.get(uid)
        if entry is not None:
            entry.response_queue.append((data, status))
            entry.event.set()


pytestmark = pytest.mark.usefixtures("no_process")


def connected(server, **options):
    link = Link(**{"max_pending": None, "bound": UNBOUNDED} | options)
    setup.check_server(link, server)
    assert link.usable
    setup.connect(link, server, "/predict")
    return link


def outbox_of(link, put_response):
    """The outbox that worker 0 makes of a link."""
    pipes = link.pipes or WorkerPipes(0)
    receipts = pipes.receipts[0] if pipes.receipts else None
    return Outbox(put_response, router_uid=link.router_uid, worker=0, window=SendWindow(receipts))


def submitted(server, link, *payloads, **more):
    spec = SimpleNamespace(_server=server, api_path="/predict", response_queue_id=7)
    return submit(link, spec, payloads, **more)


# ---- the outbox


class Sending:
    """An outbox, what it sends and what of it arrives."""

    def __init__(self, *, connects=True, refuses=(), **options):
        self.servers = [Server(), Server()]
        links = [
            connected(server, **options) if connects else Link(None, UNBOUNDED)
            for server in self.servers
        ]
        self.link = links[0]
        self.responses = [
            submitted(server, link, "first", "second")
            for server, link in zip(self.servers, links, strict=True)
        ]
        self.sent = []
        self.outbox = outbox_of(links[0], self._put)
        self._refuses = list(refuses)

    def _put(self, server, uid, data, status, response_type):
        self.sent.append(server)
        if len(self.sent) in self._refuses:
            raise OSError(f"message {len(self.sent)}")
        self.servers[server].deliver(uid, data, status)

    def put(self, server, number, data, status=OK):
        self.outbox.put(server, self.responses[server].queues[number].uid, data, status)

    def taken(self):
        return [[entry.take() for entry in responses.queues] for responses in self.responses]


def test_messages_to_one_server_process_travel_together():
    sending = Sending()
    for number, data in [(0, "a"), (1, "x"), (0, "b")]:
        sending.put(0, number, data)
    sending.put(1, 0, "s")
    assert sending.sent == []
    sending.outbox.flush()
    assert sending.sent == [0, 1]
    assert sending.taken() == [[["a", "b"], ["x"]], [["s"], []]]


def test_a_flush_of_nothing_sends_nothing():
    sending = Sending()
    sending.put(0, 0, "a")
    sending.outbox.flush()
    sending.outbox.flush()
    assert sending.sent == [0]


@pytest.mark.rule(3)
def test_flushes_keep_the_order_of_a_request():
    sending = Sending()
    for data in "abcd":
        sending.put(0, 0, data)
        if data in "bd":
            sending.put(0, 1, data.upper())
            sending.outbox.flush()
    sending.put(0, 0, "", FINISH)
    sending.outbox.flush()
    assert sending.taken()[0] == [["a", "b", "c", "d"], ["B", "D"]]
    assert [entry.over for entry in sending.responses[0].queues] == [True, False]


def test_without_a_router_messages_are_sent_at_once_and_one_by_one():
    sending = Sending(connects=False)
    sending.put(0, 0, "a")
    sending.put(0, 1, "x")
    assert sending.sent == [0, 0]
    sending.outbox.flush()
    assert sending.sent == [0, 0]
    assert sending.taken()[0] == [["a"], ["x"]]


@pytest.mark.rule(2)
def test_after_a_flush_that_failed_nothing_is_sent_any_more():
    sending = Sending(refuses=[1])
    sending.put(0, 0, "a")
    for _ in range(2):
        with pytest.raises(OSError, match="message 1"):
            sending.outbox.flush()
        sending.put(0, 0, "b")
    assert sending.taken()[0] == [[], []]


# ---- requests and responses


def test_a_request_is_put_into_litserves_queue():
    server = Server()
    before = time.monotonic()
    responses = submitted(server, connected(server), "first", "second")
    first, second = responses.queues
    for entry, payload in [(first, "first"), (second, Envelope("second", first.uid))]:
        number, uid, came, content = server.requests.get_nowait()
        assert (number, uid, content) == (7, entry.uid, payload)
        assert before <= came <= time.monotonic()
        assert server.response_buffer[uid] is entry
    assert server.events == [EventTypes.ON_REQUEST.value]


@pytest.mark.rule(5)
def test_outputs_from_before_a_failure_come_first():
    server = Server()
    [entry] = submitted(server, connected(server), "?").queues
    for data in ["a", "b", Failure(418, "short", {"x": "y"}), "late"]:
        server.deliver(entry.uid, data)
    assert entry.take() == ["a", "b"]
    assert not entry.over
    with pytest.raises(FailedError) as raised:
        entry.take()
    assert entry.over
    error = raised.value
    assert (error.status_code, error.detail) == (418, "short")
    assert error.headers == {"x": "y", "x-request-id": entry.uid}
    assert entry.take() == []


@pytest.mark.rule(5)
@pytest.mark.parametrize(
    ("data", "end"),
    [("", EndMessage("eos", {})), (EndMessage("length", {"a": 1}), EndMessage("length", {"a": 1}))],
    ids=["no reason", "a reason"],
)
def test_the_end_comes_behind_the_outputs_and_nothing_after_it(data, end):
    server = Server()
    [entry] = submitted(server, connected(server), "?").queues
    server.deliver(entry.uid, "a")
    server.deliver(entry.uid, data, FINISH)
    server.deliver(entry.uid, "late")
    assert entry.take() == ["a"]
    assert (entry.over, entry.end) == (True, end)
    assert entry.take() == []


@pytest.mark.rule(18)
def test_an_error_of_litserves_own_says_no_more_than_that_there_was_one():
    server = Server()
    [entry] = submitted(server, connected(server), "?").queues
    server.deliver(entry.uid, pickle.dumps(ValueError("secret")), ERROR)
    with pytest.raises(FailedError) as raised:
        entry.take()
    assert (raised.value.status_code, raised.value.detail) == (500, UNKNOWN.detail)


def test_a_client_is_woken_by_messages_for_any_of_its_requests():
    async def main():
        server = Server()
        responses = submitted(server, connected(server), "first", "second")
        waiting = asyncio.create_task(responses.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        server.deliver(responses.queues[1].uid, "x")
        await asyncio.wait_for(waiting, TIMEOUT)
        again = asyncio.create_task(responses.wait())
        await asyncio.sleep(0)
        assert not again.done()
        server.deliver(responses.queues[0].uid, "a")
        await asyncio.wait_for(again, TIMEOUT)
        assert [entry.take() for entry in responses.queues] == [["a"], ["x"]]

    asyncio.run(main())


def sent_disconnects(link):
    """What the worker has been sent until now: uids, and how they have failed."""
    [reader] = link.pipes.disconnects
    sent = []
    while reader.poll():
        uid, error, is_reported = Departure.of(reader.recv_bytes())
        how = [] if error is None else [type(error).__name__, str(error)]
        sent.append(" ".join([uid, *how, *["reported"] * is_reported]))
    return sent


@pytest.mark.rule(13)
def test_closing_sends_the_workers_each_request_that_has_not_ended_once():
    server = Server()
    link = connected(server)
    responses = submitted(server, link, "ended", "failed", "runs", "has an end to be taken")
    ended, failed, runs, untaken = responses.queues
    server.deliver(ended.uid, "", FINISH)
    ended.take()
    server.deliver(failed.uid, Failure(500, "", None))
    with pytest.raises(FailedError):
        failed.take()
    server.deliver(untaken.uid, "", FINISH)
    responses.close()
    responses.close()
    assert sent_disconnects(link) == [runs.uid, untaken.uid]
    assert server.events == [EventTypes.ON_REQUEST.value, EventTypes.ON_RESPONSE.value]


@pytest.mark.rule(2)
def test_messages_for_a_request_that_has_gone_are_dropped():
    sending = Sending()
    gone, stays = sending.responses[0].queues
    server = sending.servers[0]
    known = set(server.response_buffer)
    sending.put(0, 0, "a")
    sending.put(0, 1, "x")
    del server.response_buffer[gone.uid]
    sending.outbox.flush()
    assert gone.take() == []
    assert stays.take() == ["x"]
    assert set(server.response_buffer) == known - {gone.uid}


@pytest.mark.rule(19)
def test_a_request_whose_client_reads_nothing_fails_and_the_workers_give_it_up(caplog):
    sending = Sending(bound=Bound(2, "cancel"))
    idle, reads = sending.responses[0].queues
    for data in "abcd":
        sending.put(0, 0, data)
        sending.put(0, 1, data)
        sending.outbox.flush()
        assert reads.take() == [data]
    sending.responses[0].close()
    assert idle.take() == ["a", "b"]
    with pytest.raises(FailedError):
        idle.take()
    assert sent_disconnects(sending.link) == [
        f"{idle.uid} SlowConsumerError the client has left 2 messages unread (max_buffered)",
        reads.uid,
    ]
    [record] = caplog.records
    assert idle.uid in record.getMessage()
    assert (record.kind, record.requests, record.request_id) == ("slow", 1, idle.uid)


@pytest.mark.rule(19)
def test_refusals_have_a_line_as_they_begin_and_one_when_they_are_over(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(reports.time, "monotonic", lambda: now[0])
    caplog.set_level("INFO", logger="batchstream")
    server = Server()
    link = connected(server, max_pending=1, name="chat")
    submitted(server, link, "waits")
    for name in ("first", "second"):
        with pytest.raises(FailedError, match="503"):
            submitted(server, link, "?", asked=Asked(request_id=name))
    server.requests.take()
    now[0] += QUIET_SECONDS
    submitted(server, link, "waits")
    begun, over = caplog.records
    assert (begun.kind, begun.batcher, begun.reason) == ("refusals_started", "chat", "pending")
    assert begun.request_id == "first"
    assert "1 requests wait already (max_pending=1)" in begun.getMessage()
    assert (over.kind, over.requests) == ("refusals_ended", 2)


@pytest.mark.rule(19)
@pytest.mark.usefixtures("drains")
def test_refusals_are_over_when_the_server_drains(caplog):
    caplog.set_level("INFO", logger="batchstream")

    async def end():
        server = Server()
        link = connected(server, max_pending=1)
        waiting, drained = submitted(server, link, "waits"), asyncio.Event()
        with pytest.raises(FailedError, match="503"):
            submitted(server, link, "?")
        watch.drain_all(drained.set)
        waiting.close()
        await drained.wait()

    run(end())
    refusals = [it.kind for it in caplog.records if it.name == "batchstream"]
    assert refusals == ["refusals_started", "refusals_ended"]


@pytest.mark.rule(19)
def test_closing_leaves_nothing_in_litserves_buffer():
    server = Server()
    link = connected(server)
    before = dict(server.response_buffer)
    submitted(server, link, "first", "second").close()
    assert server.response_buffer == before


def test_a_link_of_which_requests_were_reported_is_freed_with_its_pipes():
    server = Server()
    link = connected(server)
    submitted(server, link, "first").close()
    freed = weakref.ref(link)
    del link, server
    gc.collect()
    assert freed() is None


@pytest.mark.rule(19)
@pytest.mark.parametrize(
    ("waiting", "payloads", "refused"),
    [(1, 1, False), (2, 1, True), (1, 2, True), (0, 2, False)],
)
def test_no_more_requests_wait_than_max_pending(waiting, payloads, refused):
    server = Server()
    link = connected(server, max_pending=2)
    for _ in range(waiting):
        submitted(server, link, "waits")
    server.events.clear()
    before = dict(server.response_buffer)
    if not refused:
        submitted(server, link, *["?"] * payloads)
        assert server.requests.qsize() == waiting + payloads
        return
    with pytest.raises(HTTPException) as raised:
        submitted(server, link, *["?"] * payloads)
    assert (raised.value.status_code, raised.value.headers["retry-after"]) == (503, "1")
    assert server.requests.qsize() == waiting
    assert (server.response_buffer, server.events) == (before, [])


@pytest.mark.rule(19)
@pytest.mark.parametrize(
    ("options", "reason", "text"),
    [
        ({"max_pending": 2}, "pending", "no more than 2 requests may wait"),
        (
            {"ordering": Ordering(tenant=str, max_pending_per_tenant=2)},
            "tenant",
            "no more than 2 requests of one tenant may wait",
        ),
    ],
)
def test_more_requests_than_may_ever_wait_are_not_asked_to_come_again(
    options, reason, text, monkeypatch
):
    told = []
    monkeypatch.setattr(Refused, "refused", lambda _, reason, **more: told.append(reason))
    server = Server()
    link = connected(server, metrics=Refused, **options)
    with pytest.raises(HTTPException) as raised:
        submitted(server, link, "?", "?", "?")
    assert (raised.value.status_code, raised.value.detail) == (400, text)
    assert "retry-after" not in (raised.value.headers or {})
    assert (server.requests.qsize(), told) == (0, [reason] * 3)
    submitted(server, link, "?", "?")


@pytest.mark.rule(19)
def test_a_refusal_for_max_pending_alone_says_when_to_come_again_by_the_measured_rate(monkeypatch):
    now = itertools.count(0, 10)
    monkeypatch.setattr(request_queue.time, "monotonic", lambda: next(now))
    server = Server()
    link = connected(server, max_pending=4)
    for _ in range(4):
        submitted(server, link, "waits")
    for _ in range(9):
        server.requests.take()
        submitted(server, link, "waits")
    with pytest.raises(FailedError, match="503") as raised:
        submitted(server, link, "?")
    assert int(raised.value.headers["retry-after"]) > 10


def half_of(request):
    return request.payload / 2


@pytest.mark.rule(19)
def test_no_more_wait_than_may_cost_so_much(monkeypatch):
    told = []
    monkeypatch.setattr(Refused, "refused", lambda _, reason, **more: told.append(reason))
    server = Server()
    ordering = Ordering(cost=half_of, max_pending_cost=10)
    link = connected(server, ordering=ordering, metrics=Refused)
    submitted(server, link, 8)
    submitted(server, link, 4)
    with pytest.raises(FailedError, match="503") as raised:
        submitted(server, link, 10)
    assert "requests that cost 6.0 wait already (max_pending_cost=10)" in str(
        raised.value.__cause__
    )
    with pytest.raises(FailedError, match="422") as raised:
        submitted(server, link, 22)
    assert "costs 11.0, more than all that wait may cost together: 10" in raised.value.detail
    with pytest.raises(FailedError, match="503"):  # all of one client, or none
        submitted(server, link, 6, 6)
    submitted(server, link, 8)
    with pytest.raises(FailedError, match="503"):
        submitted(server, link, 1)
    server.requests.take()
    submitted(server, link, 8)
    assert told == ["pending_cost", "cost", "pending_cost", "pending_cost", "pending_cost"]


class Refused(Metrics):
    """The test puts a method there."""


def test_without_a_limit_any_number_may_wait():
    server = Server()
    server.requests.qsize = None  # some queues have none
    submitted(server, connected(server), *range(100))


@pytest.mark.parametrize(("options", "is_usable"), [({}, True), ({"max_pending": 3}, False)])
def test_a_server_that_takes_no_other_queue_is_usable_where_none_is_needed(options, is_usable):
    server = Server()
    del server.litapi_request_queues
    link = Link(**{"max_pending": None, "bound": UNBOUNDED} | options)
    says_so = pytest.warns(
        RuntimeWarning, match="has no LitServer.litapi_request_queues: .* whatever max_pending, "
    )
    with contextlib.nullcontext() if is_usable else says_so:
        setup.check_server(link, server)
    assert link.usable == is_usable


@pytest.mark.rule(27)
def test_a_link_travels_without_the_servers_own():
    server = Server(workers=0)  # their pipes travel in no other way than to a spawned process
    link = connected(server, max_pending=3, sends_ends=True)
    server.response_buffer["lock"] = threading.Lock()  # which does not pickle
    copy = pickle.loads(pickle.dumps(link))  # noqa: S301
    assert copy.response_buffer is None
    assert (copy.pipes._disconnect_writers, copy.pipes._receipt_writers) == ([], [])
    assert (copy.usable, copy.sends_ends, copy.max_pending) == (True, True, 3)


@pytest.mark.rule(27)
def test_a_buffer_with_a_router_in_it_travels():
    server = Server(workers=0)
    connected(server)
    copy = pickle.loads(pickle.dumps(server.response_buffer))  # noqa: S301
    assert copy.keys() == server.response_buffer.keys()


def test_a_worker_that_is_started_again_has_the_pipe_of_the_one_before():
    server = Server()
    link = connected(server)
    pipes = link.pipes
    setup.connect(link, server, "/predict")
    assert link.pipes is pipes


def test_where_the_number_of_workers_is_unknown_streams_go_on():
    class Lacking(Server):
        def __getattribute__(self, name):
            if name == "_inference_workers_config_for_api":
                raise AttributeError(name)
            return super().__getattribute__(name)

    server = Lacking()
    with pytest.warns(RuntimeWarning, match="a client that leaves is not noticed"):
        link = connected(server)
    responses = submitted(server, link, "?")
    outbox = outbox_of(link, lambda _, uid, data, status, __: server.deliver(uid, data, status))
    for data in "ab":
        outbox.put(0, responses.queues[0].uid, data, OK)
    outbox.flush()
    assert responses.queues[0].take() == ["a", "b"]
    responses.close()


def test_a_server_that_is_about_to_end_takes_no_new_request_and_then_fails_the_others(drains):
    async def end():
        server = Server()
        link = connected(server, grace_period=0)
        responses = submitted(server, link, "first", "second")
        server.deliver(responses.queues[0].uid, "", FINISH)
        watch.drain_all(lambda: drains.append("over"))
        refused = None
        while refused is None:  # as soon as the loop has heard of it
            await asyncio.sleep(0)
            try:
                submitted(server, link, "late").close()
            except HTTPException as error:
                refused = error
        assert (refused.status_code, refused.detail) == (503, "the server is shutting down")
        while not responses.queues[1].has_end:
            await responses.wait()
        assert responses.queues[0].take() == []
        assert responses.queues[0].end.reason == "eos"  # it had ended before
        with pytest.raises(FailedError, match="503"):
            responses.queues[1].take()
        assert drains == ["over"]
        responses.close()
        assert drains == ["over"]

    asyncio.run(end())


class Ends(Metrics):
    """Keeps what is told of ends."""

    told: ClassVar = []

    def finished(self, end, *, joined, **_):
        self.told.append((end.reason, joined))


def test_a_server_that_cuts_its_requests_reports_their_ends_and_tells_the_workers_so(
    drains, monkeypatch
):
    async def end():
        server = Server()
        link = connected(server, grace_period=0, metrics=Ends)
        responses = submitted(server, link, "has ended", "waits", "is discarded")
        ended, waits, discarded = responses.queues
        server.deliver(ended.uid, "", FINISH)
        responses.discard = lambda uid: uid == discarded.uid
        watch.drain_all(lambda: drains.append("over"))
        while not waits.has_end:
            await responses.wait()
        responses.close()  # reports none again
        text = "HTTPException 503: the server is shutting down reported"
        assert sent_disconnects(link)[0] == f"{waits.uid} {text}"

    monkeypatch.setattr(Ends, "told", [])
    asyncio.run(end())
    assert Ends.told == [("error", False), ("error", False)]


def test_a_server_has_drained_when_the_last_response_of_all_its_endpoints_is_closed(drains):
    async def end():
        server = Server()
        *links, unused = [connected(server, grace_period=10**6) for _ in range(4)]
        first, second, idle = (submitted(server, link, "request") for link in links)
        idle.close()
        watch.drain_all(lambda: drains.append("over"))
        first.close()
        await asyncio.sleep(0)
        with pytest.raises(HTTPException, match="503"):
            submitted(server, unused, "late, at an endpoint that had no request before")
        assert drains == []
        second.close()
        assert drains == ["over"]

    asyncio.run(end())


def test_a_server_without_an_open_response_has_drained_at_once(drains):
    watch.drain_all(lambda: drains.append("over"))
    assert drains == ["over"]


def test_a_request_that_a_killed_worker_had_not_claimed_goes_on():
    async def lose_a_worker():
        worker = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220, S607
        server = Server()
        server.transport_config = SimpleNamespace(num_consumers=8)
        link = connected(server)
        responses = submitted(server, link, "claimed", "waiting")
        claimed, waiting = responses.queues
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getpid", lambda: worker.pid)
            link.pipes.claim(7, claimed.uid)
        while responses._reports[claimed.uid].worker is None:  # noqa: ASYNC110 - nothing else says so
            await asyncio.sleep(0)
        worker.kill()
        await responses.wait()
        with pytest.raises(FailedError, match="500"):
            claimed.take()
        assert not waiting.has_end
        responses.close()
        worker.wait()

    asyncio.run(lose_a_worker())


# ---- deadlines, in virtual time


@pytest.mark.rule(29)
@pytest.mark.parametrize("is_taken", [False, True])
def test_a_request_that_waits_too_long_leaves_the_queue_unless_a_worker_has_it(
    is_taken, monkeypatch
):
    async def wait():
        server = Server()
        link = connected(server, wait_timeout=2, metrics=Ends)
        responses = submitted(server, link, "?")
        [queue] = responses.queues
        if is_taken:
            server.requests.take()
        await asyncio.sleep(1.9)
        assert not queue.has_end
        await asyncio.sleep(0.2)
        assert queue.has_end != is_taken
        assert server.requests.qsize() == 0
        if not is_taken:
            with pytest.raises(FailedError, match="504") as raised:
                queue.take()
            text = "no worker has taken the request within 2 seconds (wait_timeout)"
            assert raised.value.detail == text
        responses.close()
        assert sent_disconnects(link) == ([queue.uid] if is_taken else [])

    monkeypatch.setattr(Ends, "told", [])
    run(wait())
    assert Ends.told == ([] if is_taken else [("error", False)])


def send_output(server, link, uid, data):
    """Do as LitServe does with a batch of messages from a worker."""
    router = server.response_buffer[link.router_uid]
    router.response_queue.append(((None, 7, [(uid, data, OK)]), OK))
    router.event.set()


@pytest.mark.rule(29)
def test_a_request_without_an_output_in_time_is_answered_with_504_and_given_up(caplog):
    async def wait_in_vain():
        server = Server()
        link = connected(server, first_timeout=2)
        responses = submitted(server, link, "?", asked=Asked(request_id="mine"))
        [queue] = responses.queues
        body = TextBody(responses)
        with pytest.raises(FailedError, match="504") as raised:
            await body.begin()
        assert raised.value.headers == {"x-request-id": "mine"}
        assert "within 2 seconds (first_timeout)" in raised.value.detail
        text = "no output has come within 2 seconds (first_timeout)"
        assert sent_disconnects(link) == [f"{queue.uid} DeadlineError {text}"]
        body.cancel()
        assert sent_disconnects(link) == []
        [record] = caplog.records
        assert "request mine is given up" in record.getMessage()
        fields = record.kind, record.batcher, record.request_id
        assert fields == ("overdue", "", "mine")

    run(wait_in_vain())


@pytest.mark.rule(29)
def test_a_request_with_no_further_output_in_time_is_cut_behind_what_has_come():
    async def read():
        server = Server()
        link = connected(server, first_timeout=1, gap_timeout=2)
        responses = submitted(server, link, "?")
        [queue] = responses.queues
        body = TextBody(responses)
        for letter in "abc":
            await asyncio.sleep(0.75)
            send_output(server, link, queue.uid, letter)
            assert await body._next() == letter.encode()
        before = asyncio.get_running_loop().time()
        with pytest.raises(CutError) as raised:
            await body._next()
        assert asyncio.get_running_loop().time() == pytest.approx(before + 2)
        assert "(gap_timeout)" in raised.value.__cause__.detail
        text = "no output has come for 2 seconds (gap_timeout)"
        assert sent_disconnects(link) == [f"{queue.uid} DeadlineError {text}"]
        body.cancel()

    run(read())


@pytest.mark.rule(29)
def test_the_whole_time_that_a_client_allows_counts_from_its_submission():
    async def read():
        server = Server()
        link = connected(server)
        responses = submitted(server, link, "?", asked=Asked(timeout=5))
        [queue] = responses.queues
        body = TextBody(responses)

        async def read_an_output_each_second():
            while True:
                send_output(server, link, queue.uid, "a")
                await body._next()
                await asyncio.sleep(1)

        with pytest.raises(CutError):
            await read_an_output_each_second()
        assert asyncio.get_running_loop().time() == pytest.approx(5)
        body.cancel()

    run(read())


@pytest.mark.rule(29, 5)
def test_no_deadline_passes_after_an_end():
    async def end():
        server = Server()
        link = connected(server, first_timeout=1, gap_timeout=1)
        responses = submitted(server, link, "?", asked=Asked(timeout=1))
        [queue] = responses.queues
        server.deliver(queue.uid, "", FINISH)
        await asyncio.sleep(5)
        body = TextBody(responses)
        await body.begin()
        assert await body._next() is None
        body.cancel()
        assert sent_disconnects(link) == []

    run(end())
