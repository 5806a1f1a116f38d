"""Uses the public names as a user does. Checked with mypy --strict, never run."""

import operator
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any, Literal, assert_type

import numpy as np
from litserve import LitAPI

import batchstream
from batchstream import (
    EOS,
    SKIP,
    AsyncBatchedStream,
    AsyncReplies,
    AsyncStream,
    BatchedStream,
    BatcherStatistics,
    BatchTrace,
    Channel,
    ContinuousBatcher,
    Delivery,
    Demultiplexer,
    DynamicBatcher,
    End,
    Fail,
    FinishReason,
    Last,
    Many,
    Metrics,
    NotNow,
    Replies,
    RequestError,
    RequestTrace,
    Requeue,
    Statistics,
    StepEngine,
    Stream,
    StreamEnd,
    Traces,
    batched,
    demux,
    paced,
    per_request,
    token_ids,
)
from batchstream.integrations import ray
from batchstream.integrations.grpc import (
    AsyncServerInterceptor,
    ServerInterceptor,
    Status,
    status_of,
    timeout_of,
)
from batchstream.integrations.litserve import (
    BatchedStreamLoop,
    ChatCompletionRequest,
    ContinuousBatchLoop,
    OpenAISpec,
    ReceivedRequest,
)
from batchstream.integrations.prometheus import PrometheusMetrics
from batchstream.integrations.transformers import (
    BatchStreamer,
    Generation,
    Token,
    TransformersEngine,
    stream_generate,
    stream_text,
)
from batchstream.remote import (
    ConnectionLostError,
    RemoteBatcher,
    aserve,
    connect,
    serve,
    serving,
)
from batchstream.text import (
    AsyncDecodedSteps,
    DecodedSteps,
    DecodingEngine,
    Detokenizer,
    Piece,
    PieceDecoder,
    StopStrings,
    TextDecoder,
    decode_steps,
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
assert_type(batchstream.__version__, str)
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


# ---- what a step may hold says what a stream gives


def numbers() -> Generator[dict[int, int | Last[int] | Many[int] | End], tuple[int, ...], None]:
    live = yield {0: 1, 1: Last(2, "exhausted")}
    yield {slot: Many([1, 2]) for slot in live}


def pairs() -> Iterator[tuple[tuple[int, float], ...]]:
    yield ((2, -0.5), (3, -0.1))


def arrays() -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    yield np.zeros(2, np.int64)


def is_full_stop(word: str) -> bool:
    return word == "."


def ends_with_usage(word: str) -> End | None:
    return End("eos", {"tokens": 3}) if word == "." else None


assert_type(demux(words()), tuple[Stream[str], ...])
assert_type(demux(words(), eos=EOS), tuple[Stream[str | None], ...])
assert_type(demux(words(), is_eos=is_full_stop), tuple[Stream[str], ...])
assert_type(demux(words(), is_eos=ends_with_usage), tuple[Stream[str], ...])
assert_type(demux(numbers(), 2, is_eos=token_ids([2, 3], None)), tuple[Stream[int], ...])
assert_type(demux(pairs(), is_eos=token_ids(2, key=0)), tuple[Stream[tuple[int, float]], ...])
assert_type(demux(arrays()), tuple[Stream[Any], ...])
assert_type(demux(feedback(), 2), tuple[Stream[object], ...])
assert_type(BatchedStream(words()), BatchedStream[str])
assert_type(BatchedStream(words(), eos=EOS), BatchedStream[str | None])
assert_type(BatchedStream(numbers(), 2, background=True), BatchedStream[int])
assert_type(BatchedStream(arrays()), BatchedStream[Any])
assert_type(AsyncBatchedStream(words()), AsyncBatchedStream[str])
assert_type(AsyncBatchedStream(numbers(), 2, eos=EOS), AsyncBatchedStream[int])

# `is_eos` may be made for any output, and one made for another kind is refused.
assert_type(token_ids(2)("whatever"), bool)
objects: Stream[object] = demux(words())[0]

with BatchedStream[str](words(), size=2) as batch:
    assert_type(batch, BatchedStream[str])
    sequence: Sequence[Stream[str]] = batch
    assert_type(batch[0], Stream[str])
    assert_type(batch[0:1], tuple[Stream[str], ...])
    assert_type(batch.live, tuple[int, ...])
    assert_type(batch.statistics(), Statistics)
    assert_type(batch.statistics().waiting_for, tuple[int, ...])
    assert_type(batch.collect(), list[list[str]])
    batch.cancel(1)
    for delivery in batch.steps():
        assert_type(delivery, Delivery[str])
        assert_type(delivery.outputs, list[tuple[int, str]])
        for slot, end in delivery.ends:
            assert_type(slot, int)
            assert_type(end, StreamEnd)
            assert_type(end.info, Mapping[str, object] | None)  # type: ignore[assert-type]
    batch.close()

with BatchedStream[str](
    words(), background=True, max_buffered=8, on_overflow="cancel"
) as in_background:
    assert_type(in_background[0].receive(timeout=0.5), str)
    assert_type(in_background[1].receive(), str)
free: list[Stream[str]] = list(BatchedStream[str](words(), background=True))
BatchedStream(words(), background=True, on_overflow="drop")  # type: ignore[call-overload]
merged = BatchedStream(words(), background=True, on_overflow="merge", merge=operator.add)
assert_type(merged[0], Stream[str])
BatchedStream(words(), background=True, max_buffered_bytes=1000, size_of=len)
BatchedStream(words(), background=True, max_buffered_bytes="1")  # type: ignore[call-overload]


async def async_words() -> AsyncIterator[list[str | None]]:
    yield ["a", "b"]
    yield [None, "c"]


async def async_feedback() -> AsyncIterator[Mapping[int, object]]:
    yield {0: Last("x", reason="length"), 1: SKIP}


def takes_what_they_are(_: AsyncIterator[str], __: Sequence[AsyncStream[str]]) -> None:
    """A stream is an iterator, and a batch a sequence of them."""


def at_a_pace(stream: AsyncStream[str], batch: AsyncBatchedStream[str]) -> None:
    assert_type(paced(stream), AsyncGenerator[list[str], None])
    assert_type(paced(stream, every=0.1, encode="".join), AsyncGenerator[str, None])
    paced(stream, encode=str.encode)  # type: ignore[arg-type]
    paced(batch)  # type: ignore[call-overload]


async def in_an_event_loop() -> None:
    assert_type(demux(async_words(), 2), tuple[AsyncStream[str], ...])
    assert_type(demux(async_words(), 2, eos=EOS), tuple[AsyncStream[str | None], ...])
    assert_type(AsyncBatchedStream(async_words(), 2), AsyncBatchedStream[str])
    objects: AsyncStream[object] = demux(async_words(), 2)[0]
    objects.cancel()

    streams: tuple[AsyncStream[str], ...] = demux(async_words(), 2)
    async for word in streams[0]:
        assert_type(word, str)
    assert_type(await anext(streams[1]), str)
    everything = [word async for word in streams[1]]
    assert_type(everything, list[str])
    assert_type(streams[0].drain(), list[str])
    assert_type(streams[0].slot, int)
    assert_type(streams[0].end, StreamEnd | None)
    assert_type(streams[0].finish_reason, FinishReason | None)
    streams[0].cancel()
    await streams[0].aclose()
    async with aclosing(streams[1]) as stream:
        assert_type(stream, AsyncStream[str])
    takes_what_they_are(streams[1], streams)

    ids: tuple[AsyncStream[int], ...] = demux(
        async_feedback(),
        size=2,
        eos=EOS,
        is_eos=token_ids(2, 32000),
        include_eos=True,
        max_outputs=[10, None],
        require_eos=True,
        max_buffered=8,
        on_overflow="cancel",
    )
    demux(async_feedback(), 2, on_overflow="wait")
    demux(async_feedback(), 2, on_overflow="drop")  # type: ignore[call-overload]
    demux(async_feedback())  # type: ignore[call-overload]

    async with AsyncBatchedStream[str](async_words(), size=2) as batch:
        assert_type(batch, AsyncBatchedStream[str])
        takes_what_they_are(batch[0], batch)
        assert_type(batch[0], AsyncStream[str])
        async with batch[0] as owned:
            assert_type(owned, AsyncStream[str])
            assert_type(owned.body(), AsyncGenerator[str, None])
            assert_type(owned.body(encode=str.encode), AsyncGenerator[bytes, None])
            owned.body(encode=int.bit_length)  # type: ignore[arg-type]
            assert_type(await owned.begin(), AsyncGenerator[str, None])
            assert_type(await owned.begin(encode=str.encode), AsyncGenerator[bytes, None])
            owned.close()
        assert_type(batch[0:1], tuple[AsyncStream[str], ...])
        assert_type(batch.live, tuple[int, ...])
        assert_type(batch.statistics(), Statistics)
        assert_type(await batch.collect(), list[list[str]])
        batch.cancel(1)
        async for delivery in batch.steps():
            assert_type(delivery, Delivery[str])
            assert_type(delivery.outputs, list[tuple[int, str]])
        await batch.aclose()

    async with AsyncBatchedStream[str](words(), max_buffered=8, on_overflow="cancel") as threaded:
        for each in threaded:
            assert_type(each, AsyncStream[str])

    try:
        await anext(ids[0])
    except batchstream.SlowConsumerError as error:
        assert_type(error.slot, int)
        assert_type(error.max_buffered, int)


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


def translate(texts: list[str]) -> Iterator[list[str | None]]:
    yield [text.upper() for text in texts]


async def translate_async(texts: list[str]) -> AsyncIterator[list[str]]:
    yield texts


class Printed(Metrics):
    def submitted(self, **_: object) -> None: ...
    def refused(self, reason: str, *, tenant: object = None) -> None: ...
    def joined(self, waited: Sequence[float], **_: object) -> None: ...
    def stepped(self, live: int, capacity: int, *_: object, **__: object) -> None: ...
    def finished(self, end: StreamEnd, **_: object) -> None: ...


printed: Metrics = Printed()


class Followed(RequestTrace):
    def joined(self, batch: BatchTrace | None) -> None: ...
    def ended(self, end: StreamEnd) -> None: ...


class Followers(Traces):
    def submitted(self, request: object, **_: object) -> RequestTrace | None:
        return Followed()

    def joined(self, requests: Sequence[RequestTrace]) -> BatchTrace | None:
        return BatchTrace()


DynamicBatcher[str, str](translate, max_batch_size=8, traces=Followers())
DynamicBatcher[str, str](translate, max_batch_size=8, traces=Followers)  # type: ignore[call-overload]

with DynamicBatcher[str, str](translate, max_batch_size=8) as batcher:
    assert_type(batcher.stream("a", timeout=1.5, wait_timeout=1), Stream[str])
    assert_type(batcher.astream("a", first_timeout=1, gap_timeout=0.5), AsyncStream[str])
    assert_type(batcher.map(["a"], first_timeout=1, gap_timeout=0.5), Replies[list[str]])
    batcher.stream("a", gap_timeout="1")  # type: ignore[arg-type]
    assert_type(batcher.statistics(), BatcherStatistics)
    assert_type(batcher.statistics().refusals, Mapping[str, int])
    assert_type(batcher.astream("a", request_id="b-1"), AsyncStream[str])
    batcher.stream("a", request_id=1)  # type: ignore[arg-type]
    batcher.stream(1)  # type: ignore[arg-type]
    assert_type(batcher.state, Literal["accepting", "draining", "closed"])
    assert_type(batcher.ready, bool)
    assert_type(batcher.name, str | None)
    batcher.state = "closed"  # type: ignore[misc]
    assert_type(batcher.max_batch_size, int)
    assert_type(batcher.max_pending, int)
    assert_type(batcher.batch_timeout, float)
    assert_type(batcher.max_batch_cost, float | None)
    assert_type(batcher.max_pending_cost, float | None)
    assert_type(batcher.max_pending_per_tenant, int | None)
    batcher.max_batch_size = 4  # type: ignore[misc]
    batcher.reconfigure(max_batch_size=4, batch_timeout=0.1, max_pending=9, max_batch_cost=2.5)
    batcher.reconfigure(max_pending_cost=float("inf"), max_pending_per_tenant=4)
    batcher.reconfigure(max_pending_per_tenant=1.5)  # type: ignore[arg-type]
    batcher.reconfigure(max_step_cost=2.5)  # type: ignore[call-arg]
    batcher.reconfigure(4)  # type: ignore[call-arg]
    batcher.reconfigure(workers=2)  # type: ignore[call-arg]
    batcher.warm_up(["a", "b"], timeout=60)
    batcher.warm_up([1])  # type: ignore[list-item]
    batcher.wait_for_room()
    batcher.wait_for_room(1.5, cost=12)
    batcher.wait_for_room(1.5, request="a")
    batcher.wait_for_room(request=1)  # type: ignore[arg-type]
    batcher.close(drain=30)
    batcher.close(30)  # type: ignore[call-arg]
    assert_type(batcher.map(["a", "b"], timeout=1.5, wait_timeout=1), Replies[list[str]])
    for reply in batcher.map(iter(["a", "b"])):
        assert_type(reply, list[str])
    for number, reply in batcher.map(["a"], ordered=False):
        assert_type(number, int)
        assert_type(reply, list[str])
    batcher.map([1])  # type: ignore[list-item]
    with closing(batcher.map(["a"])) as replies:
        assert_type(next(replies), list[str])

DynamicBatcher(
    translate_async,
    max_batch_size=8,
    batch_timeout=0.01,
    max_pending=100,
    workers=2,
    key=len,
    cost=len,
    max_batch_cost=4096,
    max_pending_cost=8192,
    priority=len,
    tenant=lambda text: text[:1],
    share=lambda text: 2.0,
    max_pending_per_tenant=10,
    eos=EOS,
    is_eos=token_ids(2),
    include_eos=True,
    max_outputs=lambda text: 2 * len(text),
    require_eos=True,
    max_buffered=8,
    on_overflow="wait",
    metrics=printed,
    drain=30,
    name="translations",
)
DynamicBatcher(translate, max_batch_size=8, drain="30")  # type: ignore[call-overload]
DynamicBatcher(translate, max_batch_size=8, on_overflow="drop")  # type: ignore[call-overload]
DynamicBatcher(translate, max_batch_size=8, priority=str)  # type: ignore[arg-type]
joining = DynamicBatcher(translate, max_batch_size=8, on_overflow="merge", merge=operator.add)
assert_type(joining.stream("a"), Stream[str])
DynamicBatcher(translate, max_batch_size=8, max_buffered_bytes=1000, size_of=len)


class Prompt:
    stop_ids: list[int]


def generate(prompts: list[Prompt]) -> Iterator[list[int]]:
    yield [len(prompt.stop_ids) for prompt in prompts]


def stops_of(prompt: Prompt) -> Callable[[int], bool] | None:
    return token_ids(prompt.stop_ids) if prompt.stop_ids else None


def stops_of_text(prompt: Prompt) -> Callable[[str], bool]:
    return str(prompt.stop_ids).endswith


assert_type(per_request(stops_of), per_request[Prompt, int])
with DynamicBatcher(generate, max_batch_size=8, is_eos=per_request(stops_of)) as stopping:
    assert_type(stopping, DynamicBatcher[Prompt, int])
    assert_type(stopping.stream(Prompt()), Stream[int])
with DynamicBatcher(
    generate, max_batch_size=8, is_eos=per_request(lambda prompt: token_ids(prompt.stop_ids))
) as stopping:
    assert_type(stopping, DynamicBatcher[Prompt, int])
per_request(2)  # type: ignore[arg-type]
per_request(lambda prompt: 2)  # type: ignore[arg-type, return-value]
demux([[1, 2]], is_eos=per_request(stops_of))  # type: ignore[call-overload]


class PromptEngine:
    def add(self, slot: int, request: Prompt) -> None: ...
    def step(self) -> dict[int, int]:
        return {}

    def remove(self, slot: int) -> None: ...


with ContinuousBatcher(PromptEngine(), max_batch_size=8, is_eos=per_request(stops_of)) as refilled:
    assert_type(refilled, ContinuousBatcher[Prompt, int])
with ContinuousBatcher(
    PromptEngine, max_batch_size=8, is_eos=per_request(lambda prompt: token_ids(prompt.stop_ids))
) as refilled:
    assert_type(refilled, ContinuousBatcher[Prompt, int])
ContinuousBatcher(  # type: ignore[misc]
    PromptEngine, max_batch_size=8, is_eos=per_request(stops_of_text)
)


@batched(is_eos=per_request(stops_of))
def generated(prompts: list[Prompt]) -> Iterator[list[int]]:
    yield [len(prompt.stop_ids) for prompt in prompts]


assert_type(generated, DynamicBatcher[Prompt, int])
core.open(0, is_eos=stops_of(Prompt()))
core.open(1, is_eos=per_request(stops_of))  # type: ignore[arg-type]


@batched(max_batch_size=4, workers=2, max_pending=16, tenant=str, max_pending_per_tenant=4)
def shout(texts: list[str]) -> Iterator[list[str]]:
    yield texts


@batched
def shout_plainly(texts: list[str]) -> Iterator[list[str]]:
    yield texts


class Model:
    @batched(max_batch_size=4)
    def generate(self, prompts: list[int]) -> Iterator[list[str]]:
        yield ["a"] * len(prompts)

    @batched
    def embed(self, prompts: list[str]) -> Iterator[list[float | None]]:
        yield [0.5] * len(prompts)


@batched(max_batch_size=4, eos=EOS)
def with_none(texts: list[str]) -> Iterator[list[str | None]]:
    yield [None]


@batched
async def whisper(texts: list[str]) -> AsyncIterator[list[str | Last[str]]]:
    yield [Last(text) for text in texts]


@batched
def untyped(texts: list[str]) -> Any:
    yield texts


assert_type(DynamicBatcher(translate, max_batch_size=8), DynamicBatcher[str, str])
assert_type(DynamicBatcher(translate_async, max_batch_size=8), DynamicBatcher[str, str])
assert_type(shout, DynamicBatcher[str, str])
assert_type(shout_plainly.stream("a"), Stream[str])
assert_type(whisper.astream("a"), AsyncStream[str])
assert_type(with_none.stream("a"), Stream[str | None])
assert_type(Model().generate.stream(1), Stream[str])
assert_type(Model().embed.stream("a"), Stream[float])
assert_type(untyped.stream("a"), Stream[Any])
loud: Stream[str] = shout.stream("a")
all_loud: Iterator[list[str]] = shout.map(["a"])


with loud as quiet:
    assert_type(quiet, Stream[str])
shout.stream(1)  # type: ignore[arg-type]
shout_plainly.stream("a")
Model().generate.stream(1)
Model().generate.stream("a")  # type: ignore[arg-type]
batched(max_batch_size=4, worker=2)  # type: ignore[call-overload]


class Engine:
    def add(self, slot: int, request: bytes) -> None: ...
    def step(self) -> dict[int, int | Last[int] | None]:
        return {0: 1, 1: Last(2), 2: None}

    def remove(self, slot: int) -> None: ...


engine: StepEngine[bytes, int] = Engine()


class TooLongError(RequestError):
    """A user's own."""


class ClosedEngine(Engine):
    def add(self, slot: int, request: bytes) -> None:
        if len(request) > 9:
            raise TooLongError("too long")
        raise NotNow

    def close(self) -> None: ...


class PreemptingEngine:
    def add(self, slot: int, request: bytes) -> None: ...
    def remove(self, slot: int) -> None: ...
    def step(self) -> dict[int, int | Many[int] | Requeue]:
        return {0: Requeue(b"the rest"), 1: Requeue()}

    def step_cost(self, slot: int) -> float:
        return 2.0


closed_engine: StepEngine[bytes, int] = ClosedEngine()
preempting_engine: StepEngine[bytes, int] = PreemptingEngine()
ContinuousBatcher[bytes, int](PreemptingEngine, max_batch_size=4, step_cost=len, max_step_cost=512)
ContinuousBatcher[bytes, int](ClosedEngine, max_batch_size=4)
rejection: batchstream.BatchStreamError = TooLongError("too long")
failed: Fail = Fail(RequestError("too long"))


# ---- one result for each request


def embed(texts: list[str]) -> list[bytes]:
    return [text.encode() for text in texts]


async def embed_async(texts: list[str]) -> tuple[bytes, ...]:
    return tuple(embed(texts))


with DynamicBatcher(embed, single=True, max_batch_size=8, metrics=Printed) as embedder:
    assert_type(embedder, DynamicBatcher[str, bytes])
    assert_type(embedder.call("a", timeout=1.5, wait_timeout=1), bytes)
    assert_type(embedder.call("a", first_timeout=1.5), bytes)
    assert_type(embedder.stream("a"), Stream[bytes])
    embedder.call(1)  # type: ignore[arg-type]

DynamicBatcher(embed, single=True, max_batch_size=8, max_outputs=1)  # type: ignore[call-overload]
DynamicBatcher(translate, max_batch_size=8, metrics=lambda: printed)
DynamicBatcher(translate, max_batch_size=8, metrics=[printed, PrometheusMetrics(), Printed])
ContinuousBatcher(engine, max_batch_size=4, metrics=Printed)


@batched(single=True, max_batch_size=4, max_pending=16, priority=len, tenant=str, share=len)
def embed_many(texts: list[str]) -> list[bytes]:
    return embed(texts)


@batched(single=True)
async def embed_many_async(texts: list[str]) -> list[bytes]:
    return embed(texts)


class Embedder:
    @batched(single=True)
    def embed(self, texts: list[str]) -> list[bytes]:
        return embed(texts)

    @batched(single=True)
    async def embed_async(self, texts: list[str]) -> list[bytes]:
        return embed(texts)


async def in_a_loop() -> None:
    assert_type(await embed_many.acall("a"), bytes)
    assert_type(await embed_many_async.acall("a", timeout=1), bytes)
    assert_type(await Embedder().embed.acall("a"), bytes)
    assert_type(await Embedder().embed_async.acall("a"), bytes)
    async with DynamicBatcher(embed_async, single=True, max_batch_size=8) as embedder:
        assert_type(await embedder.acall("a"), bytes)
    await embed_many.acall(1)  # type: ignore[arg-type]
    batched(single=True, eos=1)  # type: ignore[call-overload]


try:
    embed_many.call("a")
except batchstream.ForkedError:
    pass


async def requests() -> AsyncIterator[bytes]:
    yield b"a"


async def continuous() -> None:
    async with ContinuousBatcher(engine, max_batch_size=4, cost=len, max_batch_cost=10) as joined:
        assert_type(joined, ContinuousBatcher[bytes, int])
        stream = joined.astream(b"a", timeout=1)
        assert_type(stream, AsyncStream[int])
        assert_type(await anext(stream), int)
        joined.astream("a")  # type: ignore[arg-type]
        assert_type(joined.amap([b"a"], timeout=1), AsyncReplies[list[int]])
        async for reply in joined.amap(requests()):
            assert_type(reply, list[int])
        async for number, reply in joined.amap([b"a"], ordered=False):
            assert_type(number, int)
            assert_type(reply, list[int])
        async with aclosing(joined.amap([b"a"])) as replies:
            assert_type(await anext(replies), list[int])
    ContinuousBatcher[bytes, int](Engine, max_batch_size=4)
    ContinuousBatcher(engine, max_batch_size=4, priority=len, tenant=bytes.decode, share=len)
    ContinuousBatcher(object(), max_batch_size=4)  # type: ignore[call-overload]
    try:
        joined.astream(b"a")
    except batchstream.OverloadedError as error:
        assert_type(error.pending, int)
        assert_type(error.max_pending, int)
        assert_type(error.reason, Literal["pending", "pending_cost", "tenant"])
        assert_type(error.pending_cost, float | None)
    except batchstream.DeadlineError as error:
        assert_type(error.timeout, float)


# ---- LitServe


def limit(context: Mapping[str, Any]) -> int | None:
    return context.get("max_tokens")


def stops_in_context(context: Mapping[str, Any]) -> Callable[[object], bool] | None:
    stop_ids = context.get("stop_ids")
    return token_ids(stop_ids) if stop_ids else None


class ServedEngine:
    def __init__(self, lit_api: LitAPI) -> None:
        self.device = lit_api.device

    def add(self, slot: int, request: str) -> None: ...
    def step(self) -> Mapping[int, str | Last[str] | None]:
        return {}

    def remove(self, slot: int) -> None: ...


def make_engine(lit_api: LitAPI) -> ServedEngine:
    return ServedEngine(lit_api)


class Service(LitAPI):
    def encode_response(self, output: Iterator[str], **kwargs: object) -> Iterator[dict[str, str]]:
        for word in output:
            yield {"word": word}


def urgency(request: ReceivedRequest) -> int:
    return int(request.headers.get("x-priority", "0"))


def api_key(request: ReceivedRequest) -> str | None:
    assert_type(request.request_id, str)
    return request.headers.get("x-api-key")


class AskedRequest(ChatCompletionRequest):
    top_k: int = 50


def litserve_loops() -> None:
    BatchedStreamLoop()
    BatchedStreamLoop(
        eos_in="predict",
        eos=EOS,
        is_eos=token_ids(2),
        include_eos=True,
        max_outputs=limit,
        require_eos=True,
        max_pending=64,
    )
    BatchedStreamLoop(eos_in="unbatch")  # type: ignore[arg-type]
    BatchedStreamLoop(
        priority=urgency,
        tenant=api_key,
        share=lambda request: 2.5,
        cost=lambda request: len(request.payload),
        max_pending_per_tenant=5,
        first_timeout=10,
        gap_timeout=2.5,
        grace_period=25,
        metrics=PrometheusMetrics,
        name="chat",
    )
    ContinuousBatchLoop(make_engine, priority=urgency, tenant=api_key, metrics=Metrics)
    ContinuousBatchLoop(make_engine, priority=api_key)  # type: ignore[arg-type]
    ContinuousBatchLoop(make_engine, metrics=Metrics())  # type: ignore[arg-type]
    ContinuousBatchLoop(make_engine, step_cost=len, max_step_cost=8)
    ContinuousBatchLoop(make_engine, step_cost=8, max_step_cost=8)  # type: ignore[arg-type]
    BatchedStreamLoop(
        max_buffered=8,
        on_overflow="merge",
        merge=lambda earlier, later: earlier + later,
        max_buffered_bytes=1000,
        size_of=len,
    )
    BatchedStreamLoop(on_overflow="wait")  # type: ignore[arg-type]
    ContinuousBatchLoop(make_engine, on_overflow="cancel", max_buffered_bytes=1000, size_of=len)
    ContinuousBatchLoop(make_engine, on_overflow="merge", merge=len)  # type: ignore[arg-type]
    ContinuousBatchLoop(make_engine, max_outputs=8)
    BatchedStreamLoop(is_eos=per_request(stops_in_context))
    ContinuousBatchLoop(make_engine, is_eos=per_request(stops_in_context))
    Service(stream=True, max_batch_size=4, loop=ContinuousBatchLoop(ServedEngine, max_pending=None))
    Service(spec=OpenAISpec(), max_batch_size=4, loop=BatchedStreamLoop(max_outputs=limit))
    OpenAISpec(request_type=AskedRequest, models=("small", "large"), ping=15, handles_stop=True)
    OpenAISpec(request_type=Service)  # type: ignore[arg-type]


async def pushed(step: list[str | None]) -> None:
    channel = Channel[str](2, eos=None, max_outputs=[None, 3], on_overflow="cancel")
    Channel[str](2, on_overflow="merge", merge=lambda earlier, later: earlier + later)
    Channel[str](2, max_buffered_bytes=1000, size_of=len)
    Channel[str](2, max_buffered_bytes=1000, size_of=lambda output: output)  # type: ignore[arg-type, return-value]
    assert_type(channel.streams(), tuple[Stream[str], ...])
    assert_type(channel.put(step), Sequence[int])
    assert_type(await channel.aput({0: "a"}), Sequence[int])
    channel.end(0, "length", {"tokens": 3})
    channel.end(1, FinishReason.EOS)
    with channel as same:
        assert_type(same, Channel[str])
    ids: Channel[int] = Channel(2, is_eos=token_ids(2))
    assert_type(ids.astreams(), tuple[AsyncStream[int], ...])
    any_output = Channel(2)
    assert_type(any_output, Channel[Any])
    assert_type(any_output.live, tuple[int, ...])
    any_output.fail(ValueError())
    any_output.close()


def sources_of_transformers(model: Any, tokenizer: Any, inputs: dict[str, Any]) -> None:
    ids = stream_generate(model, inputs, max_new_tokens=[5, 9], do_sample=True, drop_rows=False)
    for step in ids:
        assert_type(step, list[Any] | dict[int, Any])
    chat = [{"role": "user", "content": "hello"}]
    text = stream_text(
        model, tokenizer, ["hello", chat, [5, 6]], max_new_tokens=9, stop=[["a"], None, ["b", "c"]]
    )
    with BatchedStream(text, 3) as batch:
        assert_type(batch[0].cancel(), None)

    @batched(max_batch_size=8)
    def replies(prompts: list[str]) -> Iterator[list[Any]]:
        return stream_text(model, tokenizer, prompts, max_new_tokens=9, stop="so")

    assert_type(replies.stream("hello"), Stream[Any])


def streamer_of_transformers(tokenizer: Any, generate: Callable[..., list[int]]) -> None:
    streamer: BatchStreamer[str] = BatchStreamer(tokenizer, skip_prompt=True, size=2, stop=["a"])
    assert_type(streamer.streams(), tuple[Stream[str], ...])
    assert_type(streamer.run(generate, max_new_tokens=9), list[int] | None)
    ids: BatchStreamer[int] = BatchStreamer(eos_token_id=[2, 3], max_new_tokens=[5], timeout=1.5)
    for token in ids:
        assert_type(token, int)


class RayDeployment:
    @ray.batch(max_batch_size=8, batch_wait_timeout_s=0.1, max_concurrent_batches=2, max_pending=9)
    async def tokens(self, prompts: list[str]) -> AsyncIterator[list[int | type[StopIteration]]]:
        yield [len(prompt) for prompt in prompts]
        yield [StopIteration for _ in prompts]

    @ray.batch
    async def lengths(self, prompts: list[str]) -> list[int]:
        return [len(prompt) for prompt in prompts]

    @ray.batch(batch_size_fn=len, key=len, metrics=PrometheusMetrics)
    def in_thread(self, prompts: list[str]) -> list[bytes]:
        return [prompt.encode() for prompt in prompts]

    @ray.batch(pace=0.02, timeout=15, max_outputs=9)
    async def paced(self, prompts: list[str]) -> AsyncIterator[list[int]]:
        yield [len(prompt) for prompt in prompts]

    @ray.batch(decode=lambda _: Detokenizer(Tokenizer()), pace=0.02, timeout=len)
    async def text(self, prompts: list[str]) -> AsyncIterator[list[int]]:
        yield [len(prompt) for prompt in prompts]

    def reconfigure(self, config: dict[str, Any]) -> None:
        self.tokens.set_max_batch_size(config["max_batch_size"])
        self.tokens.set_batch_wait_timeout_s(config["batch_wait_timeout_s"])


@ray.batch
def halves(numbers: list[int]) -> Iterator[list[float | None]]:
    yield [number / 2 or None for number in numbers]


@ray.batch(max_batch_size=4)
async def sums(lefts: list[int], rights: list[int]) -> list[int]:
    return [left + right for left, right in zip(lefts, rights, strict=True)]


async def ray_batches(model: RayDeployment) -> None:
    assert_type(model.tokens("a"), AsyncGenerator[int, None])
    assert_type(await model.lengths("a"), int)
    assert_type(await model.in_thread("a"), bytes)
    assert_type(halves(1), AsyncGenerator[float | None, None])
    assert_type(await sums(1, 2), Any)
    assert_type(model.paced("a"), AsyncGenerator[list[int], None])
    assert_type(model.text("a"), Any)
    assert_type(model.tokens.statistics(), BatcherStatistics)
    await halves.aclose(drain=1)
    await sums.aclose()
    assert_type(ray.warn_if_never_full(8, max_concurrent_batches=2), bool)
    error = ray.ItemSizeError("too large")
    as_request_error: RequestError = error
    as_runtime_error: RuntimeError = error
    assert_type((as_request_error, as_runtime_error), tuple[RequestError, RuntimeError])


# ---- text


class Tokenizer:
    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


class Tokens:
    def add(self, slot: int, request: str) -> None: ...

    def step(self) -> dict[int, int]:
        return {}

    def remove(self, slot: int) -> None: ...


class Frames:
    """A decoder of a program's own."""

    matched: object = None
    info: Mapping[str, Any]

    def feed(self, *samples: int) -> bytes | None: ...

    def finish(self) -> bytes | None: ...


def text_of(request: str) -> TextDecoder:
    return TextDecoder(Tokenizer(), stop=["STOP"], include_stop=True, prompt_ids=[1, 2])


def frames_of(request: str) -> Frames | None:
    return Frames()


def decoder_of(api: Service, context: dict[str, Any]) -> TextDecoder:
    return TextDecoder(Tokenizer(), stop=context["stop"])


def token_steps(requests: list[str]) -> Iterator[list[int]]:
    yield [1 for _ in requests]


async def some_token_steps() -> AsyncIterator[list[int]]:
    yield [1]


def text() -> None:
    stops = StopStrings("STOP", "\n", include=True)
    assert_type(stops.feed("a", "b"), str)
    assert_type(stops.matched, str | None)
    assert_type(Detokenizer(Tokenizer()).feed(1, 2), str)
    decoder = TextDecoder(Tokenizer(), stop=None, skip_special_tokens=False)
    assert_type(decoder.feed(1), str)
    assert_type(decoder.info["completion_tokens"], Any)
    pieces: PieceDecoder[tuple[int, float]] = PieceDecoder(decoder, key=0)
    assert_type(pieces.feed((1, -0.5)), Piece[tuple[int, float]] | None)
    assert_type(decode_steps(token_steps(["a"]), [decoder, None], max_outputs=3), DecodedSteps)
    assert_type(decode_steps(some_token_steps(), [stops, pieces]), AsyncDecodedSteps)
    engine = DecodingEngine(Tokens(), text_of, slots=2, is_eos=token_ids(2), max_outputs=8)
    assert_type(ContinuousBatcher(engine, max_batch_size=2).stream("a"), Stream[Any])
    joined = ContinuousBatcher(Tokens(), max_batch_size=2, decode=text_of, is_eos=token_ids(2))
    assert_type(joined.stream("a"), Stream[str])
    played = ContinuousBatcher(Tokens, max_batch_size=2, decode=frames_of)
    assert_type(played.stream("a"), Stream[bytes])
    gathered = DynamicBatcher(token_steps, max_batch_size=2, decode=text_of, max_outputs=3)
    assert_type(gathered.astream("a"), AsyncStream[str])
    decorated = batched(decode=text_of)(token_steps)
    assert_type(decorated.stream("a"), Stream[str])
    DynamicBatcher(token_steps, max_batch_size=2, decode=decoder)  # type: ignore[call-overload]
    BatchedStreamLoop(eos_in="predict", decode=decoder_of)
    ContinuousBatchLoop(make_engine, decode=decoder_of)


def continuous_batching(model: Any) -> None:
    engine = TransformersEngine(model, prefill_chunk=512, cache_tokens=100_000)
    with ContinuousBatcher(engine, max_batch_size=8) as batcher:
        request = Generation([1, 2], 20, temperature=0.7, stop=["###", 5], logprobs=True)
        assert_type(batcher.stream(request), Stream[Any])  # an id, or a Token
        batcher.stream([1, 2])  # type: ignore[arg-type]
    assert_type(request.stop_strings, tuple[str, ...])
    assert_type(Token(5, -0.1).logprob, float)
    ContinuousBatcher(lambda: TransformersEngine(model), max_batch_size=8)


def padded(texts: list[str]) -> float:
    return max(map(len, texts)) * len(texts)


DynamicBatcher(translate, max_batch_size=8, batch_cost=padded, max_batch_cost=4096)
DynamicBatcher(translate, max_batch_size=8, batch_cost=3, max_batch_cost=3)  # type: ignore[call-overload]
batched(max_batch_size=8, batch_cost=padded, max_batch_cost=4096)(translate)
ContinuousBatcher(PreemptingEngine, max_batch_size=4).reconfigure(max_batch_size=2, max_pending=9)
ContinuousBatcher(PreemptingEngine, max_batch_size=4).reconfigure(max_step_cost=2.5)
ContinuousBatcher(PreemptingEngine, max_batch_size=4).reconfigure(
    max_pending_cost=9, max_pending_per_tenant=3
)
assert_type(ContinuousBatcher(PreemptingEngine, max_batch_size=4).max_step_cost, float | None)
ContinuousBatcher(PreemptingEngine, max_batch_size=4).reconfigure(batch_timeout=1.0)  # type: ignore[call-arg]


class CallContext:
    def time_remaining(self) -> float | None: ...


def grpc_servers(error: Exception) -> None:
    AsyncServerInterceptor()
    ServerInterceptor()
    assert_type(timeout_of(CallContext(), at_most=60), float | None)
    timeout_of(object())  # type: ignore[arg-type]
    assert_type(status_of(error), Status)


def other_processes() -> None:
    far: RemoteBatcher[str, int] = connect("model.sock", window=64, trusted_users=[1001])
    assert_type(far.stream("a", timeout=1.0), Stream[int])
    assert_type(far.astream("a"), AsyncStream[int])
    assert_type(far.call("a"), int)
    assert_type(connect(Path("model.sock")), RemoteBatcher[Any, Any])
    with ContinuousBatcher(Tokens(), max_batch_size=2) as batcher:
        with serving(batcher, "model.sock", mode=0o660, drain=5.0) as server:
            assert_type(server, serving)
        serve(batcher, Path("model.sock"), max_frame=2**20)
    serve(Tokens(), "model.sock")  # type: ignore[arg-type]
    assert_type(ConnectionLostError("gone").args, tuple[Any, ...])


async def another_process() -> None:
    with connect("model.sock") as far:
        assert_type(await far.acall("a"), Any)
        await aserve(far, "another.sock", drain=5.0)
