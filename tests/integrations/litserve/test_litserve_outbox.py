"""A worker does not run ahead of the server processes: pipes, and an outbox in front of them."""

import pytest

from batchstream.integrations.litserve._link.pipes import WorkerPipes
from batchstream.integrations.litserve._worker import outbox
from batchstream.integrations.litserve._worker.outbox import Outbox, SendWindow


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(outbox, "_PATIENCE", 0)


@pytest.fixture
def pipes():
    return WorkerPipes(2)


@pytest.mark.rule(19)
def test_four_batches_may_be_under_way_to_a_server_process(pipes):
    window = SendWindow(pipes.receipts[1])
    assert [window.try_acquire(0) for _ in range(5)] == [True] * 4 + [False]
    pipes.send_receipt(1, 0)
    assert [window.try_acquire(0) for _ in range(2)] == [True, False]


@pytest.mark.rule(11)
def test_a_server_process_that_lags_does_not_hold_up_another(pipes):
    window = SendWindow(pipes.receipts[0])
    assert [window.try_acquire(0) for _ in range(5)][-1] is False
    assert window.try_acquire(1)


def test_a_receipt_is_for_its_worker_alone(pipes):
    window = SendWindow(pipes.receipts[0])
    for _ in range(4):
        window.try_acquire(0)
    pipes.send_receipt(1, 0)
    assert not window.try_acquire(0)


def test_without_receipts_no_batch_has_to_wait():
    window = SendWindow()
    assert all(window.try_acquire(0) for _ in range(100))


@pytest.mark.rule(2)
def test_messages_that_are_held_back_are_sent_together_in_their_order(pipes):
    sent = []
    box = Outbox(
        lambda _, __, batch, *___: sent.append([data for _, data, _ in batch[2]]),
        router_uid="router",
        worker=0,
        window=SendWindow(pipes.receipts[0]),
    )
    for number in range(7):
        box.put(0, "uid", number, "OK")
        box.flush()
    assert sent == [[0], [1], [2], [3]]
    pipes.send_receipt(0, 0)
    box.flush()
    assert sent[4:] == [[4, 5, 6]]
    box.put(0, "uid", 7, "OK")
    box.flush(everything=True)
    assert sent[5:] == [[7]]
