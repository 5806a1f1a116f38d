"""Slots that are given back, where deadlines, warm-ups, drains, costs and faults meet that."""

from __future__ import annotations

from functools import partial

import pytest
from test_drain import draining
from test_requeue import Preempting, batcher_of, until_given_back
from test_warm_up import nothing_counted, warm_up

from batchstream import ClosedError, Metrics, NotNow, RequestError, SourceError
from batchstream._batching.calls.room import has_room
from support import knobs
from support.engines import continuous_batchers

LONG = 3600.0


class Solitary(Preempting):
    """Gives all slots back, and no output, where there are several."""

    def step(self):
        if len(self.seats) > 1:
            return {slot: self._requeue(slot) for slot in self.seats}
        return super().step()


class Events(Metrics):
    """Records the names of what it hears of."""

    def __init__(self):
        self.heard = []

    def submitted(self, **_):
        self.heard.append("submitted")

    def refused(self, reason, **_):
        self.heard.append(f"refused, {reason}")

    def joined(self, waited, **_):
        self.heard.append("joined")

    def requeued(self, **_):
        self.heard.append("requeued")

    def finished(self, end, **_):
        self.heard.append("finished")


# ---- deadlines


async def timed_until_given_back(form, step, *, deadlines, **options):
    """Return an engine, its gate in this step, and streams; the first is given back in step 1."""
    begin, held = form.gate(), form.gate()
    engine = Preempting(behind="b", gates={0: begin, step: held})
    form._models.append(engine)
    batcher = form.batcher(engine, max_batch_size=2, **options)
    first = form.submit(batcher, "abc", **deadlines)
    await begin.reached.wait()
    second = form.submit(batcher, "vwxyz")
    begin.open()
    return engine, held, first, second


@pytest.mark.rule(9, 30)
@continuous_batchers
async def test_steps_for_others_say_nothing_of_the_outputs_of_one_that_waits_again(form):
    engine, held, first, second = await timed_until_given_back(
        form, 4, deadlines={"first_timeout": LONG, "gap_timeout": LONG}
    )
    await held.reached.wait()  # two steps were made since
    given, until = knobs.request_of(first).deadlines.next_output
    assert (given, until is None) == (2, False)
    held.open()
    assert await form.rest(second) == list("vwxyz")
    assert await form.rest(first) == list("abc")
    assert engine.added == ["abc", "vwxyz", "c"]


@pytest.mark.rule(19)
@continuous_batchers
async def test_its_time_goes_on_while_it_waits_and_stands_still_where_it_is_full_in_a_slot(form):
    _, held, first, second = await timed_until_given_back(
        form, 2, deadlines={"gap_timeout": LONG}, on_overflow="wait", max_buffered=2
    )
    await held.reached.wait()
    deadlines = knobs.request_of(first).deadlines
    given, until = deadlines.next_output
    assert (given, until is None) == (2, False)  # not for its consumer, which has not read
    held.open()
    assert await form.rest(second) == list("vwxyz")
    while not knobs.is_paused_for(first):
        await form.all_wait()
    assert deadlines.next_output == (2, None)
    assert await form.rest(first) == list("abc")


# ---- warm-ups


@pytest.mark.rule(30)
@continuous_batchers
async def test_a_warm_up_whose_slots_are_given_back_counts_in_no_figures(form):
    events = Events()
    engine = Preempting(behind="bx")
    form._models.append(engine)
    batcher = form.batcher(engine, max_batch_size=2, metrics=events)
    await warm_up(form, batcher, ["abc", "wxyz", "m"])
    assert sorted(engine.added) == sorted(["abc", "wxyz", "m", "c", "yz"])
    assert nothing_counted(batcher)
    await form.close(batcher)
    with pytest.raises(ClosedError):
        await warm_up(form, batcher, ["abc"])
    assert nothing_counted(batcher)
    assert events.heard == []


@pytest.mark.rule(9)
@continuous_batchers
async def test_requests_of_a_warm_up_that_are_all_given_back_go_on_one_by_one(form):
    engine = Solitary()
    form._models.append(engine)
    batcher = form.batcher(engine, max_batch_size=3)
    await warm_up(form, batcher, ["ab", "cd", "e"])
    assert engine.added == ["ab", "cd", "e"] * 2
    assert batcher.ready


@pytest.mark.rule(29)
@continuous_batchers
async def test_one_that_waits_again_goes_on_behind_a_warm_up(form):
    batcher, engine, held, first, second = await until_given_back(form)

    async def release():
        while batcher.ready:
            await form.all_wait()
        held.open()
        return await form.rest(second), await form.rest(first)

    _, outputs = await form.concurrently(partial(warm_up, form, batcher, ["m"]), release)
    assert outputs == (list("vwxyz"), list("abc"))
    assert engine.added == ["abc", "vwxyz", "m", "c"]
    assert (batcher.statistics().opened, batcher.statistics().requeued) == (2, 1)


# ---- drains


@pytest.mark.rule(29)
@continuous_batchers
async def test_one_that_waits_again_ends_in_a_drain(form):
    batcher, engine, held, first, second = await until_given_back(form)

    async def then():
        held.open()
        return await form.rest(second), await form.rest(first)

    assert await draining(form, batcher, then) == (list("vwxyz"), list("abc"))
    assert engine.added == ["abc", "vwxyz", "c"]
    assert batcher.state == "closed"


@pytest.mark.rule(9, 28)
@continuous_batchers
async def test_one_that_waits_again_fails_where_the_time_of_a_drain_is_over(form):
    batcher, engine, held, first, second = await until_given_back(form)

    async def then():
        outputs, [error] = await form.read(first)
        held.open()
        await form.read(second)
        return outputs, error

    outputs, error = await draining(form, batcher, then, drain=0)
    assert (outputs, type(error), first.end.outputs) == (["a", "b"], ClosedError, 2)
    assert "time was over before all requests had ended" in str(error)
    assert engine.added == ["abc", "vwxyz"]


# ---- costs


@pytest.mark.rule(15, 29)
@continuous_batchers
async def test_a_cost_that_cannot_be_had_of_what_is_added_again_fails_that_request_alone(form):
    def step_cost(request):
        if request == "c":
            raise KeyError("no price")
        return 1

    batcher, engine, held, first, second = await until_given_back(
        form, step_cost=step_cost, max_step_cost=9
    )
    outputs, [error] = await form.read(first)
    assert (outputs, type(error)) == (["a", "b"], KeyError)
    held.open()
    assert await form.rest(second) == list("vwxyz")
    assert engine.added == ["abc", "vwxyz"]
    assert batcher.statistics().requeued == 0


# ---- faults


@pytest.mark.rule(2, 15)
@continuous_batchers
async def test_what_an_engine_alone_knew_of_a_request_is_lost_with_the_engine(form):
    """Another engine would begin anew, and the stream have the same outputs twice."""
    made = []

    def make():
        options = {"behind": "b", "raises": {2: ValueError("lost")}} if not made else {}
        made.append(Preempting(keeps=True, **options))
        made[-1]._gates = {} if made[1:] else {0: gate}
        return made[-1]

    gate = form.gate()
    batcher = form.batcher(make, max_batch_size=2)
    first, second = await form.submit_behind(batcher, gate, "abc", "wxyz")
    gate.open()
    outputs, [error] = await form.read(second)
    assert (outputs, type(error)) == (["w"], ValueError)
    outputs, [error] = await form.read(first)
    assert (outputs, type(error), first.end.outputs) == (["a", "b"], SourceError, 2)
    assert "it alone knew how to go on with this request" in str(error)
    assert await form.rest(form.submit(batcher, "m")) == ["m"]
    assert made[1].added == ["m"]


@pytest.mark.rule(15)
@continuous_batchers
async def test_what_was_given_back_before_its_first_output_begins_anew_in_another_engine(form):
    made = []

    def make():
        options = {"before": "w", "raises": {2: ValueError("lost")}} if not made else {}
        made.append(Preempting(keeps=True, **options))
        made[-1]._gates = {} if made[1:] else {0: gate}
        return made[-1]

    gate = form.gate()
    batcher = form.batcher(make, max_batch_size=2)
    first, second = await form.submit_behind(batcher, gate, "abc", "wx")
    gate.open()
    assert [type(error) for error in (await form.read(first))[1]] == [ValueError]
    assert await form.rest(second) == ["w", "x"]
    assert made[1].added == ["wx"]


@pytest.mark.rule(9, 15)
@pytest.mark.parametrize("returned", [NotNow, NotNow("full")])
@continuous_batchers
async def test_an_engine_raises_not_now_and_does_not_return_it(form, returned):
    class Full(Preempting):
        def add(self, slot, request):
            if self.seats:
                return returned
            return super().add(slot, request)

    _, gate, submit = batcher_of(form, Full(), ["abc", "wx"])
    first, second = await submit()
    gate.open()
    outputs, [error] = await form.read(second)
    assert (outputs, type(error)) == ([], TypeError)
    assert "let it raise NotNow, and not return it, where" in str(error)
    assert await form.rest(first) == list("abc")


# ---- room


@pytest.mark.rule(9)
@continuous_batchers
async def test_slots_that_become_free_make_room_though_none_of_the_waiting_requests_fits(form):
    """It costs too much beside the others; so a waiter would be told with no request's joining."""
    begin, held = form.gate(), form.gate()
    model = form.model(gates={0: begin, 4: held})
    batcher = form.batcher(
        model, max_batch_size=3, max_pending=1, cost=lambda it: min(len(it), 4), max_batch_cost=6
    )
    dispatcher = knobs.dispatcher_of(batcher)

    class Waiter:
        passes_on = False
        found = ()
        is_held_up = staticmethod(bool)

        def note_room(self):
            self.found = [*self.found, has_room(dispatcher, 1)]

    streams = await form.submit_behind(batcher, begin, "abcdef", "mn", "pqrs", "vwxy")
    waiter = Waiter()
    dispatcher.ends.room_waiters[waiter] = None
    begin.open()
    await held.reached.wait()
    assert model.worked_on[3:] == [("abcdef", "mn"), ("abcdef",)]
    assert waiter.found[-1]
    del dispatcher.ends.room_waiters[waiter]
    held.open()
    rests = [await form.rest(stream) for stream in streams]
    assert rests == [list("abcdef"), ["m", "n"], list("pqrs"), list("vwxy")]


@continuous_batchers
async def test_there_is_never_room_for_what_costs_more_than_a_batch(form):
    batcher = form.batcher(cost=len, max_batch_cost=3)
    with pytest.raises(RequestError, match=r"the request costs 4.0, more than a batch may cost: 3"):
        batcher.wait_for_room(cost=4)
    batcher.wait_for_room(cost=3)
