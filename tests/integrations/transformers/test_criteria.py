"""Stopping criteria and stop strings of the caller's, as `generate` takes them."""

import pytest
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
)

from batchstream import demux
from batchstream.integrations.transformers import stream_generate
from support.tiny_models import EOS, Forwards, prompts, tiny, tiny_text

PROMPT = 6
MOST = 12
NEVER = 63


def streamed(model, inputs, **kwargs):
    streams = demux(stream_generate(model, inputs, max_new_tokens=MOST, **kwargs), 3)
    return [list(stream) for stream in streams], [stream.end for stream in streams]


def made(model, inputs, **kwargs):
    """Return all ids that `generate` makes, padding included."""
    out = model.generate(**inputs, max_new_tokens=MOST, **kwargs)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def test_a_length_of_the_callers_ends_all_slots():
    model, inputs = tiny(seed=1), prompts(PROMPT, 4, 2)
    criteria = StoppingCriteriaList([MaxLengthCriteria(max_length=PROMPT + 3)])
    settings = {"stopping_criteria": criteria, "suppress_tokens": [EOS]}
    expected = made(model, inputs, **settings)
    assert [len(ids) for ids in expected] == [3] * 3
    got, ends = streamed(model, inputs, **settings)
    assert got == expected
    assert {end.reason for end in ends} == {"length"}
    assert ends[0].info == {"stopping_criterion": "MaxLengthCriteria"}


def test_a_length_of_the_callers_does_not_lift_the_limit():
    criteria = StoppingCriteriaList([MaxLengthCriteria(max_length=PROMPT + MOST + 5)])
    got, ends = streamed(
        tiny(seed=1), prompts(PROMPT, 4, 2), stopping_criteria=criteria, suppress_tokens=[EOS]
    )
    assert [len(ids) for ids in got] == [MOST] * 3
    assert {end.info for end in ends} == {None}


@pytest.mark.parametrize("drop_rows", ["auto", False])
def test_end_ids_of_a_criterion_of_the_callers_take_the_place_of_the_others(drop_rows):
    model, inputs = tiny(seed=1), prompts(PROMPT, 4, 2)
    plain = made(model, inputs, eos_token_id=NEVER)
    end = plain[1][4]
    config = GenerationConfig(eos_token_id=plain[0][0], pad_token_id=0)  # ends nothing
    settings = {
        "generation_config": config,
        "stopping_criteria": StoppingCriteriaList([EosTokenCriteria(eos_token_id=end)]),
    }
    expected = made(model, inputs, **settings)
    with Forwards(model) as forwards:
        got, ends = streamed(model, inputs, drop_rows=drop_rows, **settings)
    assert got == [_to(end, ids) for ids in expected]
    assert len(got[0]) > 1
    assert ends[1].reason == "eos"
    assert ends[1].info == {"stopping_criterion": "EosTokenCriteria"}
    assert (forwards.rows[-1] < 3) is (drop_rows == "auto")


def _to(end, ids):
    return ids[: ids.index(end) + 1] if end in ids else ids
