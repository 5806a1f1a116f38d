"""Races between the thread that puts steps into a channel and all others.

Each scenario is run under many interleavings, see `interleaving`; that needs Python 3.12.
"""

from __future__ import annotations

import pytest

from batchstream import Channel, ClosedError, SourceError
from support.interleaving import explore_threads, run_together
from support.racing import is_prefix
from support.reading import read_blocking

SCHEDULES = {"opcode": 40, "line": 150}
"""How many interleavings are tried: of opcodes, which is slow, and of whole lines."""

STEPS = [["a", "x"], ["b", "y"], ["c", None], [None, None]]
EXPECTED = [["a", "b", "c"], ["x", "y"]]
ENDLESS = [[f"a{n}", f"x{n}"] for n in range(20)]  # more than are put before the end


def explore(scenario, schedules=SCHEDULES, **options):
    for granularity, number in schedules.items():
        explore_threads(scenario, number, granularity=granularity, **options)


class Consumer:
    """Reads a stream to its end."""

    def __init__(self, stream):
        self.stream = stream
        self.outputs = []
        self.error = None

    def __call__(self):
        self.outputs, self.error = read_blocking(self.stream)


class Producer:
    """Puts all steps into a channel, until no stream is live; it holds the only reference."""

    def __init__(self, channel, steps=STEPS, *, close=True):
        self.steps = list(steps)
        self.put = 0
        self.refused = False
        self._channel = channel
        self._close = close

    def __call__(self):
        channel, self._channel = self._channel, None
        try:
            for step in self.steps:
                if not channel.put(step):
                    break
                self.put += 1
        except ClosedError:  # another thread has closed the channel
            self.refused = True
        if self._close:
            channel.close()


def opened(size=2, **options):
    """Return a channel with room for one output in each stream, and its streams."""
    channel = Channel(size, **{"max_buffered": 1, **options})
    return channel, channel.streams()


def assert_over(*consumers):
    for consumer in consumers:
        upstream, buffer = consumer.stream._upstream, consumer.stream._buffer
        assert buffer.ends
        assert upstream.ended
        assert not upstream._orders
        assert upstream._turn.acquire(blocking=False)
        upstream._turn.release()


@pytest.mark.rule(2)
@pytest.mark.rule(19)
def test_a_producer_that_waits_for_room_and_its_consumers_lose_and_repeat_nothing():
    def scenario():
        channel, streams = opened()
        first, second = map(Consumer, streams)
        run_together(Producer(channel), first, second)
        assert [first.outputs, second.outputs] == EXPECTED
        assert (first.error, second.error) == (None, None)
        assert_over(first, second)

    explore(scenario)


@pytest.mark.rule(11)
def test_a_stream_that_is_cancelled_gives_a_prefix_and_the_other_goes_on():
    def scenario():
        channel, streams = opened()
        first, second = map(Consumer, streams)
        run_together(Producer(channel), first, second, first.stream.cancel)
        assert is_prefix(first.outputs, EXPECTED[0])
        assert second.outputs == EXPECTED[1]
        assert_over(first, second)

    explore(scenario)


@pytest.mark.rule(9)
def test_a_producer_returns_when_the_last_streams_are_cancelled_as_it_puts():
    def scenario():
        channel, streams = opened()
        producer = Producer(channel, ENDLESS, close=False)
        run_together(producer, streams[0].cancel, streams[1].cancel)
        assert producer.put < 20
        assert_over(*map(Consumer, streams))

    explore(scenario)


@pytest.mark.rule(9)
@pytest.mark.parametrize("way", ["close", "fail"])
def test_a_channel_that_a_third_thread_ends_gives_prefixes_and_its_producer_returns(way):
    def scenario():
        channel, streams = opened()
        first, second = map(Consumer, streams)
        ended = {"close": channel.close, "fail": lambda: channel.fail(KeyError())}[way]
        run_together(Producer(channel, ENDLESS), first, second, ended)
        for consumer, name in ((first, "a"), (second, "x")):
            assert is_prefix(consumer.outputs, [f"{name}{n}" for n in range(20)])
            assert consumer.error in (None, KeyError)
        assert_over(first, second)

    explore(scenario)


@pytest.mark.rule(15)
def test_a_slot_that_a_third_thread_ends_gives_a_prefix_and_the_other_goes_on():
    def scenario():
        channel, streams = opened()
        first, second = map(Consumer, streams)
        run_together(Producer(channel), first, second, lambda: channel.end(0))
        assert is_prefix(first.outputs, EXPECTED[0])
        assert second.outputs == EXPECTED[1]
        assert (first.error, second.error) == (None, None)
        assert_over(first, second)

    explore(scenario)


@pytest.mark.rule(2)
def test_two_producers_take_turns():
    def scenario():
        channel, [stream] = opened(1)
        consumer = Consumer(stream)

        def end_behind_both():
            run_together(
                Producer(channel, [["a"], ["b"]], close=False),
                Producer(channel, [["x"], ["y"]], close=False),
            )
            channel.close()

        run_together(end_behind_both, consumer)
        assert [it for it in consumer.outputs if it in "ab"] == ["a", "b"]
        assert [it for it in consumer.outputs if it in "xy"] == ["x", "y"]
        assert_over(consumer)

    explore(scenario)


@pytest.mark.rule(9)
def test_a_channel_that_its_producer_drops_fails_the_streams_whose_consumers_wait():
    def scenario():
        channel, streams = opened()
        first, second = map(Consumer, streams)
        producer = Producer(channel, STEPS[:1], close=False)
        del channel
        run_together(producer, first, second)
        assert (first.outputs, second.outputs) == (["a"], ["x"])
        assert (first.error, second.error) == (SourceError, SourceError)
        assert_over(first, second)

    explore(scenario)
