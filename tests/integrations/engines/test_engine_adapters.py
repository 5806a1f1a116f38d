"""The step engines of examples/engines, each with the real engine where that is installed.

Every engine has the same model, of which `tiny_llama` says what a reply is. Engines that run on
few machines have a fake of their interface besides, which must pass the same tests.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models as tiny

from batchstream import EOS, ContinuousBatcher, End, Fail, Last, Many, NotNow, RequestError
from support import fake_llama_cpp, fake_mlx_lm
from support.tiny_llama import reply

pytestmark = pytest.mark.timeout(120)


def example(monkeypatch, name, **modules):
    """Import an example anew, with these modules in place of the installed ones."""
    for module, fake in modules.items():
        monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.delitem(sys.modules, name, raising=False)
    imported = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    return imported


class OpenVINO:
    """The adapter, the engine's own way for one request, and what is left in the engine."""

    modules = ("openvino_genai", "gguf")

    def __init__(self, monkeypatch, folder):
        self.example = example(monkeypatch, "openvino_engine")
        self.path = tiny.as_gguf(folder / "tiny.gguf")
        self.pipeline = None

    def make(self, **scheduling):
        scheduling = {"enable_prefix_caching": False, **scheduling}
        pipeline = self.example.open_pipeline(self.path, **scheduling)
        return self.example.OpenVINOEngine(pipeline, tiny.VOCABULARY)

    def alone(self, ids, most):
        self.pipeline = pipeline = self.pipeline or self.make().pipeline
        config = pipeline.get_config()
        config.max_new_tokens = most
        tensor = self.example.openvino.Tensor(np.array([ids], np.int64))
        [result] = pipeline.generate([tensor], [config])
        return list(result.m_generation_ids[0])

    def held_by(self, engine):
        return list(engine.handles.values())

    def left_in(self, engine):
        engine.pipeline.step()  # it forgets what was cancelled
        return engine.pipeline.has_non_finished_requests()

    def is_closed(self, engine):
        return not hasattr(engine, "pipeline")


class OnnxRuntime:
    modules = ("onnxruntime_genai", "onnx")

    def __init__(self, monkeypatch, folder):
        self.example = example(monkeypatch, "onnxruntime_engine")
        self.model = self.example.genai.Model(str(tiny.for_onnxruntime(folder)))

    def make(self):
        return self.example.OnnxRuntimeEngine(self.model, tiny.VOCABULARY)

    def alone(self, ids, most):
        steps = list(self.example.generate(self.model, [ids], max_new_tokens=most))
        return [token for [token] in steps]

    def held_by(self, engine):
        return list(engine.turns.values())

    def left_in(self, engine):
        engine.engine.run(engine.buffer)
        return engine.engine.has_pending_requests()

    def is_closed(self, engine):
        return not hasattr(engine, "engine")


class MLX:
    modules = ("mlx_lm", "mlx.core")

    def __init__(self, monkeypatch, folder):
        self.example = example(monkeypatch, "mlx_engine")

    def make(self):
        return self.example.make_engine()

    def alone(self, ids, most):
        import mlx.core as mx  # noqa: PLC0415
        from mlx_lm.generate import generate_step  # noqa: PLC0415

        steps = generate_step(mx.array(ids), tiny.for_mlx(), max_tokens=most)
        return [int(token) for token, _ in steps]

    def held_by(self, engine):
        return None  # numbers alone

    def left_in(self, engine):
        return any(engine.generator.next())

    def is_closed(self, engine):
        return engine.generator._old_wired_limit is None


class FakeMLX(MLX):
    modules = ()

    def __init__(self, monkeypatch, folder):
        self.example = example(monkeypatch, "mlx_engine")

    def make(self):
        generator = fake_mlx_lm.BatchGenerator(None, stop_tokens=[[tiny.EOS]], prefill_step_size=4)
        return self.example.MLXEngine(generator, tiny.VOCABULARY)

    alone = None

    def is_closed(self, engine):
        return engine.generator.closed


class LlamaCpp:
    modules = ("llama_cpp", "gguf")

    def __init__(self, monkeypatch, folder):
        self.example = example(monkeypatch, "llama_cpp_engine")
        self.path = tiny.as_gguf(folder / "tiny.gguf")
        self.example.llama_cpp.llama_log_set(self.example.ignore, None)
        self.watch(monkeypatch)

    def watch(self, monkeypatch):
        """Note what is freed."""
        self.freed = []
        for name in ("llama_batch_free", "llama_free", "llama_model_free"):
            free = getattr(self.example.llama_cpp, name)
            note = partial(self.note, name, free)
            monkeypatch.setattr(self.example.llama_cpp, name, note)

    def note(self, name, free, thing):
        self.freed.append(name)
        free(thing)

    def make(self, **sizes):
        return self.example.LlamaCppEngine(
            self.path, slots=4, **{"batch": 5, **self.example.TINY, **sizes}
        )

    def alone(self, ids, most):
        llama = self.example.llama_cpp.Llama(str(self.path), verbose=False, **self.example.TINY)
        tokens = llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0)
        return list(itertools.islice(tokens, most))

    def held_by(self, engine):
        return None  # numbers alone

    def left_in(self, engine):
        memory = self.example.llama_cpp.llama_get_memory(engine.context)
        at = [self.example.llama_cpp.llama_memory_seq_pos_max(memory, slot) for slot in range(4)]
        return max(at) >= 0

    def is_closed(self, engine):
        return self.freed == ["llama_batch_free", "llama_free", "llama_model_free"]


class FakeLlamaCpp(LlamaCpp):
    modules = ()

    def __init__(self, monkeypatch, folder):
        self.example = example(monkeypatch, "llama_cpp_engine", llama_cpp=fake_llama_cpp)
        self.path = folder / "none.gguf"
        self.watch(monkeypatch)

    alone = None

    def left_in(self, engine):
        return engine.context.sequences


KINDS = {
    "OpenVINO GenAI": OpenVINO,
    "onnxruntime-genai": OnnxRuntime,
    "mlx-lm": MLX,
    "mlx-lm, faked": FakeMLX,
    "llama.cpp": LlamaCpp,
    "llama.cpp, faked": FakeLlamaCpp,
}


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch, tmp_path):
    of = KINDS[request.param]
    for module in of.modules:
        pytest.importorskip(module)
    return of(monkeypatch, tmp_path)


PROMPTS = [([5 + n] * (1 + n % 7), 2 + 3 * n) for n in range(12)]
EXPECTED = [reply(tuple(ids), most) for ids, most in PROMPTS]


class Driven:
    """Calls an engine as a batcher does, and collects what each slot is given."""

    def __init__(self, kind, engine):
        self.kind = kind
        self.engine = engine
        self.wanted = {}
        self.tokens = {}
        self.reasons = {}

    def add(self, slot, ids, most):
        self.engine.add(slot, self.kind.example.Request(ids, most))
        self.wanted[slot], self.tokens[slot] = (ids, most), []

    def step(self):
        for slot, element in self.engine.step().items():
            for part in element.outputs if isinstance(element, Many) else [element]:
                self.take(slot, part)
        for slot in [slot for slot in self.wanted if slot in self.reasons]:
            self.remove(slot)

    def take(self, slot, part):
        if isinstance(part, End):
            self.reasons[slot] = part.reason
        elif part is EOS:
            self.reasons[slot] = "eos"
        elif isinstance(part, Last):
            self.tokens[slot].append(part.output)
            self.reasons[slot] = part.reason
        else:
            assert type(part) is int
            self.tokens[slot].append(part)
            if len(self.tokens[slot]) == self.wanted[slot][1]:  # as `max_outputs` does
                self.reasons.setdefault(slot, "length")

    def remove(self, slot):
        del self.wanted[slot]
        self.engine.remove(slot)

    def run(self):
        while self.wanted:
            self.step()


def test_the_model_ends_some_replies_by_itself():
    assert {reason for _, reason in EXPECTED} == {"eos", "length"}


def test_the_engine_alone_says_what_the_model_in_numpy_does(kind):
    if kind.alone is None:
        pytest.skip("the fake is made of that model")
    for (ids, most), (tokens, _) in zip(PROMPTS, EXPECTED, strict=True):
        found = kind.alone(ids, most)
        assert [*found, tiny.EOS][: [*found, tiny.EOS].index(tiny.EOS)] == tokens


def test_requests_that_share_an_engine_get_what_they_get_alone_and_it_is_closed(kind):
    engines = []

    def make():
        engines.append((kind.make(), threading.current_thread()))
        return engines[-1][0]

    with ContinuousBatcher(
        make, max_batch_size=3, max_outputs=lambda request: request.max_new_tokens
    ) as batcher:
        streams = [batcher.stream(kind.example.Request(*prompt)) for prompt in PROMPTS]
        found = [(list(stream), stream.finish_reason) for stream in streams]
    assert found == EXPECTED
    [(engine, thread)] = engines
    assert thread is not threading.current_thread()
    assert kind.is_closed(engine)


@pytest.mark.parametrize("join", range(5))
def test_a_request_that_joins_and_leaves_changes_no_other_and_frees_its_place(kind, join):
    driven = Driven(kind, kind.make())
    for leave in range(4):
        driven.reasons.clear()
        driven.add(0, *PROMPTS[6])
        for _ in range(join):
            driven.step()
        driven.add(1, [9, 8, 7, 6, 5, 4], 300)
        driven.add(2, *PROMPTS[8])
        for _ in range(leave):
            driven.step()
        assert 1 in driven.wanted
        held = kind.held_by(driven.engine)  # so that no finalizer frees what `remove` should
        driven.remove(1)
        driven.run()
        assert (driven.tokens[0], driven.reasons[0]) == EXPECTED[6]
        assert (driven.tokens[2], driven.reasons[2]) == EXPECTED[8]
        said, _ = reply((9, 8, 7, 6, 5, 4), 300)
        assert driven.tokens[1] == said[: len(driven.tokens[1])]
        assert not kind.left_in(driven.engine)
        del held


@pytest.mark.parametrize("ids", [[], [tiny.VOCABULARY], [5, -1]], ids=["none", "above", "below"])
def test_a_bad_prompt_fails_alone_and_leaves_nothing(kind, ids):
    driven = Driven(kind, kind.make())
    driven.add(0, *PROMPTS[4])
    driven.step()
    with pytest.raises(RequestError, match="tokens from 0 to 63"):
        driven.engine.add(1, kind.example.Request(ids, 5))
    driven.run()
    assert (driven.tokens[0], driven.reasons[0]) == EXPECTED[4]
    assert not kind.left_in(driven.engine)


def test_the_program_prints_how_each_stream_ended(kind, monkeypatch, capsys):
    if isinstance(kind, FakeMLX):
        pytest.skip("the program makes the real one")
    if isinstance(kind, FakeLlamaCpp):  # which reads no file
        monkeypatch.setattr(tiny, "as_gguf", lambda path: path)
    kind.example.main()
    lines = []
    for n in range(5):
        tokens, reason = reply((5 + n,) * (1 + n), 4 + 3 * n)
        lines.append(f"{[5 + n] * (1 + n)}: {tokens} ({reason})")
    assert capsys.readouterr().out.splitlines()[:5] == lines


# ---- what each does when it is full


@pytest.fixture
def openvino(monkeypatch, tmp_path):
    for module in OpenVINO.modules:
        pytest.importorskip(module)
    return OpenVINO(monkeypatch, tmp_path)


def test_openvino_lets_requests_wait_for_its_blocks(openvino):
    driven = Driven(openvino, openvino.make(num_kv_blocks=3))  # of 32 tokens
    requests = {slot: ([5 + slot] * 20, 25) for slot in range(3)}  # two blocks each
    for slot, request in requests.items():
        driven.add(slot, *request)
    driven.run()
    for slot, (ids, most) in requests.items():
        assert (driven.tokens[slot], driven.reasons[slot]) == reply(tuple(ids), most)


def is_fail(element):
    return isinstance(element, Fail)


def test_openvino_fails_a_request_that_never_fits_alone(openvino):
    engine = openvino.make(num_kv_blocks=2)
    engine.add(0, openvino.example.Request([5] * 100, 10))
    [fail] = itertools.islice(filter(is_fail, (engine.step()[0] for _ in range(50))), 1)
    assert isinstance(fail.error, RequestError)
    engine.remove(0)
    driven = Driven(openvino, engine)
    driven.add(0, *PROMPTS[1])
    driven.run()
    assert (driven.tokens[0], driven.reasons[0]) == EXPECTED[1]


@pytest.fixture
def onnxruntime(monkeypatch, tmp_path):
    for module in OnnxRuntime.modules:
        pytest.importorskip(module)
    return OnnxRuntime(monkeypatch, tmp_path)


def test_onnxruntime_refuses_a_prompt_that_is_too_long_as_the_clients_fault(onnxruntime):
    with pytest.raises(RequestError, match="room for at least one"):
        onnxruntime.make().add(0, onnxruntime.example.Request([5] * tiny.CONTEXT, 10))


class Events:
    """In place of the engine: the events of each step."""

    def __init__(self, *steps):
        self.steps = list(steps)

    def run(self, buffer):
        return self.steps.pop(0)


def event(request, *flags, token=None, reason=None):
    names = {"error_code": "NONE", "finish_reason": reason, "token": token}
    return SimpleNamespace(request=request, flags=sum(flags), **names)


def test_onnxruntime_that_is_full_takes_no_more_until_a_request_leaves(onnxruntime):
    # A model with a paged cache says so; none runs on a CPU.
    engine = onnxruntime.make()
    engine.add(0, onnxruntime.example.Request([5], 3))
    engine.add(1, onnxruntime.example.Request([6], 3))
    [first, second] = engine.slots
    own, engine.engine = (
        engine.engine,
        Events(
            [
                event(first, onnxruntime.example.TOKEN, token=7),
                event(second, onnxruntime.example.BLOCKED),
            ],
            [],
        ),
    )
    assert {slot: many.outputs for slot, many in engine.step().items()} == {0: (7,), 1: ()}
    with pytest.raises(NotNow):
        engine.add(2, onnxruntime.example.Request([7], 3))
    engine.remove(0)
    engine.engine = own
    engine.add(2, onnxruntime.example.Request([7], 3))


def test_onnxruntime_that_has_failed_is_made_anew(onnxruntime):
    engines = []

    def make():
        engines.append(onnxruntime.make())
        if len(engines) == 1:
            engines[0].vocabulary = 1000  # so that a token breaks it
        return engines[-1]

    with ContinuousBatcher(make, max_batch_size=2) as batcher:
        broken = batcher.stream(onnxruntime.example.Request([500], 3))
        with pytest.raises(RuntimeError, match="onnxruntime-genai has failed"):
            list(broken)
        stream = batcher.stream(onnxruntime.example.Request(*PROMPTS[3]))
        assert (list(stream), stream.finish_reason) == EXPECTED[3]
    assert len(engines) == 2
    assert all(map(onnxruntime.is_closed, engines))


@pytest.fixture(params=["llama.cpp", "llama.cpp, faked"])
def llama_cpp(request, monkeypatch, tmp_path):
    of = KINDS[request.param]
    for module in of.modules:
        pytest.importorskip(module)
    return of(monkeypatch, tmp_path)


def test_llama_cpp_lets_requests_wait_that_find_no_cell(llama_cpp):
    engine = llama_cpp.make(cells=256)
    engine.add(0, llama_cpp.example.Request([5] * 200, 10))
    with pytest.raises(NotNow):
        engine.add(1, llama_cpp.example.Request([6] * 100, 10))
    with pytest.raises(RequestError, match="a prompt of 300 tokens, the cache is 256"):
        engine.add(1, llama_cpp.example.Request([6] * 300, 10))
    engine.remove(0)
    engine.add(1, llama_cpp.example.Request([6] * 100, 10))

    requests = [llama_cpp.example.Request([5 + n] * 120, 10) for n in range(4)]
    with ContinuousBatcher(
        lambda: llama_cpp.make(cells=256),
        max_batch_size=4,
        max_outputs=lambda request: request.max_new_tokens,
    ) as batcher:
        streams = [batcher.stream(request) for request in requests]
        found = [(list(stream), stream.finish_reason) for stream in streams]
    assert found == [reply(tuple(request.ids), 10) for request in requests]


def test_llama_cpp_that_runs_out_of_cells_fails_the_newest_request_alone(llama_cpp):
    driven = Driven(llama_cpp, llama_cpp.make(cells=256, batch=256))
    driven.add(0, [5] * 120, 60)
    driven.add(1, [6] * 120, 60)
    while True:
        step = driven.engine.step()
        if isinstance(step.get(1), Fail):
            break
        for slot, token in step.items():
            driven.take(slot, token)
    assert isinstance(step[1].error, MemoryError)
    assert list(step) == [1]
    driven.remove(1)
    driven.run()
    assert (driven.tokens[0], driven.reasons[0]) == reply((5,) * 120, 60)
