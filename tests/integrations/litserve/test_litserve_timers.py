"""When a request is late, on a clock that the test moves."""

import pytest

from batchstream.integrations.litserve._server.timers import RequestTimer, Timeouts


class Clock:
    """An event loop, as far as timers need one."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def time(self):
        return self.now

    def call_at(self, when, callback):
        call = Call(when, callback)
        self.calls.append(call)
        return call

    def advance(self, to):
        while due := [call for call in self.calls if not call.cancelled and call.when <= to]:
            call = min(due, key=lambda call: call.when)
            self.calls.remove(call)
            self.now = max(self.now, call.when)
            call.callback()
        self.now = to


class Call:
    def __init__(self, when, callback):
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self):
        self.cancelled = True


class Request:
    def __init__(self, *, take_back=lambda: False, **timeouts):
        self.clock = Clock()
        self.failed = []
        self.timer = RequestTimer(Timeouts(**timeouts), self._fail, self.clock, take_back)

    def _fail(self, error):
        self.failed.append((self.clock.now, error.timeout, str(error)))
        self.timer.close()

    def output_at(self, *times):
        for time in times:
            self.clock.advance(time)
            self.timer.note_output()


TOTAL = "the request has not ended within 5 seconds, as asked for"
FIRST = "no output has come within 2 seconds (first_timeout)"
GAP = "no output has come for 1 seconds (gap_timeout)"


@pytest.mark.rule(29)
@pytest.mark.parametrize(
    ("timeouts", "outputs", "failed"),
    [
        ({"first": 2}, [], (2, 2, FIRST)),
        ({"first": 2}, [1.75], None),
        ({"gap": 1}, [], None),
        ({"gap": 1}, [7], (8, 1, GAP)),
        ({"gap": 1}, [7, 7.75, 8.5], (9.5, 1, GAP)),
        ({"total": 5}, [1, 2, 3, 4], (5, 5, TOTAL)),
        ({"total": 5, "first": 2, "gap": 1}, [], (2, 2, FIRST)),
        ({"total": 5, "first": 2, "gap": 1}, [1], (2, 1, GAP)),
        ({"total": 5, "first": 2, "gap": 1}, [1, 1.75, 2.5, 3.25], (4.25, 1, GAP)),
        ({"total": 5, "first": 2, "gap": 1}, [1.5, 2.25, 3.0, 3.75, 4.5], (5, 5, TOTAL)),
        ({"total": 0}, [], (0, 0, TOTAL.replace("5", "0"))),
    ],
)
def test_a_request_is_failed_at_the_first_deadline_that_passes(timeouts, outputs, failed):
    request = Request(**timeouts)
    assert request.failed == [], "in the midst of its submission"
    request.output_at(*outputs)
    request.clock.advance(100)
    assert request.failed == ([] if failed is None else [failed])


WAIT = "no worker has taken the request within 3 seconds (wait_timeout)"


@pytest.mark.rule(29)
@pytest.mark.parametrize(("was_there", "failed"), [(True, (3, 3, WAIT)), (False, (5, 5, TOTAL))])
def test_a_request_that_a_worker_has_by_then_has_not_waited_for_too_long(was_there, failed):
    request = Request(wait=3, total=5, take_back=lambda: was_there)
    request.clock.advance(100)
    assert request.failed == [failed]


@pytest.mark.rule(29)
def test_the_other_deadlines_hold_where_the_queue_raises():
    def take_back():
        raise RuntimeError("the queue has another error than that its process has ended")

    request = Request(wait=3, total=5, take_back=take_back)
    with pytest.raises(RuntimeError):
        request.clock.advance(4)
    request.clock.advance(100)
    assert request.failed == [(5, 5, TOTAL)]


def test_no_deadline_passes_after_the_end():
    request = Request(total=5, first=2, gap=1)
    request.output_at(1)
    request.timer.close()
    request.clock.advance(100)
    assert request.failed == []
    assert all(call.cancelled for call in request.clock.calls)


def test_outputs_make_no_work_for_the_clock():
    request = Request(total=500, gap=300)
    request.output_at(*range(1, 200))
    assert len(request.clock.calls) <= 2
