"""Prompts as a batch: texts, chats and ids become padded tensors, and no tokenizer is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress, dropwhile
from typing import Any

import torch


def encoded(tokenizer: Any, prompts: Any) -> list[list[int]]:
    """Return the ids of each prompt, without padding.

    Args:
        tokenizer: A tokenizer of transformers.
        prompts: A list; each prompt is a text, a chat, which is a list of messages, or a list of
            ids.

    Raises:
        TypeError: They are no list, or a prompt is of another kind.
        ValueError: There is none, or one has no tokens.
    """
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Sequence):
        raise TypeError(
            f"prompts takes a list, got {type(prompts).__name__}: pass [prompt] for one"
        )
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to stream")
    found = [_ids(tokenizer, prompt) for prompt in prompts]
    if [] in found:
        raise ValueError(f"prompt {found.index([])} has no tokens: a model needs at least one")
    return found


def _ids(tokenizer: Any, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if isinstance(prompt, Sequence) and prompt and all(isinstance(it, Mapping) for it in prompt):
        # The template writes the special tokens itself.
        text = tokenizer.apply_chat_template(
            list(prompt), tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if isinstance(prompt, Sequence) and all(hasattr(type(it), "__index__") for it in prompt):
        return list(prompt)
    raise TypeError(
        "a prompt is a text, a list of messages such as {'role': 'user', 'content': 'Hello'}, or a "
        f"list of token ids, got {prompt!r}"
    )


def padded(ids: Sequence[Sequence[int]], pad: int, side: str, device: Any) -> dict[str, Any]:
    """Return prompts of several lengths as the inputs of a model.

    Padding is written here. A tokenizer that pads is changed by that, and others may use it in
    other threads.
    """
    longest = max(map(len, ids))
    tokens = torch.full((len(ids), longest), pad)
    mask = torch.zeros((len(ids), longest), dtype=torch.long)
    for row, prompt in enumerate(ids):
        place = slice(longest - len(prompt), None) if side == "left" else slice(len(prompt))
        tokens[row, place] = torch.tensor(prompt)
        mask[row, place] = 1
    return {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}


def unpadded(prompts: list[list[int]], mask: Any, pad: int | None) -> list[list[int]]:
    """Return the prompts of a call without their padding.

    Args:
        prompts: As long as each other.
        mask: The attention mask, with a row for one prompt or several; None if it is not known.
        pad: The id of padding, which is all that tells where there is no mask of this length.
    """
    if len(prompts) == 1:  # the id of padding may begin a prompt, as that of GPT-2 does
        return prompts
    if mask is None or mask.shape[1:] != (len(prompts[0]),):
        return [
            list(dropwhile(lambda token: token == pad, prompt)) or prompt[-1:] for prompt in prompts
        ]
    kept = mask.repeat_interleave(len(prompts) // len(mask), 0).tolist()
    return [list(compress(*both)) for both in zip(prompts, kept, strict=True)]
