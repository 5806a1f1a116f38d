"""What turns the outputs of one stream into other outputs: token ids into text, above all."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from typing_extensions import TypeVar

from batchstream._core.arguments import is_kind
from batchstream._text.detokenizer import decode_of, ids_of, stream_of
from batchstream._text.stop_strings import StopStrings

_In_contra = TypeVar("_In_contra", contravariant=True)
_Out_co = TypeVar("_Out_co", covariant=True)

_METHODS: Final = ("feed", "finish", "matched", "info")


class Decoder(Protocol[_In_contra, _Out_co]):
    """What the steps of one stream go through, such as a `TextDecoder` or `StopStrings`.

    One is made for each stream. An error that it raises fails its stream, and no other. What `feed`
    has made of the outputs before in the same call is lost with it.
    """

    @property
    def matched(self) -> object:
        """Not None once the stream has to end, behind what `feed` or `finish` has returned last."""

    @property
    def info(self) -> Mapping[str, Any]:
        """What is added to the `info` of the stream's end."""

    def feed(self, *outputs: _In_contra) -> _Out_co | None:
        """Take what one step gives the stream, and return its output.

        None, or an empty text, if there is none.
        """

    def finish(self) -> _Out_co | None:
        """Return what is held back: the sequence is complete."""


class TextDecoder:
    r"""Turns the token ids of one stream into text, up to a stop string.

    It is a `Detokenizer` and `StopStrings` in one, and counts the tokens that it takes. Pass one
    for each stream to `decode_steps`, or a function that makes it as `decode=` of a batcher or a
    loop.

    A stop string that is a special token is found by its id, too: with `skip_special_tokens` it
    never shows in the text.

    Args:
        tokenizer: A tokenizer of transformers, a `tokenizers.Tokenizer`, or any object whose method
            `decode` takes a list of ids and returns text.
        stop: The stop strings: a text or several. None for no stop string, as clients of OpenAI's
            interface say. `StopStrings` stand for their stop strings, and do not change. Or an
            object of your own with the methods of `StopStrings`, one for each stream.
        include_stop: Whether the text includes the stop string that ends it.
        prompt_ids: The ids of the prompt without padding; see `Detokenizer`.
        skip_special_tokens: Whether special tokens give no text.

    Attributes:
        characters: How many characters the tokens have given, with what is held back or dropped.
        stops: The stop strings; None if an object of your own finds them, and does not say.
        matched: The stop string that ended the text; None before.
        completion_tokens: How many tokens it has taken; none behind a stop string.
        prompt_tokens: How many ids the prompt has; 0 if they were not passed.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or a stop string is empty, or
            `stop` is an object that has ended a text before.

    Threads: any thread, one call at a time.

    Example:
        >>> from batchstream.text import TextDecoder
        >>> class Bytes:
        ...     def decode(self, ids):
        ...         return bytes(ids).decode(errors="replace")
        >>> decoder = TextDecoder(Bytes(), stop=["\n\n"])
        >>> [decoder.feed(byte) for byte in b"a\nb\n\nc"], decoder.info
        (['a', '', '\nb', '', '', ''], {'stop': '\n\n', 'completion_tokens': 5})
    """

    __slots__ = (
        "_include_stop",
        "_stop_ids",
        "_stops",
        "_stream",
        "characters",
        "completion_tokens",
        "matched",
        "prompt_tokens",
        "stops",
    )

    def __init__(
        self,
        tokenizer: Any,
        *,
        stop: str | Iterable[str] | StopStrings | None = (),
        include_stop: bool = False,
        prompt_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        self._stream = stream_of(tokenizer, prompt_ids, skip_special_tokens=skip_special_tokens)
        if type(stop) is StopStrings:  # of the program, perhaps: their state is another stream's
            include_stop = include_stop or stop.include
            stop = stop.stops
        self._include_stop = include_stop
        self._stops: Any = None
        self._stop_ids: dict[int, str] = {}
        self.stops: tuple[str, ...] | None = ()
        if hasattr(stop, "feed"):
            _check_unused(stop, "stop")
            self._stops = stop
            self.stops = getattr(stop, "stops", None)
        elif stops := _listed(stop):
            self._stops = StopStrings(*stops, include=include_stop)
            self.stops = self._stops.stops
            if skip_special_tokens:
                self._stop_ids = _special_ids(tokenizer, stops)
        self.matched: str | None = None
        self.characters = 0
        self.completion_tokens = 0
        self.prompt_tokens = len(ids_of(prompt_ids))

    @property
    def info(self) -> dict[str, Any]:
        """What the end of a stream says: `"stop"`, `"completion_tokens"`, and `"prompt_tokens"`.

        The last one is there if the ids of the prompt were passed.
        """
        info = {"stop": self.matched, "completion_tokens": self.completion_tokens}
        return info | {"prompt_tokens": self.prompt_tokens} if self.prompt_tokens else info

    def feed(self, *tokens: int) -> str:
        """Take the next tokens, and return the text that is certain with them; it may be empty.

        Tokens behind a stop string are dropped.

        Raises:
            TypeError, OverflowError: A token is no token id.
            Exception: What the tokenizer raises.
        """
        text = ""
        if self.matched is not None:
            return text
        for output in tokens:
            try:
                token = operator.index(output)
            except TypeError:
                raise _no_token(output) from None
            self.completion_tokens += 1
            if token in self._stop_ids:
                text += self._stop_at(token)
                break
            new: str = self._stream.feed(token)
            self.characters += len(new)
            if new and self._stops is not None:
                new = self._stops.feed(new)
                self.matched = self._stops.matched
                if self.matched is not None:
                    return text + new
            text += new
        return text

    def _stop_at(self, token: int) -> str:
        text = self.finish()
        if self.matched is None:  # and no stop string ended before
            self.matched = stop = self._stop_ids[token]
            text += stop if self._include_stop else ""
        return text

    def finish(self) -> str:
        """Return the text that is held back: the sequence is complete."""
        if self.matched is not None:
            return ""
        text: str = self._stream.finish()
        self.characters += len(text)
        if self._stops is not None:
            text = self._stops.feed(text)
            self.matched = self._stops.matched
            if self.matched is None:
                text += self._stops.finish()
        return text


def _listed(stop: Any) -> list[Any]:
    if stop is None:
        return []
    if isinstance(stop, str):
        return [stop]
    try:
        return list(stop)
    except TypeError:
        raise TypeError(f"stop takes a text or several, got {stop!r}") from None


def _special_ids(tokenizer: Any, stops: Iterable[str]) -> dict[int, str]:
    """Return the stop strings that are special tokens, by their ids."""
    look_up = getattr(tokenizer, "convert_tokens_to_ids", getattr(tokenizer, "token_to_id", None))
    if look_up is None:
        return {}
    skipping = decode_of(tokenizer, skip_special_tokens=True)
    showing = decode_of(tokenizer, skip_special_tokens=False)
    found = {}
    for stop in stops:
        token = look_up(stop)  # that of unknown tokens, perhaps
        if isinstance(token, int) and not skipping([token]) and showing([token]) == stop:
            found[token] = stop
    return found


def _no_token(output: object) -> TypeError:
    kind = type(output).__name__
    instead = "let the source yield token ids"
    if isinstance(output, tuple | list | Mapping):
        instead = (
            "if it holds a token id, pass a decoder that takes it out, such as "
            "PieceDecoder(decoder, key=0) for pairs (token, logprob)"
        )
    elif isinstance(output, str):
        instead = "text needs no tokenizer: pass StopStrings(...) as its decoder"
    return TypeError(f"a TextDecoder takes token ids, got an output of type {kind}: {instead}")


# ---- checks


def check_decode(decode: object, argument: str) -> None:
    """Check what is to make a decoder for each stream.

    Args:
        decode: The function.
        argument: What it is given, for the message.

    Raises:
        TypeError: It is no function that answers at once, or it is a decoder.
    """
    if not callable(decode):
        instead = ""
        if all(hasattr(decode, name) for name in _METHODS):
            instead = ": a decoder is for one stream, so pass lambda request: TextDecoder(...)"
        raise TypeError(
            f"decode takes a function of {argument} that returns a decoder, got {decode!r}{instead}"
        )
    owner = getattr(decode, "__self__", None)
    if any(hasattr(owner, name) for name in ("convert_ids_to_tokens", "id_to_token")):
        raise TypeError(
            f"decode takes a function of {argument} that returns a decoder, got a method of a "
            f"tokenizer: pass lambda request: TextDecoder(tokenizer)"
        )
    if is_kind(inspect.iscoroutinefunction, decode):
        raise TypeError(
            f"decode takes a function that answers at once, got the coroutine function {decode!r}: "
            f"write it with def"
        )


def check_decoder(decoder: object, name: str) -> None:
    """Check what is to be the decoder of a stream; None is for one whose outputs do not change.

    Raises:
        TypeError: It has not the methods of a decoder.
        ValueError: It has ended a stream before.
    """
    if decoder is None:
        return
    missing = [it for it in _METHODS if not hasattr(decoder, it)]
    if missing or isinstance(decoder, type):
        without = f" without {', '.join(missing)}" if missing else ", a class: call it"
        raise TypeError(
            f"{name} must have the methods feed and finish and the attributes matched and info, as "
            f"a TextDecoder has, got {decoder!r}{without}"
        )
    _check_unused(decoder, name)


def _check_unused(decoder: Any, name: str) -> None:
    """Check that a decoder has not ended a stream: another one would be empty, in silence.

    Raises:
        ValueError: It has.
    """
    matched = getattr(decoder, "matched", None)
    if matched is not None:
        raise ValueError(
            f"{name} must be new for each stream, got {decoder!r}, which has ended one at "
            f"{matched!r}: make it where the stream begins, as lambda request: TextDecoder(...) "
            f"does"
        )
