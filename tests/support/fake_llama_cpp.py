"""The part of llama-cpp-python's C interface that the example uses, over the model in NumPy.

It answers as llama.cpp does: 1 where no cell is free, which changes nothing; below 0 for a batch
that is not valid; and it aborts, here by an `AssertionError`, where that does.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np

from support import tiny_llama

GGML_TYPE_F32 = 0


def llama_log_callback(function):
    return function


def llama_log_set(callback, user_data):
    pass


def llama_model_default_params():
    return SimpleNamespace()


def llama_model_load_from_file(path, params):
    assert isinstance(path, bytes)
    return SimpleNamespace()


def llama_context_default_params():
    return SimpleNamespace(n_ctx=512, n_batch=2048, n_seq_max=1, kv_unified=False)


def llama_init_from_model(model, params):
    assert params.kv_unified, "each sequence would have its own part of the cells"
    return SimpleNamespace(params=params, sequences={}, logits={})


def llama_n_ctx(context):
    return context.params.n_ctx


def llama_model_get_vocab(model):
    return model


def llama_vocab_n_tokens(vocabulary):
    return tiny_llama.tiny.VOCABULARY


def llama_vocab_is_eog(vocabulary, token):
    return token == tiny_llama.tiny.EOS


def llama_get_memory(context):
    return context


def llama_memory_seq_rm(memory, sequence, first, last):
    assert (first, last) == (-1, -1)
    memory.sequences.pop(sequence, None)
    return True


def llama_batch_init(n_tokens, embd, n_seq_max):
    arrays = {name: [None] * n_tokens for name in ("token", "pos", "n_seq_id", "logits")}
    return SimpleNamespace(
        n_tokens=0, seq_id=[[None] * n_seq_max for _ in range(n_tokens)], **arrays
    )


def llama_decode(context, batch):
    params, rows = context.params, range(batch.n_tokens)
    assert batch.n_tokens <= params.n_batch
    if not rows or any(not 0 <= batch.token[row] < tiny_llama.tiny.VOCABULARY for row in rows):
        return -1
    sequences = {number: list(tokens) for number, tokens in context.sequences.items()}
    wanted = {}
    for row in rows:
        assert batch.n_seq_id[row] == 1
        number = batch.seq_id[row][0]
        sequence = sequences.setdefault(number, [])
        if not 0 <= number < params.n_seq_max or batch.pos[row] != len(sequence):
            return -1
        sequence.append(batch.token[row])
        if batch.logits[row]:
            wanted[row] = list(sequence)
    if sum(map(len, sequences.values())) > params.n_ctx:
        return 1
    context.sequences = sequences
    context.logits = {
        row: tiny_llama.logits(tokens).astype(np.float32) for row, tokens in wanted.items()
    }
    return 0


def llama_get_logits_ith(context, row):
    return context.logits[row].ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def llama_batch_free(batch):
    batch.token = None  # whatever is done with it now raises


def llama_free(context):
    context.params = None


def llama_model_free(model):
    pass
