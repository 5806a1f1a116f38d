"""What `stream_generate` gives each slot is what `generate` gives its row."""

import functools
import os

import pytest
import torch

from batchstream import FinishReason, demux
from batchstream.integrations.transformers import stream_generate
from support.tiny_models import ARCHITECTURES, EOS, FEW, Forwards, generated, prompts, tiny

LENGTHS = (3, 7, 1, 5, 2)
MOST = 16
SEEDS = range(1, 1 + int(os.environ.get("TRANSFORMERS_SEEDS", "2")))
GREEDY = {"max_new_tokens": MOST, "do_sample": False, "suppress_tokens": FEW}
# Their cache cannot select rows.
STAY = {"Mamba", "Qwen3Next"}


def streamed(model, inputs, *, size, **kwargs):
    streams = demux(stream_generate(model, inputs, **kwargs), size)
    return [list(stream) for stream in streams], streams


@functools.cache
def expected_of(architecture, seed):
    return generated(tiny(architecture, seed), prompts(*LENGTHS, seed=seed), **GREEDY)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("drop_rows", ["auto", False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_slot_is_given_what_generate_gives_its_row(architecture, drop_rows, seed):
    model, expected = tiny(architecture, seed), expected_of(architecture, seed)
    with Forwards(model) as forwards:
        got, streams = streamed(
            model, prompts(*LENGTHS, seed=seed), size=5, drop_rows=drop_rows, **GREEDY
        )
    assert got == expected
    for stream, ids in zip(streams, expected, strict=True):
        reason = FinishReason.LENGTH if len(ids) == MOST else FinishReason.EOS
        assert stream.end.reason is reason
    # A row is computed for each of its ids, and for its end unless that is the limit.
    needed = [sum(len(ids) >= step for ids in expected) for step in range(len(forwards))]
    stay = drop_rows is False or architecture in STAY
    assert forwards.rows == ([5] * len(needed) if stay else needed)
    assert len(forwards) == min(max(map(len, expected)) + 1, MOST)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_these_sequences_end_at_different_steps(architecture):
    ends = [{len(ids) for ids in expected_of(architecture, seed)} for seed in SEEDS]
    assert max(map(len, ends)) > 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_with_a_seed_is_that_of_generate_while_rows_stay(architecture, seed):
    model, inputs = tiny(architecture, seed), prompts(*LENGTHS, seed=seed)
    settings = {"max_new_tokens": MOST, "do_sample": True, "top_k": 8, "temperature": 1.5}
    torch.manual_seed(seed)
    expected = generated(model, inputs, **settings)
    torch.manual_seed(seed)
    got, _ = streamed(model, inputs, size=5, drop_rows=False, **settings)
    assert got == expected


@pytest.mark.parametrize("drop_rows", [True, False])
def test_a_prompt_has_as_many_slots_as_sequences(drop_rows):
    model, inputs = tiny(seed=1), prompts(3, 5)
    settings = {"max_new_tokens": MOST, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(5)
    expected = generated(model, inputs, **settings)
    torch.manual_seed(5)
    got, _ = streamed(model, inputs, size=6, drop_rows=drop_rows, **settings)
    if drop_rows:  # what is left is sampled from other random numbers
        first = min(map(len, expected)) + 1
        assert [ids[:first] for ids in got] == [ids[:first] for ids in expected]
    else:
        assert got == expected
    assert len(got) == 6


@pytest.mark.parametrize("drop_rows", ["auto", False])
def test_padding_may_be_the_end_itself(drop_rows):
    model, inputs = tiny(seed=2), prompts(*LENGTHS)
    inputs["input_ids"][inputs["attention_mask"] == 0] = EOS
    settings = {"max_new_tokens": MOST, "pad_token_id": EOS, "suppress_tokens": FEW}
    expected = generated(model, inputs, **settings)
    assert streamed(model, inputs, size=5, drop_rows=drop_rows, **settings)[0] == expected


def test_a_model_may_have_several_ends_or_none():
    model, inputs = tiny(seed=1), prompts(*LENGTHS)
    settings = {"max_new_tokens": MOST, "eos_token_id": [5, 7], "pad_token_id": 0}
    settings["suppress_tokens"] = FEW
    out = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :].tolist()
    ends = [next((at for at, it in enumerate(ids) if it in {5, 7}), MOST) for ids in out]
    expected = [ids[:end] for ids, end in zip(out, ends, strict=True)]
    assert streamed(model, inputs, size=5, **settings)[0] == expected

    model.generation_config.eos_token_id = None
    try:
        settings = {"max_new_tokens": MOST, "suppress_tokens": FEW}
        expected = generated(model, inputs, eos=None, **settings)
        got, streams = streamed(model, inputs, size=5, **settings)
    finally:
        model.generation_config.eos_token_id = EOS
    assert got == expected
    assert {stream.end.reason for stream in streams} == {FinishReason.LENGTH}


@pytest.mark.parametrize("repeats", [{}, {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}])
def test_processors_of_each_row_alone_do_not_keep_rows(repeats):
    model, inputs = tiny(seed=1), prompts(*LENGTHS)
    settings = {"max_new_tokens": MOST, "suppress_tokens": FEW, "min_new_tokens": 2, **repeats}
    expected = generated(model, inputs, **settings)
    with Forwards(model) as forwards:
        assert streamed(model, inputs, size=5, **settings)[0] == expected
    assert min(forwards.rows) < 5


def test_without_a_cache_the_rows_are_dropped_from_the_ids():
    model, inputs = tiny(seed=1), prompts(*LENGTHS)
    settings = {"max_new_tokens": MOST, "suppress_tokens": FEW, "use_cache": False}
    expected = generated(model, inputs, **settings)
    with Forwards(model) as forwards:
        assert streamed(model, inputs, size=5, **settings)[0] == expected
    assert min(forwards.rows) < 5


def test_a_static_cache_keeps_all_rows():
    model, inputs = tiny(seed=1), prompts(*LENGTHS)
    settings = {"max_new_tokens": MOST, "suppress_tokens": FEW, "cache_implementation": "static"}
    expected = generated(model, inputs, **settings)
    with Forwards(model) as forwards:
        assert streamed(model, inputs, size=5, **settings)[0] == expected
    assert set(forwards.rows) == {5}


@pytest.mark.parametrize("more", [{"do_sample": False}, {"do_sample": True, "top_k": 5}])
def test_chunks_of_the_prompt_change_nothing(more):
    model, inputs = tiny(seed=1), prompts(9, 9)
    # 5.0 wants it named, the later ones make it of themselves.
    settings = {"max_new_tokens": MOST, "prefill_chunk_size": 4, "drop_rows": False, **more}
    settings["cache_implementation"] = "dynamic"
    torch.manual_seed(0)
    got, _ = streamed(model, inputs, size=2, **settings)
    del settings["drop_rows"]
    torch.manual_seed(0)
    assert got == generated(model, inputs, **settings)
