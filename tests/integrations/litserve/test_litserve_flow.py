"""A worker does not run ahead of the server processes: pipes, and an outbox in front of them."""

import pytest

from batchstream.integrations.litserve import _flow
from batchstream.integrations.litserve._flow import Receipts, Window
from batchstream.integrations.litserve._outbox import Outbox


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(_flow, "_PATIENCE", 0)


@pytest.fixture
def receipts():
    return Receipts(2)


def test_R19_four_messages_may_be_under_way_to_a_server_process(receipts):
    window = Window(receipts.readers[1])
    assert [window.enter(0) for _ in range(5)] == [True] * 4 + [False]
    receipts.give(1, 0)
    assert [window.enter(0) for _ in range(2)] == [True, False]


def test_R11_a_server_process_that_is_behind_does_not_hold_up_another(receipts):
    window = Window(receipts.readers[0])
    assert [window.enter(0) for _ in range(5)][-1] is False
    assert window.enter(1)


def test_a_receipt_is_for_its_worker_alone(receipts):
    window = Window(receipts.readers[0])
    for _ in range(4):
        window.enter(0)
    receipts.give(1, 0)
    assert not window.enter(0)


def test_without_receipts_nobody_has_to_wait():
    window = Window()
    assert all(window.enter(0) for _ in range(100))


def test_R02_what_is_kept_back_is_sent_together_in_its_order(receipts):
    sent = []
    outbox = Outbox(
        lambda _, __, parcel, *___: sent.append([data for _, data, _ in parcel[2]]),
        sorter="sorter",
        worker=0,
        window=Window(receipts.readers[0]),
    )
    for number in range(7):
        outbox.put(0, "uid", number, "OK")
        outbox.flush()
    assert sent == [[0], [1], [2], [3]]
    receipts.give(0, 0)
    outbox.flush()
    assert sent[4:] == [[4, 5, 6]]
    outbox.put(0, "uid", 7, "OK")
    outbox.flush(entirely=True)
    assert sent[5:] == [[7]]
