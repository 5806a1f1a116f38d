"""Models for `TransformersEngine` and models that it refuses; what each says to a prompt alone."""

import copy
import functools

import torch
import transformers

from support.tiny_models import ARCHITECTURES, EOS, VOCABULARY, tiny

JOINABLE = ("GPT2", "Llama", "Mistral", "Gemma3", "Qwen3", "Mixtral")
"""The architectures whose rows can join and leave a running batch."""

LENGTH = ARCHITECTURES["Llama"]["max_position_embeddings"]

_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "pad_token_id": 0}
_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def other(architecture):
    """Return a model of an architecture that the tests use for nothing else."""
    classes = {
        "LFM2": (transformers.Lfm2ForCausalLM, transformers.Lfm2Config),
        "BERT": (transformers.BertModel, transformers.BertConfig),
        "Bloom": (transformers.BloomForCausalLM, transformers.BloomConfig),
    }
    options = {
        "LFM2": {**_SIZES, **_LAYERS, "layer_types": ["conv", "full_attention"]},
        "BERT": {**_SIZES, **_LAYERS},
        "Bloom": {**_SIZES, "n_layer": 2, "n_head": 2},
    }
    model, config = classes[architecture]
    return model(config(**options[architecture])).eval()


def new(architecture="Llama"):
    """Return a model of its own, that a test may change."""
    return copy.deepcopy(tiny(architecture))


@functools.cache
def alone(architecture, ids, max_new_tokens, eos=EOS):
    """Return the tokens that `generate` gives to a prompt alone, with their log-probabilities.

    The token that ends the text is the last one, if it has ended.
    """
    prompt = torch.tensor([ids])
    output = tiny(architecture).generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=eos,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = output.sequences[0, len(ids) :].tolist()
    return [
        (token, logits[0].float().log_softmax(-1)[token].item())
        for token, logits in zip(tokens, output.logits, strict=True)
    ]
