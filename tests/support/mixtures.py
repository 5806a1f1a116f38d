"""Streams that are read in every way by turns, and a model that says what each has to give.

Every step of the source is held at a gate. So the order is forced: the source is ahead of a
consumer that finds its outputs buffered, and behind one that waits, as the drawn actions want it.
"""

from __future__ import annotations

import math
import time
import weakref
from functools import partial
from itertools import chain, cycle, islice

import pytest
from hypothesis import strategies as st

from batchstream import BufferOverflowError, FinishReason
from support import knobs
from support.forms import OVER, Background, InLoop
from support.strategies import same

QUICK = 5.0
"""No example takes so many seconds, unless a receive hangs."""

ENDLESS = 40
"""How many actions are taken at most, before all streams are read to their end."""

ACTIONS = ["step", "step", "receive", "receive", "in time", "iterate", "break off", "drain"]
ACTIONS = [*ACTIONS, *ACTIONS, "cancel", "drop"]
"""What is done to one stream, and how often in proportion."""


def mixtures(actions=ACTIONS):
    """Draw what to do, to the stream in which slot, and how often."""
    action = st.tuples(st.sampled_from(actions), st.integers(0, 2), st.integers(1, 3))
    return st.lists(action, min_size=6, max_size=20)


def again_and_again(actions):
    """Repeat what is drawn, so that little to draw is much to do; no second stream is given up."""
    repeated = [action for action in actions if action[0] not in {"cancel", "drop"}]
    return islice(chain(actions, cycle(repeated)), ENDLESS)


bounds = st.sampled_from([None, None, None, 1, 2])


class HangError(BaseException):
    """A receive hangs: no plain exception, so that Hypothesis does not try the same again."""


def run_quickly(form, scenario, **drawn):
    """Run a scenario in a form; where it hangs, the timeout of a wait or of the test ends it."""
    begun = time.monotonic()
    try:
        form.run(scenario, **drawn)
    except BaseException as error:
        if time.monotonic() - begun > QUICK:
            raise HangError(f"{type(error).__name__}: {error}, in {drawn}") from error
        raise


class Stepped:
    """A source whose steps are let through one by one, and how many of them have been made.

    Args:
        form: The form of the batch.
        gates: The gates of the source's steps; none where consumers pull it.
        closed: Set when the source is closed, where a test can know it.
    """

    def __init__(self, form, gates, closed=None):
        self.form = form
        self.gates = gates
        self.closed = closed
        self.begun = not gates
        self.let = 0
        self.made = 0
        self._due = []  # gates that are opened as soon as the next receive waits

    def is_live(self):
        """Whether the source goes on."""
        raise NotImplementedError

    def is_full(self):
        """Whether the source has to wait until more was read."""
        raise NotImplementedError

    def begin_at(self, step):
        """Say that the source has been let begin already, and is held in this step next."""
        self.begun = True
        self.let = step

    async def begin(self):
        """Let the source begin, if it is not for nothing."""
        raise NotImplementedError

    def go_on(self):
        """Count the steps that are made by now."""
        while self.made < self.let and self.is_live() and not self.is_full():
            self.made += 1

    def let_one(self):
        """Let one more step through, as soon as the next receive waits."""
        self.begun = True
        self._due += self.gates[self.let : self.let + 1]
        self.let += 1
        self.go_on()

    def open_due(self):
        while self._due:
            self._due.pop(0).open()

    async def step(self, count):
        """Let the source make so many steps, ahead of all consumers."""
        if not self.begun:
            await self.begin()
        for _ in range(count):
            if self.gates and await self.at_rest() and self.is_live():
                self.let_one()
                self.open_due()

    async def at_rest(self):
        """Wait until all of these steps were handed out; return whether that can be known."""
        self.go_on()
        if not self.begun or not self.gates:
            return True
        if not self.is_live():
            for gate in self.gates:
                gate.open()
            if self.closed is not None:
                await self.closed.wait()
            return self.closed is not None
        if self.is_full():
            return False
        await self.gates[self.made].reached.wait()
        return True

    async def as_it_waits(self, receive):
        """Receive, and let the source go on once the receive waits, if it does."""
        try:
            if self._due and isinstance(self.form, InLoop):
                return (await self.form.concurrently(receive, self._open_behind))[0]
            return await receive()
        finally:
            self.open_due()

    async def _open_behind(self):
        await self.form.all_wait()
        self.open_due()


async def _outcome(receive):
    """Return what a receive returns, or the cause of what it raises.

    A group of tasks would change what is raised; and were the error itself returned, its traceback
    would refer to the frames that hold it, and to the stream in them.
    """
    try:
        return await receive(), None
    except ValueError as error:
        return None, error.__cause__


class Reading:
    """One stream, and what it has to give.

    Args:
        stream: The stream.
        slot: What the source says of its slot.
        ends_after: How many steps it takes until it ends.
    """

    def __init__(self, stream, slot, ends_after):
        self.stream = stream
        self.coming = list(zip(slot.steps_of_outputs, slot.outputs, strict=True))
        self.ends_after = ends_after
        self.error = slot.error
        self.reasons = {slot.reason}
        self.is_over = False

    def is_live(self, made):
        return made < self.ends_after

    def held(self, made):
        """How many outputs of so many steps have not been received."""
        return sum(step < made for step, _ in self.coming)

    def waits(self, made):
        return self.is_live(made) and not self.held(made)

    def take(self, outputs):
        assert same(outputs, [output for _, output in self.coming[: len(outputs)]])
        del self.coming[: len(outputs)]

    def give_up(self):
        self.coming, self.error, self.ends_after = [], None, 0
        self.reasons.add(FinishReason.CANCELLED)


class Mixture(Stepped):
    """A batch whose streams are read in every way by turns.

    Args:
        form: The form of the batch.
        streams: Its streams; no other reference to these is held.
        slots: For each of them, what the source says of its slot.
        ends_after: For each of them, how many steps it takes until it ends.
        gates: The gates of the source's steps; none where consumers pull it.
        bound: How many outputs a live stream may hold, if not any number.
        closed: Set when the source is closed, where a test can know it.
    """

    def __init__(self, form, streams, slots, ends_after, gates, *, bound=None, closed=None):
        super().__init__(form, gates, closed)
        self.readings = list(map(Reading, streams, slots, ends_after))
        self.bound = bound or math.inf
        if isinstance(form, Background):
            knobs.as_threads_wait(streams[0], self.open_due)

    def is_live(self):
        return any(reading.is_live(self.made) for reading in self.readings)

    def is_full(self):
        live = [reading for reading in self.readings if reading.is_live(self.made)]
        return any(reading.held(self.made) >= self.bound for reading in live)

    async def run(self, actions):
        try:
            for action, number, count in again_and_again(actions):
                reading = self.readings[number % len(self.readings)]
                if action == "step":
                    await self.step(count)
                elif reading.stream is not None:
                    await getattr(self, action.replace(" ", "_"))(reading, count)
            await self.finish()
        finally:
            for reading in self.readings:
                if reading.stream is not None:  # which the traceback of a failure refers to
                    reading.stream.cancel()

    # ---- actions

    async def begin(self):
        for reading in self.readings:
            if reading.is_live(0):
                await self.break_off(reading)
                return

    async def receive(self, reading, count=1):
        await self._receive(reading, reading.stream)

    async def iterate(self, reading, count):
        """Do what a loop over the stream does that is left after so many rounds."""
        iterator = self.form.iterator(reading.stream)
        for _ in range(count):
            await self._receive(reading, iterator)

    async def in_time(self, reading, count=1):
        """Receive with a timeout that does not pass."""
        await self._receive(reading, reading.stream, in_time=True)

    async def break_off(self, reading, count=1):
        """Break a receive off while it waits."""
        self.go_on()
        if reading.waits(self.made) and self.form.runs_ahead:
            self.begun = True
            await self.form.broken_off(reading.stream)
        else:
            await self.receive(reading)

    async def drain(self, reading, count=1):
        is_known = await self.at_rest()
        outputs = reading.stream.drain()
        if is_known:
            assert len(outputs) == reading.held(self.made)
        reading.take(outputs)

    async def cancel(self, reading, count=1):
        reading.stream.cancel()
        reading.give_up()

    async def drop(self, reading, count=1):
        gone = weakref.ref(reading.stream)
        reading.stream = None
        assert gone() is None, "another reference to the stream is held"
        reading.give_up()

    # ---- how a stream is read

    async def _receive(self, reading, iterator, *, in_time=False):
        self.go_on()
        while reading.waits(self.made):
            if self.is_full():
                await self._wait_for_others(reading)
                return
            self.let_one()
        receive = partial(self.form.receive, iterator)
        if in_time and self.gates:
            is_there = not self._due and await self.at_rest()
            receive = partial(self.form.receive_in_time, iterator, is_there=is_there)
        output, error = await self.as_it_waits(partial(_outcome, receive))
        if error is not None:
            assert reading.error is not None, "an error that is not this stream's, or once more"
            assert error is reading.error
            assert not reading.coming, "an error before the last output"
            reading.error = None
        elif output is OVER:
            assert not reading.is_live(self.made), "an end before the source has said so"
            assert not reading.coming, "an end before the last output"
            assert reading.error is None, "an end in place of the error"
            reading.is_over = True
        else:
            reading.take([output])

    async def _wait_for_others(self, reading):
        """Ask for an output for which another stream has no room."""
        self.begun = True
        self.open_due()
        if self.form.runs_ahead:
            await self.form.broken_off(reading.stream)
        else:
            with pytest.raises(BufferOverflowError):
                await self.form.receive(reading.stream)

    async def finish(self):
        """Read every stream to its end."""
        readings = [reading for reading in self.readings if reading.stream is not None]
        while not all(reading.is_over for reading in readings):
            for reading in readings:
                await self.receive(reading)
        for reading in readings:
            await self.receive(reading)
            assert reading.is_over
            assert reading.stream.drain() == []
            assert reading.stream.finish_reason in reading.reasons
