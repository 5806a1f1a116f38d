"""Outputs that lie ready: what draining leaves, and the last output before an end."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from batchstream import AsyncBatchedStream, FinishReason, StreamEnd
from support import knobs
from support.interrupts import needs_lines
from support.reading import rest


@needs_lines
@pytest.mark.rule(5)
def test_the_end_is_not_seen_before_the_output_that_came_with_it():
    class Outputs(deque):
        def __bool__(self):
            found = bool(len(self))
            if not buffer.ends:  # the pump strikes here
                self.append("last")
                buffer.finish(StreamEnd(FinishReason.EOS, 1))
            return found

    (stream,) = AsyncBatchedStream([], 1)  # nothing begins: this test plays the pump
    buffer = knobs.hold(stream, Outputs())
    assert asyncio.run(rest(stream)) == ["last"]
