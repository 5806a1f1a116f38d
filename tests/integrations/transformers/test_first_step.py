"""A source says with its first step how many slots it has, also if some end in it."""

import pytest
from transformers import LogitsProcessorList

from batchstream import demux
from batchstream.integrations.transformers import _generate, stream_generate
from support.tiny_models import Script, generated, prompts, tiny


@pytest.fixture(params=["our loop", "thread"])
def _way(request, monkeypatch):
    if request.param == "thread":
        monkeypatch.setattr(_generate, "has_own_loop", lambda _model: False)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("limits", [[1, 4], [4, 1], 1])
def test_a_limit_of_one_needs_no_size(limits):
    model, inputs = tiny(seed=1), prompts(4, 6)
    whole = generated(model, inputs, max_new_tokens=4, suppress_tokens=[2])
    streams = demux(stream_generate(model, inputs, max_new_tokens=limits, suppress_tokens=[2]))
    each = [limits] * 2 if limits == 1 else limits
    assert [list(stream) for stream in streams] == [
        ids[:limit] for ids, limit in zip(whole, each, strict=True)
    ]
    assert {stream.end.reason for stream in streams} == {"length"}


@pytest.mark.usefixtures("_way")
def test_a_reply_without_a_token_needs_no_size():
    script = LogitsProcessorList([Script([[], [7, 8], []], 6)])
    source = stream_generate(tiny(), prompts(4, 6, 5), max_new_tokens=9, logits_processor=script)
    streams = demux(source)
    assert [list(stream) for stream in streams] == [[], [7, 8], []]
    assert {stream.end.reason for stream in streams} == {"eos"}


def test_tokens_that_were_verified_together_need_no_size():
    model, inputs = tiny(seed=1), prompts(6)
    source = stream_generate(model, inputs, max_new_tokens=1, prompt_lookup_num_tokens=3)
    assert [len(list(stream)) for stream in demux(source)] == [1]
