"""Every form of batch behind one interface: a scenario written once says what all of them promise.

A scenario is an `async def` test that is given a form. Where consumers block it never suspends, and
is driven with one `send`; otherwise the form's own event loop runs it. Each source made by
`Form.script` watches how it is treated, and after every scenario the form makes sure that nothing
was left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Sequence
from contextvars import ContextVar, copy_context
from functools import partial
from typing import ClassVar

import pytest

from batchstream import AsyncBatchedStream, BatchedStream, Channel, ClosedError, demux
from support import knobs
from support.sources import TIMEOUT, run_in_threads

PATIENCE = TIMEOUT
"""How long a scenario waits for anything before it fails, in seconds."""

OVER = object()
"""What `Form.receive` returns at the end of a stream."""

PUMP = "batchstream pump"
"""What the threads and tasks of the library are called."""

_source_of_context = ContextVar("_source_of_context", default=None)


def drive(coroutine):
    """Run a coroutine that never suspends, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("a scenario suspended where consumers block")


def pump_threads():
    return [thread for thread in threading.enumerate() if thread.name == PUMP]


# ---- sources


class Script:
    """A source of given steps that records what is done to it.

    An exception instance in place of a step is raised.

    Args:
        form: The form whose source this is.
        steps: What it yields, or raises.
        gates: By number of step: the gate to wait at in it.
        on_step: Called with the number of each step, once it is past its gate.
        raise_at_close: What it raises when it is closed.
        gate_at_close: The gate to wait at when it is closed.
    """

    def __init__(
        self, form, steps, *, gates=None, on_step=None, raise_at_close=None, gate_at_close=None
    ):
        self.steps = list(steps)
        self.sent = []
        self.closings = 0
        self.closed = form.flag()
        self.faults = []
        self._form = form
        self._gates = gates or {}
        self._on_step = on_step or (lambda _: None)
        self._close_error = raise_at_close
        self._close_gate = gate_at_close
        self._inside = False
        self._home = None

    @property
    def asked(self):
        """How many steps it was asked for."""
        return len(self.sent)

    def _require(self, condition, fault):
        if not condition:
            self.faults.append(fault)

    def _enter(self, live):
        self._require(not self._inside, "entered twice")
        self._require(not self.closings, "advanced after it was closed")
        self._inside = True
        if self._home is None:
            self._home = self._form.home()
            _source_of_context.set(self)
        self._check_home("advanced")
        self.sent.append(live)
        return self._gates.get(self.asked - 1)

    def _check_home(self, what):
        self._require(self._form.home() == self._home, f"{what} in another thread or task")
        self._require(_source_of_context.get() is self, f"{what} in another context")

    def _next(self, end):
        self._on_step(self.asked - 1)
        step = self.steps[self.asked - 1] if self.asked <= len(self.steps) else end
        if isinstance(step, BaseException):
            try:
                raise step
            finally:
                del step, end  # they hold this frame, and it the frames of the consumer that pulls
        return step

    def _close(self):
        self._require(not self._inside, "closed while it ran")
        if self._home is not None:
            self._check_home("closed")
        self.closings += 1
        self.closed.set()
        if self._close_error is not None:
            raise self._close_error


class SyncScript(Script):
    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, live):
        try:
            if gate := self._enter(live):
                gate.hold()
            return self._next(StopIteration())
        finally:
            self._inside = False

    def close(self):
        if self._close_gate:
            self._close_gate.hold()
        self._close()


class AsyncScript(Script):
    def __aiter__(self):
        return self

    async def __anext__(self):
        return await self.asend(None)

    async def asend(self, live):
        try:
            if gate := self._enter(live):
                await gate.hold_async()
            return self._next(StopAsyncIteration())
        finally:
            self._inside = False

    async def aclose(self):
        if self._close_gate:
            await self._close_gate.hold_async()
        self._close()


async def as_async(generator):
    """Turn a generator into an asynchronous one that is sent to and closed alike."""
    live = None
    try:
        while True:
            try:
                step = generator.send(live)
            except StopIteration:
                return
            live = yield step
    finally:
        generator.close()


class Gate:
    """A source's step that a test holds back, until it opens the gate."""

    def __init__(self, form):
        self.reached = form.flag()
        self._opened = form.flag()

    def open(self):
        self._opened.set()

    def hold(self):
        self.reached.set()
        assert self._opened.happened.wait(PATIENCE), "the gate was never opened"

    async def hold_async(self):
        self.reached.set()
        await self._opened.wait()


class Flag:
    """What is set once, from any thread, and waited for by blocking."""

    def __init__(self):
        self.happened = threading.Event()

    def set(self):
        self.happened.set()

    async def wait(self):
        assert self.happened.wait(PATIENCE), "what is waited for never happened"


# ---- forms


class Form:
    """One way of opening and reading a batch, for one scenario."""

    name = ""
    runs_ahead = True
    source_is_async = False
    not_for: ClassVar[dict[str, str]] = {}  # why not, by the name of the scenario

    def __init__(self):
        self.passed = []  # what stopped the event loop in mid-scenario
        self._gates = []
        self._scripts = []
        self._batches = []

    # ---- what a scenario is made of

    def gate(self):
        self._gates.append(Gate(self))
        return self._gates[-1]

    def script(self, steps, **options):
        kind = AsyncScript if self.source_is_async else SyncScript
        self._scripts.append(kind(self, steps, **options))
        return self._scripts[-1]

    def generator(self, generator):
        return as_async(generator) if self.source_is_async else generator

    def open(self, source, size, **options):
        """Return a batch, which is closed after the scenario at the latest."""
        self._batches.append(self.new_batch(source, size, **options))
        return self._batches[-1]

    def streams(self, source, size, **options):
        """Return streams to which there is no other reference."""
        return list(self.new_batch(source, size, **options))

    async def read(self, stream):
        """Return what a stream gives, and what it raises after that, up to its end."""
        outputs, errors = [], []
        while True:
            try:
                output = await self.receive(stream)
            except BaseException as error:  # noqa: BLE001 - the result
                errors.append(error)
                assert len(errors) <= 2, "an error was raised again and again"
            else:
                if output is OVER:
                    return outputs, errors
                assert not errors, "an output came after an error"
                outputs.append(output)

    def passes(self, error):
        """Whether this error of a source is raised where the pump runs, besides in the streams."""
        return False

    # ---- how it is run

    @classmethod
    def run(cls, scenario, **arguments):
        form = cls()
        form.run_main(form._main(scenario, arguments))
        for thread in pump_threads():  # one that was not joined may be on its way out
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a pump's thread was left behind"

    async def _main(self, scenario, arguments):
        try:
            await scenario(self, **arguments)
        finally:
            for gate in self._gates:
                gate.open()
            for batch in self._batches:
                await self.close(batch)
        for script in self._scripts:
            await script.closed.wait()
            assert script.faults == []
            assert script.closings == 1
        await self.check_nothing_is_left()


class Blocking(Form):
    iterator = staticmethod(iter)

    def flag(self):
        return Flag()

    def run_main(self, main):
        drive(main)

    async def receive(self, stream):
        return next(stream, OVER)

    async def rest(self, stream):
        return list(stream)

    async def close(self, batch):
        batch.close()

    async def in_block(self, batch, function):
        with batch:
            await function()

    async def concurrently(self, *functions):
        """Run these at the same time, each in a thread, and return what they return."""
        results = [None] * len(functions)

        def run(number, function):
            results[number] = drive(function())

        run_in_threads(*(partial(run, *numbered) for numbered in enumerate(functions)))
        return results

    def in_own_loop(self, function):
        return drive(function())

    async def all_wait(self):
        """Do nothing: whether a thread waits cannot be known."""

    async def check_nothing_is_left(self):
        pass


class Pulled(Blocking):
    name = "pulled"
    runs_ahead = False

    def new_batch(self, source, size, **options):
        return BatchedStream(source, size, **options)

    def streams(self, source, size, **options):
        return list(demux(source, size, **options))

    def home(self):
        return "the thread that pulls"

    def passes(self, error):
        return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


class Background(Blocking):
    name = "background"

    def new_batch(self, source, size, **options):
        return BatchedStream(source, size, background=True, **options)

    def home(self):
        assert threading.current_thread().name == PUMP
        return threading.get_ident()

    async def receive_in_time(self, stream, *, is_there):
        """Receive with a timeout that does not pass; none is needed for what is there."""
        try:
            return stream.receive(0 if is_there else PATIENCE)
        except StopIteration:
            return OVER

    async def broken_off(self, stream):
        """Wait for an output that does not come, until the receive is broken off."""
        for timeout in (0, 0.001):
            with pytest.raises(TimeoutError):
                stream.receive(timeout)

    async def close(self, batch):
        thread = knobs.thread_of(batch)
        batch.close()
        assert thread is None or not thread.is_alive(), "close did not wait for the thread"


class PushedBatch(Sequence):
    """A channel, and the thread of a producer that puts the steps of a source into it.

    It looks like a batch to the scenarios, but for what a channel has not.
    """

    def __init__(self, source, size, **options):
        channel = Channel(size, **options)
        self.channel = channel
        self._streams = channel.streams()
        self._pump = channel._pump
        self.thread = threading.Thread(
            target=copy_context().run, args=(produce, iter(source), channel), name=PUMP, daemon=True
        )
        self.thread.start()

    def __len__(self):
        return len(self._streams)

    def __getitem__(self, index):
        return self._streams[index]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __getattr__(self, name):
        if name in ("live", "statistics"):
            return getattr(self.channel, name)
        pytest.skip(f"a channel has no {name}")

    def cancel(self, slot):
        self._streams[slot].cancel()

    def close(self):
        self.channel.fail(ClosedError("this batch was closed"))
        self.thread.join(PATIENCE)


def produce(steps, channel):
    """Put the steps of a source, which is told of the live slots as by other forms."""
    live = None
    try:
        while live is None or live:
            try:
                step = next(steps) if live is None else steps.send(live)
            except StopIteration:
                break
            live = channel.put(step)
        channel.close()
    except ClosedError:
        pass  # the scenario has closed the channel meanwhile
    except BaseException as error:  # noqa: BLE001 - goes to all streams
        channel.fail(error)
    finally:
        steps.close()


class Pushed(Background):
    """A channel. Its producer has made a step before it hears that a stream has no room for it."""

    name = "pushed"
    not_for: ClassVar = {  # `test_channel.py` has what a channel does instead
        **dict.fromkeys(
            [
                "test_a_stream_has_ended_before_the_source_is_asked_again",
                "test_a_batch_that_was_never_read_is_closed_without_a_step",
                "test_streams_cancelled_before_the_first_receive_close_the_source",
                "test_the_source_is_sent_each_departure_with_its_next_step",
                "test_live_statistics_and_cancel_never_wait_for_user_code",
                "test_an_error_in_a_step_without_live_streams_goes_to_the_hook",
                "test_an_is_eos_that_was_never_true_warns",
            ],
            "its producer begins at once",
        ),
        **dict.fromkeys(
            [
                "test_the_source_waits_for_the_stream_that_is_not_read",
                "test_many_outputs_in_one_step_exceed_the_bound_by_that_step_alone",
                "test_a_bound_without_policy_is_refused_or_waited_for_but_never_exceeded",
            ],
            "its producer makes a step before it waits for room",
        ),
        **dict.fromkeys(
            [
                "test_an_error_of_closing_is_raised_by_closing_once",
                "test_an_error_of_closing_goes_to_the_hook_where_no_caller_waits_for_it",
                "test_closing_in_mid_batch_fails_what_is_live_and_keeps_what_had_finished",
                "test_an_error_that_leaves_the_block_closes_the_source_and_passes",
                "test_the_traceback_of_the_cause_begins_in_the_source",
            ],
            "it has no source",
        ),
        **dict.fromkeys(
            [
                "test_a_slow_stream_is_ended_where_the_policy_says_so",
                "test_streams_and_batches_refuse_to_be_pickled_or_copied",
                "test_streams_that_are_read_one_after_another_are_named",
                "test_a_batch_that_is_being_collected_may_be_read_and_gives_each_output_once",
            ],
            "a channel is no batch",
        ),
    }

    def new_batch(self, source, size, **options):
        return PushedBatch(source, size, **options)

    async def close(self, batch):
        batch.close()


class InLoop(Form):
    iterator = staticmethod(aiter)

    def new_batch(self, source, size, **options):
        return AsyncBatchedStream(source, size, **options)

    def streams(self, source, size, **options):
        if self.source_is_async:
            return list(demux(source, size, **options))
        return super().streams(source, size, **options)

    def home(self):
        if self.source_is_async:
            return self.current_task()
        assert threading.current_thread().name == PUMP
        return threading.get_ident()

    async def receive(self, stream):
        try:
            return await anext(stream)
        except StopAsyncIteration:
            return OVER

    async def rest(self, stream):
        return [output async for output in stream]

    async def close(self, batch):
        await batch.aclose()

    async def in_block(self, batch, function):
        async with batch:
            await function()

    async def check_nothing_is_left(self):
        await self.all_wait()
        assert self.other_tasks() == []


class AsyncioFlag(Flag):
    def __init__(self):
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self):
        super().set()
        with contextlib.suppress(RuntimeError):  # the loop was closed, and nothing waits in it
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self):
        async with asyncio.timeout(PATIENCE):
            await self._event.wait()


class AsyncioScope:
    """What can be cancelled from outside while it waits."""

    def __init__(self):
        self._task = None

    async def run(self, function):
        """Return whether it was cancelled before it returned."""
        self._task = asyncio.create_task(function())
        await asyncio.wait([self._task], timeout=PATIENCE)
        if self._task.cancelled():
            return True
        self._task.result()
        return False

    def cancel(self):
        if self._task is not None:
            self._task.cancel()


class InAsyncio(InLoop):
    flag = AsyncioFlag
    scope = AsyncioScope

    def run_main(self, main):
        unhandled = []
        with asyncio.Runner(debug=True) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: unhandled.append(context))
            task = loop.create_task(self._limited(main))
            while not task.done():
                try:
                    loop.run_until_complete(task)
                except (KeyboardInterrupt, SystemExit) as error:
                    if task.done():
                        raise
                    self.passed.append(error)
        assert unhandled == []

    async def _limited(self, main):
        async with asyncio.timeout(2 * PATIENCE):
            await main

    def current_task(self):
        return asyncio.current_task()

    def soon(self, function):
        """Return what calls the function in this loop, from any thread."""
        loop = asyncio.get_running_loop()
        return lambda: loop.call_soon_threadsafe(function)

    async def checkpoint(self):
        await asyncio.sleep(0)

    async def all_wait(self):
        """Return when every other task has gone as far as it can."""
        for _ in range(10):
            await asyncio.sleep(0)

    def other_tasks(self):
        return [task for task in asyncio.all_tasks() if "_limited" not in repr(task)]

    async def concurrently(self, *functions):
        """Run these at the same time and return what they return."""
        with first_of_group():
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(function()) for function in functions]
            return [task.result() for task in tasks]

    def in_own_loop(self, function):
        return asyncio.run(function())

    async def in_another_loop(self, function):
        """Run this in a loop of its own, in a thread, and return what it returns."""
        return await asyncio.to_thread(self.in_own_loop, function)

    @contextlib.contextmanager
    def counting_wakeups(self):
        """Note each call that the library makes into the running loop from without."""
        loop, wakeups = asyncio.get_running_loop(), []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", noting(loop.call_soon_threadsafe, wakeups))
            yield wakeups

    async def receive_in_time(self, stream, *, is_there):
        """Receive with a timeout that does not pass."""
        async with asyncio.timeout(PATIENCE):
            return await self.receive(stream)

    async def broken_off(self, stream):
        """Wait for an output that does not come, until the receive is broken off."""
        task = asyncio.create_task(self.receive(stream))
        await self.all_wait()
        assert task.cancel()
        await asyncio.wait([task])  # and not the task itself: its error would refer to this frame
        assert task.cancelled()


def noting(schedule, wakeups):
    """Return a way of scheduling that records what the library schedules from another thread."""

    def schedule_and_note(*arguments, **options):
        called = [each for each in arguments if callable(each)]
        if any(knobs.is_of_the_package(each) for each in called):
            wakeups.append(called)
        return schedule(*arguments, **options)

    return schedule_and_note


@contextlib.contextmanager
def first_of_group():
    """Raise the first error of a group in its place."""
    try:
        yield
    except BaseExceptionGroup as group:
        error = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


class AsyncioAsync(InAsyncio):
    name = "asyncio, async source"
    source_is_async = True

    def passes(self, error):
        return isinstance(error, KeyboardInterrupt | SystemExit)


class AsyncioSync(InAsyncio):
    name = "asyncio, sync source"


class TrioFlag(Flag):
    def __init__(self, trio):
        super().__init__()
        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()

    def set(self):
        super().set()
        with contextlib.suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(self._event.set)

    async def wait(self):
        with self._trio.fail_after(PATIENCE):
            await self._event.wait()


class TrioScope:
    """What can be cancelled from outside while it waits."""

    def __init__(self, trio):
        self._scope = trio.CancelScope()

    async def run(self, function):
        """Return whether it was cancelled before it returned."""
        with self._scope:
            await function()
        return self._scope.cancelled_caught

    def cancel(self):
        self._scope.cancel()


class InTrio(InLoop):
    def __init__(self):
        self.trio = pytest.importorskip("trio")
        pytest.importorskip("trio.testing")  # which trio itself does not import
        super().__init__()

    def flag(self):
        return TrioFlag(self.trio)

    def scope(self):
        return TrioScope(self.trio)

    def run_main(self, main):
        with first_of_group():
            self.trio.run(self._limited, main)

    async def _limited(self, main):
        with self.trio.fail_after(2 * PATIENCE):
            await main

    def current_task(self):
        return self.trio.lowlevel.current_task()

    def soon(self, function):
        """Return what calls the function in this loop, from any thread."""
        token = self.trio.lowlevel.current_trio_token()
        return lambda: token.run_sync_soon(function)

    async def checkpoint(self):
        await self.trio.lowlevel.checkpoint()

    async def all_wait(self):
        """Return when every other task has gone as far as it can."""
        await self.trio.testing.wait_all_tasks_blocked()

    def other_tasks(self):
        root = self.trio.lowlevel.current_root_task()
        tasks = [task for nursery in root.child_nurseries for task in nursery.child_tasks]
        return [task for task in tasks if task.name == PUMP]

    async def concurrently(self, *functions):
        """Run these at the same time and return what they return."""
        results = [None] * len(functions)

        async def run(number, function):
            results[number] = await function()

        with first_of_group():
            async with self.trio.open_nursery() as nursery:
                for number, function in enumerate(functions):
                    nursery.start_soon(run, number, function)
        return results

    def in_own_loop(self, function):
        return self.trio.run(function)

    async def in_another_loop(self, function):
        """Run this in a loop of its own, in a thread, and return what it returns."""
        return await self.trio.to_thread.run_sync(self.in_own_loop, function)

    @contextlib.contextmanager
    def counting_wakeups(self):
        """Note each call that the library makes into the running loop from without."""
        token, wakeups = self.trio.lowlevel.TrioToken, []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(token, "run_sync_soon", noting(token.run_sync_soon, wakeups))
            yield wakeups

    async def receive_in_time(self, stream, *, is_there):
        """Receive with a timeout that does not pass."""
        with self.trio.fail_after(PATIENCE):
            return await self.receive(stream)

    async def broken_off(self, stream):
        """Wait for an output that does not come, until the receive is broken off."""
        scope = self.scope()

        async def cancel():
            await self.all_wait()
            scope.cancel()

        cancelled, _ = await self.concurrently(
            partial(scope.run, partial(self.receive, stream)), cancel
        )
        assert cancelled


class TrioAsync(InTrio):
    name = "trio, async source"
    source_is_async = True


class TrioSync(InTrio):
    name = "trio, sync source"


FORMS = [Pulled, Background, Pushed, AsyncioAsync, AsyncioSync, TrioAsync, TrioSync]


def in_forms(forms):
    """Return a decorator that makes a test for each of these forms out of a scenario."""

    def decorate(scenario):
        @pytest.mark.parametrize("form", forms, ids=lambda form: form.name)
        @functools.wraps(scenario)
        def test(form, **arguments):
            if scenario.__name__ in form.not_for:
                pytest.skip(form.not_for[scenario.__name__])
            form.run(scenario, **arguments)

        return test

    return decorate


every_form = in_forms(FORMS)
forms_that_run_ahead = in_forms([form for form in FORMS if form.runs_ahead])
forms_with_async_sources = in_forms([form for form in FORMS if form.source_is_async])
forms_in_loops = in_forms([form for form in FORMS if issubclass(form, InLoop)])
