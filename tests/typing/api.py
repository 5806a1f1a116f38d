"""Uses the public names as a user does. Checked with mypy --strict, never run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import assert_type

import batchstream
from batchstream import (
    EOS,
    SKIP,
    BatchedStream,
    Delivery,
    Demultiplexer,
    End,
    Fail,
    FinishReason,
    Last,
    Many,
    Statistics,
    Stream,
    StreamEnd,
    demux,
    token_ids,
)


def words() -> Iterator[list[str | None]]:
    yield ["a", "b"]
    yield [None, "c"]


def feedback() -> Iterator[Mapping[int, object]]:
    yield {0: Last("x", reason="length", info={"tokens": 3}), 1: SKIP}
    yield {1: Many([1, 2, EOS])}
    yield {1: End(FinishReason.LENGTH)}
    yield {1: Fail(ValueError("too long"))}


streams: tuple[Stream[str], ...] = demux(words())
for word in streams[0]:
    assert_type(word, str)
first: str = next(streams[1])
assert_type(streams[0].drain(), list[str])
assert_type(streams[0].slot, int)
assert_type(streams[0].end, StreamEnd | None)
assert_type(streams[0].finish_reason, FinishReason | None)
streams[0].cancel()
with closing(streams[1]) as stream:
    assert_type(stream, Stream[str])

ids: tuple[Stream[int], ...] = demux(
    [[1, 2]],
    2,
    is_eos=token_ids(2, 32000),
    include_eos=True,
    max_outputs=[10, None],
    require_eos=True,
    max_buffered=100,
)
none_is_data: tuple[Stream[int | None], ...] = demux([[1, None]], eos=EOS)
long: tuple[Stream[str], ...] = demux(words(), is_eos=lambda output: output.endswith("."))

one, two = demux(words())
plain = BatchedStream(words(), size=2)
joined = [*one, *two, *plain[0]]

with BatchedStream[str](words(), size=2) as batch:
    assert_type(batch, BatchedStream[str])
    sequence: Sequence[Stream[str]] = batch
    assert_type(batch[0], Stream[str])
    assert_type(batch[0:1], tuple[Stream[str], ...])
    assert_type(batch.live, tuple[int, ...])
    assert_type(batch.statistics(), Statistics)
    batch.cancel(1)
    for delivery in batch.steps():
        assert_type(delivery, Delivery[str])
        assert_type(delivery.outputs, list[tuple[int, str]])
        for slot, end in delivery.ends:
            assert_type(slot, int)
            assert_type(end, StreamEnd)
            assert_type(end.info, Mapping[str, object] | None)  # type: ignore[assert-type]
    batch.close()

core = Demultiplexer[int](2, eos=EOS, is_eos=token_ids(2))
assert_type(core.feed([1, 2]), Delivery[int])
assert_type(core.cancel(0).ends, Sequence[tuple[int, StreamEnd]])
core.open(0)
core.fail(RuntimeError("gone"))
assert_type(core.live, tuple[int, ...])

try:
    next(ids[0])
except batchstream.BufferOverflowError as error:
    assert_type(error.slots, tuple[int, ...])
except batchstream.StepError as error:
    assert_type(error.step, int)
except batchstream.BatchStreamError:
    pass
