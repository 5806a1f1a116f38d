"""Pipes on which a server process reports disconnects, and the worker that listens to them."""

import logging
import threading
import uuid

import pytest

from batchstream.integrations.litserve._link.messages import Departure, Failure, new_uid
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
    assert heard == {UID.encode()}
    assert reader.recv_bytes() == b"another"


def test_a_worker_that_does_not_read_its_pipe_does_not_keep_others_from_hearing(caplog):
    pipes = WorkerPipes(2)
    while not caplog.records:
        pipes.send_departure(Departure(UID))
        assert pipes.disconnects[1].recv_bytes() == UID.encode()
    pipes.send_departure(Departure("another"))
    assert pipes.disconnects[1].recv_bytes() == b"another"


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
    failed = Departure(str(number), Failure(504, "late: ü\ud800 " + "x" * 9999, None))
    reported = Departure("reported", Failure(503, {"any": "detail"}, {"retry-after": "1"}), True)
    for departure in (Departure(UID), failed, reported, Departure("last")):
        pipes.send_departure(departure)
    assert disconnects.heard.wait(TIMEOUT)
    assert UID in disconnects
    assert number in disconnects
    assert str(number) in disconnects
    assert "another" not in disconnects
    assert disconnects.departure_of(UID) == Departure(UID)
    assert disconnects.departure_of("another") == Departure("another")
    failure = Failure(504, "late: ü? " + "x" * 390, None)
    assert disconnects.departure_of(number) == Departure(str(number), failure)
    failure = Failure(503, "{'any': 'detail'}", None)
    assert disconnects.departure_of("reported") == Departure("reported", failure, True)
    assert disconnects.take() == [UID, str(number), "reported", "last"]
    assert disconnects.take() == []
    assert UID in disconnects


@pytest.mark.parametrize("character", ["x", "ü", "\N{GRINNING FACE}", "\ud800"])
def test_a_departure_fits_into_one_piece_of_any_systems_pipe(character):
    sent = Departure(new_uid(), Failure(503, "x" + character * 9999, None), is_reported=True)
    message = sent.as_bytes()
    assert len(message) + 4 <= 512  # as PIPE_BUF is at least; the pipe puts the length in front
    received = Departure.of(message)
    assert (received.uid, received.is_reported) == (sent.uid, True)
    assert set(received.failure.detail) == {"x", character.encode(errors="replace").decode()}


@pytest.mark.rule(13)
@pytest.mark.parametrize("message", [b"\xff", b"uid failed", b"uid failed soon text"])
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
