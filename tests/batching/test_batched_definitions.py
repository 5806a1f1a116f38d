"""What belongs to the definition of a batched function: its pickle, its context, its metrics."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from contextvars import ContextVar, copy_context

import pytest

from batchstream import ContinuousBatcher, DynamicBatcher, batched
from support.engines import Model
from support.programs import run_program
from support.sources import TIMEOUT, run_in_threads

variable = ContextVar("variable", default="no context's")


@batched(max_batch_size=4, key=len)
def spell(words):
    yield list(words)


class Speller:
    def __init__(self, end="!"):
        self.end = end

    @batched(max_batch_size=4)
    def spell(self, words):
        yield [word + self.end for word in words]


def spell_plainly(words):
    yield list(words)


renamed = batched(max_batch_size=3)(spell_plainly)

PROTOCOLS = pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))


def outputs_of(batcher, request="ab"):
    with batcher:
        return list(batcher.stream(request))


@pytest.mark.rule(27)
@PROTOCOLS
def test_a_batched_function_or_method_is_pickled_by_its_name(protocol):
    for each in (spell, Speller.spell):
        assert pickle.loads(pickle.dumps(each, protocol)) is each  # noqa: S301
        assert copy.copy(each) is copy.deepcopy(each) is each


@pytest.mark.rule(27)
@PROTOCOLS
def test_a_batched_function_that_its_name_does_not_find_is_pickled_by_value(protocol):
    made = pickle.loads(pickle.dumps(renamed, protocol))  # noqa: S301
    assert made is not renamed
    assert made.__wrapped__ is spell_plainly
    assert outputs_of(made) == ["ab"]


@pytest.mark.rule(27)
@PROTOCOLS
def test_the_batcher_of_an_instance_is_pickled_as_a_method_is(protocol):
    speller = Speller("?")
    made = pickle.loads(pickle.dumps(speller.spell, protocol))  # noqa: S301
    assert made is not speller.spell
    assert outputs_of(made) == ["ab?"]
    assert copy.copy(speller.spell) is speller.spell


@pytest.mark.rule(27)
def test_a_batched_function_that_no_process_could_import_is_refused():
    @batched
    def local(words):
        yield words

    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(local)


IN_MAIN = """
    import pickle, subprocess, sys
    import cloudpickle
    from batchstream import batched

    end = "!"

    @batched(max_batch_size=4, max_outputs=lambda word: 1)
    def spell(words):
        while True:
            yield [word + end for word in words]

    class Model:
        @batched(max_batch_size=4)
        def spell(self, words):
            yield [word + end for word in words]

    def use(request):  # mentions what is batched
        return [*spell.stream(request), *Model().spell.stream(request)]

    assert pickle.loads(pickle.dumps(spell)) is spell
    data = cloudpickle.dumps((spell, Model, Model(), use))
    program = '''
    import pickle, sys
    spell, Model, model, use = pickle.loads(sys.stdin.buffer.read())
    print(*spell.stream("a"), *Model().spell.stream("b"), *model.spell.stream("c"), *use("d"))
    '''
    import textwrap
    command = [sys.executable, "-c", textwrap.dedent(program)]
    print(subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode())
"""


@pytest.mark.rule(27)
def test_cloudpickle_carries_the_definition_from_a_program_of_its_own():
    pytest.importorskip("cloudpickle")
    status, printed, complaints = run_program(IN_MAIN)
    assert (status, printed.split(), complaints) == (0, ["a!", "b!", "c!", "d!", "d!"], "")


@pytest.mark.rule(27)
def test_cloudpickle_carries_a_class_that_its_module_does_not_have(monkeypatch):
    cloudpickle = pytest.importorskip("cloudpickle")
    replaced = Speller
    monkeypatch.setattr(f"{__name__}.Speller", object())  # as `serve.deployment` of Ray does
    data = cloudpickle.dumps(replaced)
    # Elsewhere: here the class is known, and would be found again.
    program = (
        "import pickle, sys; made = pickle.loads(sys.stdin.buffer.read()); "
        "print(*made('?').spell.stream('ab'))"
    )
    ended = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program],
        input=data,
        capture_output=True,
        check=True,
        timeout=TIMEOUT,
    )
    assert ended.stdout.split() == [b"ab?"]


# ---- the context


def in_context_of(value, function):
    def run():
        variable.set(value)
        return function()

    return copy_context().run(run)


@pytest.mark.rule(26)
@pytest.mark.parametrize("kind", ["function", "method", "unpickled"])
def test_a_batch_runs_in_the_context_of_the_definition_and_never_of_a_request(kind):
    seen = []

    def define():
        @batched(max_batch_size=1)
        def look(words):
            seen.append(variable.get())
            variable.set("a batch's")
            yield words

        class Looking:
            @batched(max_batch_size=1)
            def look(self, words):
                seen.append(variable.get())
                variable.set("a batch's")
                yield words

        instance = Looking()
        return {"function": lambda: look, "method": lambda: instance.look}.get(kind)

    look_up = in_context_of("the definition's", define) or (lambda: made)
    if kind == "unpickled":
        made = in_context_of("a request's", lambda: pickle.loads(pickle.dumps(looking)))  # noqa: S301
        del SEEN[:]
        seen = SEEN
    for request in "abc":
        in_context_of(f"{request}'s", lambda request=request: list(look_up().stream(request)))
    look_up().close()
    assert seen == ["no context's" if kind == "unpickled" else "the definition's"] * 3


SEEN = []


def look_at_variable(words):
    SEEN.append(variable.get())
    yield words


looking = batched(max_batch_size=1)(look_at_variable)


# ---- metrics that are made in the process that uses them


class Counted:
    made = 0

    def __init__(self):
        type(self).made += 1
        self.events = []

    def submitted(self, **_):
        self.events.append("submitted")

    def refused(self, reason, **_):
        self.events.append("refused")

    def joined(self, waited, **_):
        self.events.append("joined")

    def stepped(self, live, capacity, *_):
        self.events.append("stepped")

    def finished(self, end, *, joined, lasted, **_):
        self.events.append("finished")


@pytest.mark.parametrize("kind", ["dynamic", "continuous"])
def test_a_factory_makes_the_metrics_with_the_first_request_and_once(kind):
    made, both_came = [], threading.Barrier(2)

    class Door:
        """In place of the lock: lets the factory know that two threads want metrics."""

        lock = threading.RLock()

        def __enter__(self):
            if self.lock.acquire(blocking=False):
                return
            both_came.wait(TIMEOUT)
            self.lock.acquire()

        def __exit__(self, *_):
            self.lock.release()

    def factory():
        both_came.wait(TIMEOUT)
        made.append(Counted())
        return made[-1]

    model = Model()
    if kind == "dynamic":
        batcher = DynamicBatcher(model.generate, max_batch_size=1, metrics=factory)
    else:
        batcher = ContinuousBatcher(model, max_batch_size=1, metrics=factory)
    batcher._dispatcher.options.metrics._making = Door()
    assert made == []
    with batcher:
        run_in_threads(*[lambda: list(batcher.stream("ab"))] * 2)
    (metrics,) = made
    assert metrics.events.count("submitted") == metrics.events.count("finished") == 2


def test_a_class_is_a_factory_and_an_object_that_can_be_called_is_none():
    class Class(Counted):
        made = 0

    class Callable(Counted):
        def __call__(self):
            raise AssertionError("called")

    given = Callable()
    for metrics in (Class, given):
        with DynamicBatcher(Model().generate, max_batch_size=1, metrics=metrics) as batcher:
            list(batcher.stream("a"))
    assert "finished" in given.events
    assert Class.made == 1


def test_a_factory_that_raises_refuses_the_request_and_is_asked_again():
    answers = [ValueError("taken"), Counted()]

    def factory():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with DynamicBatcher(Model().generate, max_batch_size=1, metrics=factory) as batcher:
        with pytest.raises(ValueError, match="taken"):
            batcher.stream("a")
        assert batcher.statistics().opened == 0
        assert list(batcher.stream("a")) == ["a"]


@batched(max_batch_size=1, metrics=Counted)
def counted(words):
    yield list(words)


@pytest.mark.rule(27)
def test_a_batched_function_with_a_factory_of_metrics_is_pickled():
    assert pickle.loads(pickle.dumps(counted)) is counted  # noqa: S301
    assert counted._dispatcher.options.metrics.unmade


@pytest.mark.rule(26)
def test_a_factory_runs_in_the_context_of_the_definition():
    seen = []

    def factory():
        seen.append(variable.get())
        return Counted()

    batcher = in_context_of(
        "the maker's",
        lambda: DynamicBatcher(Model().generate, max_batch_size=1, metrics=factory),
    )
    with batcher:
        in_context_of("a request's", lambda: list(batcher.stream("a")))
    assert seen == ["the maker's"]
