"""Models of transformers with random weights, made from configs, and what each says alone."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import functools

import torch
import transformers as tf

torch.set_num_threads(1)  # small matrices: more threads only wait for each other

VOCABULARY = 120
EOS = 2
LENGTH = 128
WINDOW = 6

_IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0}
_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.6,  # large, so that each token tells on the next ones
}
_WINDOW = {"sliding_window": WINDOW}
_HYBRID = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": LENGTH, "initializer_range": 0.6}

_MODELS = {
    "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**_IDS, **_GPT2)),
    "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_IDS, **_SIZES)),
    "Mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_IDS, **_SIZES, **_WINDOW)),
    "Gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**_IDS, **_SIZES, **_HYBRID)),
    "Qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_IDS, **_SIZES)),
    "Mixtral": lambda: tf.MixtralForCausalLM(
        tf.MixtralConfig(**_IDS, **_SIZES, num_local_experts=4)
    ),
    "Mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(**_IDS, hidden_size=16, num_hidden_layers=2, state_size=4)
    ),
    "Qwen3-Next": lambda: tf.Qwen3NextForCausalLM(
        tf.Qwen3NextConfig(**_IDS, **_SIZES, **_LINEAR)
    ),
    "LFM2": lambda: tf.Lfm2ForCausalLM(
        tf.Lfm2Config(
            **_IDS,
            **{name: size for name, size in _SIZES.items() if name != "head_dim"},
            layer_types=["conv", "full_attention"],
        )
    ),
    "T5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    ),
    "BERT": lambda: tf.BertModel(
        tf.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    ),
    "Bloom": lambda: tf.BloomForCausalLM(
        tf.BloomConfig(**_IDS, hidden_size=16, n_layer=2, n_head=2)
    ),
}

JOINABLE = ("GPT-2", "Llama", "Mistral", "Gemma3", "Qwen3", "Mixtral")
"""The models whose rows can join and leave a running batch."""


def new_model(name, seed=1):
    """Return a model that no other test has, in evaluation mode."""
    torch.manual_seed(seed)
    model = _MODELS[name]().eval()
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = 0
        model.generation_config.eos_token_id = EOS
    return model


model = functools.cache(new_model)
"""Return the model of that name, which tests share and do not change."""


@functools.cache
def alone(name, ids, max_new_tokens, eos=EOS):
    """Return the tokens that `generate` gives to a prompt alone, with their log-probabilities.

    The token that ends the text is the last one, if it has ended.
    """
    prompt = torch.tensor([ids])
    output = model(name).generate(
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
