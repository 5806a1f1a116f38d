"""What a notebook shows of a batcher: its queue, the requests in its batches, its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchstream._batching.life import state_text
from batchstream._batching.waiting.limits import slots_of_step
from batchstream._core.html import MAX_ROWS, counted, table
from batchstream._streams.html import HEAD, LEGEND, ended, time_line

if TYPE_CHECKING:
    from batchstream._batching.dispatching.dispatcher import Dispatcher


def batcher_table(kind: str, dispatcher: Dispatcher[Any]) -> str:
    """Return one row for each request that is live in a batch, and the figures.

    Args:
        kind: What the batcher is called.
        dispatcher: The batcher's requests.
    """
    statistics, options = dispatcher.statistics(), dispatcher.options
    fanouts = [batch.pump.fanout for batch in tuple(dispatcher.scheduler.batches)]
    running = [
        (buffer, fanout)
        for fanout in fanouts
        for buffer in sorted(fanout.live_buffers, key=lambda it: it.slot)
    ]
    limits = options.limits.now
    slots = sum(slots_of_step(limits, 0, len(fanout.buffers)) for fanout in fanouts)
    slots = max(slots, len(running))
    joined = sum(size * count for size, count in statistics.batch_sizes.items())
    notes = []
    if (more := len(running) - MAX_ROWS) > 0:
        notes.append(f"and {counted(more, 'more live request')}")
    notes.append(
        f"{state_text(dispatcher.scheduler.state)}; "
        f"{counted(statistics.waiting, 'request')} waiting, of {options.max_pending:,} that may "
        f"(max_pending); {len(running):,} of {counted(slots, 'slot')} "
        f"live in {counted(len(fanouts), 'batch', 'batches')}"
    )
    notes.append(
        f"requests: {statistics.opened:,} accepted, {statistics.refused:,} refused, "
        f"{statistics.live:,} live{ended(statistics.finished)}"
    )
    notes.append(
        f"{counted(statistics.batches, 'batch', 'batches')} formed, "
        f"{counted(statistics.steps, 'step')}, occupancy {statistics.occupancy:.0%}; "
        f"{counted(statistics.outputs, 'output')}, {statistics.buffered:,} unread, "
        f"{statistics.dropped:,} dropped"
    )
    if joined:
        notes.append(
            f"waited for a batch: {statistics.waited / joined:.3g} s on average, "
            f"{statistics.longest_wait:.3g} s at most"
        )
    rows = time_line(running[:MAX_ROWS], with_slots=True)
    return table(kind, ("request", *HEAD[1:]), rows, [*notes, LEGEND] if rows else notes)
