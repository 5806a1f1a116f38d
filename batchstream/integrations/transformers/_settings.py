"""What a call of `generate` asks for, as far as a source has to know before it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch

from batchstream.integrations.transformers._ids import ids_of

_TOKENS_ALONE: Final = "a source hands out token ids alone"
_NOT_TAKEN: Final = {
    "custom_generate": "the decoding loop is its own",
    "max_length": "pass max_new_tokens, which counts without the prompt",
    "output_attentions": _TOKENS_ALONE,
    "output_hidden_states": _TOKENS_ALONE,
    "output_logits": _TOKENS_ALONE,
    "output_scores": _TOKENS_ALONE,
    "return_dict_in_generate": _TOKENS_ALONE,
    "stop": "it gives ids; use stream_text, or stop_strings= with tokenizer=",
    "streamer": "the source takes its place; for a generate call of your own use BatchStreamer",
    "synced_gpus": "processes that step together cannot end together with a stream",
}
_TENSORS: Final = ("inputs", "input_ids", "inputs_embeds", "attention_mask")
_TOKENIZE: Final = (
    "call the tokenizer with return_tensors='pt', padding=True and padding_side='left'"
)
_GREEDY: Final = "pass num_beams=1 for greedy search, or do_sample=True"


class Settings:
    """The settings of one call.

    Args:
        model: The model, whose own settings hold where the call has none.
        arguments: The arguments of the call.
    """

    def __init__(self, model: Any, arguments: Mapping[str, Any]) -> None:
        self._model = model
        self._arguments = arguments
        # In this order, as in generate.
        self._configs = [
            config
            for config in (
                arguments.get("generation_config"),
                getattr(model, "generation_config", None),
            )
            if config is not None
        ]

    def _of(self, name: str) -> Any:
        if name in self._arguments:  # None too, as with generate: it takes a setting back
            return self._arguments[name]
        return self._configured(name)

    def has(self, name: str) -> bool:
        """Return whether the call itself makes this setting."""
        return name in self._arguments

    def _configured(self, name: str) -> Any:
        found = (getattr(config, name, None) for config in self._configs)
        return next((value for value in found if value is not None), None)

    def check(self) -> None:
        """Refuse what cannot be streamed.

        Raises:
            TypeError: An input is no tensor.
            ValueError: The name of the setting, and what to do instead.
        """
        for name in (*_TENSORS, getattr(self._model, "main_input_name", "")):
            value = self._arguments.get(name)
            if value is not None and not isinstance(value, torch.Tensor):
                raise TypeError(f"{name} takes a tensor, got {type(value).__name__}: {_TOKENIZE}")
            if name in {"inputs", "input_ids"} and value is not None and value.dim() <= 1:
                raise TypeError(
                    f"{name} takes a tensor of shape (prompts, length), got one of "
                    f"{tuple(value.shape)}: pass ids[None] for one prompt"
                )
        for name, why in _NOT_TAKEN.items():
            if self._arguments.get(name) not in (None, False):
                raise ValueError(f"stream_generate takes no {name}: {why}")
        self._check_search()
        if self._of("token_healing"):
            raise ValueError(
                "stream_generate takes no token_healing, which changes the prompts before they are "
                "read: pass what model.heal_tokens(ids, tokenizer) returns"
            )
        if self.stop_strings is not None and self._arguments.get("tokenizer") is None:
            raise ValueError(
                f"stop_strings need the tokenizer: pass tokenizer= for {self.stop_strings!r}, or "
                "stop_strings=None to do without them"
            )
        if self._arguments.get("cache_implementation") == "paged":
            raise ValueError(
                "stream_generate takes no cache_implementation='paged': that is continuous "
                "batching; use TransformersEngine with a ContinuousBatcher"
            )

    def _check_search(self) -> None:
        """Refuse beams and whatever else has tokens that are not final when they are made."""
        for name in ("num_beams", "num_beam_groups"):
            if (number := self._of(name) or 1) > 1:
                raise ValueError(
                    f"stream_generate cannot stream beam search, got {name}={number}: its tokens "
                    f"may still change until the last step; {_GREEDY}"
                )
        for name in ("constraints", "force_words_ids"):
            if self._of(name) is not None:
                raise ValueError(
                    f"stream_generate cannot stream constrained beam search, got {name}; "
                    "for what may follow, pass prefix_allowed_tokens_fn"
                )
        if self._of("penalty_alpha") and (self._of("top_k") or 0) > 1 and not self._of("do_sample"):
            raise ValueError(
                "stream_generate cannot stream contrastive search, got penalty_alpha="
                f"{self._of('penalty_alpha')}: its loop is not part of transformers; leave it out, "
                "or pass do_sample=True"
            )
        if self._of("dola_layers") is not None:
            raise ValueError(
                f"stream_generate cannot stream DoLa, got dola_layers={self._of('dola_layers')!r}: "
                "its loop is not part of transformers; leave it out"
            )

    @property
    def assisted(self) -> bool:
        """Whether drafts of tokens are verified, several in a step."""
        return any(
            self._of(name) not in (None, False)
            for name in (
                "assistant_model",
                "assistant_early_exit",
                "prompt_lookup_num_tokens",
                "use_mtp",
            )
        )

    @property
    def sequences(self) -> int:
        """How many sequences each prompt has."""
        return self._of("num_return_sequences") or 1

    @property
    def prompts(self) -> int | None:
        """How many prompts there are; None if that is for `generate` to find out."""
        names = (
            "inputs",
            getattr(self._model, "main_input_name", ""),
            "input_ids",
            "inputs_embeds",
        )
        for name in names:
            if isinstance(value := self._arguments.get(name), torch.Tensor):
                return int(value.shape[0])
        return None

    @property
    def eos(self) -> frozenset[int]:
        """The token ids that end a sequence."""
        return ids_of(self._of("eos_token_id"))

    @property
    def prompt_mask(self) -> Any:
        """The attention mask of the ids that are continued, as the call has it; None for none."""
        config = getattr(self._model, "config", None)
        is_decoder = not getattr(config, "is_encoder_decoder", False)
        return self._arguments.get("attention_mask" if is_decoder else "decoder_attention_mask")

    @property
    def max_new_tokens(self) -> Any:
        """How many tokens a sequence may have; None if something else limits it."""
        return self._of("max_new_tokens")

    @property
    def stopping_criteria(self) -> Any:
        """The stopping criteria; None for none."""
        return self._arguments.get("stopping_criteria")

    @property
    def max_time(self) -> Any:
        """For how many seconds to decode; None for no limit."""
        return self._of("max_time")

    @property
    def stop_strings(self) -> Any:
        """The text that ends a sequence, as `generate` takes it; None for none."""
        return self._of("stop_strings")

    def without(self, *names: str) -> dict[str, Any]:
        """Return the arguments of the call, such that these settings are not made.

        A setting that a config makes is taken back by an argument that is None.
        """
        kept = {name: value for name, value in self._arguments.items() if name not in names}
        return kept | {name: None for name in names if self._configured(name) is not None}

    @property
    def pad(self) -> int | None:
        """The token id that fills rows up."""
        value: int | None = self._of("pad_token_id")
        return value


def as_arguments(inputs: Any) -> dict[str, Any]:
    """Return the inputs of a model as arguments of `generate`.

    Raises:
        TypeError: They are neither a mapping nor a tensor.
    """
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if isinstance(inputs, torch.Tensor):
        return {"inputs": inputs}
    raise TypeError(
        "stream_generate takes the tokenizer's mapping or a tensor of shape (prompts, length), got "
        f"{type(inputs).__name__}: {_TOKENIZE}"
    )


def named(
    generate: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return the arguments of a call that have no name, and the others by name.

    Raises:
        TypeError: An argument is there twice, or one too many.
    """
    if not args:
        return (), dict(kwargs)
    signature = inspect.signature(generate)
    signature.bind_partial(*args, **kwargs)
    names = signature.bind_partial(*args).arguments
    kinds = {signature.parameters[name].kind for name in names}
    if kinds != {inspect.Parameter.POSITIONAL_OR_KEYWORD}:
        return args, dict(kwargs)
    return (), {**names, **kwargs}
