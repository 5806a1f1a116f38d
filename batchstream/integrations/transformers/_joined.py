"""The rows of a running batch in one cache, right-aligned, as `generate` has them.

Row i fills the last `lengths[i]` columns, and the columns before them are empty: the mask hides
them. All rows so get their next token in the same column, and two tokens of a row are as many
columns apart as they are positions, which is all that an attention window asks. A row that joins
is padded on its left, and if the longest one leaves, the columns that are empty in all rows go.

The caches have whole layers, also where the model attends to a window only: a windowed layer has
one length for all rows, and drops what a row that joins would still need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from batchstream.integrations.transformers._model import Forward


class Prefill:
    """A prompt on its way into a cache of its own.

    Args:
        ids: The prompt.
        chunk: How many tokens go through the model in one `advance`; None for all.
    """

    __slots__ = ("_chunk", "_ids", "cache", "length")

    def __init__(self, ids: Sequence[int], chunk: int | None) -> None:
        self._ids = ids
        self._chunk = chunk or len(ids)
        self.cache: Any = DynamicCache()
        self.length = 0

    def advance(self, forward: Forward) -> Any:
        """Put a chunk through the model; return the logits of the next token once all went."""
        begin, self.length = self.length, min(self.length + self._chunk, len(self._ids))
        device = forward.device
        logits = forward(
            torch.tensor([self._ids[begin : self.length]], device=device),
            torch.ones(1, self.length, dtype=torch.long, device=device),
            torch.arange(begin, self.length, device=device)[None],
            self.cache,
        )
        return logits if self.length == len(self._ids) else None

    def drop(self) -> None:
        """Free what is in the cache."""
        _drop(self.cache)


class Rows:
    """The running batch: which slot each row is of, its length, and the common cache."""

    __slots__ = ("_cache", "_leaving", "_lengths", "slots")

    slots: list[int]
    _lengths: list[int]  # how many tokens of a row are in the cache
    _leaving: set[int]  # by slot, which may be in use again before its row has left
    _cache: Any

    def __init__(self) -> None:
        self._cache = None
        self.clear()

    def clear(self) -> None:
        """Let all rows leave at once."""
        if self._cache is not None:
            _drop(self._cache)
        self.slots, self._lengths, self._leaving, self._cache = [], [], set(), None

    def decode(self, forward: Forward, tokens: Sequence[int]) -> Any:
        """Put the last token of each row through the model; return the logits of the next ones."""
        device = forward.device
        lengths = torch.tensor(self._lengths, device=device)[:, None]
        columns = torch.arange(-max(self._lengths), 1, device=device)  # 0 is that of the tokens
        mask = (columns >= -lengths).long()
        logits = forward(torch.tensor(tokens, device=device)[:, None], mask, lengths, self._cache)
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def leave(self, slot: int) -> None:
        """Let a row leave: with the next `compact`, or at once if it is the last one."""
        if slot in self.slots:
            self._leaving.add(slot)
        if len(self._leaving) == len(self.slots):
            self.clear()

    def compact(self) -> None:
        """Free what the rows that leave have in the cache."""
        if not self._leaving:
            return
        rows = [row for row, slot in enumerate(self.slots) if slot not in self._leaving]
        width = max(self._lengths)
        self.slots = [self.slots[row] for row in rows]
        self._lengths = [self._lengths[row] for row in rows]
        self._leaving.clear()
        empty = width - max(self._lengths)
        # On the CPU: layers may lie on several devices, which all take it.
        index = torch.tensor(rows)
        for layer in _filled(self._cache):
            # Copies, by the index: views would keep the memory of the rows that leave.
            layer.keys = layer.keys[index, :, empty:]
            layer.values = layer.values[index, :, empty:]

    def join(self, prefills: dict[int, Prefill]) -> None:
        """Let prompts that are through join, by slot."""
        caches = [prefill.cache for prefill in prefills.values()]
        if self._cache is not None:
            caches.insert(0, self._cache)
        self.slots = [*self.slots, *prefills]
        self._lengths += [prefill.length for prefill in prefills.values()]
        width = max(self._lengths)
        for layers in zip(*map(_filled, caches), strict=True):
            layers[0].keys = _stacked([layer.keys for layer in layers], width)
            layers[0].values = _stacked([layer.values for layer in layers], width)
            for joined in layers[1:]:
                joined.keys = joined.values = None
        self._cache = caches[0]


def _stacked(tensors: Sequence[Any], width: int) -> Any:
    """Return one tensor of (rows, heads, width, size) of several, padded on the left."""
    return torch.cat([pad(each, (0, 0, width - each.shape[-2], 0)) for each in tensors])


def _filled(cache: Any) -> list[Any]:
    """Return the layers that hold something: one that shares another's holds nothing."""
    return [layer for layer in cache.layers if layer.is_initialized]


def _drop(cache: Any) -> None:
    """Free the tensors of a cache, also where the frames of an error keep the cache itself."""
    for layer in cache.layers:
        layer.keys = layer.values = None
