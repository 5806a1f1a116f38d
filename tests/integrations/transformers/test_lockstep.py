"""Where only `generate` itself can decode, it runs in a thread, in step with the source."""

import copy
import threading

import pytest
import torch
from transformers import (
    GenerationMixin,
    LlamaForCausalLM,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from batchstream import demux
from batchstream.integrations.transformers import _decoding, _generate, stream_generate
from support.tiny_models import (
    ARCHITECTURES,
    EOS,
    FEW,
    Forwards,
    Script,
    generated,
    prompts,
    says,
    tiny,
    tiny_text,
)

MOST = 16
LOOKUP = {"max_new_tokens": MOST, "do_sample": False, "prompt_lookup_num_tokens": 3}
LOOKUP["suppress_tokens"] = FEW


def streamed(model, inputs, *, size=1, **kwargs):
    streams = demux(stream_generate(model, inputs, **kwargs), size)
    return [list(stream) for stream in streams], streams


def threads():
    return [it for it in threading.enumerate() if it.name == "stream_generate"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert threads() == []


@pytest.fixture
def in_thread(monkeypatch):
    """Let every call of `generate` run in a thread."""
    monkeypatch.setattr(_generate, "has_own_loop", lambda _model: False)


@pytest.mark.parametrize("length", [6, 12])
@pytest.mark.parametrize("seed", range(3))
def test_prompt_lookup_is_that_of_generate(seed, length):
    model, inputs = tiny(seed=seed), prompts(length, seed=seed)
    expected = [ids[:MOST] for ids in generated(model, inputs, **LOOKUP)]  # 5.0 gives one more
    got, (stream,) = streamed(model, inputs, **LOOKUP)
    assert got == expected
    assert stream.end.reason == ("length" if len(got[0]) == MOST else "eos")


@pytest.mark.parametrize("seed", range(3))
def test_assisted_decoding_is_that_of_generate(seed):
    model, inputs = tiny(seed=seed), prompts(6, seed=seed)
    settings = {"max_new_tokens": MOST, "do_sample": False, "assistant_model": tiny(seed=seed)}
    expected = generated(model, inputs, **settings)
    got, (stream,) = streamed(model, inputs, **settings)
    assert got == [ids[:MOST] for ids in expected]
    assert stream.end.reason == ("length" if len(got[0]) == MOST else "eos")


def test_several_tokens_may_come_in_a_step():
    model, inputs = tiny(seed=1), prompts(6)
    inputs = {name: tensor.repeat(1, 4) for name, tensor in inputs.items()}
    script = LogitsProcessorList([Script([inputs["input_ids"][0, :6].tolist() * 3], 24)])
    settings = {**LOOKUP, "logits_processor": script, "suppress_tokens": None}
    steps = list(stream_generate(model, inputs, **settings))
    assert len(steps) < MOST
    got, _ = streamed(model, inputs, **settings)
    assert got == generated(model, inputs, **settings)


@pytest.mark.parametrize("limit", range(1, 9))
def test_a_limit_may_lie_within_a_step(limit):
    model, inputs = tiny(seed=1), prompts(12)
    whole = generated(model, inputs, **LOOKUP)[0]
    got, (stream,) = streamed(model, inputs, **{**LOOKUP, "max_new_tokens": [limit]})
    assert got == [whole[:limit]]
    assert stream.end.reason == ("length" if len(whole) >= limit else "eos")


@pytest.mark.usefixtures("in_thread")
@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Mamba", "T5"])
def test_a_batch_in_a_thread_is_that_of_generate(architecture):
    model, inputs = tiny(architecture, 1), prompts(3, 7, 1, 5, 2, seed=1)
    settings = {"max_new_tokens": MOST, "do_sample": True, "top_k": 9, "suppress_tokens": FEW}
    torch.manual_seed(3)
    expected = generated(model, inputs, **settings)
    torch.manual_seed(3)
    assert streamed(model, inputs, size=5, **settings)[0] == expected


@pytest.mark.usefixtures("in_thread")
def test_limits_of_slots_hold_in_a_thread():
    model, inputs = tiny(seed=1), prompts(3, 7, 1)
    whole = generated(model, inputs, max_new_tokens=9)
    got, streams = streamed(model, inputs, size=3, max_new_tokens=[2, 9, 4])
    assert got == [ids[:limit] for ids, limit in zip(whole, [2, 9, 4], strict=True)]
    assert streams[0].end.reason == "length"


class AtLength(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, _scores, **_):
        return torch.tensor([input_ids.shape[1] >= self.length] + [False] * (len(input_ids) - 1))


@pytest.mark.usefixtures("in_thread")
def test_a_criterion_of_the_callers_ends_a_slot_in_a_thread():
    model, inputs = tiny(), prompts(4, 4)
    script = LogitsProcessorList([Script([[7] * 9, [8] * 9], 4)])
    got, streams = streamed(
        model,
        inputs,
        size=2,
        max_new_tokens=20,
        logits_processor=script,
        stopping_criteria=StoppingCriteriaList([AtLength(7)]),
    )
    assert got == [[7] * 3, [8] * 9]
    assert streams[0].end.info == {"stopping_criterion": "AtLength"}
    assert streams[1].end.info is None


class EndsAt(StoppingCriteria):
    """Says yes of ids, and no of more of them."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, _scores, **_):
        return input_ids[:, -1] == self.token


# On 5.0 generate asks the criteria of drafts too, and here it took these other tokens: none in the
# first of these, where the prompt ends at the id.
@pytest.mark.parametrize(("seed", "token"), [(3, 3), (4, 3), (7, 5), (10, 7)])
def test_a_criterion_that_is_asked_of_drafts_ends_no_slot(seed, token):
    model, inputs = tiny(), prompts(12, seed=seed)
    settings = LOOKUP | {"stopping_criteria": StoppingCriteriaList([EndsAt(token)])}
    expected = generated(model, inputs, **settings)
    assert streamed(model, inputs, **settings)[0] == [ids[:MOST] for ids in expected]


@pytest.mark.usefixtures("in_thread")
@pytest.mark.parametrize("config", ["of the call", "of the model"])
def test_stop_strings_and_time_of_a_config_end_slots_in_a_thread(config, monkeypatch):
    model, tokenizer = tiny_text()
    inputs = prompts(4, 4)
    call = {"tokenizer": tokenizer, "logits_processor": says(tokenizer, ["so it is", "no"], 4)}
    for setting in ({"stop_strings": ["it"]}, {"max_time": 0.0}):
        made = copy.deepcopy(model.generation_config)
        made.update(**setting)
        if config == "of the call":
            call["generation_config"] = made
        else:
            monkeypatch.setattr(model, "generation_config", made)
        got, streams = streamed(model, inputs, size=2, max_new_tokens=60, **call)
        if "max_time" in setting:
            assert [len(ids) for ids in got] == [1, 1]
            assert streams[1].end.info == {"stopping_criterion": "MaxTimeCriteria"}
        else:
            assert [tokenizer.decode(ids) for ids in got] == ["so it", "no"]
            assert streams[0].end.info == {"stopping_criterion": "StopStringCriteria"}


@pytest.mark.usefixtures("in_thread")
def test_stop_strings_need_a_tokenizer_in_a_thread():
    with pytest.raises(ValueError, match="stop_strings need the tokenizer: pass tokenizer="):
        stream_generate(tiny(), prompts(4), max_new_tokens=3, stop_strings="x")


@pytest.mark.usefixtures("in_thread")
def test_no_id_ends_a_slot_if_eos_token_id_is_none():
    script = LogitsProcessorList([Script([[7, EOS, 8]], 4)])
    call = {"max_new_tokens": 3, "logits_processor": script, "eos_token_id": None}
    assert streamed(tiny(), prompts(4), **call)[0] == [[7, EOS, 8]]


@pytest.mark.usefixtures("in_thread")
def test_time_that_is_up_ends_a_slot_in_a_thread():
    got, streams = streamed(tiny(), prompts(4, 4), size=2, max_new_tokens=20, max_time=0.0)
    assert [len(ids) for ids in got] == [1, 1]
    assert streams[1].end.info == {"stopping_criterion": "MaxTimeCriteria"}


@pytest.mark.parametrize("way", ["lookup", "thread"])
def test_when_all_have_left_generate_makes_no_step(way, request):
    if way == "thread":
        request.getfixturevalue("in_thread")
    model, inputs = tiny(), prompts(8)
    script = LogitsProcessorList([Script([[7, 9, 8, 11] * 20], 8)])
    settings = {**LOOKUP, "max_new_tokens": 60, "logits_processor": script}
    settings["suppress_tokens"] = None
    if way == "thread":
        del settings["prompt_lookup_num_tokens"]
    with Forwards(model) as forwards:
        (stream,) = demux(stream_generate(model, inputs, **settings), 1)
        assert next(stream) == 7
        stream.cancel()
        assert threads() == []
        assert len(forwards) == 1


@pytest.mark.usefixtures("in_thread")
def test_generate_never_runs_ahead():
    model, inputs = tiny(), prompts(4)
    script = LogitsProcessorList([Script([[7] * 60], 4)])
    with Forwards(model) as forwards:
        steps = stream_generate(model, inputs, max_new_tokens=60, logits_processor=script)
        for made in range(1, 6):
            next(steps)
            assert len(forwards) == made
        steps.close()


@pytest.mark.usefixtures("in_thread")
def test_an_error_of_generate_reaches_the_streams_behind_its_steps():
    model, inputs = tiny(), prompts(4, 4)
    script = LogitsProcessorList([Script([[7] * 60, [8] * 60], 4, fails_at=3)])
    streams = demux(stream_generate(model, inputs, max_new_tokens=60, logits_processor=script), 2)
    for stream, token in zip(streams, [7, 8], strict=True):
        got = []
        with pytest.raises(ZeroDivisionError, match="no such step"):
            got.extend(stream)
        assert got == [token] * 3


def test_what_generate_refuses_is_raised_from_the_thread():
    steps = stream_generate(tiny(), prompts(4), no_such_setting=1, **LOOKUP)
    with pytest.raises(ValueError, match="no_such_setting"):
        next(steps)


def test_a_source_that_is_not_moved_has_no_thread():
    steps = stream_generate(tiny(), prompts(4), **LOOKUP)
    assert threads() == []
    next(steps)
    assert len(threads()) == 1
    del steps
    assert threads() == []


# ---- which calls run in a thread


class OwnLoop(LlamaForCausalLM):
    def _sample(self, *args, **kwargs):
        return super()._sample(*args, **kwargs)


class OwnGenerate(LlamaForCausalLM):
    def generate(self, *args, **kwargs):
        kwargs.pop("custom_generate", None)  # as a model may that knows it not
        return super().generate(*args, **kwargs)


@pytest.mark.parametrize("kind", [OwnLoop, OwnGenerate])
def test_a_model_with_a_loop_of_its_own_keeps_it(kind):
    torch.manual_seed(0)
    model = kind(tiny().config).eval()
    model.generation_config = tiny().generation_config
    inputs = prompts(3, 5)
    assert not _decoding.has_own_loop(model)
    settings = {"max_new_tokens": 8, "suppress_tokens": FEW}
    assert streamed(model, inputs, size=2, **settings)[0] == generated(model, inputs, **settings)


@pytest.mark.parametrize("name", ["_prefill", "_update_model_kwargs_for_generation", "_sample"])
def test_a_release_that_lacks_a_name_decodes_in_a_thread(name, monkeypatch):
    assert _decoding.has_own_loop(tiny())
    monkeypatch.delattr(GenerationMixin, name)
    assert not _decoding.has_own_loop(tiny())


def test_a_release_that_prepares_something_else_decodes_in_a_thread(monkeypatch):
    model, inputs = tiny(seed=1), prompts(3, 5)
    settings = {"max_new_tokens": 8, "suppress_tokens": FEW}
    expected = generated(model, inputs, **settings)
    monkeypatch.setattr(_decoding, "_PREPARED", ("_no_such_name",))
    started = []
    in_lockstep = _generate.in_lockstep
    monkeypatch.setattr(
        _generate, "in_lockstep", lambda *a, **k: started.append(1) or in_lockstep(*a, **k)
    )
    assert streamed(model, inputs, size=2, **settings)[0] == expected
    assert started


def test_all_architectures_of_the_tests_decode_in_our_loop():
    assert all(_decoding.has_own_loop(tiny(architecture, 1)) for architecture in ARCHITECTURES)
    assert tiny().generation_config.eos_token_id == EOS
