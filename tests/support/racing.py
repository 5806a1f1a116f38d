"""What races are made of: sources, models and readers that notice whatever goes wrong.

A scenario makes all of it anew, lets it run together, and in the end makes sure that nothing is
left: of streams with `assert_settled`, of batchers with the `end` of its own file."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter

from batchstream import EOS, AsyncBatchedStream, ClosedError, FinishReason, SlowConsumerError
from support import knobs
from support.reading import read
from support.shuffled_loop import explore
from support.tracing import RecordedTraces

SCHEDULES = int(os.environ.get("SCHEDULES", "500"))
"""In how many orders a scenario in an event loop is tried."""


def explore_schedules(scenario):
    explore(scenario, SCHEDULES, leftovers="fail")


# ---- streams


class WatchedSource:
    """An asynchronous source of given steps that records how it is treated.

    An exception instance in place of a step is raised.

    Args:
        steps: What it yields, or raises.
        wait: What it awaits in each step: called with the step's number.
        on_step: Called when it is asked for a step.
    """

    def __init__(self, steps, *, wait=lambda _: asyncio.sleep(0), on_step=lambda: None):
        self.steps = steps
        self.sent = []
        self.cancelled = 0
        self.closed = 0
        self.has_closed = asyncio.Event()
        self._wait = wait
        self._on_step = on_step
        self._inside = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await self.asend(None)

    async def asend(self, live):
        with self._alone():
            assert not self.closed, "the source was advanced after it was closed"
            self._on_step()
            self.sent.append(live)
            try:
                await self._wait(len(self.sent) - 1)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            if len(self.sent) > len(self.steps):
                raise StopAsyncIteration
            step = self.steps[len(self.sent) - 1]
            if isinstance(step, BaseException):
                raise step
            return step

    async def aclose(self):
        with self._alone():
            await asyncio.sleep(0)
            self.closed += 1
            self.has_closed.set()

    @contextlib.contextmanager
    def _alone(self):
        assert not self._inside, "the source was entered twice"
        self._inside = True
        try:
            yield
        finally:
            self._inside = False


def opened(steps, *, wait=lambda _: asyncio.sleep(0), **options):
    """Return a batch of two streams, its source, and a reader for each stream."""
    source = WatchedSource(steps, wait=wait)
    batch = AsyncBatchedStream(source, 2, **options)
    return batch, source, [Reader(stream) for stream in batch]


class Reader:
    """Reads a stream to its end, undeterred by cancels of its task.

    Args:
        stream: What to read.
        receive: How: an asynchronous function that returns the stream's next output.
    """

    def __init__(self, stream, receive=anext):
        self.outputs = []
        self.errors = []
        self.ended = False
        self.cancels = 0
        self._stream = stream
        self._receive = receive
        self._task = None

    async def read(self):
        self._task = asyncio.current_task()
        while not self.ended:
            try:
                output = await self._receive(self._stream)
            except StopAsyncIteration:
                self.ended = True
            except asyncio.CancelledError:
                self._task.uncancel()
                self.cancels += 1
            except TimeoutError:
                self.cancels += 1
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.errors.append(error)
            else:
                assert not self.errors, "an output came after an error"
                self.outputs.append(output)

    def cancel(self):
        """Cancel the task that reads, if it has begun and not ended."""
        if self._task is not None:
            self._task.cancel()


def outputs_of(readers):
    """Return what each reader has received; none may have been raised an error."""
    assert [reader.errors for reader in readers] == [[]] * len(readers)
    return [reader.outputs for reader in readers]


def is_prefix(outputs, reference):
    return outputs == reference[: len(outputs)]


def assert_whole_or_too_slow(readers, batch, references):
    """Make sure that each reader got all, or what its stream held when it was ended as too slow."""
    for reader, stream, reference in zip(readers, batch, references, strict=True):
        assert reader.outputs == reference[: stream.end.outputs]
        if stream.finish_reason == FinishReason.ERROR:
            [error] = reader.errors
            assert isinstance(error, SlowConsumerError)
            assert (error.slot, error.max_buffered) == (stream.slot, 1)
        else:
            assert (reader.outputs, reader.errors) == (reference, [])


def by_slot(deliveries):
    """Return what two slots were given, and their ends; no output may come after an end."""
    outputs, ends = ([], []), ([], [])
    for delivery in deliveries:
        for slot, output in delivery.outputs:
            assert not ends[slot], "an output after the end"
            outputs[slot].append(output)
        for slot, end in delivery.ends:
            ends[slot].append(end)
    return outputs, ends


async def assert_closed(source):
    """Wait until the source is closed, and make sure that it is closed once."""
    await source.has_closed.wait()
    assert source.closed == 1


async def assert_settled(batch, source):
    """Wait until the source is closed, and make sure that nothing was left behind."""
    await assert_closed(source)
    assert knobs.pump_of(batch).ended
    assert batch.live == ()
    assert not knobs.is_paused(batch), "the pump is still paused"
    assert not knobs.is_waited_for(batch)
    figures = batch.statistics()
    assert figures.opened == sum(figures.finished.values())
    for stream in batch:  # one end, for ever
        outputs, error = await read(stream)
        # One that was live when its batch was closed says so, behind what it held.
        assert error is ClosedError or (outputs, error) == ([], None)
        assert await read(stream) == ([], None)
    assert batch.statistics().buffered == 0


# ---- tasks


async def turns(count, then=lambda: None):
    """Give so many turns away, and then do this."""
    for _ in range(count):
        await asyncio.sleep(0)
    then()


async def together(*coroutines):
    async with asyncio.TaskGroup() as group:
        for coroutine in coroutines:
            group.create_task(coroutine)


async def cancelled_often(reader, times=3):
    """Cancel a reader's task again and again, so that it strikes anywhere."""
    for _ in range(times):
        await turns(1, reader.cancel)


async def read_while(readers, *coroutines):
    """Let all readers read to the end, and the coroutines run meanwhile."""
    await together(*[reader.read() for reader in readers], *coroutines)


# ---- batchers


class ModelError(Exception):
    """What a model fails with."""


def reply(request, length=None):
    """Return the outputs that a request gets: as many as its name says after a letter."""
    return [f"{request}.{number}" for number in range(length or int(request[1:]))]


def output(request, number):
    """Return the request's output in this step, or the end mark."""
    return f"{request}.{number}" if number < int(request[1:]) else EOS


class Engine:
    """A model that is driven step by step, and records which request has which slot.

    Args:
        fails_at: In which of its steps it raises.
    """

    def __init__(self, fails_at=None):
        self.seats = {}
        self.added = Counter()
        self.made = Counter()
        self.faults = []
        self._steps = 0
        self._fails_at = fails_at

    def add(self, slot, request):
        if slot in self.seats:
            self.faults.append(f"slot {slot} is taken")
        self.seats[slot] = request
        self.added[request] += 1

    def step(self):
        if not self.seats:
            self.faults.append("a step without a request")
        self._steps += 1
        if self._steps == self._fails_at:
            raise ModelError
        step = {}
        for slot, request in self.seats.items():
            step[slot] = output(request, self.made[request])
            self.made[request] += 1
        return step

    def remove(self, slot):
        if self.seats.pop(slot, None) is None:
            self.faults.append(f"slot {slot} was empty")

    def check(self):
        """Make sure that it was treated well, and is empty."""
        assert self.faults == []
        assert self.seats == {}
        assert set(self.added.values()) <= {1}, "sent twice"


class Tallies:
    """Metrics that count their calls.

    Attributes:
        traces: What the batcher calls for each single request.
    """

    def __init__(self):
        self.traces = RecordedTraces()
        self.accepted = 0
        self.refusals = 0
        self.groups = []
        self.ends = []

    def submitted(self, **_):
        self.accepted += 1

    def refused(self, reason, **_):
        if reason not in ("closed", "draining"):
            self.refusals += 1

    def joined(self, waited, **_):
        assert min(waited) >= 0
        self.groups.append(len(waited))

    def stepped(self, live, capacity, *others):
        outputs, gap, going_on, prefilling, wasted = others
        assert 0 < live <= capacity
        assert 0 <= going_on <= live
        assert 0 <= prefilling <= live - going_on
        assert 0 <= wasted <= live
        assert outputs >= 0
        assert gap is None or gap >= 0

    def finished(self, end, *, joined, lasted, in_slot, **_):
        assert 0 <= in_slot <= lasted
        self.ends.append((end.reason, joined))

    def check(self, figures):
        """Make sure that the figures of a batcher in which no request is left agree."""
        assert (figures.waiting, figures.live, figures.buffered) == (0, 0, 0)
        assert figures.opened == sum(figures.finished.values()) == len(self.ends)
        assert Counter(reason for reason, _ in self.ends) == Counter(figures.finished)
        assert Counter(self.groups) == Counter(figures.batch_sizes)
        assert sum(self.groups) == sum(joined for _, joined in self.ends)
        if self.traces.names:
            self.traces.check(figures)
