"""Models whose angles depend on the longest row of the batch keep their rows."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from batchstream import demux
from batchstream.integrations.transformers import stream_generate
from batchstream.integrations.transformers._rope import depends_on_length
from support.tiny_models import ARCHITECTURES, EOS, Forwards, generated, prompts, tiny

LONG, SHORT = 30, 5
LIMITS = [6, 14, 14]
DYNAMIC = {
    "max_position_embeddings": 24,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
}
LONGROPE = {
    "max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 3.0, 2.0, 5.0],
        "original_max_position_embeddings": 32,
        "factor": 2.0,
    },
}
LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}


def llama(rope):
    """Return a new model, as one keeps the angles of the longest row that it has seen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**ARCHITECTURES["Llama"] | rope)).eval()
    model.generation_config.pad_token_id = 0
    return model


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE, LINEAR], ids=["dynamic", "longrope", "linear"])
def test_short_rows_are_given_what_generate_gives_them_beside_a_long_one(rope):
    settings = {"suppress_tokens": [EOS]}
    inputs = prompts(LONG, 8, SHORT)
    whole = generated(llama(rope), inputs, max_new_tokens=max(LIMITS), **settings)
    model = llama(rope)
    with Forwards(model) as forwards:
        streams = demux(stream_generate(model, inputs, max_new_tokens=LIMITS, **settings), 3)
        got = [list(stream) for stream in streams]
    assert got == [ids[:limit] for ids, limit in zip(whole, LIMITS, strict=True)]
    assert forwards.rows[-1] == (2 if rope is LINEAR else 3)


def test_the_caller_may_let_them_go():
    model = llama(DYNAMIC)
    with Forwards(model) as forwards:
        source = stream_generate(
            model, prompts(4, 4), max_new_tokens=[1, 3], suppress_tokens=[EOS], drop_rows=True
        )
        assert [len(list(stream)) for stream in demux(source, 2)] == [1, 3]
    assert forwards.rows[-1] == 1


def test_the_angles_of_some_layers_are_enough():
    per_layer = {
        "full_attention": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = tiny("Gemma3").config.__class__(**ARCHITECTURES["Gemma3"], rope_parameters=per_layer)
    assert depends_on_length(config)
    assert not any(depends_on_length(tiny(name).config) for name in ARCHITECTURES)
