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
from contextvars import ContextVar
from functools import partial

import pytest

from batchstream import AsyncBatchedStream, BatchedStream, demux
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


FORMS = [Pulled, Background, AsyncioAsync, AsyncioSync, TrioAsync, TrioSync]


def in_forms(forms):
    """Return a decorator that makes a test for each of these forms out of a scenario."""

    def decorate(scenario):
        @pytest.mark.parametrize("form", forms, ids=lambda form: form.name)
        @functools.wraps(scenario)
        def test(form, **arguments):
            form.run(scenario, **arguments)

        return test

    return decorate


every_form = in_forms(FORMS)
forms_that_run_ahead = in_forms([form for form in FORMS if form.runs_ahead])
forms_with_async_sources = in_forms([form for form in FORMS if form.source_is_async])
forms_in_loops = in_forms([form for form in FORMS if issubclass(form, InLoop)])
