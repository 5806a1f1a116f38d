"""What a notebook shows of streams and batches: the figures, and nothing changes for it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading

from hypothesis import given
from hypothesis import strategies as st

from batchstream import AsyncBatchedStream, BatchedStream, Demultiplexer, Fail, Last
from batchstream._handoff.buffer import Buffer
from batchstream._pumps.fanout import Fanout
from support import knobs
from support.forms import OVER, every_form
from support.sources import TIMEOUT, ScriptedSource, run_in_threads
from support.strategies import batches, same
from support.tables import Table

LEGEND = "filled: received or discarded, outlined: unread, →: live"


def check_table(batch, received):
    """Check a table against the figures of a batch at rest, of which so many were received."""
    table, statistics = Table.of(batch), batch.statistics()
    given_to, unread = table.numbers("outputs"), table.numbers("unread")
    assert sum(given_to) == statistics.outputs
    assert sum(unread) == statistics.buffered
    assert [a - b for a, b in zip(given_to, unread, strict=True)] == received
    longest = max([1, *given_to])
    for (filled, outlined), had, left in zip(table.bars, given_to, unread, strict=True):
        assert filled == round(95 * (had - left) / longest, 2)
        assert outlined == round(95 * left / longest, 2)
    for stream, state, mark in zip(
        batch, table.column("state"), table.column("time line"), strict=True
    ):
        assert state.startswith(str(stream.finish_reason or "live"))
        assert mark == ("→" if stream.finish_reason is None else "")
    assert f"{statistics.steps} step" in table.notes[-2]
    assert f"{statistics.live} of {len(batch)} stream" in table.notes[-2]
    for reason, count in statistics.finished.items():
        assert f"{reason} {count}" in table.notes[-2]
    return table


@given(batches(), st.lists(st.integers(0, 4), max_size=30))
def test_the_bars_are_as_long_as_the_figures_say_and_nothing_is_taken(batch, turns):
    source = ScriptedSource(batch.steps)
    shown = BatchedStream(source, len(batch.slots), eos=batch.eos)
    received = [[] for _ in batch.slots]
    check_table(shown, [0] * len(received))
    assert source.sent == []
    for turn in turns:
        slot = turn % len(received)
        try:
            received[slot].append(next(shown[slot]))
        except (StopIteration, ValueError):  # the end; a `Fail`
            pass
        check_table(shown, list(map(len, received)))
        for stream in shown:
            Table.of(stream)
    failed = []
    for slot, stream in enumerate(shown):
        try:
            received[slot].extend(stream)
        except ValueError:
            failed.append(slot)  # what it gave before is lost to this loop
    for slot, expected in enumerate(batch.slots):
        if slot not in failed:
            assert same(received[slot], expected.outputs)


@every_form
async def test_a_batch_is_shown_before_within_and_after_a_run_and_after_it_is_closed(form):
    error = ValueError("<b>this slot")
    script = form.script(
        [["a", "p", "x"], ["b", Fail(error), "y"], ["c", None, "z"], ["d", None, None]]
    )
    batch = form.open(script, 3, max_buffered=8)
    assert Table.of(batch).column("state") == ["live"] * 3
    assert await form.receive(batch[0]) == "a"
    Table.of(batch)  # while the source runs ahead perhaps
    for output in ("b", "c", "d"):
        assert await form.receive(batch[0]) == output
    if not form.runs_ahead:
        table = check_table(batch, [4, 0, 0])
        assert table.column("state") == ["live", "error: ValueError: <b>this slot", "eos"]
    one = Table.of(batch[2])
    assert one.rows[0][0] == "stream 2"
    assert one.rows[0][2:] == ["3", "3", "eos"]
    assert one.notes == ["next: 'x', 'y', 'z'", LEGEND]
    assert await form.rest(batch[2]) == ["x", "y", "z"]
    assert await form.receive(batch[0]) is OVER
    await form.close(batch)
    table = Table.of(batch)
    assert table.numbers("outputs") == [4, 1, 3]
    assert table.numbers("unread") == [0, 1, 0]
    assert table.column("state") == ["exhausted", "error: ValueError: <b>this slot", "eos"]


@every_form
async def test_a_source_that_fails_is_in_the_state_of_each_stream(form):
    script = form.script([["a", "x"], OSError("device lost")])
    batch = form.open(script, 2)
    outputs, [error] = await form.read(batch[0])
    assert (outputs, type(error)) == (["a"], OSError)
    assert Table.of(batch).column("state") == ["error: OSError: device lost"] * 2
    assert (await form.read(batch[1]))[0] == ["x"]


def test_a_large_batch_is_cut_off_and_the_rest_is_counted():
    with BatchedStream([[n] * 4096 for n in range(3)], 4096) as batch:
        assert next(batch[0]) == 0
        batch[4000].cancel()
        table = Table.of(batch)
        assert len(table.rows) == 32
        assert table.notes[0] == "and 4,064 more streams, 4,063 of them live"
        assert table.notes[1].startswith("1 step, 4,096 outputs, 4,094 unread")


def test_a_cancelled_stream_keeps_its_bar_and_holds_nothing():
    with BatchedStream([["a", "x"], ["b", "y"], ["c", "z"]]) as batch:
        assert [next(batch[0]), next(batch[0])] == ["a", "b"]
        batch[1].cancel()
        check_table(batch, [2, 2])
        assert Table.of(batch[1]).notes == [LEGEND]


def test_a_source_that_waits_for_streams_is_shown_with_them(monkeypatch):
    knobs.set_stall(monkeypatch, 0.0)
    warned, logger, handler = threading.Event(), logging.getLogger("batchstream"), logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda _: warned.set())
    monkeypatch.setattr(logger, "handlers", [handler])
    with BatchedStream(([n] * 20 for n in range(9)), 20, background=True, max_buffered=1) as batch:

        def show():
            assert warned.wait(TIMEOUT)
            table = Table.of(batch)
            assert table.column("state") == ["live", *["live, the source waits for it"] * 19]
            slots = ", ".join(map(str, range(1, 13)))
            assert f"the source waits for slots {slots} and 7 more" in table.notes
            for stream in batch[1:]:
                stream.cancel()

        run_in_threads(lambda: list(batch[0]), show)


def test_a_batch_that_is_read_by_time_says_so():
    with BatchedStream([["a", "x"], ["b", None]]) as batch:
        next(batch.steps())
        table = Table.of(batch)
        assert "read by time, 0 deliveries unread" in table.notes
        assert table.numbers("outputs") == [1, 1]


def test_a_batch_that_was_not_entered_is_shown_as_such():
    async def main():
        batch = AsyncBatchedStream([["a"]])
        assert batch._repr_html_() == "<div>&lt;AsyncBatchedStream, not entered&gt;</div>"
        async with batch:
            assert Table.of(batch).column("state") == ["live"]

    asyncio.run(main())


def test_a_stream_whose_slot_has_another_occupant_shows_its_own_outputs():
    former, present = Buffer(0), Buffer(0)
    fanout = Fanout(Demultiplexer(1), buffers=[former])
    fanout.hand_out(fanout.core.feed([Last("a")]))
    fanout.occupy(0, present, None, None)
    fanout.hand_out(fanout.core.feed(["p"]))
    fanout.hand_out(fanout.core.feed(["q"]))
    assert (fanout.given(former), fanout.given(present)) == (1, 2)


def test_a_batch_can_be_shown_by_a_thread_while_others_read_it():
    with BatchedStream([[n] * 3 for n in range(500)], 3) as batch:
        received = {}

        def read(slot):
            received[slot] = list(batch[slot])

        def show():
            while any(stream.end is None for stream in batch):
                table = Table.of(batch)
                pairs = zip(table.numbers("outputs"), table.numbers("unread"), strict=True)
                assert all(0 <= left <= had for had, left in pairs)
                for stream in batch:
                    Table.of(stream)

        run_in_threads(*(lambda slot=slot: read(slot) for slot in range(3)), show)
        assert [received[slot] for slot in range(3)] == [list(range(500))] * 3


def test_a_program_without_a_notebook_does_not_import_what_it_needs():
    code = (
        "import sys, batchstream as b; repr(b.BatchedStream([[1]]));"
        "assert not [m for m in sys.modules if m.startswith('batchstream') and 'html' in m]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own
