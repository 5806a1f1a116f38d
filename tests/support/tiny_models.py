"""Tiny models of transformers with random weights, made from their configs: no hub, no network.

Their weights are large, so that the ids vary, and prompts differ in length.
"""

from __future__ import annotations

import functools
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LogitsProcessor, LogitsProcessorList

torch.set_num_threads(1)

VOCABULARY, PAD, BOS, EOS = 64, 0, 1, 2
FEW = list(range(12, VOCABULARY))
"""Suppress these, and of the dozen ids that are left the end of a sequence is frequent."""

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.6,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_HEADS = {"head_dim": 8}
_OF_GPT2 = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 512,
    "tie_word_embeddings": False,
}
_OF_GEMMA3 = {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 8,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "decoder_sparse_step": 1,
}
_OF_T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": PAD,
    "initializer_factor": 2.0,
    "tie_word_embeddings": False,
}

ARCHITECTURES = {
    "Llama": _SMALL,
    "GPT2": _SMALL | _OF_GPT2,
    "Mistral": _SMALL | {"sliding_window": 6},
    "Gemma3": _SMALL | _HEADS | _OF_GEMMA3,
    "Qwen3": _SMALL | _HEADS,
    "Mamba": _SMALL | {"state_size": 4},
    "Qwen3Next": _SMALL | _HEADS | _LINEAR,
    "T5": _SMALL | _OF_T5,
    "Mixtral": _SMALL | _EXPERTS,
}
_NAMES = {
    "GPT2": ("GPT2Config", "GPT2LMHeadModel"),
    "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "T5": ("T5Config", "T5ForConditionalGeneration"),
}


@functools.cache
def tiny(architecture="Llama", seed=0):
    """Return a model of an architecture; the same object for the same arguments."""
    names = _NAMES.get(architecture, (f"{architecture}Config", f"{architecture}ForCausalLM"))
    config_class, model_class = (getattr(transformers, name) for name in names)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config_class(**ARCHITECTURES[architecture])).eval()
    settings = model.generation_config
    settings.pad_token_id, settings.bos_token_id, settings.eos_token_id = PAD, BOS, EOS
    return model


@functools.cache
def tiny_text(seed=0):
    """Return a Llama and its tokenizer: bytes, and five special tokens."""
    specials = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    names = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bare = Tokenizer(models.BPE({name: at for at, name in enumerate(names)}, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens(specials)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare, model_input_names=["input_ids", "attention_mask"]
    )
    for part, name in zip(("pad", "bos", "eos"), specials, strict=False):
        setattr(tokenizer, f"{part}_token", name)
    tokenizer.chat_template = (
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    settings = _SMALL | {"vocab_size": len(names)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    return model, tokenizer


def says(tokenizer, lines, prompt):
    """Return processors that let each row say a text, and then the end."""
    ids = [tokenizer(line)["input_ids"] for line in lines]
    return LogitsProcessorList([Script(ids, prompt)])


def prompts(*lengths, seed=0):
    """Return prompts of these lengths, padded on the left: what a tokenizer returns."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(3, 12, (len(lengths), longest), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        ids[row, : longest - length] = PAD
        mask[row, : longest - length] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(model, inputs, *, eos=EOS, **kwargs):
    """Return the ids that `generate` itself gives each row, up to its end."""
    out = model.generate(**inputs, **kwargs)
    begin = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return [_to_eos(row, eos) for row in out[:, begin:].tolist()]


def _to_eos(row, eos):
    return row[: row.index(eos)] if eos in row else row


class Script(LogitsProcessor):
    """Lets each row say what is written, and then the end.

    Args:
        lines: The ids of each row.
        prompt: The length of the prompts.
        fails_at: At which step to raise `ZeroDivisionError`, counted from 0.
    """

    def __init__(self, lines, prompt, *, fails_at=None):
        self._lines = lines
        self._prompt = prompt
        self._fails_at = fails_at

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self._prompt
        if step == self._fails_at:
            raise ZeroDivisionError("no such step")
        forced = torch.full_like(scores, float("-inf"))
        for row, line in enumerate(self._lines):
            forced[row, line[step] if step < len(line) else EOS] = 0.0
        return forced


class Forwards:
    """How many rows each forward of a model has, for the length of a block."""

    def __init__(self, model):
        self._model = model
        self.rows = []

    def __enter__(self):
        self._hook = self._model.register_forward_hook(self._note, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self._hook.remove()

    def _note(self, _model, _args, _kwargs, output):
        self.rows.append(output.logits.shape[0])

    def __len__(self):
        return len(self.rows)
