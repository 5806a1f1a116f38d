"""Stopping criteria and stop strings of the caller's, as `generate` takes them."""

import pytest
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    StopStringCriteria,
)

from batchstream import demux
from batchstream.integrations.transformers import stream_generate
from support.tiny_models import EOS, Forwards, Script, prompts, tiny, tiny_text

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


# ---- stop strings


STOPPED = [[70, 71, 72, 73, 74], [75, 70, 71, 76, 77], [78, 79, 80]]


def stopping(tokenizer):
    """Return what lets the rows say these ids, and a stop string that two of them have."""
    script = LogitsProcessorList([Script(STOPPED, PROMPT)])
    return {"logits_processor": script}, tokenizer.decode([71])


def stopped_at_71(got, ends):
    assert got == [[70, 71], [75, 70, 71], [78, 79, 80]]
    assert [end.reason for end in ends] == ["eos"] * 3
    assert ends[0].info == {"stopping_criterion": "StopStringCriteria"}
    assert ends[2].info is None


@pytest.mark.parametrize("several", [False, True])
def test_stop_strings_end_a_slot(several):
    model, tokenizer = tiny_text()
    script, stop = stopping(tokenizer)
    with Forwards(model) as forwards:
        got, ends = streamed(
            model,
            prompts(PROMPT, 4, 2),
            stop_strings=["no such", stop] if several else stop,
            tokenizer=tokenizer,
            drop_rows=False,
            **script,
        )
    stopped_at_71(got, ends)
    assert len(forwards) == 4


@pytest.mark.parametrize("place", ["call", "model"])
def test_stop_strings_of_a_config_end_a_slot(place, monkeypatch):
    model, tokenizer = tiny_text()
    script, stop = stopping(tokenizer)
    config = GenerationConfig(eos_token_id=EOS, pad_token_id=0, stop_strings=[stop])
    if place == "model":
        monkeypatch.setattr(model, "generation_config", config)
    else:
        script["generation_config"] = config
    stopped_at_71(*streamed(model, prompts(PROMPT, 4, 2), tokenizer=tokenizer, **script))
    assert config.stop_strings == [stop]


def test_no_stop_strings_in_a_call_are_none():
    model, tokenizer = tiny_text()
    script, stop = stopping(tokenizer)
    config = GenerationConfig(eos_token_id=EOS, pad_token_id=0, stop_strings=[stop])
    got, _ = streamed(
        model, prompts(PROMPT, 4, 2), generation_config=config, stop_strings=None, **script
    )
    assert got == STOPPED


def test_stop_strings_of_a_criterion_take_the_place_of_the_others():
    model, tokenizer = tiny_text()
    script, stop = stopping(tokenizer)
    got, _ = streamed(
        model,
        prompts(PROMPT, 4, 2),
        stop_strings=tokenizer.decode([70]),
        stopping_criteria=StoppingCriteriaList([StopStringCriteria(tokenizer, [stop])]),
        tokenizer=tokenizer,
        **script,
    )
    assert got == [[70, 71], [75, 70, 71], [78, 79, 80]]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"stop_strings": ["x"]}, "stop_strings need the tokenizer: pass tokenizer="),
        ({"token_healing": True}, r"takes no token_healing.*pass what model\.heal_tokens"),
    ],
)
@pytest.mark.parametrize("place", ["argument", "config"])
def test_what_needs_a_tokenizer_that_is_not_there_is_refused(place, config, message):
    more = config if place == "argument" else {"generation_config": GenerationConfig(**config)}
    with pytest.raises(ValueError, match=message):
        stream_generate(tiny(), prompts(4), max_new_tokens=3, **more)
