"""What a notebook shows of a batcher: its live requests, its queue, and its figures."""

from __future__ import annotations

import pytest

from batchstream import DynamicBatcher, OverloadedError, batched
from support.engines import every_batcher
from support.sources import TIMEOUT, Gate
from support.tables import Table


@every_batcher
async def test_a_batcher_shows_its_live_requests_its_queue_and_its_figures(form):
    batcher, _, gate = form.held_batcher(2, max_batch_size=2, max_pending=2)
    idle = Table.of(batcher)
    assert (idle.rows, idle.bars) == ([], [])
    assert idle.notes[0].startswith("open; 0 requests waiting, of 2 that may (max_pending)")
    streams = await form.submit_behind(batcher, gate, "abcdef", "p", "q")
    assert await form.receive(streams[0]) == "a"
    assert await form.receive(streams[0]) == "b"
    figures, table = batcher.statistics(), Table.of(batcher)
    assert table.head == ["request", "time line", "outputs", "unread", "state"]
    assert table.rows[0] == ["request 0", "→", "2", "0", "slot 0, live"]
    assert len(table.rows) == figures.live - figures.waiting
    assert sum(table.numbers("unread")) == figures.buffered
    assert f"{figures.waiting} request" in table.notes[0]
    assert f"requests: 3 accepted, 0 refused, {figures.live} live" in table.notes[1]
    assert f"{figures.steps} step" in table.notes[2]
    assert "waited for a batch: " in table.notes[3]
    waiting = Table.of(streams[2])
    assert waiting.rows == [["request 2", "→", "0", "0", "live"]]
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [list("cdef"), ["p"], ["q"]]
    assert Table.of(streams[0]).rows[0][2:] == ["6", "0", "eos"]
    await form.close(batcher)
    closed = Table.of(batcher)
    assert closed.rows == []
    assert closed.notes[0].startswith("closed; 0 requests waiting")
    assert "3 accepted, 0 refused, 0 live; ended: eos 3" in closed.notes[1]


def test_a_large_batch_of_requests_is_cut_off_and_refusals_are_counted():
    gate = Gate()

    @batched(max_batch_size=40, max_pending=1, batch_timeout=60.0)
    def reply(requests):
        gate.pass_through()
        yield requests

    streams = [reply.stream(f"<{number}>") for number in range(40)]
    assert gate.reached.wait(TIMEOUT)
    streams.append(reply.stream("waits"))
    with pytest.raises(OverloadedError):
        reply.stream("refused")
    table = Table.of(reply)
    assert table.caption.startswith("batched test_a_large_batch")
    assert table.caption.endswith("<locals>.reply")
    assert table.column("state") == [f"slot {slot}, live" for slot in range(32)]
    assert table.notes[0] == "and 8 more live requests"
    assert table.notes[1] == (
        "open; 1 request waiting, of 1 that may (max_pending); 40 of 40 slots live in 1 batch"
    )
    assert "41 accepted, 1 refused, 41 live" in table.notes[2]
    gate.opened.set()
    reply.close()


def test_a_batcher_whose_model_fails_shows_the_requests_as_ended():
    def fn(requests):
        yield requests
        raise OSError("device <lost>")

    with DynamicBatcher(fn, max_batch_size=2) as batcher:
        stream = batcher.stream("a")
        assert next(stream) == "a"
        with pytest.raises(OSError, match="device"):
            next(stream)
        assert Table.of(stream).column("state") == ["error: OSError: device <lost>"]
    assert "ended: error 1" in Table.of(batcher).notes[1]
