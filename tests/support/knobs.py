"""The package's insides that tests turn, read or wait for; a rename there is followed here alone.

A name that several modules of the package import is replaced in each of them, wherever they lie.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial

import batchstream._batching.clock
import batchstream._batching.dynamic
import batchstream._batching.waiting.queue
import batchstream._eventloops.asyncio
import batchstream._pumps.clock
import batchstream._pumps.process
import batchstream._pumps.stall
from batchstream._batching.batches.engine_batch import EngineBatch
from batchstream._batching.calls.upstream import RequestUpstream
from batchstream._batching.dispatching.waking import wake_workers
from batchstream._batching.engine import Engine
from batchstream._batching.reporting.step_log import StepLog
from batchstream._batching.requests.request import Request
from batchstream._batching.scheduling.scheduler import Scheduler
from batchstream._core.arguments import DEFAULT_MAX_BUFFERED
from batchstream._core.cores import requeued_in
from batchstream._core.demultiplexer import Demultiplexer
from batchstream._eventloops.asyncio import WAITERS_PER_TURN, AsyncioWaiter
from batchstream._eventloops.base import OUTPUTS_PER_TURN
from batchstream._eventloops.current import current_loop
from batchstream._handoff.buffer import Buffer
from batchstream._native.selection import native
from batchstream._pumps.background import BackgroundPump
from batchstream._pumps.fanout import Fanout
from batchstream._pumps.life import Life
from batchstream._pumps.pull import PullPump
from batchstream._pumps.puts import PutInThread
from batchstream._pumps.thread import ThreadPump
from batchstream._pumps.worker_thread import WorkerThread
from batchstream._streams.async_stream import AsyncStreamReader
from support.sources import TIMEOUT

__all__ = ["DEFAULT_MAX_BUFFERED", "OUTPUTS_PER_TURN"]

NATIVE = native is not None
"""Whether the native core runs, which has no lines of Python to strike in."""

MANY_KEYS = batchstream._batching.scheduling.keys.TIDY_ABOVE
EXIT_SECONDS = batchstream._pumps.process.EXIT_SECONDS


def replace_everywhere(monkeypatch, name, thing, folder="batchstream."):
    """Replace a name in every module of the package that has it."""
    modules = [it for module, it in list(sys.modules.items()) if module.startswith(folder)]
    modules = [module for module in modules if name in vars(module)]
    assert modules, f"no module of the package knows {name}"
    for module in modules:
        monkeypatch.setattr(module, name, thing)


# ---- sizes


def set_turns(monkeypatch, *, receives, calls):
    """Let a consumer give its turn away after so many receives, and a loop after so many calls."""
    if NATIVE:
        monkeypatch.setattr(_native_turns, "lengths", (receives, calls))
    replace_everywhere(monkeypatch, "OUTPUTS_PER_TURN", receives, "batchstream._streams.")
    replace_everywhere(monkeypatch, "WAITERS_PER_TURN", calls, "batchstream._eventloops.asyncio")


class _NativeTurns:
    """The lengths of turns in the native core, set as an attribute is."""

    def __init__(self):
        self.lengths = (OUTPUTS_PER_TURN, WAITERS_PER_TURN)

    def __setattr__(self, name, lengths):
        native.set_turns(*lengths)
        super().__setattr__(name, lengths)


def set_many_keys(monkeypatch, keys):
    """Let batchers tidy up their keys when there are more than so many."""
    monkeypatch.setattr(batchstream._batching.scheduling.keys, "TIDY_ABOVE", keys)


# ---- time


def set_clock(monkeypatch, clock):
    """Let batchers and pumps ask this function what time it is."""
    monkeypatch.setattr(batchstream._batching.clock, "monotonic", clock)
    monkeypatch.setattr(batchstream._pumps.clock, "monotonic", clock)


def set_span_clock(monkeypatch):
    """Let the spans of OpenTelemetry go by the clock of batchers, see `set_clock`."""

    def time_ns():
        return round(batchstream._batching.clock.monotonic() * 1e9)

    name = "batchstream.integrations.opentelemetry._traces.time_ns"
    monkeypatch.setattr(name, time_ns)


def set_stall(monkeypatch, seconds):
    """Let a pump warn when it has waited so long for a stream that is not read."""
    monkeypatch.setattr(batchstream._pumps.stall, "STALL_SECONDS", seconds)


def watch_no_stalls(monkeypatch):
    """Let a pump wait for room without looking around."""
    monkeypatch.setattr(batchstream._pumps.stall.StallWatch, "time_left", lambda _: None)


def set_lock_of_workers(monkeypatch, lock):
    """Let the threads of batchers wait in locks that this function makes."""
    replace_everywhere(
        monkeypatch, "Lock", lock, "batchstream._batching.dispatching.thread_dispatcher"
    )


def set_pause(monkeypatch, seconds):
    """Let a pump that waits for room look for closed loops so often; never, if it is negative."""
    replace_everywhere(monkeypatch, "LOOP_POLL_SECONDS", seconds)


def let_deadline_pass(stream):
    """Let the deadline of a request be over, for its consumer and its batcher alike."""
    expire_in(stream, -1.0)


def expire_in(stream, seconds):
    """Let a request that has a timeout of either kind be overdue so many seconds from now."""
    _expire(request_of(stream).deadlines, seconds)


def _expire(deadlines, seconds):
    deadlines.wait_until = time.monotonic() + seconds
    if deadlines.until is not None:
        deadlines.until = deadlines.wait_until
    given, until = deadlines.next_output
    if until is not None:
        deadlines.next_output = given, deadlines.wait_until


def let_deadline_at_model_pass(batcher):
    """Let the deadline of the one open request that has any be over; a consumer may wait for it."""
    [request] = _with_deadlines(batcher)
    _expire(request.deadlines, -1.0)
    dispatcher_of(batcher).parking.wake((request,))


def awaits_next_output(batcher):
    """Whether the one open request of a batcher that has deadlines has one for its next output."""
    [request] = _with_deadlines(batcher)
    given, until = request.deadlines.next_output
    return given > 0 and until is not None


def _with_deadlines(batcher):
    return [it for it in dispatcher_of(batcher).scheduler.open_requests() if it.deadlines]


def next_output_deadline(stream):
    """Return when a request has to have been given its next output; None if never, or not now."""
    return request_of(stream).deadlines.next_output[1]


def is_paused_for(stream):
    """Whether the pump of a request's batch waits for room, in this stream or in another."""
    pump = request_of(stream).pump
    return pump is not None and pump._room._resume is not None


# ---- event loops


def set_current_loop(monkeypatch, current_loop):
    """Let streams belong to the loops that this function returns."""
    replace_everywhere(monkeypatch, "current_loop", current_loop, "batchstream._streams.")


def replace_spawn(monkeypatch, spawn):
    """Let asyncio's tasks of the package be made by this function."""
    monkeypatch.setattr(batchstream._eventloops.asyncio.AsyncioEventLoop, "spawn", spawn)


def is_of_the_package(function):
    """Whether what a loop is given to call is the package's own."""
    if function is AsyncioWaiter.resume_all:  # a built-in function, perhaps
        return True
    return (getattr(function, "__module__", None) or "").startswith("batchstream")


def tasks_kept_alive():
    """Return the tasks in asyncio loops that the package keeps alive."""
    return batchstream._eventloops.asyncio._tasks


# ---- batches


def pump_of(batch):
    """Return what moves a batch, or the batch of a stream."""
    return batch._upstream if hasattr(batch, "_upstream") else batch._pump


def buffered_deliveries(batch):
    """Return how many deliveries lie ready for the reader of `steps()`."""
    return len(pump_of(batch).fanout.deliveries.outputs)


def bound_of(batch):
    """Return how many outputs a stream of the batch may hold."""
    return pump_of(batch)._room._bound.max_buffered


def is_closing(batch):
    """Whether the batch, which runs by itself, has been asked to close."""
    return pump_of(batch)._closing


def role_of(batch):
    """Return the lock that the thread which pulls holds."""
    return pump_of(batch).role.lock


def departures_of(batch):
    """Return the streams that have ended, of which the pump has not heard."""
    return pump_of(batch).fanout.departures


def thread_of(batch):
    """Return the thread that moves the batch, if it has been started."""
    thread = pump_of(batch)._thread
    return thread and thread._thread


def waiters_in_threads(batch):
    """Return what wakes the threads that wait for outputs of the batch; empty if none waits."""
    return _threads_of(batch).waiting


def is_waited_for_in_threads(batch, slot):
    """Whether a thread waits for an output of the stream in this slot."""
    return pump_of(batch).fanout.buffers[slot] in waiters_in_threads(batch)


def as_threads_wait(batch, then):
    """Call this whenever a thread has registered that it waits for an output of the batch.

    The batch may be a stream of it, or of a batcher.
    """
    _threads_of(batch).waiting = _Registering(then)


class _Registering(dict):
    """The waiters in threads; calls something more when there is one."""

    def __init__(self, then):
        super().__init__()
        self._then = then

    def __setitem__(self, key, waiter):
        super().__setitem__(key, waiter)
        self._then()


def fail_next_wake_up(batch, error):
    """Raise this error once, when threads are to be woken."""
    threads = _threads_of(batch)
    resume = threads.resume

    def fail_once(_):
        threads.resume = resume
        raise error

    threads.resume = fail_once


def _threads_of(batch):
    upstream = pump_of(batch)
    parking = (
        upstream.dispatcher.parking if isinstance(upstream, RequestUpstream) else upstream._parking
    )
    return parking._threads


def is_waited_for(batch):
    """Whether any consumer, thread or task waits for something of the batch."""
    return any(lot.waiting for lot in pump_of(batch)._parking._all)


def is_paused(batch):
    """Whether the pump of the batch, which runs by itself, waits for room."""
    return pump_of(batch)._room._resume is not None


def as_put_waits(monkeypatch, then):
    """Call this whenever a put in a thread is about to wait for room."""
    wait = PutInThread.wait

    def wait_after(put):
        then()
        wait(put)

    monkeypatch.setattr(PutInThread, "wait", wait_after)


def fail_from_outside(stream, error):
    """Do what a deadline does that passes while the model is in a step."""
    stream._upstream.fail_stream(stream._buffer, error)


def wait_until_closed(batch):
    """Wait in this thread until the batch's source is closed by its pump."""
    pump_of(batch).closed.wait()


def closed_of(batch):
    """Return what is set when the source of a batch is closed by its pump; it keeps no stream."""
    return pump_of(batch).closed


async def wait_in_loop(closed):
    """Wait in an event loop until this is set."""
    await closed.wait_in_loop(current_loop(), lambda: None, lambda: None)


def break_off_drops(batch, times, error):
    """Raise this error so often where a batch that was never read is about to be dropped."""
    pump = pump_of(batch)
    drop, errors = pump._drop, [error] * times

    def drop_or_raise():
        if errors:
            raise errors.pop()
        drop()

    pump._drop = drop_or_raise


def start(batch):
    """Do what the first receive in a thread does before it waits."""
    pump_of(batch).start(None)


def on_closed(monkeypatch, batch, then):
    """Call this in the pump's thread when consumers have been woken, as the source is closed."""
    pump = pump_of(batch)
    monkeypatch.setattr(pump, "closed", _Followed(pump.closed, then))


class _Followed:
    """An event of the package that calls something more when it was set."""

    def __init__(self, event, then):
        self._event = event
        self._then = then

    def set(self):
        self._event.set()
        self._then()

    def __getattr__(self, name):
        return getattr(self._event, name)


STEPS_OF_PUMPS = {
    "handing a step over": "take",
    "failing the streams": "fail",
    "handing the ends out": "hand_out",
    "asking whether to go on": "_prepare_step",
    "looking for room": "_without_room",
}
"""What a pump that runs by itself does again and again, and its methods."""

LAST_STEPS_OF_PUMPS = {"ending the streams": "_drain", "closing the source": "_close"}
"""What such a pump does in the end, and its methods."""


def fail_in_pump(monkeypatch, batch, step, error):
    """Raise this error where the pump of the batch does one of the things above."""

    def fail(*_):
        raise error

    method = (STEPS_OF_PUMPS | LAST_STEPS_OF_PUMPS)[step]
    pump = pump_of(batch)
    monkeypatch.setattr(pump if hasattr(pump, method) else pump.fanout, method, fail)


def before_draining(monkeypatch, then):
    """Call this whenever a pump that runs by itself is about to drain."""
    advance = Life.advance

    def advance_after(life, event):
        if event == "drain":
            then()
        advance(life, event)

    monkeypatch.setattr(Life, "advance", advance_after)


def poll(batch):
    """Do what a consumer of the batch in another loop does from time to time."""
    pump_of(batch).poll()


CODE_OF_PULL = PullPump.wait.__code__
"""What a receive runs that makes the next step."""

CODE_OF_WAIT = ThreadPump.wait.__code__
"""What a receive in a thread runs where the buffer is empty, and the source runs by itself."""


_native_turns = _NativeTurns() if NATIVE else None


def files_of_pumps():
    """Return the files of the modules that a cancel passes through."""
    return files_of(*_MODULES_OF_CANCEL)


def files_of(*modules):
    """Return the files of modules of the package."""
    return {sys.modules[f"batchstream.{module}"].__file__ for module in modules}


_MODULES_OF_CANCEL = (
    "_handoff.buffer",
    "_handoff.event",
    "_handoff.parking",
    "_pumps.background",
    "_pumps.fanout",
    "_pumps.life",
    "_pumps.pull",
    "_pumps.room",
    "_pumps.source",
    "_pumps.task",
    "_pumps.thread",
    "_pumps.worker_thread",
)


def files_of_pushes():
    """Return the files of the modules that the calls of a channel's producer pass through."""
    names = ("_pumps.background", "_pumps.fanout", "_pumps.push", "_pumps.room", "_streams.channel")
    return files_of(*names)


CODES_OF_CANCEL = {"pulled": PullPump.cancel.__code__, "background": ThreadPump.cancel.__code__}
"""What cancels a stream of a batch."""

CODE_OF_FAILING = BackgroundPump.fail_stream.__code__
"""What fails a stream of a batch from outside, as a deadline does."""

CODE_OF_DRAINING = BackgroundPump._drain.__code__
"""What ends the streams of a pump that makes no more steps."""

CODE_OF_ASYNC_RECEIVE = getattr(AsyncStreamReader.__anext__, "__code__", None)
"""What a receive in an event loop runs."""

CODE_OF_DRAIN = getattr(Buffer.take_all, "__code__", None)
"""What takes all that is buffered."""

CODE_OF_CLOSE = PullPump.close.__code__
"""What closes a batch whose consumers pull."""

CODE_OF_VIEW = Fanout.read.__code__
"""What the first receive runs that decides how the batch is read."""

CODE_OF_FIRST_STEP = WorkerThread.call.__code__
"""What asks a thread for the first step, to learn the size from it."""

CODES_OF_ENDS = {
    "the source has ended": Demultiplexer.finish.__code__,
    "a step has an end mark": Demultiplexer.feed_other.__code__,
    "a step is none": Demultiplexer.fail.__code__,
}
"""What the core runs where streams end."""


# ---- streams and requests


def buffered(stream):
    """Return how many outputs lie ready for the stream's consumer."""
    return len(stream._buffer.outputs)


def content_of(stream):
    """Return what lies ready for the stream's consumer."""
    return stream._buffer.outputs


def hold(stream, outputs):
    """Let an unread stream hold these outputs, to which its pump appends; return its buffer."""
    stream._buffer.outputs = outputs
    return stream._buffer


def ends_of(stream):
    """Return what has ended the stream; empty while it is live."""
    return stream._buffer.ends


def request_of(stream):
    """Return the request of a batcher's stream."""
    return stream._buffer


def as_it_is_cancelled(monkeypatch, stream, then):
    """Call this as a waiting request is cancelled, and wait until it has its first output."""
    cancel = Request.cancel

    def cancel_once_it_runs(request, end):
        if request is stream._buffer:
            then()
            while not request.outputs:
                pass
        cancel(request, end)

    monkeypatch.setattr(Request, "cancel", cancel_once_it_runs)


def before_arrival(monkeypatch, then):
    """Call this whenever a request is about to be queued."""
    submit = Scheduler.submit

    def submit_after(scheduler, request, now):
        then()
        submit(scheduler, request, now)

    monkeypatch.setattr(Scheduler, "submit", submit_after)


def as_batch_begins(monkeypatch, then):
    """Call this whenever a function was called for a batch, whose first step is to come.

    Returns:
        The iterators over what the function returned, which count how often they are closed.
    """
    open_source = batchstream._batching.dynamic._open
    iterators = []

    def open_then(*args):
        source = open_source(*args)
        source._iterator = iterator = _CountsClosings(source._iterator)
        source._unclosed = iter((iterator.close,))  # read by a synchronous one alone
        iterators.append(iterator)
        then()
        return source

    monkeypatch.setattr(batchstream._batching.dynamic, "_open", open_then)
    return iterators


class _CountsClosings:
    """A generator, synchronous or not, that counts how often it is closed."""

    def __init__(self, generator):
        self._generator = generator
        self.closings = 0

    def __next__(self):
        return next(self._generator)

    def __anext__(self):
        return anext(self._generator)

    def close(self):
        self.closings += 1
        return self._generator.close()

    def aclose(self):
        self.closings += 1
        return self._generator.aclose()

    def __getattr__(self, name):
        return getattr(self._generator, name)


def after_deadline(monkeypatch, then):
    """Call this with each request whose deadline has just been read."""
    deadline = Request.deadline.fget

    def read(request):
        found = deadline(request)
        then(request)
        return found

    monkeypatch.setattr(Request, "deadline", property(read))


# ---- batchers


CODE_OF_WAKING = wake_workers.__code__
"""What a submission runs that wakes the workers that wait."""

CODE_OF_REAPING = Scheduler.reap.__code__
"""What counts the requests that have ended."""


def files_of_submission():
    """Return the files of the modules that a submission passes through."""
    return files_of(
        "_batching.batcher",
        *("_batching.calls.closing", "_batching.calls.submission", "_batching.calls.upstream"),
        *("_batching.dispatching.dispatcher", "_batching.dispatching.thread_dispatcher"),
        *("_batching.dispatching.waking", "_batching.reporting.reports", "_batching.requests.ends"),
        *("_batching.scheduling.keys", "_batching.scheduling.scheduler"),
        *("_batching.scheduling.workers", "_batching.waiting.fair_order"),
        *("_batching.waiting.pending", "_batching.waiting.places", "_batching.waiting.queue"),
        "_batching.waiting.readiness",
    )


def files_of_limits():
    """Return the files of the modules in which limits are changed."""
    return files_of(
        *("_batching.dynamic", "_batching.options", "_batching.calls.reconfiguration"),
        "_batching.waiting.limits",
    )


def files_of_giving_back():
    """Return the files of the modules that see to a slot that is given back, or to a cancel."""
    return files_of(
        *("_batching.batches.engine_batch", "_batching.calls.upstream"),
        *("_batching.dispatching.dispatcher", "_batching.requests.ends"),
        *("_batching.requests.request", "_batching.scheduling.scheduler"),
        *("_batching.waiting.queue", "_pumps.background", "_pumps.fanout"),
    )


def before_steps_are_noted(monkeypatch, then):
    """Call this whenever a batch has handed a step out, and is about to note it."""
    note = StepLog.note

    def note_after(log, live, capacity):
        then()
        note(log, live, capacity)

    monkeypatch.setattr(StepLog, "note", note_after)


def around_refill(monkeypatch, around):
    """Let this function call what a batch of an engine does between two steps."""
    refill = EngineBatch.refill
    monkeypatch.setattr(EngineBatch, "refill", lambda batch: around(partial(refill, batch)))


def has_given_back(refill):
    """Whether the last step has given a slot back, of a call that `around_refill` hands out."""
    [batch] = refill.args
    return bool(requeued_in(batch.pump.fanout.core))


def fail_request(stream, error):
    """Do what a deadline of a request does that passes at this moment."""
    stream._upstream.dispatcher.ends.fail(stream._buffer, error)


def files_of_streams():
    """Return the files of the modules that make streams."""
    return files_of("_streams.stream", "_streams.async_stream")


batching_clock = batchstream._batching.clock


def engine(users):
    """Return what a batcher makes of a user's engine."""
    return Engine(users)


def engine_of(batcher):
    """Return the engine that a batcher drives, or has driven."""
    return dispatcher_of(batcher).model._engine


def is_ending(server):
    """Whether a server of a model accepts no request of any connection any more."""
    return all(session.refusal for session in list(server._listener._sessions))


def waits_for_room(batcher):
    """Whether a batch of a batcher waits until a stream is read."""
    batches = list(dispatcher_of(batcher).scheduler.batches)
    return any(batch.pump._room._resume is not None for batch in batches)


def wait_for_idle_workers(batcher):
    """Wait until no thread of a batcher is at work."""
    deadline = time.monotonic() + TIMEOUT
    while dispatcher_of(batcher).scheduler.workers.at_work:
        assert time.monotonic() < deadline, "a worker is still at work"
        time.sleep(0.001)


def dispatcher_of(batcher):
    """Return what the batcher's streams hold."""
    return batcher._dispatcher


def metrics_of(batcher):
    """Return the object that the batcher calls with its figures."""
    return dispatcher_of(batcher).options.metrics._metrics


def worker_threads_of(batcher):
    """Return the threads that a batcher has started."""
    return [each._thread for each in dispatcher_of(batcher)._threads]


def lock_of(batcher):
    """Return the lock under which the batcher decides."""
    return dispatcher_of(batcher).lock


def fail_as_requests_join(monkeypatch, batcher, error):
    """Raise this error once where requests join a running batch, after they left the queue."""
    dispatcher = dispatcher_of(batcher)
    take_joining, follow_up = dispatcher.take_joining, dispatcher.follow_up

    def take(*asked):
        def fail(*args):
            monkeypatch.setattr(dispatcher, "follow_up", follow_up)
            monkeypatch.setattr(dispatcher, "take_joining", take_joining)
            raise error

        if dispatcher.scheduler.queue:
            monkeypatch.setattr(dispatcher, "follow_up", fail)
        return take_joining(*asked)

    monkeypatch.setattr(dispatcher, "take_joining", take)


def runs_of(batcher):
    """Return the batches that run."""
    return [batch.pump for batch in dispatcher_of(batcher).scheduler.batches]


def unreported(run):
    """Return the ends that a batch keeps for a reader of deliveries."""
    return run.fanout._unreported


def workers_at_work(scheduler):
    """Return the workers that a scheduler counts as woken and not idle."""
    return scheduler.workers.at_work


def assert_nothing_is_left(batcher):
    """Make sure that a closed batcher holds no request, no batch and no waiter."""
    dispatcher = dispatcher_of(batcher)
    assert dispatcher.ended
    assert not dispatcher.scheduler.batches
    assert not dispatcher.scheduler.ended_requests
    assert not dispatcher.all_ended._keys
    assert not dispatcher.scheduler.untold
    order = dispatcher.scheduler.queue._order
    assert order is None or not (order._bands or order._lines or order._by_account)
    assert not any(lot.waiting for lot in dispatcher.parking._all)


def apply_closed_loops(batcher):
    """Do what a consumer in another loop does from time to time: give up what closed loops left."""
    batcher._upstream.poll(None)


def skip_ends_of_batches(batcher):
    """Let a batcher count no batch as ended, as where an interrupt strikes just then."""
    dispatcher_of(batcher).end_batch = lambda _: None


def around_first_decision(batcher, around):
    """Let this function make the first call that asks what a worker does next."""
    dispatcher = dispatcher_of(batcher)
    next_batch = dispatcher.next_batch

    def decide(*args):
        del dispatcher.next_batch
        return around(lambda: next_batch(*args))

    dispatcher.next_batch = decide


def watch_decisions(batcher, watch):
    """Call `watch` with each decision for a worker: requests, seconds to wait, or None.

    Returns:
        A function that ends it.
    """
    dispatcher = dispatcher_of(batcher)
    next_batch = dispatcher.next_batch

    def decided(*args):
        decision = next_batch(*args)
        watch(decision and (decision.requests or decision.wait))
        return decision

    dispatcher.next_batch = decided
    return lambda: delattr(dispatcher, "next_batch")


# ---- the exit of the interpreter


def exit_with(clock, join):
    """Do what an exiting interpreter does, by this clock and with this way to join a thread."""
    modules = [module for name, module in sys.modules.items() if name.startswith("batchstream._")]
    for module in modules:
        if "time" in vars(module):
            module.time = clock
    WorkerThread.join = join
    batchstream._pumps.process._close_all()


# ---- shares

SATURATED_TAKES = int(os.environ.get("SATURATED_TAKES", "2000"))
"""How many batches tenants share, where their shares are held against their weights."""


def tenants_of(batcher):
    """Return how many tenants a batcher remembers, some of them twice perhaps."""
    return sum(map(len, dispatcher_of(batcher).keys._tenants._generations))


def forget_tenants_once(batcher, name):
    """Let a batcher forget all tenants after the first look-up of this one; list its look-ups."""
    interner, asked = dispatcher_of(batcher).keys._tenants, []
    intern = interner.intern

    def intern_and_forget(tenant):
        found = intern(tenant)
        if tenant == name:
            asked.append(tenant)
            if len(asked) == 1:
                interner._generations = ({},)
        return found

    interner.intern = intern_and_forget
    return asked
