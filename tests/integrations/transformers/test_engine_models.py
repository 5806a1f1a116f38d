"""Which models the engine takes. It refuses what would give wrong outputs and no error."""

import pytest
import torch
from transformers import LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from batchstream import RequestError
from batchstream.integrations.transformers import Generation, TransformersEngine
from support.driving import Visit, drive
from support.engine_models import JOINABLE, LENGTH, new, other
from support.tiny_models import ARCHITECTURES, VOCABULARY, tiny


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Mamba", "which keeps a state besides keys and values"),
        ("Qwen3Next", "which keeps a state besides keys and values"),
        ("LFM2", "which has layers of the type 'conv'"),
        ("T5", "which has an encoder"),
        ("Bloom", "whose forward takes no position_ids"),
    ],
)
def test_a_model_whose_rows_cannot_join_is_refused(name, why):
    model = tiny(name) if name in ARCHITECTURES else other(name)
    with pytest.raises(ValueError, match=f"{why}: use stream_generate") as caught:
        TransformersEngine(model)
    assert type(model).__name__ in str(caught.value)


def test_a_model_that_gives_no_next_token_is_refused():
    with pytest.raises(TypeError, match="which BertModel has not: load it with AutoModelForCausal"):
        TransformersEngine(other("BERT"))


@pytest.mark.parametrize("it", [None, "gpt2", torch.nn.Linear(2, 2)], ids=type)
def test_what_is_no_model_of_transformers_is_refused(it):
    with pytest.raises(TypeError, match="must be a model of transformers, got a"):
        TransformersEngine(it)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"in training mode, with dropout: call model\.eval\(\)"):
        TransformersEngine(new().train())


@pytest.mark.parametrize("name", JOINABLE)
def test_other_models_are_taken(name):
    TransformersEngine(tiny(name))


class Forgetful(LlamaForCausalLM):
    """A model that keeps what it knows in a place of its own."""

    def forward(
        self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, **options
    ):
        options["use_cache"] = False
        return super().forward(input_ids, None, position_ids, None, **options)


class Named(Forgetful):
    """The same, whose forward says that it takes `use_cache`."""

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        **options,
    ):
        return super().forward(input_ids, position_ids=position_ids, **options)


def test_a_model_that_leaves_its_cache_empty_fails_its_first_requests():
    engine = TransformersEngine(Named(tiny().config).eval())
    visits = drive(engine, [Visit(Generation([3, 4], 5)), Visit(Generation([5], 5))])
    for visit in visits:
        assert visit.outputs == []
        with pytest.raises(RuntimeError, match="Named, which does not keep the keys and values"):
            raise visit.error


def test_a_request_for_more_positions_than_the_model_counts_is_refused():
    engine = TransformersEngine(tiny("GPT2"), eos_token_id=())
    engine.add(0, Generation([3] * 8, LENGTH - 8))
    with pytest.raises(RequestError, match=f"must be at most {LENGTH} tokens together, .* 8 and "):
        engine.add(1, Generation([3] * 8, LENGTH - 7))


def test_a_request_for_which_all_rows_would_turn_is_refused():
    """A row beyond the original length would change the frequencies of the rows beside it."""
    config = Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4 * LENGTH,
        original_max_position_embeddings=LENGTH,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": LENGTH,
        },
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    engine = TransformersEngine(Phi3ForCausalLM(config).eval())
    with pytest.raises(RequestError, match=f"must be at most {LENGTH} tokens together"):
        engine.add(0, Generation([3], LENGTH))
    engine.add(0, Generation([3], LENGTH - 1))


@pytest.mark.parametrize("option", ["prefill_chunk", "max_prefills", "cache_tokens"])
def test_options_are_counts(option):
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
        TransformersEngine(tiny(), **{option: 0})
    with pytest.raises(TypeError, match=f"{option} takes a whole number, got 'all'"):
        TransformersEngine(tiny(), **{option: "all"})


def test_end_ids_are_ids():
    with pytest.raises((TypeError, ValueError), match="'</s>'"):
        TransformersEngine(tiny(), eos_token_id="</s>")  # noqa: S106 - a token of text
