"""What a notebook shows of a stream and of a batch: a time line, drawn from what is kept anyway.

It takes nothing out of a stream, waits for nothing, and leaves the state as it is. A source that
runs meanwhile may be a step ahead in one row of what another says.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from batchstream._core.html import (
    MAX_ROWS,
    MAX_VALUES,
    Bar,
    Cell,
    and_more,
    counted,
    end_text,
    shortened,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchstream._core.records import FinishReason
    from batchstream._handoff.buffer import Buffer
    from batchstream._handoff.upstream import Upstream
    from batchstream._pumps.fanout import Fanout

HEAD: Final = ("stream", "time line", "outputs", "unread", "state")
LEGEND: Final = "filled: received or discarded, outlined: unread, →: live"

_MAX_SLOTS: Final = 12


def stream_table(kind: str, buffer: Buffer[Any], upstream: Upstream) -> str:
    """Return the row of one stream, and the outputs that it gives next.

    Args:
        kind: What the stream's class is called.
        buffer: Its buffer.
        upstream: What fills the buffer.
    """
    unread = len(buffer.outputs)
    next_outputs = _first_outputs(buffer)
    notes = [f"next: {shortened(next_outputs, unread)}"] if next_outputs else []
    return table(kind, HEAD, time_line([(buffer, upstream)]), [*notes, LEGEND])


def batch_table(kind: str, fanout: Fanout[Any]) -> str:
    """Return one row for each stream of a batch, and its figures.

    Args:
        kind: What the batch's class is called.
        fanout: Its streams.
    """
    statistics = fanout.statistics()
    shown = fanout.buffers[:MAX_ROWS]
    notes = []
    if more := len(fanout.buffers) - len(shown):
        live = statistics.live - sum(not buffer.ends for buffer in shown)
        notes.append(f"and {counted(more, 'more stream')}, {max(live, 0):,} of them live")
    notes.append(
        f"{counted(statistics.steps, 'step')}, {counted(statistics.outputs, 'output')}, "
        f"{statistics.buffered:,} unread, {statistics.dropped:,} dropped; "
        f"{statistics.live:,} of {counted(len(fanout.buffers), 'stream')} live"
        f"{ended(statistics.finished)}"
    )
    if fanout.view == "by time":
        unread = counted(len(fanout.deliveries.outputs), "delivery", "deliveries")
        notes.append(f"read by time, {unread} unread")
    if slots := statistics.waiting_for:
        named = ", ".join(map(str, slots[:_MAX_SLOTS]))
        notes.append(f"the source waits for slots {named}{and_more(len(slots) - _MAX_SLOTS)}")
    rows = time_line([(buffer, fanout) for buffer in shown])
    return table(kind, HEAD, rows, [*notes, LEGEND])


def time_line(
    streams: Sequence[tuple[Buffer[Any], Upstream | Fanout[Any]]], *, with_slots: bool = False
) -> list[Sequence[Cell]]:
    """Return a row for each stream.

    Args:
        streams: The buffer of each, with what fills it.
        with_slots: Whether a row says which slot the stream is in.
    """
    # What is unread first: if the stream is read or filled meanwhile, it is a part of the whole.
    unread = [len(buffer.outputs) for buffer, _ in streams]
    given = [upstream.given(buffer) for buffer, upstream in streams]
    longest = max([1, *given])
    return [
        (
            buffer.name,
            Bar(max(had - left, 0), min(left, had), longest, is_open=not buffer.ends),
            had,
            left,
            (f"slot {buffer.slot}, " if with_slots else "") + _state(buffer, upstream),
        )
        for (buffer, upstream), left, had in zip(streams, unread, given, strict=True)
    ]


def _state(buffer: Buffer[Any], upstream: Upstream | Fanout[Any]) -> str:
    end = buffer.end
    if end is None:
        return "live, the source waits for it" if upstream.waits_for(buffer) else "live"
    return end_text(end.reason, end.error)


def _first_outputs(buffer: Buffer[Any]) -> list[Any]:
    """Return the first unread outputs; by number, as other threads take and add some meanwhile."""
    first: list[Any] = []
    outputs = buffer.outputs
    with suppress(IndexError):
        while len(first) < MAX_VALUES:
            first.append(outputs[len(first)])
    return first


def ended(finished: Mapping[FinishReason, int]) -> str:
    """Return how many streams have ended, by reason; nothing if none has."""
    reasons = [f"{reason} {count:,}" for reason, count in finished.items()]
    return f"; ended: {', '.join(reasons)}" if reasons else ""
