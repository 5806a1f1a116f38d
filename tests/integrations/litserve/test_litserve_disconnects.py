"""Pipes on which a server process reports disconnects, and the worker that listens to them."""

import logging
import sys
import threading
import uuid
from functools import partial

import pytest
from starlette.exceptions import HTTPException

from batchstream import DeadlineError, RequestError, SlowConsumerError
from batchstream._core.errors import CostError
from batchstream.integrations.litserve._link.messages import Departure, new_uid
from batchstream.integrations.litserve._link.pipes import WorkerPipes
from batchstream.integrations.litserve._worker.disconnects import Disconnects
from support.sources import TIMEOUT, run_in_threads

LOGGER = "batchstream.integrations.litserve"
UID = str(uuid.UUID(int=1))


@pytest.mark.rule(12)
def test_a_server_process_does_not_wait_for_a_worker_whose_pipe_is_full(caplog):
    pipes = WorkerPipes(1)

    def announce():
        while not caplog.records:
            pipes.send_departure(Departure(UID))
        pipes.send_departure(Departure(UID))

    run_in_threads(announce)
    [record] = caplog.records
    assert (record.name, record.levelno) == (LOGGER, logging.WARNING)
    assert "a worker cannot be notified of clients that leave" in record.getMessage()


def test_what_a_full_pipe_has_taken_is_whole_and_it_goes_on_when_there_is_room(caplog):
    pipes = WorkerPipes(1)
    while not caplog.records:
        pipes.send_departure(Departure(UID))
    [reader] = pipes.disconnects
    heard = set()
    while reader.poll():
        heard.add(reader.recv_bytes())
    pipes.send_departure(Departure("another"))
    assert heard == {Departure(UID).as_bytes()}
    assert reader.recv_bytes() == Departure("another").as_bytes()


def test_a_worker_that_does_not_read_its_pipe_does_not_keep_others_from_hearing(caplog):
    pipes = WorkerPipes(2)
    while not caplog.records:
        pipes.send_departure(Departure(UID))
        assert pipes.disconnects[1].recv_bytes() == Departure(UID).as_bytes()
    pipes.send_departure(Departure("another"))
    assert pipes.disconnects[1].recv_bytes() == Departure("another").as_bytes()


class Noting(Disconnects):
    """Sets an event when it has got the last uid."""

    heard = threading.Event()

    def add(self, uid, *how):
        super().add(uid, *how)
        if uid == "last":
            self.heard.set()


@pytest.mark.rule(13)
def test_a_worker_knows_which_clients_have_disconnected(monkeypatch):
    monkeypatch.setattr(Noting, "heard", threading.Event())
    pipes = WorkerPipes(1)
    disconnects = Noting(pipes.disconnects[0])
    number = uuid.UUID(int=2)
    failed = Departure(str(number), HTTPException(504, "late: ü\ud800 " + "x" * 9999))
    reported = Departure(
        "reported", HTTPException(503, {"any": "detail"}, {"retry-after": "1"}), True
    )
    for departure in (Departure(UID), failed, reported, Departure("last")):
        pipes.send_departure(departure)
    assert disconnects.heard.wait(TIMEOUT)
    assert UID in disconnects
    assert number in disconnects
    assert str(number) in disconnects
    assert "another" not in disconnects
    assert disconnects.departure_of(UID) == Departure(UID)
    assert disconnects.departure_of("another") == Departure("another")
    uid, error, is_reported = disconnects.departure_of(number)
    assert (uid, is_reported) == (str(number), False)
    assert (error.status_code, error.detail) == (504, "late: ü? " + "x" * 390)
    uid, error, is_reported = disconnects.departure_of("reported")
    assert (uid, is_reported) == ("reported", True)
    assert (error.status_code, error.detail) == (503, "{'any': 'detail'}")
    assert disconnects.take() == [UID, str(number), "reported", "last"]
    assert disconnects.take() == []
    assert UID in disconnects


@pytest.mark.parametrize(
    ("error", "arrives"),
    [
        (DeadlineError("late", timeout=0.1), DeadlineError("late", timeout=0.1)),
        (
            SlowConsumerError("slow", slot=3, max_buffered=sys.maxsize),
            SlowConsumerError("slow", slot=-1, max_buffered=sys.maxsize),
        ),
        (CostError("no, not this"), RequestError("no, not this")),
        (HTTPException(503, "an answer"), HTTPException(503, "an answer")),
        (ValueError("a secret"), HTTPException(500, "Internal server error")),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("is_reported", [False, True])
def test_a_worker_learns_with_what_a_request_has_failed(error, arrives, is_reported):
    departure = Departure.of(Departure(UID, error, is_reported).as_bytes())
    assert (departure.uid, departure.is_reported) == (UID, is_reported)
    assert type(departure.error) is type(arrives)
    assert vars(departure.error) == vars(arrives)
    assert str(departure.error) == str(arrives)


def longest(text):
    return SlowConsumerError(text, slot=0, max_buffered=sys.maxsize)


@pytest.mark.parametrize("character", ["x", "ü", "\N{GRINNING FACE}", "\ud800"])
@pytest.mark.parametrize("error_of", [partial(HTTPException, 503), RequestError, longest])
def test_a_departure_fits_into_one_piece_of_any_systems_pipe(character, error_of):
    sent = Departure(new_uid(), error_of("x" + character * 9999), is_reported=True)
    message = sent.as_bytes()
    assert len(message) + 4 <= 512  # as PIPE_BUF is at least; the pipe puts the length in front
    received = Departure.of(message)
    assert (received.uid, received.is_reported) == (sent.uid, True)
    text = str(received.error).removeprefix("503: ")
    assert set(text) == {"x", character.encode(errors="replace").decode()}


@pytest.mark.rule(13)
@pytest.mark.parametrize(
    "message", [b"\xff", b"uid 0 error", b"uid 0 error soon text", b"uid 0 no 1 text"]
)
def test_a_message_that_cannot_be_read_does_not_keep_later_ones_from_being_heard(
    message, monkeypatch
):
    monkeypatch.setattr(Noting, "heard", threading.Event())
    pipes = WorkerPipes(1)
    disconnects = Noting(pipes.disconnects[0])
    pipes._disconnect_writers[0].send_bytes(message)
    pipes.send_departure(Departure("last"))
    assert disconnects.heard.wait(TIMEOUT)
    assert disconnects.take() == ["last"]


@pytest.mark.rule(19)
def test_of_many_disconnects_the_latest_are_remembered():
    disconnects = Disconnects()
    for number in range(25_000):
        disconnects.add(str(number))
    assert str(14_999) not in disconnects
    assert str(15_000) in disconnects
    assert str(24_999) in disconnects
    assert len(disconnects._remembered) == 10_000
    assert disconnects.take() == [str(number) for number in range(15_000, 25_000)]


@pytest.mark.rule(28)
def test_a_listener_ends_with_the_last_server_process():
    pipes = WorkerPipes(1)
    before = set(threading.enumerate())
    Disconnects(pipes.disconnects[0])
    [listener] = set(threading.enumerate()) - before
    pipes._disconnect_writers[0].close()
    listener.join(TIMEOUT)
    assert not listener.is_alive()


def test_without_a_pipe_no_client_disconnects_and_no_thread_listens():
    before = threading.active_count()
    disconnects = Disconnects()
    assert threading.active_count() == before
    assert UID not in disconnects
    assert disconnects.take() == []
