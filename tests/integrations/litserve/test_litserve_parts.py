"""The parts between a worker and its server processes, each by itself."""

import asyncio
import logging
import pickle
import queue
import threading
import time
import uuid
from types import SimpleNamespace

import pytest
from fastapi import HTTPException
from litserve.callbacks import EventTypes
from litserve.loops.base import _SENTINEL_VALUE
from litserve.utils import LitAPIStatus

from batchstream.integrations.litserve import _exchange
from batchstream.integrations.litserve._arrivals import Arrivals
from batchstream.integrations.litserve._departures import Announcer, Departures
from batchstream.integrations.litserve._exchange import Exchange, FailedError
from batchstream.integrations.litserve._messages import UNKNOWN, Ending, Failure
from support.sources import TIMEOUT, run_in_threads

OK, FINISH, ERROR = LitAPIStatus.OK, LitAPIStatus.FINISH_STREAMING, LitAPIStatus.ERROR
LOGGER = "batchstream.integrations.litserve"


class Server:
    """What an exchange needs of a server, and no process."""

    def __init__(self, workers=1):
        self.response_buffer = {}
        self.requests = queue.Queue()
        self.active_requests = 0
        self.events = []
        self._callback_runner = self
        self._workers = workers

    def _get_request_queue(self, api_path):
        assert api_path == "/predict"
        return self.requests

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


@pytest.fixture(autouse=True)
def signals_alone(monkeypatch):
    monkeypatch.setattr(_exchange, "end_together", lambda: None)


def connected(server, **options):
    exchange = Exchange(**options)
    exchange.check(server)
    assert exchange.usable
    exchange.connect(server, "/predict")
    return exchange


def submitted(server, exchange, *payloads):
    spec = SimpleNamespace(_server=server, api_path="/predict", response_queue_id=7)
    return exchange.submit(spec, payloads)


# ---- the outbox


class Sending:
    """An outbox, what it sends and what of it arrives."""

    def __init__(self, *, connects=True, refuses=(), **options):
        self.servers = [Server(), Server()]
        exchanges = [
            connected(server, **options) if connects else Exchange() for server in self.servers
        ]
        self.exchange = exchanges[0]
        self.answers = [
            submitted(server, exchange, "first", "second")
            for server, exchange in zip(self.servers, exchanges, strict=True)
        ]
        self.sent = []
        self.outbox = exchanges[0].outbox(self._put, 0)
        self._refuses = list(refuses)

    def _put(self, server, uid, data, status, response_type):
        self.sent.append(server)
        if len(self.sent) in self._refuses:
            raise OSError(f"message {len(self.sent)}")
        self.servers[server].deliver(uid, data, status)

    def put(self, server, number, data, status=OK):
        self.outbox.put(server, self.answers[server].inboxes[number].uid, data, status)

    def taken(self):
        return [[inbox.take() for inbox in answers.inboxes] for answers in self.answers]


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


def test_R03_flushes_keep_the_order_of_a_request():
    sending = Sending()
    for data in "abcd":
        sending.put(0, 0, data)
        if data in "bd":
            sending.put(0, 1, data.upper())
            sending.outbox.flush()
    sending.put(0, 0, "", FINISH)
    sending.outbox.flush()
    assert sending.taken()[0] == [["a", "b", "c", "d"], ["B", "D"]]
    assert [inbox.over for inbox in sending.answers[0].inboxes] == [True, False]


def test_what_nobody_can_sort_is_sent_at_once_and_one_by_one():
    sending = Sending(connects=False)
    sending.put(0, 0, "a")
    sending.put(0, 1, "x")
    assert sending.sent == [0, 0]
    sending.outbox.flush()
    assert sending.sent == [0, 0]
    assert sending.taken()[0] == [["a"], ["x"]]


def test_R02_after_a_flush_that_failed_nothing_is_sent_any_more():
    sending = Sending(refuses=[1])
    sending.put(0, 0, "a")
    for _ in range(2):
        with pytest.raises(OSError, match="message 1"):
            sending.outbox.flush()
        sending.put(0, 0, "b")
    assert sending.taken()[0] == [[], []]


# ---- the exchange


def test_a_request_is_put_into_litserves_queue():
    server = Server()
    before = time.monotonic()
    answers = submitted(server, connected(server), "first", "second")
    for inbox, payload in zip(answers.inboxes, ["first", "second"], strict=True):
        number, uid, came, content = server.requests.get_nowait()
        assert (number, uid, content) == (7, inbox.uid, payload)
        assert before <= came <= time.monotonic()
        assert server.response_buffer[uid] is inbox
    assert server.events == [EventTypes.ON_REQUEST.value]


def test_R05_outputs_from_before_a_failure_come_first():
    server = Server()
    [inbox] = submitted(server, connected(server), "?").inboxes
    for data in ["a", "b", Failure(418, "short", {"x": "y"}), "late"]:
        server.deliver(inbox.uid, data)
    assert inbox.take() == ["a", "b"]
    assert not inbox.over
    with pytest.raises(FailedError) as raised:
        inbox.take()
    assert inbox.over
    error = raised.value
    assert (error.status_code, error.detail, error.headers) == (418, "short", {"x": "y"})
    assert inbox.take() == []


@pytest.mark.parametrize(
    ("data", "end"),
    [("", Ending("eos", {})), (Ending("length", {"a": 1}), Ending("length", {"a": 1}))],
    ids=["untold", "told"],
)
def test_R05_the_end_comes_behind_the_outputs_and_nothing_after_it(data, end):
    server = Server()
    [inbox] = submitted(server, connected(server), "?").inboxes
    server.deliver(inbox.uid, "a")
    server.deliver(inbox.uid, data, FINISH)
    server.deliver(inbox.uid, "late")
    assert inbox.take() == ["a"]
    assert (inbox.over, inbox.end) == (True, end)
    assert inbox.take() == []


def test_R18_an_error_of_litserves_own_says_no_more_than_that_there_was_one():
    server = Server()
    [inbox] = submitted(server, connected(server), "?").inboxes
    server.deliver(inbox.uid, pickle.dumps(ValueError("secret")), ERROR)
    with pytest.raises(FailedError) as raised:
        inbox.take()
    assert (raised.value.status_code, raised.value.detail) == (500, UNKNOWN.detail)


def test_a_client_is_woken_by_what_comes_for_any_of_its_requests():
    async def main():
        server = Server()
        answers = submitted(server, connected(server), "first", "second")
        waiting = asyncio.create_task(answers.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        server.deliver(answers.inboxes[1].uid, "x")
        await asyncio.wait_for(waiting, TIMEOUT)
        again = asyncio.create_task(answers.wait())
        await asyncio.sleep(0)
        assert not again.done()
        server.deliver(answers.inboxes[0].uid, "a")
        await asyncio.wait_for(again, TIMEOUT)
        assert [inbox.take() for inbox in answers.inboxes] == [["a"], ["x"]]

    asyncio.run(main())


def announced(exchange):
    """What the worker has been told until now."""
    [reader] = exchange._announcer.readers
    told = []
    while reader.poll():
        told.append(reader.recv_bytes().decode())
    return told


def test_R13_closing_tells_the_workers_once_of_those_that_have_not_ended():
    server = Server()
    exchange = connected(server)
    answers = submitted(server, exchange, "ended", "failed", "runs", "has an end to be taken")
    ended, failed, runs, untaken = answers.inboxes
    server.deliver(ended.uid, "", FINISH)
    ended.take()
    server.deliver(failed.uid, Failure(500, "", None))
    with pytest.raises(FailedError):
        failed.take()
    server.deliver(untaken.uid, "", FINISH)
    answers.close()
    answers.close()
    assert announced(exchange) == [runs.uid, untaken.uid]
    assert server.events == [EventTypes.ON_REQUEST.value, EventTypes.ON_RESPONSE.value]


def test_R02_what_comes_for_one_that_has_gone_is_dropped():
    sending = Sending()
    gone, stays = sending.answers[0].inboxes
    server = sending.servers[0]
    known = set(server.response_buffer)
    sending.put(0, 0, "a")
    sending.put(0, 1, "x")
    del server.response_buffer[gone.uid]
    sending.outbox.flush()
    assert gone.take() == []
    assert stays.take() == ["x"]
    assert set(server.response_buffer) == known - {gone.uid}


def test_R19_one_whose_client_reads_nothing_is_cut_off_and_left_by_the_workers(caplog):
    sending = Sending(max_buffered=2)
    idle, reads = sending.answers[0].inboxes
    for data in "abcd":
        sending.put(0, 0, data)
        sending.put(0, 1, data)
        sending.outbox.flush()
        assert reads.take() == [data]
    sending.answers[0].close()
    assert idle.take() == ["a", "b"]
    with pytest.raises(FailedError):
        idle.take()
    assert announced(sending.exchange) == [idle.uid, reads.uid]
    [record] = caplog.records
    assert idle.uid in record.getMessage()


def test_R19_closing_leaves_nothing_in_litserves_buffer():
    server = Server()
    exchange = connected(server)
    before = dict(server.response_buffer)
    submitted(server, exchange, "first", "second").close()
    assert server.response_buffer == before


@pytest.mark.parametrize(
    ("waiting", "payloads", "refused"),
    [(1, 1, False), (2, 1, True), (1, 2, True), (0, 2, False)],
)
def test_R19_no_more_may_wait_than_was_said(waiting, payloads, refused):
    server = Server()
    exchange = connected(server, max_pending=2)
    for _ in range(waiting):
        server.requests.put("waits")
    before = dict(server.response_buffer)
    if not refused:
        submitted(server, exchange, *["?"] * payloads)
        assert server.requests.qsize() == waiting + payloads
        return
    with pytest.raises(HTTPException) as raised:
        submitted(server, exchange, *["?"] * payloads)
    assert (raised.value.status_code, raised.value.headers) == (503, {"retry-after": "1"})
    assert server.requests.qsize() == waiting
    assert (server.response_buffer, server.events) == (before, [])


def test_R19_more_than_may_ever_wait_is_not_told_to_come_again():
    server = Server()
    exchange = connected(server, max_pending=2)
    with pytest.raises(HTTPException) as raised:
        submitted(server, exchange, "?", "?", "?")
    assert raised.value.status_code == 400
    assert server.requests.qsize() == 0


def test_without_a_limit_any_number_may_wait():
    server = Server()
    server.requests.qsize = None  # some queues have none
    submitted(server, connected(server), *range(100))


def test_R27_an_exchange_travels_without_the_servers_own():
    server = Server(workers=0)  # their pipes travel in no other way than to a spawned process
    exchange = connected(server, max_pending=3, tells_ends=True)
    server.response_buffer["lock"] = threading.Lock()  # which does not pickle
    copy = pickle.loads(pickle.dumps(exchange))  # noqa: S301
    assert copy._buffer is None
    assert copy._announcer is None
    assert (copy.usable, copy.tells_ends, copy._max_pending) == (True, True, 3)


def test_R27_a_buffer_with_a_sorter_in_it_travels():
    server = Server(workers=0)
    connected(server)
    copy = pickle.loads(pickle.dumps(server.response_buffer))  # noqa: S301
    assert copy.keys() == server.response_buffer.keys()


def test_a_worker_that_is_started_again_has_the_pipe_of_the_one_before():
    server = Server()
    exchange = connected(server)
    pipes = exchange._announcer.readers
    exchange.connect(server, "/predict")
    assert exchange._announcer.readers is pipes


def test_where_nobody_tells_how_many_workers_there_are_streams_go_on():
    class Lacking(Server):
        def __getattribute__(self, name):
            if name == "_inference_workers_config_for_api":
                raise AttributeError(name)
            return super().__getattribute__(name)

    server = Lacking()
    with pytest.warns(RuntimeWarning, match="a client that leaves is not noticed"):
        exchange = connected(server)
    answers = submitted(server, exchange, "?")
    outbox = exchange.outbox(lambda _, uid, data, status, __: server.deliver(uid, data, status), 0)
    for data in "ab":
        outbox.put(0, answers.inboxes[0].uid, data, OK)
    outbox.flush()
    assert answers.inboxes[0].take() == ["a", "b"]
    answers.close()


# ---- departures

UID = str(uuid.UUID(int=1))


def test_R12_a_worker_that_does_not_listen_is_not_waited_for(caplog):
    announcer = Announcer(1)

    def announce():
        while not caplog.records:
            announcer.announce(UID)
        announcer.announce(UID)

    run_in_threads(announce)
    [record] = caplog.records
    assert (record.name, record.levelno) == (LOGGER, logging.WARNING)
    assert "a worker cannot be told of clients that leave" in record.getMessage()


def test_what_a_full_pipe_has_taken_is_whole_and_it_goes_on_when_there_is_room(caplog):
    announcer = Announcer(1)
    while not caplog.records:
        announcer.announce(UID)
    [reader] = announcer.readers
    heard = set()
    while reader.poll():
        heard.add(reader.recv_bytes())
    announcer.announce("another")
    assert heard == {UID.encode()}
    assert reader.recv_bytes() == b"another"


def test_one_worker_that_does_not_listen_does_not_keep_others_from_hearing(caplog):
    announcer = Announcer(2)
    while not caplog.records:
        announcer.announce(UID)
        assert announcer.readers[1].recv_bytes() == UID.encode()
    announcer.announce("another")
    assert announcer.readers[1].recv_bytes() == b"another"


class Noting(Departures):
    """Says when it has heard of somebody."""

    heard = threading.Event()

    def _note(self, uid):
        super()._note(uid)
        if uid == "last":
            self.heard.set()


def test_R13_a_worker_hears_who_has_left(monkeypatch):
    monkeypatch.setattr(Noting, "heard", threading.Event())
    announcer = Announcer(1)
    departures = Noting(announcer.readers[0])
    number = uuid.UUID(int=2)
    for uid in (UID, number, "last"):
        announcer.announce(uid)
    assert departures.heard.wait(TIMEOUT)
    assert UID in departures
    assert number in departures
    assert str(number) in departures
    assert "another" not in departures
    assert list(departures.news()) == [UID, str(number), "last"]
    assert list(departures.news()) == []
    assert UID in departures


def test_R19_of_many_departures_the_latest_are_remembered():
    departures = Departures()
    for number in range(25_000):
        departures._note(str(number))
    assert str(14_999) not in departures
    assert str(15_000) in departures
    assert str(24_999) in departures
    assert len(departures._known) == 10_000
    assert list(departures.news()) == [str(number) for number in range(15_000, 25_000)]


def test_R28_a_listener_ends_with_those_who_could_tell_it_something():
    announcer = Announcer(1)
    before = set(threading.enumerate())
    Departures(announcer.readers[0])
    [listener] = set(threading.enumerate()) - before
    announcer._writers[0].close()
    listener.join(TIMEOUT)
    assert not listener.is_alive()


def test_without_a_pipe_nobody_leaves_and_nobody_listens():
    before = threading.active_count()
    departures = Departures()
    assert threading.active_count() == before
    assert UID not in departures
    assert list(departures.news()) == []


# ---- arrivals


class Watched(queue.Queue):
    """Says who asks, and fails those who ask for more than there are seats."""

    def __init__(self, *elements, seats=1000, error=None):
        super().__init__()
        for element in elements:
            self.put(element)
        self.seats = seats
        self._error = error
        self._asking = threading.Condition()

    def get(self, block=True, timeout=None):
        assert self.seats > 0, "it takes more than there are seats"
        if self._error is not None and self.empty():
            raise self._error
        element = super().get(block, timeout)
        self.seats -= 1
        return element


def take_until(arrivals, count):
    taken = []
    while len(taken) < count:
        taken += arrivals.take(block=True)
    return taken


def ended(arrivals, before):
    """Whether the threads that were started after those have ended."""
    for thread in set(threading.enumerate()) - before:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    return True


def test_R30_it_takes_no_more_than_there_are_seats_and_leaves_the_rest_to_others():
    waiting = Watched(*"abcdef", seats=2)
    arrivals = Arrivals(waiting, 2)
    assert take_until(arrivals, 2) == ["a", "b"]
    assert waiting.qsize() == 4
    waiting.seats = 1
    arrivals.free_seat()
    assert take_until(arrivals, 1) == ["c"]
    assert arrivals.take(block=False) == []
    assert waiting.qsize() == 3
    assert not arrivals.over
    arrivals.close()


def test_the_sentinel_ends_it_behind_what_came_before():
    before = set(threading.enumerate())
    arrivals = Arrivals(Watched("a", "b", _SENTINEL_VALUE, "c"), 9)
    assert ended(arrivals, before)
    assert not arrivals.over
    assert arrivals.take(block=True) == ["a", "b"]
    for _ in range(2):
        assert arrivals.take(block=True) == []
        assert arrivals.over


def test_R09_an_error_of_the_queue_is_raised_behind_what_came_before():
    before = set(threading.enumerate())
    arrivals = Arrivals(Watched("a", error=EOFError("gone")), 9)
    assert ended(arrivals, before)
    assert arrivals.take(block=False) == ["a"]
    for block in (True, False):
        with pytest.raises(EOFError, match="gone"):
            arrivals.take(block=block)


def test_it_looks_for_news_without_waiting():
    arrivals = Arrivals(Watched(), 0)
    assert arrivals.take(block=False) == []
    arrivals.close()


def test_R28_closing_ends_its_thread_that_waits_for_a_seat():
    before = set(threading.enumerate())
    arrivals = Arrivals(Watched("a", "b"), 1)
    assert take_until(arrivals, 1) == ["a"]
    assert list(arrivals.close()) == []
    assert ended(arrivals, before)


def test_R28_closing_ends_its_thread_that_waits_in_the_queue():
    class Idle(queue.Queue):
        asked, closed = threading.Event(), threading.Event()

        def get(self, block=True, timeout=None):
            assert not self.given_up, "it asks on"
            self.given_up = self.closed.is_set()
            self.asked.set()
            assert self.closed.wait(TIMEOUT)
            raise queue.Empty

        given_up = False

    before, idle = set(threading.enumerate()), Idle()
    arrivals = Arrivals(idle, 1)
    assert idle.asked.wait(TIMEOUT)
    arrivals.close()
    idle.closed.set()
    assert ended(arrivals, before)
    assert arrivals._error is None


def test_R09_closing_returns_those_who_have_been_taken():
    class Asked(Watched):
        third = threading.Event()

        def get(self, block=True, timeout=None):
            if self.empty():
                self.third.set()  # both have been handed over by now
            return super().get(block, timeout)

    waiting = Asked("a", "b")
    arrivals = Arrivals(waiting, 3)
    assert waiting.third.wait(TIMEOUT)
    assert list(arrivals.close()) == ["a", "b"]
    waiting.put("late")


def test_R02_one_that_is_taken_too_late_goes_back_into_the_queue():
    class Late(queue.Queue):
        asked, closed = threading.Event(), threading.Event()

        def get(self, block=True, timeout=None):
            self.asked.set()
            assert self.closed.wait(TIMEOUT)
            return super().get(block, timeout)

    before, waiting = set(threading.enumerate()), Late()
    waiting.put("late")
    arrivals = Arrivals(waiting, 1)
    assert waiting.asked.wait(TIMEOUT)
    assert list(arrivals.close()) == []
    waiting.closed.set()
    assert ended(arrivals, before)
    assert waiting.queue == type(waiting.queue)(["late"])
