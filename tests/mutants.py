"""Breaks the package on purpose, one way at a time, and names the test that notices.

    python tests/mutants.py [--check] [--part=K/N] [name …]

Each mutant is one wrong line that one might well write. It is applied to a copy of the
package, and the core's tests are run on that copy until one fails. A mutant that survives, or that
no longer applies, is an error: either the tests are blind to it, or it has to be written anew.
In the end the tests that noticed are run on an unbroken copy, where all of them have to pass.
With `--part=K/N` only every N-th is run, from the K-th on.
With `--check` nothing is run: each mutant still has to apply, and its tests have to exist.

A planted race names the one file that has to notice it, so that a blind tool is noticed as well.
Races in an event loop are noticed in fewer schedules than `make test` tries. Races between threads
need interleave-test, hence Python 3.12: they are run by this Python if it has that, or else by the
Python of an environment that `make test-pythons` has made. Without either they are not run, and
named.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = (
    "test_demux.py",
    "test_errors.py",
    "test_sync.py",
    "test_interrupts.py",
    "test_lifecycle.py",
    "test_contract_errors.py",
    "test_demux_stateful.py",
    "test_schedules.py",
    "test_loops.py",
    "test_garbage.py",
    "test_async_sources.py",
    "test_contract_closing.py",
    "test_properties.py",
    "test_contract.py",
)
"""What notices a mutant that names nothing else, the quick ones and the keen ones first."""

SECONDS = 400
SCHEDULES = 500
NOT_RUN = "NOT RUN: it needs Python 3.12, see make test-pythons"
PYTEST = ["-m", "pytest", "-x", "-q", "--no-header", "--confcutdir=tests"]
PYTEST += ["-p", "no:cacheprovider", "-o", "timeout=45"]
PYTEST += ["-p", "timeout", "-p", "hypothesispytest"]
PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""What else is installed takes longer to load than most mutants take to be noticed."""


@dataclass(frozen=True)
class Mutant:
    """One wrong line: `right`, which occurs once in the whole package, becomes `wrong`.

    Attributes:
        noticed_by: The files whose tests are run.
        only: Which of their tests, as for pytest's `-k`, where the others would take long.
    """

    name: str
    right: str
    wrong: str
    noticed_by: tuple[str, ...] = TESTS
    only: str = ""


LOOP = ("test_races_asyncio.py",)
THREADS = ("test_races_threads.py",)
CHANNELS = ("test_channel.py",)
INTERRUPTS_OF_CHANNELS = ("test_interrupts.py",)
CHANNELS_IN_THREADS = ("test_races_channel.py",)
BATCHERS_IN_LOOP = ("test_races_batchers_asyncio.py",)
BATCHERS_IN_THREADS = ("test_races_batchers_threads.py",)
SCHEDULER = ("test_scheduler_stateful.py",)
MIXTURES = ("test_mixtures.py",)
PER_REQUEST = ("test_per_request.py",)
FAIR_SHARES = ("test_fair_shares.py",)
ENGINES = ("test_engines.py",)
TRACES = ("test_traces.py",)
REQUEUES = ("test_requeue.py",)
UNREAD = ("test_litserve_unread.py",)
ENGINES_IN_LITSERVE = ("test_litserve_engines.py",)
ENDS_IN_LITSERVE = ("test_litserve_reports.py", "test_litserve_spans.py")
LINES_IN_LITSERVE = ("test_litserve_lines.py",)
BUDGETS = ("test_step_budgets.py",)
STOP_STRINGS = ("test_stop_strings.py",)
OVERFLOW = ("test_overflow.py",)
DEADLINES = ("test_deadlines.py",)
TEXT = ("test_text_decoder.py", "test_detokenizer.py")
TEXT_STEPS = ("test_decode_steps.py", "test_stop_faults.py")

UNBROKEN = Mutant("nothing is broken", "class _Draft(", "class _Draft(")

MUTANTS = [
    Mutant(
        "the end mark is found by equality",
        "elif element is self._rules.eos or element is EOS:",
        "elif element == self._rules.eos or element == EOS:",
    ),
    Mutant(
        "a step is plain whatever types it has",
        "plain = rules.marks.types.isdisjoint(map(type, values))",
        "plain = None not in values",
    ),
    Mutant(
        "a short step is truncated, as zip does",
        "    if len(elements) != size:",
        "    if len(elements) > size:",
    ),
    Mutant(
        "an unknown slot is ignored",
        "if slot is None or not 0 <= slot < size:",
        "if slot is None:",
    ),
    Mutant(
        "Last ends its slot without its output",
        "            self._give(draft, slot, element.output)\n",
        "",
    ),
    Mutant(
        "the output that is_eos recognised is always delivered",
        "        if self._rules.include_eos:\n",
        "        if True:\n",
    ),
    Mutant(
        "an is_eos that was never true goes unnoticed",
        "            self._rules.warn_if_unmatched(self.statistics(), asked)\n",
        "            pass\n",
    ),
    Mutant(
        "a batcher warns of an is_eos that was true in another batch",
        "        self._rules.matched.add(None)\n",
        "",
    ),
    Mutant(
        "every slot is asked with the first request's predicate",
        "if self._predicates is None else self._predicates[slot]",
        "if self._predicates is None else self._predicates[0]",
        PER_REQUEST,
    ),
    Mutant(
        "an occupant without a predicate of its own keeps that of the last",
        "self._predicates[slot] = self._rules.is_eos if is_eos is None else is_eos",
        "self._predicates[slot] = is_eos or self._predicates[slot]",
        PER_REQUEST,
    ),
    Mutant(
        "slots with predicates of their own take plain steps without asking",
        "UNLIMITED if max_outputs is None and predicates is None else 0",
        "UNLIMITED if max_outputs is None else 0",
        PER_REQUEST,
    ),
    Mutant(
        "what the function of per_request returns is not checked",
        "        check_is_eos(is_eos, returned_by=self.per_request)\n",
        "",
        PER_REQUEST,
    ),
    Mutant(
        "token ids with a key are looked for in the outputs themselves",
        "if type(is_eos) is TokenIds and is_eos.key is None else None",
        "if type(is_eos) is TokenIds else None",
    ),
    Mutant(
        "a limit lets one output too many through",
        "self.given(slot) >= self._limits[slot]",
        "self.given(slot) > self._limits[slot]",
    ),
    Mutant(
        "plain steps forget the limit",
        'if self._state != "running" or self._plain_steps >= self._plain_limit:',
        'if self._state != "running":',
    ),
    Mutant(
        "outputs after an end in Many are delivered",
        "if slot not in self._live_slots:",
        "if False:",
    ),
    Mutant(
        "what finished slots are given is not counted",
        "            return len(elements)\n",
        "            return 0\n",
    ),
    Mutant(
        "an output that is taken by itself is not counted for all slots together",
        "        self._extra[slot] += 1\n        self._outputs += 1\n",
        "        self._extra[slot] += 1\n",
    ),
    Mutant(
        "an opened slot goes on counting from before",
        "        self._extra[slot] = -self._plain_steps\n",
        "",
    ),
    Mutant(
        "a predicate that raises fails every stream",
        "        except Exception as error:  # noqa: BLE001 - the predicate is the caller's\n"
        "            return _Asked",
        "        except () as error:\n            return _Asked",
    ),
    Mutant(
        "live is a new tuple every time",
        "        self._live = live\n        return live\n",
        "        return live\n",
    ),
    Mutant(
        "an early end of the source passes for eos",
        "self._finish(draft, slot, FinishReason.EXHAUSTED)",
        "self._finish(draft, slot, FinishReason.EOS)",
    ),
    Mutant(
        "failing does not latch",
        '("running", "fail"): "failed",',
        '("running", "fail"): "running",',
    ),
    Mutant(
        "the source runs on when no stream is live",
        "            self._source.close_quietly()\n",
        "            pass\n",
    ),
    Mutant(
        "the source is pulled for a stream that was served meanwhile",
        "if not (buffer.outputs or buffer.ends):\n                        if self._max",
        "if not buffer.ends:\n                        if self._max",
    ),
    Mutant(
        "the bound is looked at after the pull",
        "                            self._check_room(self._max_buffered)\n"
        "                        self._make_step()\n",
        "                            self._make_step()\n"
        "                            self._check_room(self._max_buffered)\n"
        "                        else:\n"
        "                            self._make_step()\n",
    ),
    Mutant(
        "a cancel that was queued during a step is forgotten",
        "                self._apply_departures_if_free()\n\n    def close",
        "                pass\n\n    def close",
    ),
    Mutant(
        "the source's own thread waits for itself",
        "        del deadline  # see `times_out`\n        me = get_ident()\n"
        "        if self.role.holder == me or self.forked:\n",
        "        me = get_ident()\n        if self.forked:\n",
    ),
    Mutant(
        "an interrupt is swallowed",
        "        if isinstance(error, INTERRUPTS):\n            raise error\n        if not failed",
        "        if not failed",
    ),
    Mutant(
        "an interrupt leaves the other streams waiting",
        "        failed = self.fanout.fail(error)\n        self.role.in_step = False\n",
        "        if isinstance(error, INTERRUPTS):\n            raise error\n"
        "        failed = self.fanout.fail(error)\n        self.role.in_step = False\n",
    ),
    Mutant(
        "a step of which not even the failing was handed out is forgotten",
        "                    if self.role.in_step:\n"
        "                        self._fail_broken_step()\n",
        "",
        ("test_exhaustion.py",),
    ),
    Mutant(
        "requests that a worker had taken as it was broken off are forgotten",
        "            lost = self.scheduler.lost_requests()\n",
        "            lost: list[Request[T]] = []\n",
        ("test_batchers_interrupts.py",),
    ),
    Mutant(
        "an interrupt as the source ends leaves the core's slots live",
        "            for slot in self.core.live:\n                self.core.cancel(slot)\n",
        "            pass\n",
        ("test_interrupts.py",),
    ),
    Mutant(
        "an interrupt as a slot ends leaves it among the live slots",
        "        self._live = None\n        self._live_slots.remove(slot)\n        self._finished",
        "        self._live_slots.remove(slot)\n        self._live = None\n        self._finished",
        ("test_interrupts.py",),
    ),
    Mutant(
        "the streams of a batch that was closed end as if they were whole",
        "                self.fail_stream(buffer, closed_batch_error(buffer.name))\n",
        "                self.cancel(buffer)\n",
        ("test_contract_closing.py",),
    ),
    Mutant(
        "the steps of a batch that was closed end as if there were no more",
        "        if self._cut_short:\n",
        "        if False:\n",
        ("test_contract_closing.py",),
    ),
    Mutant(
        "a body that is broken off leaves its stream to the garbage collector",
        "            raise  # the task that came first goes on\n"
        "        except BaseException:\n            self.close()\n",
        "            raise  # the task that came first goes on\n"
        "        except BaseException:\n            pass\n",
        ("test_owned.py",),
    ),
    Mutant(
        "a body looks whole though its stream was cancelled from elsewhere",
        "            self._over = True\n            check_complete(self._stream)\n",
        "            self._over = True\n",
        ("test_owned.py",),
    ),
    Mutant(
        "a body that has begun and is closed still gives its first output",
        "        self._over = True\n        self._first.clear()\n",
        "        self._over = True\n",
        ("test_owned.py",),
    ),
    Mutant(
        "a stream begins before it has an output",
        "            while not buffer.outputs:\n                self._wait(None)\n",
        "            pass\n",
        ("test_owned.py",),
    ),
    Mutant(
        "the pause of a paced stream begins when its consumer asks for more",
        "            await loop.wait(loop.new_waiter(), pause)\n",
        "            await loop.wait(loop.new_waiter(), self._every)\n",
        ("test_paced.py",),
    ),
    Mutant(
        "the first output of a paced stream waits as all others do",
        "        self._due: float | None = None  # by the clock of the loop",
        "        self._due: float | None = current_loop().now() + every",
        ("test_paced.py",),
    ),
    Mutant(
        "an interrupt in closing leaves the batch to its thread",
        "                    self.role.holder = NO_THREAD\n"
        "        finally:\n            if self.fanout.departures:\n",
        "                    pass\n        finally:\n            if self.fanout.departures:\n",
        ("test_interrupts.py",),
    ),
    Mutant(
        "a stream that was cancelled a moment ago stops the others",
        "        full = tuple(slot for slot in full if not self.fanout.buffers[slot].ends)\n",
        "",
        ("test_schedules.py",),
    ),
    Mutant(
        "the view is decided before its refusals stand",
        '        if view == "by slot":\n            self.deliveries.refusal =',
        "        self.view = view\n"
        '        if view == "by slot":\n            self.deliveries.refusal =',
        ("test_interrupts.py",),
    ),
    Mutant(
        "the streams of an unread batch are ended where the last was cancelled",
        "            self._start()  # which makes no step\n",
        "            self._drain()\n            self._thread.end_after(self._close_source)\n",
        ("test_pumps_that_fail.py", "test_starting.py"),
    ),
    Mutant(
        "the source runs in the consumer's context",
        "        self.context = copy_context()\n        self._iterator: Iterator[Any] =",
        "        self.context = type('Here', (), {'run': staticmethod(lambda f, *a: f(*a))})()\n"
        "        self._iterator: Iterator[Any] =",
    ),
    Mutant(
        "the source is closed again and again",
        "            reduce(Context.run, self._unclosed, self.context)\n",
        "            self.context.run(self._iterator.close)\n",
    ),
    Mutant(
        "a generator is never sent the live slots",
        "            self.advance = partial(self.context.run, send)\n",
        "            self.advance = self._next\n",
    ),
    Mutant(
        "all consumers are raised the same exception",
        "    own = None\n    if isinstance(error, Exception) and not",
        "    return error\n    own = None\n    if isinstance(error, Exception) and not",
    ),
    Mutant(
        "StopIteration out of user code ends a stream silently",
        " and not isinstance(error, StopIteration | StopAsyncIteration):",
        ":",
    ),
    Mutant(
        "a copied error is made by its own __init__",
        "        own = cls.__new__(cls, *args)\n",
        "        own = cls(*args)\n",
    ),
    Mutant(
        "the error's context goes to every consumer",
        "        forget_context(error, sys.exception())\n",
        "",
    ),
    Mutant(
        "the outputs are not looked at again behind the end",
        "        if not buffer.outputs:  # behind the end",
        "        if True:  # behind the end",
    ),
    Mutant(
        "a cancelled stream keeps what it held",
        "        outputs, self.outputs = self.outputs, _CLOSED\n        outputs.clear()\n",
        "        self.outputs = _CLOSED\n",
    ),
    Mutant(
        "a second consumer is let in",
        "    elif upstream.consumers.setdefault(buffer, me) != me:\n",
        "    elif False:\n",
    ),
    Mutant(
        "a cancel that was broken off is never made again",
        "        if buffer in self.live_buffers:\n            buffer.cancel(",
        "        if not buffer.cancelled:\n            buffer.cancel(",
    ),
    Mutant(
        "an error keeps the stream whose receive it has left",
        "                    del self  # which this frame",
        "                    pass  # which this frame",
        ("test_garbage.py",),
    ),
    Mutant(
        "a cancelled receive keeps its stream",
        "        except BaseException:\n            del self  # which this frame would keep alive, "
        "and the error keeps the frame\n            raise\n\n    def drain",
        "        except BaseException:\n            raise\n\n    def drain",
        ("test_garbage.py",),
    ),
    Mutant(
        "what is_eos said of a step that was broken off goes to the next",
        "        self._asked = None  # the rest of",
        "        pass  # the rest of",
    ),
    Mutant(
        "a drain that is broken off loses what it took",
        "            outputs.extendleft(reversed(taken))\n",
        "            pass\n",
    ),
    Mutant(
        "the source cannot close its own batch",
        "        if self.role.holder == me:\n            return\n",
        "",
    ),
    Mutant(
        "token ids hash whatever they are given",
        "set(map(type, values)) == _INTEGERS and rules.ids.isdisjoint(values)",
        "rules.ids.isdisjoint(values)",
    ),
    Mutant(
        "an error comes before what is buffered",
        "            if not outputs:\n                try:\n                    self._wait",
        "            if buffer.ends and buffer.ends[0].error:\n"
        "                buffer.conclude()\n            if not outputs:\n"
        "                try:\n                    self._wait",
    ),
    Mutant(
        "an error is raised for ever",
        "                self.outputs, self.cancelled = _CLOSED, True\n",
        "                self.outputs = _CLOSED\n",
    ),
    Mutant(
        "dropping a stream does not cancel it",
        'dropped too.\n        if hasattr(self, "_buffer") and',
        "dropped too.\n        if False and",
    ),
    Mutant(
        "a forked child uses the parent's source",
        "        self.role = Role()\n        self.forked = True\n",
        "        self.role = Role()\n",
    ),
    # ---- planted races
    Mutant(
        "a consumer in a loop does not look again after it has registered",
        "                        if not (buffer.outputs or buffer.ends):\n"
        "                            if self._polls",
        "                        if True:\n                            if self._polls",
        THREADS,
        only="loop",
    ),
    Mutant(
        "a consumer in a thread does not look again after it has registered",
        "return key.ready or _acquire(waiter, until)",
        "return _acquire(waiter, until)",
        THREADS,
    ),
    Mutant(
        "a consumer that made room takes back what the pump asks anew",
        "                self.resume_pump()\n\n    def stop_asking",
        "                self.resume_pump()\n            buffer.on_room = None\n\n"
        "    def stop_asking",
        THREADS,
    ),
    Mutant(
        "the pump does not look again before it waits for room",
        "            self.made_in(buffer)\n\n    def made_in",
        "            pass\n\n    def made_in",
        THREADS,
    ),
    Mutant(
        "the pump takes the waiters before it adds the outputs",
        "                self._wake(fanout.take(step, live))\n",
        "                self._wake([fanout.buffers[slot] for slot in live])\n"
        "                fanout.take(step, live)\n",
        THREADS,
    ),
    Mutant(
        "a stream's end comes before its last output",
        "        slots, values, ends = delivery\n",
        "        slots, values, ends = delivery\n"
        "        for slot, end in ends:\n"
        "            self.buffers[slot].finish(end)\n",
        THREADS,
    ),
    Mutant(
        "the thread is started without the lock",
        "            self._life.leave_new(self._start)\n",
        "            self._start()\n",
        THREADS,
    ),
    Mutant(
        "a receive that timed out is still registered",
        "        finally:\n            waiting.pop(key, None)\n",
        "        finally:\n",
        THREADS,
    ),
    Mutant(
        "a receive that is cancelled takes its output along",
        "                    except (RuntimeError, TypeError):  # of asyncio, and of trio\n",
        "                    except BaseException as error:\n"
        "                        if buffer.outputs and not isinstance(error, RuntimeError):\n"
        "                            buffer.outputs.popleft()\n",
        LOOP,
    ),
    Mutant(
        "a cancelled stream goes on with what it holds",
        "        self.finish(end)\n        self.shut()\n",
        "        self.finish(end)\n",
        LOOP,
    ),
    Mutant(
        "an error in a loop comes before what is buffered",
        "                if outputs and not self._left:\n",
        "                if buffer.ends and buffer.ends[0].error:\n"
        "                    buffer.conclude()\n"
        "                if outputs and not self._left:\n",
        LOOP,
    ),
    Mutant(
        "two consumers are let in at a stream in a loop",
        "                if buffer.awaited:\n",
        "                if False:\n",
        LOOP,
    ),
    Mutant(
        "only the first waiter is woken",
        "            waiters = [*filter(None, map(lot.waiting.pop, keys, repeat(None)))]\n",
        "            waiters = [*filter(None, map(lot.waiting.pop, keys, repeat(None)))][:1]\n",
        LOOP,
    ),
    Mutant(
        "a waiter that was cancelled is resumed as well",
        "        wakeup, self._wakeup = self._wakeup, None\n",
        "        wakeup = self._wakeup\n",
        LOOP,
    ),
    Mutant(
        "a receive is not woken when its stream is cancelled",
        "            self._wake((buffer,))\n            self._after_departure()\n",
        "            self._after_departure()\n",
        LOOP,
    ),
    Mutant(
        "an engine is driven by two batchers",
        "        elif driver is not self:\n",
        "        elif driver is None:\n",
        ("test_batchers_arguments.py",),
    ),
    Mutant(
        "a request that was told not now goes behind the others",
        "        group.move_to_end(request, last=False)\n",
        "",
        ENGINES,
    ),
    Mutant(
        "a request that was told not now goes behind the requests of other groups",
        "        self._all.move_to_end(request, last=False)\n",
        "",
        ("test_queue.py",),
    ),
    Mutant(
        "a request that was told not now is asked again at each step",
        "        return first is not None and not first.ends and self._engine.is_full\n",
        "        return False\n",
        ENGINES,
    ),
    Mutant(
        "a cancelled request holds up the requests behind it",
        "        return first is not None and not first.ends and self._engine.is_full\n",
        "        return first is not None and self._engine.is_full\n",
        ENGINES,
    ),
    Mutant(
        "a request is counted as joined before the engine has it",
        "            if not self._may_put_back:\n                self.join(taken)\n",
        "            self.join(taken)\n",
        ENGINES,
    ),
    Mutant(
        "a request that is put back as the batcher closes is left there",
        "            if not closed:  # or else they would be left there: `request_close` has "
        "looked\n",
        "            closed = False\n            if True:\n",
        ENGINES,
    ),
    Mutant(
        "an engine that a user gave is discarded",
        "        if self._factory is None:\n            return\n        engine = self._engine\n",
        "        engine = self._engine\n",
        ENGINES,
    ),
    Mutant(
        "a batcher has ended before its engine is closed",
        "                thread.do(self._close_model)\n                return\n",
        "                thread.do(self._close_model)\n",
        ENGINES,
    ),
    Mutant(
        "a forked child closes the engine of its parent",
        "        if in_call or self.is_open:\n",
        "        if in_call:\n",
        ENGINES,
    ),
    Mutant(
        "a dropped batcher leaves its engine open",
        "            LastJob(model.discard).do_in(thread)\n",
        "            pass\n",
        ENGINES,
    ),
    Mutant(
        "what is true of every output is an answer",
        "    if true and (callable(answer)",
        "    if False and (callable(answer)",
        ("test_demux.py",),
    ),
    Mutant(
        "a wait that stops an event loop is not warned of",
        "        self._has_warned = True\n        warn_user(",
        "        self._has_warned = True\n        str(",
        ("test_batchers_loops.py",),
    ),
    Mutant(
        "a cancel does not resume the pump that waits for room",
        "        self._room.resume_pump()\n        if (wake := self.wake_source)",
        "        if (wake := self.wake_source)",
        ("test_room.py",),
    ),
    Mutant(
        "a cancel does not wake an engine that waits",
        "  # read once: the pump may be closed meanwhile\n            call_quietly(wake)\n",
        "\n            pass\n",
        ("test_engine_wake.py",),
    ),
    Mutant(
        "the end of a request that waits does not wake an engine that waits",
        "            self.wake_model()  # others may have waited behind it; last",
        "            pass  # last",
        ("test_engine_wake.py",),
    ),
    Mutant(
        "raised limits do not wake an engine that waits",
        "        dispatcher.ends.tell_of_room()\n        dispatcher.ends.wake_model()\n",
        "        dispatcher.ends.tell_of_room()\n",
        ("test_engine_wake.py",),
    ),
    Mutant(
        "an engine that waits is woken before the request can be found",
        "    scheduler, metrics = dispatcher.scheduler, dispatcher.options.metrics\n",
        "    scheduler, metrics = dispatcher.scheduler, dispatcher.options.metrics\n"
        "    if (model := dispatcher.model) is not None and model.waker:\n"
        "        call_quietly(model.waker)\n"
        "        dispatcher.model.waker = None\n",
        ("test_engine_wake.py",),
    ),
    Mutant(
        "a stream over a socket is acknowledged before its consumer has read",
        "unread = 0 if self.is_unbounded else len(self.buffer.outputs)",
        "unread = 0",
        ("test_remote.py",),
    ),
    Mutant(
        "a consumer that lags is not asked to call as it makes room",
        "                sent.buffer.on_room = sent.made_room\n",
        "",
        ("test_remote.py",),
    ),
    Mutant(
        "the last request that leaves is not cancelled at the model",
        "            self._with_room.clear()\n            self._send_the_rest()\n",
        "            self._with_room.clear()\n",
        ("test_remote.py",),
    ),
    Mutant(
        "a connection that has ended in a pause is not looked at",
        "                while self._read(connection, step):\n                    pass\n",
        "                pass\n",
        ("test_remote.py",),
    ),
    Mutant(
        "a session sends more than the window of its client",
        "            while not (served.window or served.left):\n",
        "            while False:\n",
        ("test_remote.py",),
    ),
    Mutant(
        "a session takes all that a stream holds, whatever is left of the window",
        "outputs.popleft() for _ in range(min(len(outputs), most))",
        "outputs.popleft() for _ in range(len(outputs))",
        ("test_remote.py",),
    ),
    Mutant(
        "a session does not answer a request whose pickle ends a thread",
        "except BaseException as error:  # noqa: BLE001 - goes to the client; the task has no",
        "except Exception as error:  # noqa: BLE001 -",
        ("test_remote.py",),
    ),
    Mutant(
        "outputs that are too large together fail their stream",
        "        if len(outputs) == 1 or not is_too_large(payload, self._max_frame):\n",
        "        if True:\n",
        ("test_remote.py",),
    ),
    Mutant(
        "a session sends frames that are larger than its client takes",
        "        self._max_frame = min(self._max_frame, taken)\n",
        "",
        ("test_remote.py",),
    ),
    Mutant(
        "a client sends frames that are larger than its server takes",
        "Opened(self.socket, min(self._max_frame, taken))",
        "Opened(self.socket, self._max_frame)",
        ("test_remote.py",),
    ),
    Mutant(
        "an output that cannot be unpickled does not cancel its request at the model",
        "                connection.outgoing.add(CANCEL, sent.number)\n            elements",
        "                pass\n            elements",
        ("test_remote.py",),
    ),
    Mutant(
        "outputs before one that cannot be pickled are lost",
        "            if len(outputs) == 1:\n                raise\n",
        "            raise\n",
        ("test_remote.py",),
    ),
    Mutant(
        "a server that is cancelled as it begins stays in its event loop",
        "                self._server.close()  # first, so that",
        "                pass  #",
        ("test_serve.py",),
    ),
    Mutant(
        "a request that was sent before a server ends gets no refusal",
        "            await asyncio.sleep(0)\n            await asyncio.sleep(0)\n",
        "",
        ("test_serve.py",),
    ),
    Mutant(
        "a connection to a server that goes away stays open without requests",
        "                self._end_connection(connection)\n\n    def _end",
        "                pass\n\n    def _end",
        ("test_remote.py",),
    ),
    Mutant(
        "a server listens while it drains",
        "            await first.wait()\n            listener.stop_listening(come[0])\n",
        "            await first.wait()\n",
        ("test_serve.py",),
    ),
    Mutant(
        "clients that still take outputs have no part of the drain",
        "max(until - time(), _SECONDS_FOR_LAST_OUTPUTS)",
        "_SECONDS_FOR_LAST_OUTPUTS",
        ("test_serve.py",),
    ),
    Mutant(
        "what has ended at the model is cut off without a drain",
        "max(until - time(), _SECONDS_FOR_LAST_OUTPUTS)",
        "until - time()",
        ("test_serve.py",),
    ),
    Mutant(
        "what is on its way to a client is cut off within the drain",
        "            left = max(left, until - time())\n",
        "",
        ("test_serve.py",),
    ),
    Mutant(
        "a forked child listens with its parent",
        "            drop_copy(self._listening.fileno())\n",
        "            pass\n",
        ("test_serve.py",),
    ),
    Mutant(
        "a forked child keeps the connections of its parent",
        '        drop_copy(self._transport.get_extra_info("socket").fileno())\n',
        "",
        ("test_serve.py",),
    ),
    Mutant(
        "a socket takes the place of one at which a server listens",
        "            probe.connect(path)\n        except ConnectionRefusedError:\n",
        "            return\n        except ConnectionRefusedError:\n",
        ("test_sockets.py",),
    ),
    Mutant(
        "an idle engine is woken",
        "        self.waker = None\n        driving, self._driving",
        "        driving, self._driving",
        ("test_engine_wake.py",),
    ),
    Mutant(
        "an interrupt is forgotten",
        "                task.interrupt(self._work)\n",
        "                pass\n",
        LOOP,
    ),
    Mutant(
        "the source is closed by a second pump",
        '            if self._life.state == "new":\n'
        "                self._life.leave_new(self._drop)\n",
        '            if self._life.state != "closed":\n                self._end_if_not_closed()\n',
        LOOP,
    ),
    Mutant(
        "a drop that is broken off is not made again",
        "                leave()  # for a thread",
        "                pass  # for a thread",
        ("test_interrupts.py",),
    ),
    Mutant(
        "a drop that is broken off is the last",
        "            if taken:\n                self._claim.release()\n",
        "            pass\n",
        ("test_interrupts.py",),
    ),
    Mutant(
        "a source is taken, and then closed",
        "            reduce(Context.run, self._unclosed, self.context)\n",
        "            for close in self._unclosed:\n                self.context.run(close)\n",
        ("test_interrupts.py",),
    ),
    Mutant(
        "closing does not wait for the source",
        "            while not self.is_set:\n                lot.waiting[key] = waiter\n",
        "            while False:\n                lot.waiting[key] = waiter\n",
        LOOP,
    ),
    Mutant(
        "a collect leaves a pump waiting for room",
        "        try:\n            self._room.resume_pump()\n            yield\n",
        "        try:\n            yield\n",
        ("test_collect.py",),
    ),
    Mutant(
        "a stream is shown with the outputs of its slot's next occupant",
        "        return given if end is None else end.outputs\n",
        "        return given\n",
        ("test_html.py",),
    ),
    Mutant(
        "a pump that no consumer waits for warns",
        "        if not (waiting and since):\n",
        "        if not since:\n",
        ("test_stalls.py",),
    ),
    Mutant(
        "a request of a map is ended for being slow",
        "self.cancelled or (self.on_end is None and super().is_full(limit))",
        "self.cancelled or super().is_full(limit)",
        ("test_map.py",),
    ),
    Mutant(
        "a request without a bound lifts the bound of the others",
        "max(limit - most, 1)",
        "limit - most",
        ("test_map.py",),
    ),
    Mutant(
        "a flight is not told of room",
        "            waiter.note_room()\n",
        "            pass\n",
        ("test_map.py",),
    ),
    Mutant(
        "room is not passed on by a caller that leaves",
        "        upstream.dispatcher.ends.tell_of_room()\n\n\nasync def",
        "\n\nasync def",
        ("test_waiting_for_room.py",),
    ),
    Mutant(
        "slots that become free make no room",
        "        self._owner.ends.tell_of_room()  #",
        "        #",
        ("test_requeue_with_others.py",),
    ),
    Mutant(
        "what a batch has counted is read twice",
        "                read[0] = after\n",
        "",
        ("test_step_counts.py",),
    ),
    Mutant(
        "an interrupt leaves a batch unread for ever",
        "                del free[0]  # no call, behind which a signal's exception may strike\n",
        "                free.pop()\n",
        ("test_step_counts.py",),
    ),
    Mutant(
        "a forked child counts steps of its parent again",
        "        for reader in self.counts_readers:\n            reader.after_fork()\n",
        "",
        ("test_prometheus.py",),
    ),
    Mutant(
        "a signal's handler that closes a batcher writes its state amid a lock",
        "            LastJob(self._write_states).do_in(WorkerThread())\n",
        "            self._write_states()\n",
        ("test_prometheus.py",),
    ),
    Mutant(
        "batches that have ended are kept until metrics are read",
        "        if len(self._batches) > MOST_BATCHES:\n",
        "        if False:\n",
        ("test_metrics.py",),
    ),
    Mutant(
        "the end of a batch is missed that another thread is reading",
        "            except IndexError:  # another thread reads on\n                continue\n",
        "            except IndexError:\n                self._batches.pop(counts, None)\n"
        "                continue\n",
        ("test_step_counts.py",),
    ),
    Mutant(
        "metrics that are called for each step hear of some steps alone beside others that count",
        "and not (self.awaiting or self._stepped)",
        "and not self.awaiting",
        ("test_metrics.py",),
    ),
    Mutant(
        "the first step of a batch is a time between steps",
        "            self._last_step, going_on = now, 0  # there",
        "            self._last_step = now  # there",
        ("test_step_counts.py",),
    ),
    Mutant(
        "a tenant at its bound takes the wake-ups of others",
        "            if waiter.is_held_up():\n                continue\n",
        "",
        ("test_waiting_for_room.py",),
    ),
    Mutant(
        "a wake-up is not passed on by a turn that is held up since",
        "        if not is_there and self._is_held_up():\n",
        "        if False:\n",
        ("test_waiting_for_room.py",),
    ),
    Mutant(
        "a request that has ended holds its tenant up",
        "it.place.account is account for it in ended)",
        "it.place is None for it in ended)",
        ("test_waiting_for_room.py",),
    ),
    Mutant(
        "a request that is cancelled as it waits makes no room",
        "        if self.room_waiters:  # with the lock they see that it waits no longer\n",
        "        if False:\n",
        ("test_waiting_for_room.py",),
    ),
    Mutant(
        "the time in which no request waits counts for the rate",
        "        self.since = now if others_wait else None\n",
        "        self.since = now\n",
        ("test_waiting_for_room.py",),
    ),
    Mutant(
        "a drain lets requests wait for others",
        "            self.queue.gather_no_more()  # before a worker is woken, which asks again\n",
        "",
        ("test_drain.py",),
    ),
    Mutant(
        "a drain goes on when its last request is cancelled as it waits",
        "        if self.closers:\n            self.tell_closers()\n        # Behind",
        "        # Behind",
        ("test_drain.py",),
    ),
    Mutant(
        "a drain is over before its last request has ended",
        "        return not (self.totals.open or self.warm_up.live)\n",
        "        return not (self.queue or self.warm_up.live)\n",
        ("test_drain.py",),
    ),
    Mutant(
        "of two drains the one that is over last counts",
        "        self.drains_until = min(self.drains_until, until)\n",
        "        self.drains_until = until\n",
        SCHEDULER,
    ),
    Mutant(
        "a wait for the end of a drain that is broken off leaves the batcher open",
        "_drain_in_thread(upstream)\n        _close(upstream, by)\n    except BaseE",
        "_drain_in_thread(upstream)\n        _close(upstream, by)\n    except LookupE",
        ("test_drain.py",),
    ),
    Mutant(
        "requests join the batch of a warm-up",
        "            if not begins:\n                return []\n            queue, slots",
        "            queue, slots",
        ("test_warm_up.py",),
    ),
    Mutant(
        "the batches of a warm-up count",
        "            if not batch.is_warm_up:\n                self.totals.count_batch",
        "            if True:\n                self.totals.count_batch",
        ("test_warm_up.py",),
    ),
    Mutant(
        "requests that waited behind a warm-up are forgotten",
        "                self.workers.wake_one()\n                wakes = True\n",
        "                wakes = True\n",
        ("test_warm_up.py",),
    ),
    Mutant(
        "the room is that of the emptiest stream",
        "most = max((len(buffer.outputs) for buffer in live), default=0)",
        "most = min((len(buffer.outputs) for buffer in live), default=0)",
    ),
    Mutant(
        "the outputs are not looked at again behind the end in a loop",
        "                elif not buffer.outputs:  # behind the end",
        "                else:  # behind the end",
        THREADS,
        only="loop",
    ),
    Mutant(
        "a consumer that has taken an output resumes no pump",
        "            if (on_room := buffer.on_room) is not None:\n"
        "                on_room(buffer)\n            return output\n\n    def drain",
        "            return output\n\n    def drain",
        ("test_room.py",),
    ),
    Mutant(
        "a consumer in a loop that has taken an output resumes no pump",
        "                    if (on_room := buffer.on_room) is not None:\n"
        "                        on_room(buffer)\n                    return output\n",
        "                    return output\n",
        ("test_room.py",),
    ),
    Mutant(
        "a drain takes from the wrong side",
        "map(deque.popleft, repeat(outputs",
        "map(deque.pop, repeat(outputs",
    ),
    Mutant(
        "an interrupt leaves the task cancelled",
        "                self._task.uncancel()\n",
        "",
        ("test_async_sources.py",),
    ),
    # ---- channels
    Mutant(
        "what is ordered behind the last look of a put is carried out by no call",
        "        if self._orders:  # what was ordered behind the last look\n",
        "        if False:\n",
        CHANNELS_IN_THREADS,
    ),
    Mutant(
        "an order resumes no put that waits for room",
        "            self._resume_puts()  # first: they try again behind this, however it ends\n",
        "            pass\n",
        CHANNELS,
    ),
    Mutant(
        "a put that is broken off loses the turn",
        "taken.extend(filter(None, map(self._turn.acquire, (wait,))))",
        "if self._turn.acquire(wait):\n                taken.append(True)",
        INTERRUPTS_OF_CHANNELS,
        "channel or another_thread_orders",
    ),
    Mutant(
        "what another thread has left to an order that is broken off is done by no call",
        "            self._carry_out()  # what another thread has left to this call\n",
        "",
        INTERRUPTS_OF_CHANNELS,
        "another_thread_orders",
    ),
    Mutant(
        "a put that is broken off leaves undone what it has begun",
        """            self._order(_look)  # what broke it off may have left something undone
""",
        "",
        INTERRUPTS_OF_CHANNELS,
        "channel or another_thread_orders",
    ),
    Mutant(
        "a put has the questions for room forgotten and resumes no other that waits",
        "        self._resume_puts()  # they ask anew\n",
        "",
        CHANNELS_IN_THREADS,
    ),
    Mutant(
        "a task that puts leaves the others of its loop no turn",
        "            await self._leave_others_their_turn(loop)\n",
        "",
        CHANNELS,
    ),
    Mutant(
        "a put in a loop that was closed is kept, and the channel with it",
        "                self._puts.pop(put, None)  # it holds the channel\n",
        "                pass\n",
        CHANNELS,
    ),
    Mutant(
        "a channel that is dropped says nothing",
        """        if hasattr(self, "_pump") and not _is_finalizing() and not self._pump.ended:""",
        "        if False:",
        CHANNELS,
    ),
    Mutant(
        "a put takes no notice of streams without room",
        "            return ()\n        return self._without_room()\n",
        "            return ()\n        return ()\n",
        CHANNELS,
    ),
    Mutant(
        "a producer hears nothing of a step that is none",
        "            if end is not None and isinstance(end.error, StepError):\n",
        "            if False:\n",
        CHANNELS,
    ),
    # ---- ways to read that are mixed
    Mutant(
        "a receive that does not wait looks for outputs, and for no end",
        "            while not self._buffer.outputs:\n                self._wait",
        "            while not self._buffer.outputs:\n                if not timeout:\n"
        "                    raise TimeoutError\n                self._wait",
        MIXTURES,
    ),
    # ---- batchers
    Mutant(
        "a request whose time is over is not failed",
        "                request.finish_quietly(end)\n                overdue",
        "                overdue",
        BATCHERS_IN_LOOP,
    ),
    Mutant(
        "a request that has joined fails for having waited",
        """        waits = self.state in ("new", "waiting") and deadlines""",
        "        waits = deadlines",
        BATCHERS_IN_LOOP,
    ),
    Mutant(
        "an interrupt strikes the next batch of the task",
        "        if work is self._work and not self._asked:\n",
        "        if not self._asked:\n",
        BATCHERS_IN_LOOP,
    ),
    Mutant(
        "a worker that waits for more is not woken",
        "            waiter.release()\n        except RuntimeError",
        "            pass\n        except RuntimeError",
        BATCHERS_IN_THREADS,
    ),
    Mutant(
        "a request that joins as the batcher is closed is forgotten",
        '        elif self._owner.scheduler.state == "closed":\n',
        "        elif False:\n",
        BATCHERS_IN_THREADS,
    ),
    Mutant(
        "a request that ends as it joins is not taken out",
        "        if request.ends:\n            self.pump.depart(request)\n        elif",
        "        if",
        BATCHERS_IN_THREADS,
    ),
    Mutant(
        "a request that ends is not checked for having joined",
        "        joined = request.pump\n",
        "        joined = None\n",
        ("test_batchers_lifecycle.py",),
    ),
    Mutant(
        "threads are not ended when the batcher has ended",
        "            _end_all(self._threads)\n        super().check_ended()\n",
        "        super().check_ended()\n",
        BATCHERS_IN_THREADS,
    ),
    Mutant(
        "what is for a joiner goes to the former occupant of the slot",
        "        if live is not self._plain_slots:\n",
        "        if live != self._plain_slots:\n",
        BATCHERS_IN_LOOP,
    ),
    Mutant(
        "a request that was cancelled goes on waiting",
        "waited = self.queue.remove(request) or self.warm_up.queue",
        "waited = self.warm_up.queue",
        BATCHERS_IN_LOOP,
    ),
    Mutant(
        "closing forgets the batches that run",
        "        for batch in batches:\n            batch.close()\n",
        "",
        BATCHERS_IN_LOOP,
    ),
    Mutant(
        "one worker too many is hired",
        "len(self.at_work) >= self.most",
        "len(self.at_work) > self.most",
        BATCHERS_IN_LOOP,
    ),
    Mutant(
        "no request waits for others to share a batch",
        "        return min(map(self._waits_for_others_until, fitting))\n",
        "        return next(iter(group)).arrived\n",
        BATCHERS_IN_LOOP,
    ),
    Mutant(
        "a worker that takes a batch wakes no other for the requests that are left",
        "            workers.wake_one()  # for the requests that still wait\n",
        "",
        BATCHERS_IN_LOOP,
    ),
    Mutant(
        "requests wait on when the loop ends",
        "                self._give_up_loop(loop)\n            raise\n",
        "                pass\n            raise\n",
        BATCHERS_IN_LOOP,
    ),
    Mutant(
        "a worker takes a batch without the lock",
        "            with self.lock:\n                now = clock.monotonic()\n"
        "                reaped = self.scheduler.reap(now)\n                decision",
        "            if True:\n                now = clock.monotonic()\n"
        "                reaped = self.scheduler.reap(now)\n                decision",
        BATCHERS_IN_THREADS,
    ),
    Mutant(
        "a worker whose wake-up is carried out twice is started twice",
        "if worker.claim is not None or worker not in self.at_work:",
        "if worker not in self.at_work:",
        SCHEDULER,
    ),
    Mutant(
        "a request whose time is over waits on while others end",
        "overdue = self._fail_overdue(now) if has_expired else []",
        "overdue = self._fail_overdue(now) if has_expired and not self.ended_requests else []",
        SCHEDULER,
    ),
    Mutant(
        "a batched method runs in the context of the request that came first",
        "context.run(BatchedMethod, self, instance, owner)",
        "BatchedMethod(self, instance, owner)",
        ("test_batched_definitions.py",),
    ),
    Mutant(
        "a request that was told not now goes behind the requests of earlier bands",
        "order.add(request, put_back=room is None)",
        "order.add(request)",
        FAIR_SHARES,
    ),
    Mutant(
        "a request that was told not now is charged again",
        "if band is None or line is None or request in line.put_back:",
        "if band is None or line is None:",
        FAIR_SHARES,
    ),
    Mutant(
        "a band with a greater number goes first",
        "return tenant.priority, self._tag(tenant, head), head.arrived",
        "return -tenant.priority, self._tag(tenant, head), head.arrived",
        FAIR_SHARES,
    ),
    Mutant(
        "a tenant is charged for nothing",
        "            tenant.served = self._tag(tenant, request)\n",
        "",
        FAIR_SHARES,
    ),
    Mutant(
        "a tenant with a greater share gets less",
        "self._charged_cost(request.cost) / place.share",
        "self._charged_cost(request.cost) * place.share",
        FAIR_SHARES,
    ),
    Mutant(
        "what costs nothing is charged nothing",
        "return 1.0 if math.isinf(self._least_cost) else self._least_cost",
        "return 0.0",
        FAIR_SHARES,
    ),
    Mutant(
        "a tenant saves up what it did not use",
        "_Tenant(place.priority, band.clock)",
        "_Tenant(place.priority, 0.0)",
        FAIR_SHARES,
    ),
    Mutant(
        "a tenant is charged for what was cancelled",
        "            if rank < self._rank(tenant, request):\n",
        "            if False:\n",
        FAIR_SHARES,
    ),
    Mutant(
        "tenants of which nothing waits are kept",
        "                band.tenants.pop(place.account, None)\n",
        "                pass\n",
        FAIR_SHARES,
    ),
    Mutant(
        "a request that was broken off in the order passes for one that waits",
        "        return self._order is None or self._order.has(request)\n",
        "        return True\n",
        FAIR_SHARES,
    ),
    Mutant(
        "what waits costs too much after a change that was broken off",
        "        if not self._waiting or self._announced:\n",
        "        if not self._waiting:\n",
        FAIR_SHARES,
    ),
    Mutant(
        "a tenant's requests for which there is room count as waiting",
        "            pending = min(pending, len(self._waiting) - but - room())\n",
        "            pass\n",
        FAIR_SHARES,
    ),
    Mutant(
        "no worker that waits is woken by a change of limits",
        "        self.workers.wake_one_waiting()\n",
        "",
        SCHEDULER,
    ),
    Mutant(
        "a group that is ready by new limits is looked at when it was due by the old ones",
        "            self._readiness.hint_all()\n            self._has_hints = True\n",
        "            self._has_hints = True\n",
        ("test_queue.py",),
    ),
    Mutant(
        "a request that costs more than a lowered bound waits for ever",
        "        if self._spent is not None and spent > self._most:\n",
        "        if spent > self._most:\n",
        ("test_queue.py",),
    ),
    Mutant(
        "a process that keeps its figures in files does not write a state that changes",
        "            self.reports.state_changed()\n",
        "",
        ("test_prometheus.py",),
    ),
    Mutant(
        "a batcher that cannot be used in a forked child counts as one that accepts requests",
        "            if batcher is not None and not batcher.forked:\n",
        "            if batcher is not None:\n",
        ("test_prometheus.py",),
    ),
    Mutant(
        "a bound that comes where there was none counts the requests alone that come after it",
        "        self._announced = 1  # some may wait already\n",
        "        self._announced = 0\n",
        ("test_reconfigure.py",),
    ),
    Mutant(
        "a bound for tenants that comes meanwhile holds up no caller that waits for room",
        "            if options.places is not None and options.places.tenant is not None:\n",
        "            if options.max_pending_per_tenant is not None:\n",
        ("test_waiting_for_room.py",),
    ),
    Mutant(
        "limits on what requests cost together are not checked against each other",
        "        if limits.max_pending_cost is not None:\n"
        "            check_max_pending_cost(limits.max_pending_cost, limits.max_batch_cost)\n",
        "",
        ("test_reconfigure.py",),
    ),
    Mutant(
        "a lowered size lets requests join up to the size that the engine was made with",
        "        return max(len(self._free) - unused, 0)\n",
        "        return len(self._free)\n",
        ("test_reconfigure.py",),
    ),
    Mutant(
        "a batch that was measured is not measured with a request that comes later",
        "        if self._is_measured and next(reversed(group)).measured is not limits:\n",
        "        if self._is_measured and next(iter(group)).measured is not limits:\n",
        ("test_batch_cost.py",),
    ),
    Mutant(
        "requests that were measured are taken though another worker has taken them",
        "        if not (fitting and all(it in queue for it in fitting)):\n",
        "        if not fitting:\n",
        SCHEDULER,
        "Measuring",
    ),
    Mutant(
        "requests that were measured by other limits are taken",
        '        if self.state == "closed" or measured.limits is not self._limits.now:\n',
        '        if self.state == "closed":\n',
        SCHEDULER,
        "Measuring",
    ),
    Mutant(
        "all keys are kept while requests with one of them wait",
        "            if not kept or not waiting <= found:\n",
        "            if not kept or waiting:\n",
        ("test_queue.py",),
    ),
    Mutant(
        "a tenant that was forgotten a moment ago is thought of as known",
        "        return tenants is None or self._tenants.is_current(tenants)\n",
        "        return True\n",
        ("test_batchers_places.py",),
    ),
    Mutant(
        "what was unpickled runs in the context of a request",
        "Context().run(lambda: BatchedFunction(fn, **options))",
        "BatchedFunction(fn, **options)",
        ("test_batched_definitions.py",),
    ),
    Mutant(
        "two threads make two metrics",
        "                self._factory = None\n",
        "",
        ("test_batched_definitions.py",),
    ),
    Mutant(
        "a request that left has the first output of the next in its slot",
        "it.slot in slots and fanout.buffers[it.slot] is it",
        "it.slot in slots",
        ("test_metrics.py",),
    ),
    Mutant(
        "a slot whose first output comes counts as going on",
        "            going_on -= self._look_for_first_outputs(live, now)\n",
        "            self._look_for_first_outputs(live, now)\n",
        ("test_metrics.py",),
    ),
    Mutant(
        "work for requests that have left is not counted",
        "        wasted = self._count_wasted(live) if self.departures else 0\n",
        "        wasted = 0\n",
        ("test_metrics.py",),
    ),
    Mutant(
        "time in a slot counts from the submission",
        "            self._slot_time += now - request.joined_at\n",
        "            self._slot_time += now - request.arrived\n",
        ("test_metrics.py",),
    ),
    Mutant(
        "metrics that do nothing are called at each step",
        '        if getattr(method, "__func__", None) is not vars(Metrics)[event]\n',
        "",
        ("test_metrics.py",),
    ),
    Mutant(
        "every refusal has a line",
        '        if self._refusing.setdefault("since", began) is began:\n',
        "        if True:\n",
        ("test_log.py",),
    ),
    Mutant(
        "refusals are over with the first request that is accepted",
        "        if now - self._last_refusal >= QUIET_SECONDS:\n",
        "        if True:\n",
        ("test_log.py",),
    ),
    Mutant(
        "each request that an error has ended has a line",
        "setdefault(id(error) if kind is None else kind, [])",
        "setdefault(request, [])",
        ("test_log.py",),
    ),
    Mutant(
        "a batcher that is idle refuses in a forked child",
        "        in_use = any(not request.ends for request in self.scheduler.open_requests())\n",
        "        in_use = self.scheduler.totals.opened\n",
        ("test_batchers_lifecycle.py",),
    ),
    Mutant(
        "a batcher that is in use begins anew in a forked child",
        "    for each in [*forkable_batchers, *forkable]:\n",
        "    for each in [*forkable, *forkable_batchers]:\n",
        ("test_batchers_lifecycle.py",),
    ),
    Mutant(
        "results are read as steps",
        '    check_steps(fn, source, for_results="pass single=True")\n',
        "",
        ("test_batchers_single.py",),
    ),
    Mutant(
        "results of the wrong number are cut to fit",
        "    if len(results) != size:\n",
        "    if len(results) < size:\n",
        ("test_batchers_single.py",),
    ),
    Mutant(
        "requests for which there is room are counted as waiting",
        "(pending := waiting - room()) >= most:",
        "(pending := waiting) >= most + room():",
        ("test_queue.py",),
    ),
    Mutant(
        "an error of ours is unpickled without its data",
        "        return _restored, (type(self), self.args), vars(self)\n",
        "        return _restored, (type(self), self.args)\n",
    ),
    Mutant(
        "of two stop strings the first of the list counts",
        'elif not first_end or (end, -len(search.stop)) < (first_end, -len(self.matched or "")):',
        "elif not first_end:",
        STOP_STRINGS,
    ),
    Mutant(
        "of stop strings that end together the shortest counts",
        '(end, -len(search.stop)) < (first_end, -len(self.matched or ""))',
        "end < first_end",
        STOP_STRINGS,
    ),
    Mutant(
        "a stop string that begins anew within itself is missed",
        "                state = self._fallback(state)\n                continue",
        "                state = 0\n                continue",
        STOP_STRINGS,
    ),
    Mutant(
        "as much is held back as the first stop string needs",
        "                if search.state > state:  #",
        "                if not state:  #",
        STOP_STRINGS,
    ),
    Mutant(
        "what was held back is given again",
        '        held, self._held = self._held, ""\n        for search',
        "        held = self._held\n        for search",
        STOP_STRINGS,
    ),
    Mutant(
        "a byte that spoils a character before makes the text begin anew",
        "            del self._ids[: self._context]\n            self._context, self._newest",
        "            self._context, self._newest",
        TEXT,
    ),
    Mutant(
        "a space that a decoder drops is the only context, where decode is all there is",
        "            start = self._newest\n",
        "            pass\n",
        TEXT,
    ),
    Mutant(
        "a space that a decoder drops is the only context, where the decoder is in Rust",
        '        if text == " ":  # dropped',
        '        if text == "":  # dropped',
        TEXT,
    ),
    Mutant(
        "an engine is taken whose methods cannot be called",
        "        if not isinstance(engine, type) and not takes(",
        "        if False and not takes(",
        ("test_batchers_arguments.py",),
    ),
    Mutant(
        "an engine that was made and is refused stays open",
        "                if close is not None:\n                    call_quietly(partial(context",
        "                if False:\n                    call_quietly(partial(context",
        ("test_batchers_arguments.py",),
    ),
    Mutant(
        "half a character is text",
        "        if text.endswith(_INCOMPLETE) or len(text) == len(self._shown):",
        "        if len(text) == len(self._shown):",
        TEXT,
    ),
    Mutant(
        "bytes that are no character pile up",
        "            many = len(self._ids) - self._context >= _MOST_PENDING",
        "            many = False",
        TEXT,
    ),
    Mutant(
        "a special token that is a stop string is skipped",
        "                self._stop_ids = _special_ids(tokenizer, stops)",
        "                self._stop_ids = {}",
        TEXT,
    ),
    Mutant(
        "tokens behind a stop string are counted",
        "                if self.matched is not None:\n                    return text + new\n",
        "",
        TEXT,
    ),
    Mutant(
        "a stop string ends its slot one step late",
        "decoder.feed(*outputs)\n                if decoder.matched is not None:",
        "decoder.feed(*outputs)\n                if False:",
        TEXT_STEPS,
    ),
    Mutant(
        "what is held back is flushed for a stream that the source cancels",
        "            if decoder is None or slot in draft.ended or end.reason not in _COMPLETE:",
        "            if decoder is None or slot in draft.ended:",
        TEXT_STEPS,
    ),
    Mutant(
        "an empty text is an output",
        "                if piece:\n                    slots.append(slot)",
        "                if True:\n                    slots.append(slot)",
        TEXT_STEPS,
    ),
    Mutant(
        "a source of tokens is not told of streams that have left",
        "        for slot in set(core.live).difference(live):\n            core.cancel(slot)",
        "        pass",
        TEXT_STEPS,
    ),
    Mutant(
        "a source of tokens is left open",
        '        """Close the source."""\n        self._source.close()',
        '        """Close the source."""',
        TEXT_STEPS,
    ),
    Mutant(
        "a trace that has ended as it joined stays in its batch",
        "        if self._end is not None:\n            self._leave(self._end)",
        "        if self._end is not None:\n            pass",
        TRACES,
    ),
    Mutant(
        "a trace that has given its slot back stays in its batch",
        "            _quietly(self.trace.requeued)\n        self._leave(None)",
        "            _quietly(self.trace.requeued)",
        TRACES,
    ),
    Mutant(
        "a request that is reaped before its step is noted has no first output",
        "if request.first_output_at is None and request.ends[0].outputs:",
        "if False:",
        ("test_order_of_reports.py", "test_scheduler.py"),
    ),
    Mutant(
        "the end of a request is told as its first output is",
        "            if request in self.untold:\n                continue\n",
        "",
        ("test_order_of_reports.py", "test_scheduler.py"),
    ),
    Mutant(
        "what a step gives for a request that has left is its first output",
        "[it for it in given if not it.ends or it.ends[0].outputs]",
        "given",
        ("test_order_of_reports.py",),
    ),
    Mutant(
        "a figure that is read by its name alone lacks the steps that are kept",
        "        self._write()\n        return [metric for family",
        "        return [metric for family",
        ("test_prometheus.py",),
    ),
    Mutant(
        "slots that are filled one by one leave a queue one by one",
        "now - since < BURST_SECONDS:",
        "now - since < 0:",
        ("test_waiting_for_room.py",),
    ),
    Mutant(
        "a batch is told of its end by the first of its requests",
        "[True] + [False] * (size - 1)",
        "[False] * (size - 1) + [True]",
        TRACES,
    ),
    Mutant(
        "a request that is refused is told of no end",
        "            request.trace.ended(StreamEnd(FinishReason.ERROR, 0, error=refusal))",
        "            pass",
        TRACES,
    ),
    Mutant(
        "a submission that is broken off is told of no end",
        "    if request.trace is not None and request not in dispatcher.scheduler.totals.open:",
        "    if request.trace is not None and request in dispatcher.scheduler.totals.open:",
        TRACES,
    ),
    Mutant(
        "a forked child tells of its parent's requests",
        "            request.trace = None\n        in_use",
        "            pass\n        in_use",
        TRACES,
    ),
    Mutant(
        "an output is lost whose neighbour was taken as the two were merged",
        "            outputs[-1] = merged  # one call: see the top of this module\n"
        "        except IndexError:\n"
        "            return False\n",
        "            outputs[-1] = merged\n        except IndexError:\n            pass\n",
        OVERFLOW,
    ),
    Mutant(
        "an output is lost whose neighbour another thread takes as the two are merged",
        "            outputs[-1] = merged  # one call: see the top of this module\n"
        "        except IndexError:\n"
        "            return False\n",
        "            outputs[-1] = merged\n        except IndexError:\n            pass\n",
        THREADS,
        "merged_as_it_is_received",
    ),
    Mutant(
        "an output is merged in front of the one before",
        "merged = self._merge(last, output)",
        "merged = self._merge(output, last)",
        OVERFLOW,
    ),
    Mutant(
        "the source goes on for a stream that a merge has failed",
        "self.end_stream(buffer, error)\n                self.core.cancel(buffer.slot)\n",
        "self.end_stream(buffer, error)\n",
        OVERFLOW,
    ),
    Mutant(
        "outputs are merged where all are collected",
        "merges = self._merge is not None and not self._collectors",
        "merges = self._merge is not None",
        OVERFLOW,
    ),
    Mutant(
        "a merged output is measured as the one that it was",
        "            sizes.replace_last(size)\n",
        "            pass\n",
        OVERFLOW,
    ),
    Mutant(
        "a step is free that may bring too many bytes",
        "self.free_steps = 1 if self.measures else max(limit - most, 1)",
        "self.free_steps = max(limit - most, 1)",
        OVERFLOW,
    ),
    Mutant(
        "bytes that were received count as held",
        "return sums[-1] - sums[-1 - unread]",
        "return sums[-1] - sums[0]",
        OVERFLOW,
    ),
    Mutant(
        "an output does not let the time for the next begin",
        "                deadlines.await_next(given, now)\n",
        "                deadlines.await_next(given, None)\n",
        DEADLINES,
    ),
    Mutant(
        "a request is late whose own consumer has left its stream full",
        "return waits and request.is_full(self.pump.fanout.limit)",
        "return waits and request.is_full(10**9)",
        DEADLINES,
    ),
    Mutant(
        "the outputs of others move the deadlines of a request that waits again",
        "        self._unseat(request)\n",
        "",
        ("test_requeue_with_others.py",),
    ),
    Mutant(
        "another engine begins anew with what the last one alone knew",
        "if it.is_kept]\n            self._owner",
        "if False]\n            self._owner",
        ("test_requeue_with_others.py",),
    ),
    Mutant(
        "a warm-up whose slots are given back is counted by metrics",
        "            if metrics is not None and not request.is_warm_up:",
        "            if metrics is not None:",
        ("test_requeue_with_others.py",),
    ),
    Mutant(
        "room in one stream goes unnoticed while another is full",
        "if not self.full or buffer in self.watched:",
        "if not self.full:",
        DEADLINES,
    ),
    Mutant(
        "a request is late though the step has given it an output a moment ago",
        "if until is None or until > now or self._was_given_more(given):",
        "if until is None or until > now:",
        DEADLINES,
    ),
    Mutant(
        "a consumer that waits for its first output does not look for a gap behind it",
        "return earliest(left, max(deadlines.gap_timeout, _SHORTEST_LOOK))",
        "return left",
        DEADLINES,
    ),
    Mutant(
        "a request waits beyond the time for its first output",
        "return earliest(deadlines.wait_until, deadlines.next_output[1])",
        "return deadlines.wait_until",
        DEADLINES,
    ),
    Mutant(
        "the longest of a client's times counts",
        "return min(times, default=None)",
        "return max(times, default=None)",
        ("test_timeouts.py",),
    ),
    # ---- slots that an engine gives back
    Mutant(
        "a slot that is given back counts its outputs anew",
        "        self._extra[slot] += given\n",
        "",
        REQUEUES,
    ),
    Mutant(
        "a slot is given back where no request is added again",
        "        if self._requeued is None:\n            error = requeue_error(",
        "        if False:\n            error = requeue_error(",
        REQUEUES,
    ),
    Mutant(
        "what is given back is added again at once",
        "        if waiting and back == len(left):",
        "        if False:",
        REQUEUES,
    ),
    Mutant(
        "what was all given back joins all at once",
        "            self._join(alone=behind is not None)\n",
        "            self._join(alone=False)\n",
        REQUEUES,
    ),
    Mutant(
        "of what was all given back the second joins with the next step",
        "        if behind is not None and self._costs:\n",
        "        if False:\n",
        REQUEUES,
    ),
    Mutant(
        "one that is alone is given back for ever",
        "        fails = stalls and request.stalled\n",
        "        fails = False\n",
        (*REQUEUES, "test_requeue_stateful.py"),
    ),
    Mutant(
        "requests that are given back go to the head of the queue one before the other",
        "        waiting = sorted(self.requeued, key=lambda request: request.arrived)\n",
        "        waiting = sorted(self.requeued, key=lambda request: -request.arrived)\n",
        REQUEUES,
    ),
    Mutant(
        "a cancel that finds the slot given back sets no end",
        "            if request.ends:  # or else its slot was given back meanwhile\n"
        "                break\n"
        "        if pump is None or request.pump is not pump:\n"
        "            self._ended_outside(request, pump)\n\n    def fail(",
        "            break\n"
        "        if pump is None or request.pump is not pump:\n"
        "            self._ended_outside(request, pump)\n\n    def fail(",
        REQUEUES,
    ),
    Mutant(
        "a request is taken out of its slot before it is known to wait",
        "        request.pump = None\n        fanout.release(slot, VACANCY)\n",
        "        fanout.release(slot, VACANCY)\n        request.pump = None\n",
        REQUEUES,
    ),
    Mutant(
        "a request that has joined another batch as it was cancelled is computed on",
        "        if joined is not None and joined is not pump:\n",
        "        if joined is not None and pump is None:\n",
        REQUEUES,
    ),
    Mutant(
        "the wait of a request that joins again may end it",
        "        self.wait_until = self.until\n\n    def await_next",
        "        pass\n\n    def await_next",
        REQUEUES,
    ),
    Mutant(
        "a stream that joins again with outputs unread is not looked at",
        "            self.free_steps = 0  # it may hold outputs already\n",
        "",
        REQUEUES,
    ),
    Mutant(
        "a stop string does not end a slot that the same step gives back",
        "        if self._requeued and self._requeued.pop(slot, None) is not None:\n",
        "        if False:\n",
        REQUEUES,
    ),
    # ---- clients of LitServe
    Mutant(
        "an output for a client of LitServe is merged in front of the outputs before it",
        "    output = merge(output_of(earlier[0]), output_of(later[0]))\n",
        "    output = merge(output_of(later[0]), output_of(earlier[0]))\n",
        UNREAD,
    ),
    Mutant(
        "a client of LitServe may leave any number of bytes unread",
        "        if sizes is not None and sizes.are_full(unread):\n",
        "        if False:\n",
        UNREAD,
    ),
    Mutant(
        "a worker of LitServe reports its own end of a request that a server has failed",
        "if self.uid in self._worker.disconnects:  # it has ended",
        "if False:  # it has ended",
        ENDS_IN_LITSERVE,
    ),
    Mutant(
        "a server process of LitServe reports the ends that a worker has reported",
        "                self._due.pop(uid, None)\n                continue\n",
        "                continue\n",
        ENDS_IN_LITSERVE,
    ),
    Mutant(
        "a server process of LitServe cuts its requests before it reads which a worker has",
        "        self._read_claims()  # of a request that has one, the worker reports the end\n",
        "",
        ENDS_IN_LITSERVE,
    ),
    Mutant(
        "a response in LitServe is watched no more before its requests are given up",
        "        try:\n            for uid in self._receive_no_more():\n"
        "                self._give_up(uid)\n        finally:\n"
        "            # Last: a server process may wait for it, and for due reports.\n"
        "            self._watch_no_more()\n",
        "        unfinished = self._receive_no_more()\n        self._watch_no_more()\n"
        "        for uid in unfinished:\n            self._give_up(uid)\n",
        ENDS_IN_LITSERVE,
    ),
    Mutant(
        "a line of a worker of LitServe is lost for which the pipe has no room",
        "        except BlockingIOError:\n            return False\n        except OSError:",
        "        except OSError:",
        LINES_IN_LITSERVE,
    ),
    Mutant(
        "a line of a worker of LitServe overtakes those that are kept",
        "            if not self._kept:\n                if self._is_done(line)",
        "            if True:\n                if self._is_done(line)",
        LINES_IN_LITSERVE,
    ),
    Mutant(
        "an engine in LitServe that cannot say what its step costs fails the request that joins",
        "                self._failure = error\n        return self._spent is not None and",
        "                raise\n        return self._spent is not None and",
        ENGINES_IN_LITSERVE,
    ),
    # ---- what a step costs
    Mutant(
        "a request joins a step that costs too much",
        "(step is None or step.admit(request.step_cost))",
        "(step is None or step.admit(0.0))",
        BUDGETS,
    ),
    Mutant(
        "what joins in the same refill is not counted",
        "            self._step_spent += submission.step_cost\n",
        "            pass\n",
        ("test_batchers_places.py",),
    ),
    Mutant(
        "a slot costs for ever what its first step did",
        "        return self._submissions[slot].step_cost if is_prefilling else 1.0\n",
        "        return self._submissions[slot].step_cost\n",
        BUDGETS,
    ),
    Mutant(
        "what was taken with a refused request goes before urgent ones",
        "        one_by_one = self._owner.options.joins_one_by_one\n",
        "        one_by_one = False\n",
        ("test_batchers_places.py",),
    ),
    Mutant(
        "what begins a batch with a refused request goes before urgent ones",
        "        self._begins_with_one = may_put_back and options.joins_one_by_one\n",
        "        self._begins_with_one = False\n",
        ("test_scheduler.py",),
    ),
    Mutant(
        "requests that fail as they are added hold up the step",
        "        rounds = len(self._free) if one_by_one and not alone else 1\n",
        "        rounds = 99 if one_by_one and not alone else 1\n",
        ("test_batchers_places.py",),
    ),
    Mutant(
        "a request has waited until the requests of its step are in the engine",
        "                    waited.append(request.taken_at - request.arrived)\n",
        "                    waited.append(requests[0].taken_at - request.arrived)\n",
        ("test_batchers_places.py",),
    ),
    Mutant(
        "a request that has output counts as prefilling",
        "        return sum(fanout.given(request) == request.given_before for",
        "        return sum(fanout.given(request) >= request.given_before for",
        BUDGETS,
    ),
]


def python_for(mutant: Mutant) -> str | None:
    """Return the Python that can run the tests which have to notice this, if there is one."""
    interleaves = mutant.noticed_by in {THREADS, BATCHERS_IN_THREADS, CHANNELS_IN_THREADS}
    return python_that_interleaves() if interleaves else sys.executable


@cache
def python_that_interleaves() -> str | None:
    """Return a Python that has interleave-test, this one first."""
    for python in [sys.executable, *sorted(map(str, ROOT.glob(".venv-3.*/bin/python")))]:
        asked = [python, "-c", "import interleave_test, pytest_timeout"]
        if not subprocess.run(asked, capture_output=True, check=False).returncode:  # noqa: S603
            return python
    return None


def path_of(noticed_by: str) -> str:
    """Return what pytest is to run: a file of tests, or one test of it, wherever the file lies."""
    name, *test = noticed_by.split("::")
    [path] = (ROOT / "tests").rglob(name)
    return "::".join([path.relative_to(ROOT).as_posix(), *test])


def places_of(text: str, package: Path) -> list[Path]:
    """Return the modules of the package that hold a text, one entry for each time."""
    modules = sorted(package.rglob("*.py"))
    return [module for module in modules for _ in range(module.read_text().count(text))]


def misfit(mutant: Mutant) -> str | None:
    """Say why a mutant does not apply to the package as it is; None if it does."""
    places = [place.relative_to(ROOT) for place in places_of(mutant.right, ROOT / "batchstream")]
    if len(places) != 1:
        where = ", ".join(map(str, places)) or "nowhere"
        return f"DOES NOT APPLY: its text is to occur once in the package, but occurs in {where}"
    [module] = places_of(mutant.right, ROOT / "batchstream")
    try:
        compile(module.read_text().replace(mutant.right, mutant.wrong), module.name, "exec")
    except SyntaxError as error:  # every test would notice it, whatever it looks at
        return f"DOES NOT APPLY: what it makes of {module.name} is no Python: {error}"
    for name in mutant.noticed_by:
        file, _, test = name.partition("::")
        found = list((ROOT / "tests").rglob(file))
        if len(found) != 1 or (test and f"def {test}(" not in found[0].read_text()):
            return f"DOES NOT APPLY: {name}, which has to notice it, is not among the tests"
    return None


def check(mutants: list[Mutant]) -> int:
    """Print which mutants do not apply, without running any."""
    reasons = {mutant.name: reason for mutant in mutants if (reason := misfit(mutant))}
    for name, reason in reasons.items():
        print(f"{name}\n    {reason}")
    print(f"{len(mutants) - len(reasons)} of {len(mutants)} apply")
    return 1 if reasons else 0


def run(mutant: Mutant) -> str:
    """Return the test that noticed, or what went wrong in capitals."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "batchstream", copy / "batchstream")
        shutil.copytree(ROOT / "tests", copy / "tests")
        shutil.copytree(ROOT / "docs", copy / "docs")  # which some tests read
        shutil.copy(ROOT / "pyproject.toml", copy)
        if reason := misfit(mutant):
            return reason
        [module] = places_of(mutant.right, copy / "batchstream")
        module.write_text(module.read_text().replace(mutant.right, mutant.wrong))
        python = python_for(mutant)
        if python is None:
            return NOT_RUN
        tests = [path_of(name) for name in mutant.noticed_by]
        tests += ["-k", mutant.only] * bool(mutant.only)
        variables = {"PYTHONPATH": folder, "PY_COLORS": "0", "SCHEDULES": str(SCHEDULES), **PLUGINS}
        variables["HYPOTHESIS_PROFILE"] = "mutants"
        try:
            completed = subprocess.run(  # noqa: S603 - our own tests
                [python, *PYTEST, *tests],
                cwd=copy,
                env={**os.environ, **variables, "BATCHSTREAM_PURE": "1"},
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"UNCLEAR: not done after {SECONDS} seconds"
    noticed = re.search(
        r"^(?:FAILED|ERROR) (?:tests/(?:\w+/)*)?(\S+)", completed.stdout, re.MULTILINE
    )
    if noticed:
        return noticed[1]
    if "Timeout" in completed.stdout + completed.stderr:
        hung = re.search(r"in (test_\w+)", completed.stdout + completed.stderr)
        return f"{hung[1] if hung else 'a test'} (hung)"
    return "SURVIVED" if completed.returncode == 0 else f"UNCLEAR: {completed.stdout[-300:]}"


def tests_that(noticed: dict[Mutant, str]) -> list[Mutant]:
    """Return unbroken copies on which just the tests are run that noticed a mutant."""
    names: dict[tuple[str, ...], set[str]] = {}
    for mutant, test in noticed.items():
        name = re.match(r"\w+", test.split("::")[-1])[0]  # without parameters: all of them
        names.setdefault(mutant.noticed_by, set()).add(name)
    shares = os.cpu_count() or 1  # of each list, because one of them takes far longer
    return [
        replace(UNBROKEN, noticed_by=files, only=" or ".join(share))
        for files, some in names.items()
        for share in (sorted(some)[first::shares] for first in range(shares))
        if share
    ]


def main(arguments: list[str]) -> int:
    """Run the mutants that are named, or all, and print what noticed each."""
    names = [argument for argument in arguments if not argument.startswith("--")]
    chosen = [m for m in MUTANTS if not names or any(name in m.name for name in names)]
    for argument in arguments:
        if argument.startswith("--part="):
            number, parts = map(int, argument.removeprefix("--part=").split("/"))
            chosen = chosen[number % parts :: parts]
    if "--check" in arguments:
        return check(chosen)
    noticed = {}
    not_run = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for mutant, result in zip(chosen, pool.map(run, chosen), strict=True):
            print(f"{mutant.name}\n    {result}", flush=True)
            not_run += result == NOT_RUN
            if not result.split()[0].isupper():
                noticed[mutant] = result
        for result in pool.map(run, tests_that(noticed)):
            if result != "SURVIVED":
                print(f"the tests fail as it is: {result}")
                return 1
    print(f"{len(noticed)} of {len(chosen)} noticed" + f", {not_run} not run" * bool(not_run))
    return 0 if len(noticed) + not_run == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
