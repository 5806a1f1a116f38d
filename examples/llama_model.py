"""The Llama of the servers beside it: random weights and a tokenizer trained in place, from no hub.

    python examples/llama_model.py

It says pieces of words in no order, and is there in a moment. For a real one, let `load` return
what `AutoModelForCausalLM.from_pretrained(name)` and `AutoTokenizer.from_pretrained(name)` do.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from batchstream import RequestError

TEXT = Path(__file__).with_name("custom_server.txt")
TEMPLATE = """{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


def load() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Return a model and its tokenizer."""
    tokenizer = train_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=100_000,
        initializer_range=0.5,  # large, so that a token affects the tokens after it
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more would wait for each other, so small are its matrices
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # let no text end by chance: a client's limit or stop string ends it
        model.lm_head.weight[tokenizer.eos_token_id] = 0
    return model, tokenizer


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Learn 512 pieces of words, which can write any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.read_text().splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106 - no password
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        chat_template=TEMPLATE,
    )


def prompt_of(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a conversation that OpenAI's clients send, for the model to go on."""
    texts = [{"role": it["role"], "content": text_of(it.get("content"))} for it in messages]
    return tokenizer.apply_chat_template(texts, tokenize=False, add_generation_prompt=True)


def text_of(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Return what a message says, which may come in parts."""
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.get("type") != "text":
            raise RequestError(f"the model reads text, got a part of type {part.get('type')!r}")
        if not isinstance(part.get("text"), str):
            raise RequestError(f"a part of type 'text' needs a text, got {part.get('text')!r}")
    return "".join(part["text"] for part in content)


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    model, tokenizer = load()
    print(f"{model.num_parameters()} random weights, {len(tokenizer)} tokens")
