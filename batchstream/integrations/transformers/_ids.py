"""Token ids as `generate` and tokenizers have them: a number, several, a tensor, or none."""

from __future__ import annotations

from typing import Any

from batchstream import token_ids


def ids_of(value: Any) -> frozenset[int]:
    """Return the ids in a setting such as `eos_token_id`."""
    return token_ids(value).ids
