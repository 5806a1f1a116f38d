"""llama.cpp under a `ContinuousBatcher`, by the C interface that llama-cpp-python binds.

    python examples/engines/llama_cpp_engine.py

It needs `pip install llama-cpp-python gguf`. The package's own `Llama` has one sequence. Here all
requests share a batch and a cache: a slot is a sequence, the prompts of new requests go along with
the next tokens of the others, and one that leaves gives its cells back.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
import tiny_models

from batchstream import EOS, ContinuousBatcher, Fail, NotNow, RequestError

# A cache in single precision, not half. One thread: more of them spin while they wait for each
# other, which for so small a model, or on a busy machine, takes far longer than the work.
TINY = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
TINY |= {"n_threads": 1, "n_threads_batch": 1}


class Request(NamedTuple):
    """What a client asks for."""

    ids: Sequence[int]
    max_new_tokens: int


class LlamaCppEngine:
    """A `StepEngine` of token ids, greedy; the batcher's `max_outputs` ends a reply.

    Args:
        path: The model, in GGUF.
        slots: How many requests may be in it: the batcher's `max_batch_size`.
        cells: How many tokens the cache holds, for all of them together.
        batch: How many tokens a step computes at most; a longer prompt takes several.
        others: Parameters of a context of llama.cpp, such as the types of the cache.
    """

    def __init__(
        self, path: Path, *, slots: int, cells: int = 4096, batch: int = 512, **others: Any
    ) -> None:
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max, params.kv_unified = (
            cells,
            batch,
            slots,
            True,
        )
        for name, value in others.items():
            setattr(params, name, value)
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.cells = llama_cpp.llama_n_ctx(self.context)  # it may round up
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.tokens = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        self.batch, self.size = llama_cpp.llama_batch_init(batch, 0, 1), batch
        self.pending: dict[int, list[int]] = {}  # by slot: tokens that are not in the cache yet
        self.cached: dict[int, int] = {}  # by slot: how many are

    def add(self, slot: int, request: Request) -> None:
        """Queue the prompt; the steps compute it."""
        if not request.ids or not all(0 <= token < self.tokens for token in request.ids):
            raise RequestError(f"a prompt has tokens from 0 to {self.tokens - 1}")
        if len(request.ids) >= self.cells:
            raise RequestError(f"a prompt of {len(request.ids)} tokens, the cache is {self.cells}")
        waiting = sum(map(len, self.pending.values()))
        if sum(self.cached.values()) + waiting + len(request.ids) >= self.cells:
            raise NotNow
        self.pending[slot], self.cached[slot] = list(request.ids), 0

    def step(self) -> dict[int, Any]:
        """Compute the next token of each request, and as much of the prompts as goes with them."""
        batch, taken = self.batch, {}
        batch.n_tokens = 0
        for slot, tokens in sorted(self.pending.items(), key=lambda item: len(item[1])):
            taken[slot] = tokens[: self.size - batch.n_tokens]
            for position, token in enumerate(taken[slot], self.cached[slot]):
                row = batch.n_tokens
                batch.token[row], batch.pos[row] = token, position
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, slot
                batch.logits[row] = position + 1 == self.cached[slot] + len(tokens)
                batch.n_tokens += 1
        code = llama_cpp.llama_decode(self.context, batch)
        if code == 1:  # no cell is free, and nothing was computed: the next step has more room
            newest = list(self.pending)[-1]
            return {newest: Fail(MemoryError("the cache is full"))}
        if code:
            raise RuntimeError(f"llama_decode has failed with {code}")
        return self.sample(taken)

    def sample(self, taken: dict[int, list[int]]) -> dict[int, Any]:
        """Note what is in the cache now, and choose a token for each request whose prompt is."""
        step, row = {}, -1
        for slot, tokens in taken.items():
            row += len(tokens)
            self.cached[slot] += len(tokens)
            self.pending[slot] = self.pending[slot][len(tokens) :]
            if not self.pending[slot]:
                pointer = llama_cpp.llama_get_logits_ith(self.context, row)
                token = int(np.ctypeslib.as_array(pointer, (self.tokens,)).argmax())
                self.pending[slot] = [token]
                is_end = llama_cpp.llama_vocab_is_eog(self.vocabulary, token)
                step[slot] = EOS if is_end else token
        return step

    def remove(self, slot: int) -> None:
        """Free the cells of a request."""
        del self.pending[slot], self.cached[slot]
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.context), slot, -1, -1)

    def close(self) -> None:
        """Free what Python does not: the batch, the cache and the model."""
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


@llama_cpp.llama_log_callback
def ignore(_level: int, _text: bytes, _user_data: object) -> None:
    """Take a line of llama.cpp's log."""


def main() -> None:
    """Let six requests share three slots; one of them leaves."""
    llama_cpp.llama_log_set(ignore, None)
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_models.as_gguf(Path(folder) / "tiny.gguf")
        with ContinuousBatcher[Request, int](
            lambda: LlamaCppEngine(path, slots=3, **TINY),
            max_batch_size=3,
            max_outputs=lambda request: request.max_new_tokens,
        ) as batcher:
            requests = [Request([5 + n] * (1 + n), 4 + 3 * n) for n in range(5)]
            leaving = batcher.stream(Request([4], 400))
            streams = [batcher.stream(request) for request in requests]
            next(leaving)
            leaving.cancel()  # its client has left
            for request, stream in zip(requests, streams, strict=True):
                print(f"{list(request.ids)}: {list(stream)} ({stream.finish_reason})")


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    main()
