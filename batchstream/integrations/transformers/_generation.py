"""What a request asks of `TransformersEngine`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, NamedTuple

from batchstream import RequestError
from batchstream._core.arguments import check_count, check_number, check_whole

_BYTES: Final = (bytes, bytearray, memoryview)  # which are sequences of numbers, too


class GenerationError(RequestError, ValueError):
    """A `Generation` cannot be served: a value in it is out of range, or too large for the model.

    The client that sent the value is at fault; the web integrations answer with 422.
    """


class Token(NamedTuple):
    """An output of a request that asked for `logprobs`.

    Attributes:
        id: The token's id.
        logprob: The natural logarithm of the token's probability, as the model gives it: before
            `temperature`, `top_k` and `top_p`.
    """

    id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Generation:
    """A request to `TransformersEngine`: a prompt, and how it goes on.

    Only what is given here counts. Of the model's own `generation_config` the engine reads the end
    ids, and nothing else: no default temperature, no repetition penalty.

    Args:
        ids: The prompt's token ids: a list, a tuple, an array or tensor of one dimension.
        max_new_tokens: After so many tokens the stream ends with `length`.
        temperature: 0 takes the most probable token each time; above it a token is drawn, from
            probabilities that are the flatter the higher the temperature.
        top_k: Draw among so many of the most probable tokens; None for all.
        top_p: Draw among the most probable tokens that have this probability together; 0 leaves
            the most probable one alone.
        seed: A whole number that fixes all draws: the same request gets the same tokens, whatever
            other requests run beside it. None draws anew each time.
        stop: What ends the text besides the model's end ids: token ids, which the engine itself
            looks for, and strings, which it leaves to `batchstream.text`; see `stop_ids` and
            `stop_strings`.
        logprobs: Let each output be a `Token`, with its log-probability, in place of an id.

    Raises:
        GenerationError: A value is out of range, which may be a client's.
        TypeError: An argument is of the wrong kind.

    Threads: any; it does not change.

    Example:
        >>> from batchstream.integrations.transformers import Generation
        >>> request = Generation([5, 17, 4], 20, temperature=0.7, seed=1, stop=["###", 9])
        >>> request.stop_ids, request.stop_strings
        ((9,), ('###',))
    """

    ids: Sequence[int]
    max_new_tokens: int
    _: KW_ONLY
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str | int] | str | int = ()
    logprobs: bool = False

    def __post_init__(self) -> None:
        try:
            checked = {
                "ids": _checked_ids(self.ids),
                "max_new_tokens": check_count("max_new_tokens", self.max_new_tokens, at_least=1),
                "temperature": _checked_temperature(self.temperature),
                "top_k": _checked_or_none("top_k", self.top_k, at_least=1),
                "top_p": _checked_top_p(self.top_p),
                "seed": None if self.seed is None else check_whole("seed", self.seed),
                "stop": _checked_stop(self.stop),
            }
        except ValueError as error:
            raise GenerationError(str(error)) from None
        if not isinstance(self.logprobs, bool):
            raise TypeError(
                f"logprobs must be True or False, got {self.logprobs!r}: "
                f"an output has the log-probability of its own token"
            )
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The token ids among `stop`."""
        return tuple(stop for stop in _several(self.stop) if not isinstance(stop, str))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings among `stop`."""
        return tuple(stop for stop in _several(self.stop) if isinstance(stop, str))


def _checked_or_none(name: str, value: Any, *, at_least: int) -> int | None:
    return None if value is None else check_count(name, value, at_least=at_least)


def _checked_temperature(temperature: Any) -> float:
    number = check_number("temperature", temperature)
    if math.isinf(number):
        raise ValueError(f"temperature must be finite, got {temperature!r}")
    return number


def _checked_top_p(top_p: Any) -> float:
    number = check_number("top_p", top_p)
    if number > 1:
        raise ValueError(f"top_p must be at most 1, got {top_p!r}")
    return number


def _checked_ids(ids: Any) -> tuple[int, ...]:
    if isinstance(ids, (str, *_BYTES)):
        what = "the text" if isinstance(ids, str) else "the bytes"
        raise TypeError(f"ids takes token ids, got {what} {ids!r}: pass tokenizer.encode(text)")
    if isinstance(ids, Mapping) or hasattr(ids, "input_ids"):
        raise TypeError(
            f"ids takes the token ids of one prompt, got a {type(ids).__name__}: "
            f"pass its ['input_ids']"
        )
    shape = getattr(ids, "shape", None)
    if shape is not None and len(shape) != 1:
        raise _not_one_prompt(f"an array of shape {tuple(shape)}")
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(ids, Iterable):
        raise TypeError(f"ids takes the token ids of one prompt, got {ids!r}")
    checked = tuple(_checked_id(each) for each in ids)
    if not checked:
        raise ValueError("ids must hold at least one token, got none: begin with the bos token")
    return checked


def _checked_id(each: Any) -> int:
    try:
        return check_count("ids", each, at_least=0)
    except TypeError:
        if isinstance(each, list | tuple) or getattr(each, "shape", None):
            raise _not_one_prompt(f"the row {each!r}") from None
        raise


def _not_one_prompt(what: str) -> TypeError:
    return TypeError(
        f"ids takes the token ids of one prompt, got {what}: "
        f"make a Generation of each row, without its padding"
    )


def _checked_stop(stop: Any) -> tuple[str | int, ...]:
    if stop is None:
        return ()
    if not isinstance(stop, Sequence | int) or isinstance(stop, _BYTES):
        raise TypeError(f"stop takes token ids and strings, got {stop!r}")
    checked: list[str | int] = []
    for each in _several(stop):
        if isinstance(each, _BYTES):
            raise TypeError(f"stop takes token ids and strings, got {each!r}")
        if each == "":
            raise ValueError("stop must hold no empty string, which stands at each place of a text")
        checked.append(each if isinstance(each, str) else check_count("stop", each, at_least=0))
    return tuple(checked)


def _several(stop: Sequence[str | int] | str | int) -> Iterable[str | int]:
    return (stop,) if isinstance(stop, str | int) else stop
