"""Prompts: texts, chats and ids become padded tensors, and no tokenizer is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress, dropwhile
from typing import Any

import torch

from batchstream import RequestError
from batchstream.integrations.transformers._model import vocabulary_of


def check_prompts(prompts: Any) -> None:
    """Check that there are prompts.

    Raises:
        TypeError: They are no list, or the messages of one chat.
        ValueError: There is none.
    """
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Sequence):
        instead = "pass [prompt] for one"
        if not isinstance(prompts, str):
            instead = "pass texts, chats or lists of ids; for a tensor of ids use stream_generate"
        raise TypeError(f"prompts takes a list, got {type(prompts).__name__}: {instead}")
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to stream")
    if all(isinstance(prompt, Mapping) for prompt in prompts):
        raise TypeError("prompts takes a list of prompts, got one chat: pass [messages]")


def encoded(tokenizer: Any, prompt: Any) -> list[int]:
    """Return the ids of a prompt, without padding.

    Args:
        tokenizer: A tokenizer of transformers.
        prompt: A text, a chat, which is a list of messages, or a list of ids.

    Raises:
        TypeError: The prompt is of another kind.
        RequestError: It has no tokens.
        Exception: What the tokenizer raises.
    """
    ids = _ids(tokenizer, prompt)
    if not ids:
        raise RequestError("the prompt has no tokens: a model needs at least one")
    return ids


class Room:
    """What a request may ask of a model.

    A model with rotary positions goes on beyond the positions that it was trained for, as in
    `generate`. A model with a table of positions fails there, with all of its batch.
    """

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config(decoder=True)
        rotated = getattr(config, "rope_parameters", None)
        self._positions = None if rotated else getattr(config, "max_position_embeddings", None)
        self._vocabulary = vocabulary_of(model)
        self._is_decoder = not model.config.is_encoder_decoder

    def check(self, ids: Sequence[int], max_new_tokens: int) -> None:
        """Check a request.

        Raises:
            RequestError: An id is none of the model's, or it needs more positions than there are.
        """
        size, positions = self._vocabulary, self._positions
        for token in (min(ids), max(ids)):
            if not 0 <= token < size:
                raise RequestError(
                    f"the ids of a prompt must be from 0 to {size - 1}, which are the ids of the "
                    f"model, got {token}"
                )
        if positions is None:
            return
        if self._is_decoder and len(ids) + max_new_tokens > positions:
            raise RequestError(
                f"the prompt and max_new_tokens must be at most {positions} tokens together, as "
                f"the model has no more positions, got {len(ids)} and {max_new_tokens}"
            )
        if max(len(ids), max_new_tokens) > positions:
            raise RequestError(
                f"the prompt and the reply must be at most {positions} tokens each, as the model "
                f"has no more positions, got {len(ids)} and max_new_tokens={max_new_tokens}"
            )


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
