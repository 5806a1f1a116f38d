"""Tokenizers: one of bytes, in Python, and three that `tokenizers` trains on a few lines."""

from __future__ import annotations

import json
import os
from functools import cache
from typing import ClassVar

import pytest

try:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
except ImportError:  # where the core's test packages are all there is
    Tokenizer = None

needs_tokenizers = pytest.mark.skipif(Tokenizer is None, reason="tokenizers is not installed")

CASES = int(os.environ.get("TEXT_CASES", "10000"))
"""How many texts the large comparison of stop strings tries."""

END, USER = 256, 257


class ByteTokenizer:
    """Each byte of UTF-8 is a token; what comes after them are special tokens.

    It has what a tokenizer of transformers that is written in Python has.
    """

    specials: ClassVar = {"<|end|>": END, "<|user|>": USER}

    def encode(self, text):
        """Return the ids of a text without special tokens."""
        return list(text.encode())

    def decode(self, ids, skip_special_tokens=False):
        names = {token: name for name, token in self.specials.items()}
        parts = [
            bytes([token]) if token < END else b"" if skip_special_tokens else names[token].encode()
            for token in ids
        ]
        return b"".join(parts).decode(errors="replace")

    def convert_tokens_to_ids(self, token):
        return self.specials.get(token)


BYTES = ByteTokenizer()


# ---- trained, with `tokenizers`

LINES = [
    "the quick brown fox jumps over the lazy dog. hello there\nUser: stop here, please",
    "It's done, isn't it? é e\u0301 日本語 👍 👩\u200d👩\u200d👧 naïve",
]
UNKNOWN = "<unk>"
SPECIALS = [UNKNOWN, "<s>", "</s>", "<|im_end|>"]


@cache
def byte_level():
    """Byte-level BPE, as GPT-2's and Llama 3's: a token may hold a part of a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return tokenizer


@cache
def metaspace():
    """BPE of words with their spaces, as Llama 2's: 256 byte tokens for unknown characters."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.train_from_iterator(LINES[:1] * 3, trainers.BpeTrainer(show_progress=False))
    trained = json.loads(words.to_str())["model"]
    # The trainer would make special tokens of the bytes, and they are not.
    names = [*SPECIALS, *map(byte_token, range(256)), *trained["vocab"]]
    vocabulary = {name: token for token, name in enumerate(names)}
    merges = [tuple(merge) for merge in trained["merges"]]
    model = models.BPE(vocabulary, merges, byte_fallback=True, unk_token=UNKNOWN, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def byte_token(byte):
    return f"<0x{byte:02X}>"


@cache
def word_piece():
    """Pieces of words, as BERT's: the decoder puts the spaces in, and mends punctuation."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=SPECIALS, show_progress=False
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return tokenizer


TRAINED = {"byte level": byte_level, "metaspace": metaspace, "word piece": word_piece}


class OnlyDecodes:
    """A tokenizer of which nothing is known but `decode`."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def decode(self, ids, skip_special_tokens=False):
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
