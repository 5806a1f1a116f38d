"""The tokenizer of a streamer, and the arguments for its `decode`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Decodes:
    """A tokenizer with arguments of its own for `decode`."""

    def __init__(self, tokenizer: Any, kwargs: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._kwargs = kwargs

    def decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, **self._kwargs)
        return text


def checked_tokenizer(tokenizer: Any, stop: Any, decode_kwargs: Mapping[str, Any]) -> Any:
    """Return the tokenizer.

    Raises:
        TypeError: It is a number, or is lacking where something needs one.
    """
    if isinstance(tokenizer, int):
        raise TypeError(
            f"BatchStreamer takes a tokenizer, or nothing for token ids, got {tokenizer!r}: pass "
            f"size={tokenizer!r}"
        )
    if tokenizer is None and (stop or decode_kwargs):
        named = "stop" if stop else next(iter(decode_kwargs))
        raise TypeError(
            f"BatchStreamer has no tokenizer, so that {named}= has no meaning: pass one"
        )
    return tokenizer
