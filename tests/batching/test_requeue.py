"""Engines that give slots back: their requests wait again, and go on where they stopped."""

from __future__ import annotations

import itertools
from functools import partial

import pytest

from batchstream import (
    EOS,
    BatchedStream,
    Channel,
    ClosedError,
    ContinuousBatcher,
    DeadlineError,
    Demultiplexer,
    DynamicBatcher,
    End,
    FinishReason,
    ForkedError,
    Last,
    Many,
    Metrics,
    NotNow,
    RequestError,
    Requeue,
    SlowConsumerError,
    StepError,
    demux,
    per_request,
)
from batchstream.text import StopStrings
from support import knobs
from support.engines import Model, Turnstile, continuous_batchers
from support.interrupts import at_line, needs_lines
from support.sources import in_forked_child, needs_fork, run_in_threads


class Preempting(Model):
    """Gives the slots of some outputs back, behind these outputs or in place of them.

    Args:
        behind: The outputs behind which it does; each once.
        before: The outputs in place of which it does; as often as they stand there.
        keeps: Whether it knows itself where a request has stopped, and is to be given the same.
    """

    def __init__(self, behind="", before="", *, keeps=False, **options):
        super().__init__(**options)
        self.behind, self.before = list(behind), list(before)
        self.added = []
        self._keeps = keeps
        self._replies = {}

    def add(self, slot, request):
        self.added.append(request)
        super().add(slot, request)
        if self._keeps:
            self.seats[slot] = request, self._replies.setdefault(request, iter(request))

    def step(self):
        return {slot: self._element(slot, output) for slot, output in super().step().items()}

    def _element(self, slot, output):
        request, reply = self.seats[slot]
        if output in self.before:
            self.before.remove(output)
            self.seats[slot] = request, iter([output, *reply])
            if self._keeps:
                self._replies[request] = self.seats[slot][1]
            return self._requeue(slot)
        if output in self.behind:
            self.behind.remove(output)
            return Many([output, self._requeue(slot)])
        return output

    def _requeue(self, slot):
        return Requeue() if self._keeps else Requeue("".join(self.seats[slot][1]))

    @property
    def worked(self):
        return [call for call in self.calls if call[0] != "step"]


def batcher_of(form, engine, requests, *, max_batch_size=2, **options):
    """Return a batcher and its streams, all of whose requests wait before the first step."""
    gate = form.gate()
    engine._gates = {0: gate}
    form._models.append(engine)
    batcher = form.batcher(engine, max_batch_size=max_batch_size, **options)
    return batcher, gate, partial(form.submit_behind, batcher, gate, *requests)


# ---- going on


@pytest.mark.rule(2, 3)
@pytest.mark.parametrize("keeps", [False, True])
@continuous_batchers
async def test_a_request_whose_slot_is_given_back_goes_on_where_it_stopped(form, keeps):
    engine = Preempting("cd", "g", keeps=keeps)
    batcher, gate, submit = batcher_of(form, engine, ["abcdef", "wx", "ghi"])
    streams = await submit()
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [list("abcdef"), ["w", "x"], [*"ghi"]]
    assert all(stream.finish_reason == "eos" for stream in streams)
    assert [stream.end.outputs for stream in streams] == [6, 2, 3]
    figures = batcher.statistics()
    assert (figures.opened, figures.requeued, figures.outputs, figures.dropped) == (3, 3, 11, 0)
    assert sum(size * count for size, count in figures.batch_sizes.items()) == 3


@pytest.mark.rule(30)
@continuous_batchers
async def test_a_slot_is_removed_before_it_is_given_to_another_and_none_overtakes(form):
    engine = Preempting(before="b")
    _, gate, submit = batcher_of(form, engine, ["abc", "wx", "yz"])
    streams = await submit()
    gate.open()
    for stream, request in zip(streams, ["abc", "wx", "yz"], strict=True):
        assert await form.rest(stream) == list(request)
    # "abc" is alone in the first step; it is given back before "yz" has ever had a slot.
    assert engine.added == ["abc", "wx", "bc", "yz"]
    assert engine.worked[:5] == [("add", 0), ("add", 1), ("remove", 0), ("remove", 1), ("add", 1)]


@pytest.mark.rule(29)
@continuous_batchers
async def test_what_was_given_back_waits_until_another_has_left(form):
    """It would be given back again, though there is a slot, and the engine does not say NotNow."""
    engine = Preempting(behind="b")
    _, gate, submit = batcher_of(form, engine, ["abc", "vwxyz"])
    first, second = await submit()
    gate.open()
    assert await form.rest(second) == list("vwxyz")
    assert await form.rest(first) == list("abc")
    worked_on = ["".join(requests) for requests in engine.worked_on]
    assert worked_on == ["abc", "abcvwxyz", *["vwxyz"] * 5, "c", "c"]


@pytest.mark.rule(29)
@continuous_batchers
async def test_of_requests_that_were_all_given_back_the_oldest_joins_alone(form):
    engine = Preempting(before="bbw")
    _, gate, submit = batcher_of(form, engine, ["abc", "wx"])
    streams = await submit()
    gate.open()
    assert [await form.rest(stream) for stream in streams] == [list("abc"), ["w", "x"]]
    worked_on = ["".join(requests) for requests in engine.worked_on]
    # Both are given back in the second step, and "bc" alone once more.
    assert worked_on == ["abc", "abcwx", "bc", "bc", "bc", "bc", "wx", "wx", "wx"]


@pytest.mark.rule(9, 15)
@continuous_batchers
async def test_one_that_is_given_back_again_and_again_although_it_is_alone_fails(form):
    engine = Preempting(before="b" * 9)
    _, gate, submit = batcher_of(form, engine, ["abc", "wx"])
    streams = await submit()
    gate.open()
    outputs, [error] = await form.read(streams[0])
    assert outputs == ["a"]
    assert type(error) is RequestError
    assert str(error).startswith("the request can never be served: the engine has given its slot ")
    assert streams[0].end.outputs == 1
    assert await form.rest(streams[1]) == ["w", "x"]


@continuous_batchers
async def test_one_that_was_given_back_may_be_told_not_now_when_it_is_added(form):
    class Full(Preempting):
        def add(self, slot, request):
            if self.seats and request == "cd":
                self.calls.append(("not now",))
                raise NotNow
            super().add(slot, request)

    engine = Full(behind="b")
    requests = ["abcd", "w", "lmnop"]
    _, gate, submit = batcher_of(form, engine, requests, max_batch_size=3)
    streams = await submit()
    gate.open()
    assert [await form.rest(stream) for stream in streams] == list(map(list, requests))
    assert engine.calls.count(("not now",)) == 1  # as "w" has left, and not at each step
    assert engine.added == [*requests, "cd"]


@pytest.mark.rule(7)
@continuous_batchers
async def test_limits_predicates_and_decoders_go_on(form):
    seen = {}

    def third_output(request):
        counted = itertools.count(1)
        return lambda output: seen.setdefault(output, next(counted)) == 3

    engine = Preempting(behind="bw", before="g")
    batcher, gate, submit = batcher_of(
        form,
        engine,
        ["abcdef", "wxyz", "fghij"],
        max_outputs=lambda request: 4 if request == "abcdef" else None,
        is_eos=per_request(lambda request: third_output(request) if request == "wxyz" else None),
        decode=lambda request: StopStrings("gh") if request == "fghij" else None,
    )
    del batcher
    streams = await submit()
    gate.open()
    texts = ["".join(await form.rest(stream)) for stream in streams]
    assert texts == ["abcd", "wx", "f"]
    assert [str(stream.finish_reason) for stream in streams] == ["length", "eos", "eos"]
    assert seen == {"w": 1, "x": 2, "y": 3}
    assert streams[0].end.outputs == 4


@continuous_batchers
async def test_a_stop_string_ends_a_request_in_the_step_that_gives_its_slot_back(form):
    engine = Preempting(behind="c")
    batcher, gate, submit = batcher_of(
        form, engine, ["abcd", "wx"], decode=lambda _: StopStrings("bc")
    )
    streams = await submit()
    gate.open()
    assert ["".join(await form.rest(stream)) for stream in streams] == ["a", "wx"]
    assert engine.added == ["abcd", "wx"]
    assert batcher.statistics().requeued == 0


@pytest.mark.rule(15)
@continuous_batchers
async def test_an_engine_that_raises_fails_none_that_waits_to_go_on(form):
    made = []

    def make():
        options = {"behind": "b", "raises": {2: ValueError("lost")}} if not made else {}
        made.append(Preempting(**options))
        made[-1]._gates = {} if made[1:] else {0: gate}
        return made[-1]

    gate = form.gate()
    batcher = form.batcher(make, max_batch_size=2)
    first, second = await form.submit_behind(batcher, gate, "abc", "wxyz")
    gate.open()
    outputs, [error] = await form.read(second)
    assert (outputs, type(error)) == (["w"], ValueError)
    assert await form.rest(first) == list("abc")
    assert made[1].added == ["c"]
    figures = batcher.statistics()
    assert (figures.outputs, figures.opened) == (4, 2)


@pytest.mark.rule(19)
@continuous_batchers
async def test_outputs_that_were_not_read_before_count_for_the_bound(form):
    engine = Preempting(behind="c")
    batcher, gate, submit = batcher_of(form, engine, ["abcdefgh", "wx"], max_buffered=5)
    first, second = await submit()
    gate.open()
    assert await form.rest(second) == ["w", "x"]
    # It takes more steps than the first has room for.
    assert await form.rest(form.submit(batcher, "mnopq")) == list("mnopq")
    outputs, [error] = await form.read(first)
    assert (outputs, type(error)) == (list("abcdef"), SlowConsumerError)  # as without a Requeue


@pytest.mark.rule(19)
@continuous_batchers
async def test_one_that_joins_again_has_no_more_room_than_it_had(form):
    begin, late = form.gate(), form.gate()
    engine = Preempting(behind="d", gates={0: begin, 6: late})
    form._models.append(engine)
    batcher = form.batcher(engine, max_batch_size=2, max_buffered=5)
    first, second = await form.submit_behind(batcher, begin, "abcdefghij", "tuvwxyz")
    begin.open()
    # The first waits with four outputs unread while the only stream in the engine has one.
    await late.reached.wait()
    assert [await form.receive(second) for _ in range(5)] == list("tuvwx")
    late.open()
    assert await form.rest(second) == ["y", "z"]
    assert await form.rest(form.submit(batcher, "mnopq")) == list("mnopq")  # steps enough
    outputs, [error] = await form.read(first)
    assert (outputs, type(error)) == (list("abcdef"), SlowConsumerError)


# ---- while it waits


async def until_given_back(form, request="abc", other="vwxyz", **options):
    """Return a batcher, its engine and streams, held in a step while the first waits to go on."""
    held, first = form.gate(), form.gate()
    engine = Preempting(behind="b")
    engine._gates = {0: first, 2: held}
    form._models.append(engine)
    batcher = form.batcher(engine, max_batch_size=2, **options)
    streams = await form.submit_behind(batcher, first, request, other)
    first.open()
    await held.reached.wait()
    return batcher, engine, held, *streams


@pytest.mark.rule(12, 29)
@continuous_batchers
async def test_a_client_that_leaves_while_it_waits_is_added_no_more(form):
    batcher, engine, held, first, second = await until_given_back(form)
    figures = batcher.statistics()
    assert (figures.live, figures.waiting, figures.buffered) == (2, 1, 3)
    assert await form.receive(first) == "a"
    first.cancel()
    assert first.finish_reason is FinishReason.CANCELLED
    assert first.end.outputs == 2
    held.open()
    assert await form.rest(second) == list("vwxyz")
    assert engine.added == ["abc", "vwxyz"]
    assert await form.rest(form.submit(batcher, "m")) == ["m"]


@continuous_batchers
async def test_others_join_when_the_one_that_holds_them_up_has_left(form):
    _batcher, engine, held, first, second = await until_given_back(form)
    third = form.submit(_batcher, "pq")
    first.cancel()
    held.open()
    assert await form.rest(third) == ["p", "q"]
    assert await form.rest(second) == list("vwxyz")
    worked_on = ["".join(requests) for requests in engine.worked_on]
    assert worked_on[2:4] == ["vwxyz", "vwxyzpq"]


@pytest.mark.rule(25)
@continuous_batchers
async def test_a_stream_that_is_dropped_while_it_waits_is_cancelled(form):
    batcher, engine, held, first, second = await until_given_back(form)
    del first
    held.open()
    assert await form.rest(second) == list("vwxyz")
    assert engine.added == ["abc", "vwxyz"]
    assert batcher.statistics().finished == {"cancelled": 1, "eos": 1}


@pytest.mark.rule(9)
@continuous_batchers
async def test_a_deadline_passes_while_it_waits(form):
    held, begin = form.gate(), form.gate()
    engine = Preempting(behind="b", gates={0: begin, 2: held})
    form._models.append(engine)
    batcher = form.batcher(engine, max_batch_size=2)
    first = form.submit(batcher, "abc", timeout=3600.0, wait_timeout=1800.0)
    await begin.reached.wait()
    second = form.submit(batcher, "vwxyz")
    begin.open()
    await held.reached.wait()
    deadlines = knobs.request_of(first).deadlines
    assert deadlines.wait_until == deadlines.until  # it has joined a batch in time
    knobs.let_deadline_pass(first)
    outputs, [error] = await form.read(first)
    assert (outputs, type(error), error.timeout) == (["a", "b"], DeadlineError, 3600.0)
    assert "was not finished within" in str(error)
    assert first.end.outputs == 2
    held.open()
    assert await form.rest(second) == list("vwxyz")
    assert engine.added == ["abc", "vwxyz"]


@pytest.mark.rule(9, 28)
@continuous_batchers
async def test_close_fails_it_behind_what_it_was_given(form):
    batcher, engine, held, first, second = await until_given_back(form)
    knobs.dispatcher_of(batcher).request_close()
    held.open()
    outputs, [error] = await form.read(first)
    assert (outputs, type(error)) == (["a", "b"], ClosedError)
    assert first.end.outputs == 2
    _, [error] = await form.read(second)
    assert type(error) is ClosedError
    await form.close(batcher)
    assert engine.added == ["abc", "vwxyz"]


@pytest.mark.rule(27)
@needs_fork
def test_in_a_forked_child_it_fails_as_any_other_request():
    turnstile = Turnstile()

    class Held(Preempting):
        def step(self):
            turnstile.hold()
            return super().step()

    batcher = ContinuousBatcher(Held(behind="b"), max_batch_size=2)
    first, second = batcher.stream("abc"), None
    turnstile.wait_until(lambda: turnstile.holds)
    second = batcher.stream("vwxyz")
    turnstile.let(2)
    turnstile.wait_until(lambda: turnstile.arrived == 3)

    def in_child():
        for stream in (first, second):
            with pytest.raises(ForkedError):
                next(stream)
        with pytest.raises(ForkedError):
            batcher.stream("m")

    in_forked_child(in_child)
    turnstile.open()
    assert (list(first), list(second)) == (list("abc"), list("vwxyz"))
    batcher.close()


# ---- when another thread ends it just then


@needs_lines
@pytest.mark.rule(12, 29)
@pytest.mark.parametrize("how", ["cancel", "fail"])
def test_a_request_that_is_ended_at_any_line_while_its_slot_is_given_back_ends_once(
    monkeypatch, how
):
    """In the worker's thread, as a finalizer may; so nothing may be waited for there."""
    files = knobs.files_of_giving_back()
    for line in itertools.count(1):
        engine = Preempting(behind="b")
        turnstile = Turnstile()
        engine._on_step = lambda _, turnstile=turnstile: turnstile.hold()
        batcher = ContinuousBatcher(engine, max_batch_size=2)
        first = batcher.stream("abc")
        turnstile.wait_until(lambda turnstile=turnstile: turnstile.holds)
        second = batcher.stream("vwxyz")
        where = []

        def end(stream=first):
            if how == "cancel":
                stream.cancel()
            else:
                knobs.fail_request(stream, OSError("gone"))

        def refill(call, where=where, line=line, end=end):
            with_it = knobs.has_given_back(call)
            result = []
            if not with_it:
                return call()
            where.append(at_line(line, lambda: result.append(call()), end, files=files))
            return result[0]

        with monkeypatch.context() as patch:
            knobs.around_refill(patch, refill)
            turnstile.open()
            assert list(second) == list("vwxyz"), where
            if where[0] is None:
                assert list(first) == list("abc")
            else:
                outputs = []
                try:
                    outputs += first
                except OSError:
                    assert how == "fail"
                assert outputs == ([] if how == "cancel" else ["a", "b"]), where
                assert first.end.outputs == 2, where
            batcher.close()
        figures = batcher.statistics()
        assert (figures.live, figures.waiting, figures.buffered) == (0, 0, 0), where
        assert sum(figures.finished.values()) == 2, where
        assert engine.added == ["abc", "vwxyz", *["c"] * (where[0] is None)], where
        engine.check()
        if where[0] is None:
            break
    assert line > 40


@needs_lines
@pytest.mark.rule(12, 29)
@pytest.mark.parametrize("until", ["it waits", "it has joined again", "the engine has failed"])
def test_a_slot_that_is_given_back_at_any_line_of_a_cancel_is_left_all_the_same(until):
    for line in itertools.count(1):
        turnstile = Turnstile()
        made = []

        def make(turnstile=turnstile, made=made):
            raises = {2: ValueError("lost")} if until == "the engine has failed" else {}
            made.append(Preempting(behind="b", raises={} if made else raises))
            made[-1]._on_step = lambda _: turnstile.hold()
            return made[-1]

        batcher = ContinuousBatcher(make, max_batch_size=2)
        first = batcher.stream("abcdefghij")
        turnstile.wait_until(lambda turnstile=turnstile: turnstile.holds)
        other = batcher.stream("vwxyz")
        turnstile.let(1)  # into the step that gives the slot back
        turnstile.wait_until(lambda turnstile=turnstile: turnstile.arrived == 2)

        def go_on(turnstile=turnstile, first=first, other=other):
            turnstile.let(1)
            turnstile.wait_until(lambda: turnstile.arrived == 3)
            if until == "it waits":
                return
            if until == "it has joined again":
                other.cancel()
            turnstile.let(1)
            if first.finish_reason is None:  # or else it is added no more
                turnstile.wait_until(lambda: turnstile.arrived == 4)

        where = at_line(line, first.cancel, go_on, files=knobs.files_of_giving_back())
        assert first.finish_reason is FinishReason.CANCELLED, where
        turnstile.open()
        try:
            list(other)
        except ValueError:
            assert until == "the engine has failed"
        assert list(batcher.stream("pq")) == ["p", "q"]
        batcher.close()
        figures = batcher.statistics()
        assert (figures.live, figures.waiting, figures.buffered) == (0, 0, 0), where
        assert [engine.faults for engine in made] == [[]] * len(made)
        made[-1].check()
        # At most one step is made for it after it was left.
        late = [
            requests for engine in made for requests in engine.worked_on if "cdefghij" in requests
        ]
        assert len(late) <= 1, where
        if where is None:
            break
    assert line > 8


# ---- where no request is added again


@pytest.mark.rule(15)
@pytest.mark.parametrize("element", [Requeue(), Requeue("rest"), Many(["b", Requeue()])])
def test_where_no_request_is_added_again_the_slot_alone_fails_and_is_told_so(element):
    text = (
        "step 1 gives slot 0 back with Requeue, which only the engine of a ContinuousBatcher or of "
        "a ContinuousBatchLoop may do, as it is added again there: yield SKIP for a slot that goes "
        "on later, or Fail(error)"
    )
    steps = [["a", "x"], [element, "y"], ["c", "z"], [EOS, EOS]]

    def generate(requests):
        yield from steps

    core = Demultiplexer(2)
    core.feed(steps[0])
    delivery = core.feed(steps[1])
    assert [str(end.error) for _, end in delivery.ends] == [text]
    channel = Channel(2)
    for step in steps:
        channel.put(step)
    with DynamicBatcher(generate, max_batch_size=2, batch_timeout=3600.0) as batcher:
        for first, second in (
            demux(steps, 2),
            BatchedStream(steps, 2),
            channel.streams(),
            [batcher.stream(number) for number in range(2)],
        ):
            assert next(first) == "a"
            with pytest.raises(StepError) as raised:
                next(first), next(first)
            assert str(raised.value) == text
            assert list(second) == ["x", "y", "z"]


def test_the_class_in_place_of_an_instance_fails_its_slot_alone():
    first, second = demux([["a", "x"], [Requeue, "y"]], 2)
    with pytest.raises(StepError, match=r"holds the class Requeue for slot 0.*yield Requeue\(\)"):
        list(first)
    assert list(second) == ["x", "y"]


def test_what_follows_in_the_same_many_is_dropped():
    class Talkative:
        def __init__(self):
            self.slots = set()
            self.steps = 0

        def add(self, slot, request):
            self.slots.add(slot)

        def step(self):
            self.steps += 1
            end = EOS if self.steps > 1 else Many([1, Requeue(), 2, Last(3), End()])
            return dict.fromkeys(self.slots, end)

        def remove(self, slot):
            self.slots.remove(slot)

    with ContinuousBatcher(Talkative(), max_batch_size=1) as batcher:
        assert list(batcher.stream("request")) == [1]
        assert batcher.statistics().dropped == 2


# ---- many at once


class Moody:
    """Gives back one of its slots in every second step, the youngest."""

    def __init__(self):
        self.seats = {}
        self.steps = 0

    def add(self, slot, state):
        self.seats[slot] = state if type(state) is list else [state, 0]

    def step(self):
        self.steps += 1
        step = {}
        for slot, (request, given) in self.seats.items():
            step[slot] = EOS if given == len(request) else (request, given)
            self.seats[slot][1] += 1
        slot = list(self.seats)[-1]
        if self.steps % 2 and step[slot] is not EOS:
            step[slot] = Many([step[slot], Requeue(self.seats[slot])])
        return step

    def remove(self, slot):
        del self.seats[slot]


def test_threads_that_read_and_leave_as_slots_are_given_back_get_their_own_and_all_of_it():
    requests = [
        f"{name}{'-' * length}" for name, length in zip("abcdefgh", range(5, 13), strict=True)
    ]

    def ask(number):
        request = requests[number]
        for leaves in (False, True, False):
            stream = batcher.stream(request)
            if leaves:
                next(stream)
                stream.cancel()
            else:
                assert list(stream) == [(request, given) for given in range(len(request))]

    with ContinuousBatcher(Moody(), max_batch_size=3) as batcher:
        run_in_threads(*(partial(ask, number) for number in range(len(requests))))
        figures = batcher.statistics()
    assert figures.requeued > 20
    assert figures.opened == 24


def test_metrics_hear_of_it_and_know_at_each_moment_how_many_wait_and_run():
    class Gauges(Metrics):
        def __init__(self):
            self.waiting = self.running = 0
            self.seen, self.waits = [], []

        def submitted(self, *, tenant=None):
            self.move(1, 0)

        def joined(self, waited, *, tenants=()):
            self.waits += waited
            self.move(-len(waited), len(waited))

        def requeued(self, *, tenant=None):
            self.seen.append(("back", tenant))
            self.move(1, -1)

        def finished(self, end, *, joined, lasted, in_slot, **_):
            assert in_slot == 0 or joined
            self.move(0, -1) if joined else self.move(-1, 0)

        def move(self, waiting, running):
            self.waiting += waiting
            self.running += running
            assert min(self.waiting, self.running) >= 0

    gauges = Gauges()
    turnstile = Turnstile()
    engine = Preempting("b", on_step=lambda _: turnstile.hold())
    with ContinuousBatcher(
        engine, max_batch_size=2, metrics=gauges, tenant=lambda request: request[0]
    ) as batcher:
        first = batcher.stream("abc")
        turnstile.wait_until(lambda: turnstile.arrived == 1)
        second, third = batcher.stream("vwx"), batcher.stream("bcd")
        turnstile.let(2)
        turnstile.wait_until(lambda: turnstile.arrived == 3)
        assert (gauges.waiting, gauges.running) == (2, 1)
        figures = batcher.statistics()
        assert (figures.waiting, figures.running, figures.requeued) == (2, 1, 1)
        third.cancel()
        turnstile.open()
        assert (list(first), list(second)) == (list("abc"), list("vwx"))
    assert gauges.seen == [("back", "a")]
    assert len(gauges.waits) == 3  # the first twice, and the third never
    assert (gauges.waiting, gauges.running) == (0, 0)
