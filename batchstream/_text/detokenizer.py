"""Token ids become text, and no character is ever given by half.

Theory of operation
-------------------

Decoding token by token is not decoding the whole: a character may be spread over several tokens,
and a decoder may drop the space in front of what it takes for the first word. So a token is decoded
behind some tokens before it, its *context*, and what is new in the text is what it gave. Text that
ends with U+FFFD is most likely a character that is not complete: its tokens are *pending*, until
others complete it or `finish` gives them as they are.

`tokenizers` has this in Rust, as `DecodeStream`, and so it is done there if the tokenizer is one of
its own (`_FastStream`). What it lacks is added: it has no end, and it raises at each token for ever
once a byte token spoils a character that was given before. Any other tokenizer needs no more than
`decode` (`_PlainStream`). So does a context that ends in the middle of a character, as a prompt may
that was cut: `DecodeStream` would give its text once more.
"""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Final

_INCOMPLETE: Final = "\ufffd"
_CONTEXT: Final = 6
"""How many tokens of a prompt are context: enough for a decoder to see that it is not at the start.
A few more if these begin in the middle of a character, which has four tokens at most."""
_MOST_PENDING: Final = 64
"""How many tokens may be pending. A model may repeat a byte that is no character, or a special
token that is skipped, for ever: then each token would take longer than the one before."""
_KEPT_PENDING: Final = 4
"""Of these, how many stay pending: as many as the bytes of the longest character."""

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    r"""Turns the token ids of one stream into text, which never ends in the midst of a character.

    The pieces add up to what `decode` gives for all ids together, whatever the ids are. There is
    one difference, for tokenizers whose byte tokens stand for characters that they do not know
    ("byte fallback"): if the model spoils a run of byte tokens, `decode` makes U+FFFD of each of
    them. Here a character that was complete before has been given, and stays; and a run of 64
    tokens and more is decoded in parts, so that a character that is complete in its part is text.

    Memory: the ids that have not become text yet, and a few before them.

    Args:
        tokenizer: A tokenizer of transformers, a `tokenizers.Tokenizer`, or any object whose method
            `decode` takes a list of ids and returns text. The first two are decoded in Rust.
        prompt_ids: The ids of the prompt, or its last ones. They give no text, and are the context:
            many decoders drop the space in front of a first word, which in the middle of a text
            belongs there.
        skip_special_tokens: Whether special tokens give no text. It has no effect on a tokenizer
            whose `decode` has no such option.

    Raises:
        TypeError: The tokenizer has no `decode`, or the ids of the prompt are no ids.

    Threads: any thread, one call at a time.

    Example:
        >>> from batchstream.text import Detokenizer
        >>> class Bytes:
        ...     def decode(self, ids):
        ...         return bytes(ids).decode(errors="replace")
        >>> detokenizer = Detokenizer(Bytes())
        >>> [detokenizer.feed(byte) for byte in "aé".encode() + b"\xc3"]
        ['a', '', 'é', '']
        >>> detokenizer.finish()
        '�'
    """

    __slots__ = ("_stream",)

    def __init__(
        self, tokenizer: Any, *, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> None:
        self._stream = stream_of(tokenizer, prompt_ids, skip_special_tokens=skip_special_tokens)

    def feed(self, *tokens: int) -> str:
        """Take the next tokens, and return the text that is complete with them; it may be empty.

        Raises:
            TypeError, OverflowError: A token is no token id.
            Exception: What the tokenizer raises.
        """
        if len(tokens) == 1:
            return self._stream.feed(operator.index(tokens[0]))
        return "".join(map(self._stream.feed, map(operator.index, tokens)))

    def finish(self) -> str:
        """Return the text of tokens that complete no character, as the tokenizer shows them."""
        return self._stream.finish()


def stream_of(
    tokenizer: Any, prompt_ids: Sequence[int], *, skip_special_tokens: bool
) -> _FastStream | _PlainStream:
    """Return what decodes the ids of one stream; see `Detokenizer` for the arguments."""
    fast = _fast_tokenizer(tokenizer)
    found, new_stream = fast or (tokenizer, None)
    decode = decode_of(found, skip_special_tokens=skip_special_tokens)
    context = _context_of(prompt_ids, decode)
    if new_stream is None or (context and decode(context).endswith(_INCOMPLETE)):
        return _PlainStream(decode, context)
    return _FastStream(found, new_stream, decode, context, skip_special_tokens=skip_special_tokens)


def _context_of(prompt_ids: Any, decode: Decode) -> list[int]:
    """Return the last ids of a prompt, so many that they have a text of whole characters."""
    ids = [operator.index(token) for token in ids_of(prompt_ids)[-_CONTEXT - 3 :]]
    for length in range(_CONTEXT, len(ids)):
        text = decode(ids[-length:])
        if text and not text.endswith(_INCOMPLETE):
            return ids[-length:]
    return ids


class _FastStream:
    """Decodes ids with the `DecodeStream` of `tokenizers`."""

    __slots__ = (
        "_context",
        "_decode",
        "_new_stream",
        "_newest",
        "_pending",
        "_skips",
        "_step",
        "_tokenizer",
    )

    def __init__(
        self,
        tokenizer: Any,
        new_stream: Callable[..., Any],
        decode: Decode,
        context: list[int],
        *,
        skip_special_tokens: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._decode = decode
        self._new_stream = new_stream
        self._skips = skip_special_tokens
        self._pending: list[int] = []
        self._context: Sequence[int]
        self._newest: Sequence[int]  # the tokens that have become text last
        self._step: Callable[[Any, int | list[int]], str | None]
        self._begin(context)

    def feed(self, token: int) -> str:
        """Take a token, and return the text that is complete with it."""
        try:
            text = self._step(self._tokenizer, token)
        except Exception as error:
            if "Invalid prefix" not in str(error):  # the class is Exception itself
                raise
            text = self._begin_anew(token)
        if text is None:
            self._pending.append(token)
            return "" if len(self._pending) < _MOST_PENDING else self._give_up()
        newest: Sequence[int] = (token,)
        if self._pending:
            newest = (*self._pending, token)
            self._pending.clear()
        if text == " ":  # dropped where it is the first, and so no context by itself
            self._begin((*self._newest, *newest))
        else:
            self._context = newest
        self._newest = newest
        return text

    def _begin(self, context: Sequence[int]) -> None:
        self._context = self._newest = context
        self._step = self._new_stream(list(context), self._skips).step

    def _begin_anew(self, token: int) -> str | None:
        """Take a token that changed what text before it stands for, which was given already."""
        self._begin(())
        return self._step(self._tokenizer, [*self._pending, token])

    def _give_up(self) -> str:
        """Return the text of pending tokens that will complete no character."""
        kept = self._pending[-_KEPT_PENDING:]
        text = self._text_of(self._pending[:-_KEPT_PENDING])
        self._begin(() if text else self._context)
        more = self._step(self._tokenizer, kept)
        if more is None:
            self._pending = kept
        else:
            self._pending = []
            self._context = self._newest = kept
        return text + (more or "")

    def finish(self) -> str:
        """Return the text of the pending tokens."""
        pending, self._pending = self._pending, []
        return self._text_of(pending) if pending else ""

    def _text_of(self, pending: Sequence[int]) -> str:
        shown = self._decode(self._context)
        text = self._decode([*self._context, *pending])
        return text[len(shown) :] if text.startswith(shown) else self._decode(pending)


class _PlainStream:
    """Decodes ids with nothing but a function that decodes a list of them."""

    __slots__ = ("_context", "_decode", "_ids", "_newest", "_shown")

    def __init__(self, decode: Decode, context: list[int]) -> None:
        self._decode = decode
        self._ids = context  # the context, and the pending tokens
        self._context = len(context)  # how many of these are the context
        self._newest = 0  # where in the context the tokens begin that have become text last
        self._shown = decode(context) if context else ""  # its text

    def feed(self, token: int) -> str:
        """Take a token, and return the text that is complete with it."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if not text.startswith(self._shown):  # what was given already stands for something else now
            del self._ids[: self._context]
            self._context, self._newest, self._shown = 0, 0, ""
            text = self._decode(self._ids)
        if text.endswith(_INCOMPLETE) or len(text) == len(self._shown):
            many = len(self._ids) - self._context >= _MOST_PENDING
            return self._give_up(text) if many else ""
        new = text[len(self._shown) :]
        self._go_on()
        return new

    def _give_up(self, text: str) -> str:
        """Return the text of pending tokens that will complete no character."""
        if len(text) == len(self._shown):  # special tokens
            del self._ids[self._context :]
            return ""
        given = len(self._ids) - _KEPT_PENDING
        new = self._decode(self._ids[:given])[len(self._shown) :]
        del self._ids[:given]
        self._context, self._newest, self._shown = 0, 0, ""
        return new

    def _go_on(self) -> None:
        """Make the tokens that have just become text the context of the next ones."""
        start = self._context
        shown = self._decode(self._ids[start:])
        if not shown:  # it is a space, which is dropped where it is the first
            start = self._newest
            shown = self._decode(self._ids[start:])
        del self._ids[:start]
        self._newest = self._context - start
        self._context, self._shown = len(self._ids), shown

    def finish(self) -> str:
        """Return the text of the pending tokens."""
        pending = self._ids[self._context :]
        del self._ids[self._context :]
        if not pending:
            return ""
        return self._decode([*self._ids, *pending])[len(self._shown) :]


def decode_of(tokenizer: Any, *, skip_special_tokens: bool) -> Decode:
    """Return the function of a tokenizer that decodes a list of ids.

    Raises:
        TypeError: It has none.
    """
    decode: Any = getattr(tokenizer, "decode", None)
    if not callable(decode):
        # A model would be shown layer by layer.
        got = repr(tokenizer) if isinstance(tokenizer, str | None) else type(tokenizer).__name__
        raise TypeError(
            f"tokenizer takes an object with a method decode, got {got}: pass a tokenizer of "
            f"transformers, a tokenizers.Tokenizer, or an object whose decode takes a list of "
            f"token ids"
        )
    if _takes_skip(getattr(decode, "__func__", decode)):
        decode = partial(decode, skip_special_tokens=skip_special_tokens)
    return decode  # type: ignore[no-any-return]


@lru_cache(maxsize=64)
def _takes_skip(decode: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(decode).parameters
    except (TypeError, ValueError):  # of a function in C, for example
        return False
    kinds = [parameter.kind for parameter in parameters.values()]
    return "skip_special_tokens" in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def _fast_tokenizer(tokenizer: Any) -> tuple[Any, Callable[..., Any]] | None:
    """Return a tokenizer in Rust and the class of its streams; None if it is another one."""
    library = sys.modules.get("tokenizers")  # which made it, and so it was imported
    decoders = sys.modules.get("tokenizers.decoders")
    new_stream = getattr(decoders, "DecodeStream", None)
    if library is None or new_stream is None:
        return None
    found = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return (found, new_stream) if isinstance(found, library.Tokenizer) else None


def ids_of(prompt_ids: Any) -> Sequence[int]:
    """Return the ids of a prompt, an array of them as a list.

    Raises:
        TypeError: They are the ids of several prompts, or text, or no sequence.
    """
    if hasattr(prompt_ids, "tolist"):
        prompt_ids = prompt_ids.tolist()
    is_sequence = isinstance(prompt_ids, Sequence) and not isinstance(prompt_ids, str | bytes)
    if not is_sequence or (len(prompt_ids) and isinstance(prompt_ids[0], Sequence)):
        raise TypeError(
            f"prompt_ids takes the token ids of one prompt, got {prompt_ids!r}: pass a list of "
            f"whole numbers, such as tokenizer(prompt)['input_ids']"
        )
    return prompt_ids  # type: ignore[no-any-return]
