"""The model for Triton's Python backend, called as Triton's documentation says: no Triton runs."""

import asyncio
import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from batchstream import EOS, ContinuousBatcher, DeadlineError, RequestError
from batchstream.integrations.triton import error_of
from support.serving import SECONDS

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "examples" / "servers" / "triton" / "speller" / "1" / "model.py"


class Speller:
    """An engine that makes a step whenever it is allowed one."""

    def __init__(self):
        self.rest = {}
        self.begun = threading.Semaphore(0)
        self.allowed = threading.Semaphore(0)
        self.removed = threading.Semaphore(0)

    def add(self, slot, word):
        if not word.isalpha():
            raise RequestError("no word")
        self.rest[slot] = iter(word)

    def step(self):
        self.begun.release()
        assert self.allowed.acquire(timeout=SECONDS)
        return {slot: letter(rest) for slot, rest in self.rest.items()}

    def remove(self, slot):
        del self.rest[slot]
        self.removed.release()

    def allow(self, steps):
        for _ in range(steps):
            self.allowed.release()


def letter(rest):
    found = next(rest, EOS)
    if found == "X":
        raise RuntimeError("out of memory")
    return found


class Triton:
    """Loads the model, and calls `execute` in its event loop as often as requests come."""

    def __init__(self, module, engine):
        self.utils = sys.modules["triton_python_backend_utils"]
        self.engine = engine
        self.batcher = module.batcher
        self.model = module.TritonPythonModel()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._calls = []

    def ask(self, *words):
        """Pass requests to the model, in one call of `execute`, and return their senders."""
        requests = [self.request(word) for word in words]
        self.send(*requests)
        return [request.sender for request in requests]

    def send(self, *requests):
        """Pass requests to the model, in one call of `execute`."""
        call = self.model.execute(requests)
        self._calls.append(asyncio.run_coroutine_threadsafe(call, self._loop))

    def cancel(self):
        """Cancel the last call of `execute`."""
        self._calls.pop().cancel()

    def request(self, word):
        array = np.array([word.encode()], dtype=object)
        return self.utils.InferenceRequest([self.utils.Tensor("WORD", array)])

    def close(self):
        self.engine.allow(1000)
        assert [call.result(SECONDS) for call in self._calls] == [None] * len(self._calls)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()


@pytest.fixture
def triton(monkeypatch):
    engine = Speller()
    batcher = ContinuousBatcher(engine, max_batch_size=3, max_pending=1, drain=SECONDS)
    batching = ModuleType("batching")
    batching.batcher = batcher
    monkeypatch.setitem(sys.modules, "batching", batching)
    monkeypatch.syspath_prepend(ROOT / "tests" / "support" / "triton")
    monkeypatch.delitem(sys.modules, "triton_python_backend_utils", raising=False)
    spec = importlib.util.spec_from_file_location("1.model", MODEL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    triton = Triton(module, engine)
    yield triton
    triton.close()
    batcher.close()
    sys.modules.pop("triton_python_backend_utils")


def next_of(sender):
    """Return the next letter of a request, its error, or None for its end."""
    response = sender.responses.get(timeout=SECONDS)
    if response is None:
        return None
    if (error := response.error()) is not None:
        return error.code(), error.message()
    [tensor] = response.output_tensors()
    assert tensor.name() == "LETTER"
    [found] = tensor.as_numpy()
    return found.decode()


@pytest.mark.rule(7)
@pytest.mark.cell("Triton, Python backend", "ends", "yes")
def test_each_request_ends_in_the_step_after_its_last_output(triton):
    """The requests of one call of `execute` come while an earlier call still runs."""
    [first] = triton.ask("ab")
    assert triton.engine.begun.acquire(timeout=SECONDS)
    second, third = triton.ask("c", "def")
    while triton.batcher.statistics().live < 3:
        pass
    triton.engine.allow(1)
    assert next_of(first) == "a"
    triton.engine.allow(1)
    assert [next_of(it) for it in (first, second, third)] == ["b", "c", "d"]
    triton.engine.allow(1)
    assert [next_of(it) for it in (first, second, third)] == [None, None, "e"]
    triton.engine.allow(2)
    assert [next_of(third), next_of(third)] == ["f", None]


@pytest.mark.rule(13)
@pytest.mark.cell("Triton, Python backend", "disconnect", "by the next output")
def test_a_request_that_is_cancelled_frees_its_slot_by_its_next_output(triton):
    [sender] = triton.ask("abcdefghij")
    triton.engine.allow(1)
    assert next_of(sender) == "a"
    sender.cancelled = True
    triton.engine.allow(1)
    assert next_of(sender) is None, "the final flag is due then, too"
    triton.engine.allow(1)  # may be under way already
    assert triton.engine.removed.acquire(timeout=SECONDS)


@pytest.mark.rule(15)
@pytest.mark.cell("Triton, Python backend", "early error", "INTERNAL")
@pytest.mark.cell("Triton, Python backend", "error", "INTERNAL")
@pytest.mark.cell("Triton, Python backend", "overload", "UNAVAILABLE")
@pytest.mark.cell("Triton, Python backend", "bad request", "INVALID_ARG")
def test_an_error_ends_a_request_with_its_code(triton):
    [bad] = triton.ask("?")
    assert (next_of(bad), next_of(bad)) == (("INVALID_ARG", "no word"), None)
    running = triton.ask("aX", "b", "c", "d")
    [refused] = triton.ask("e")
    assert next_of(refused) == ("UNAVAILABLE", "the server is overloaded")
    assert next_of(refused) is None
    triton.engine.allow(1000)
    assert next_of(running[0]) == "a"
    assert next_of(running[0]) == ("INTERNAL", "the model has failed: out of memory")
    assert next_of(running[0]) is None
    while triton.batcher.statistics().live:  # the others have a slot or wait for one
        pass
    [early] = triton.ask("X")
    assert next_of(early) == ("INTERNAL", "the model has failed: out of memory")
    assert next_of(early) is None


def test_a_task_that_is_cancelled_ends_its_request_with_an_error(triton):
    [sender] = triton.ask("abc")
    triton.engine.allow(1)
    assert next_of(sender) == "a"
    triton.cancel()
    assert (next_of(sender), next_of(sender)) == (("UNAVAILABLE", "the server is closing"), None)


def test_a_request_that_took_too_long_is_told_so(triton):
    error = error_of(DeadlineError("too late", timeout=1))
    assert (error.code(), error.message()) == ("UNAVAILABLE", "the request took too long")


def test_an_input_that_is_left_out_ends_its_request_alone(triton):
    """`submit` raises: Triton would end all requests of the call for it."""
    [without, other] = [triton.request("a"), triton.request("b")]
    without.inputs().clear()
    triton.send(without, other)
    code, _ = next_of(without.sender)
    assert (code, next_of(without.sender)) == ("INTERNAL", None)
    triton.engine.allow(2)
    assert [next_of(other.sender), next_of(other.sender)] == ["b", None]


@pytest.mark.rule(28)
@pytest.mark.cell("Triton, Python backend", "drain", "yes")
def test_a_model_that_is_unloaded_lets_its_requests_end(triton):
    [sender] = triton.ask("abc")
    triton.engine.allow(1)
    assert next_of(sender) == "a"
    unloading = threading.Thread(target=triton.model.finalize)
    unloading.start()
    triton.engine.allow(3)
    assert [next_of(sender) for _ in range(3)] == ["b", "c", None]
    unloading.join(SECONDS)
    [refused] = triton.ask("d")
    assert next_of(refused) == ("UNAVAILABLE", "the server is closing")


def test_the_configuration_has_the_tensors_of_the_model():
    text = (MODEL.parents[1] / "config.pbtxt").read_text()
    for part in ("decoupled: True", 'name: "WORD"', 'name: "LETTER"', 'backend: "python"'):
        assert part in text
