"""Text together with the outputs that it was made of, for outputs that are more than a token id."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple

from typing_extensions import TypeVar

from batchstream._text.decoder import Decoder, check_decoder

T = TypeVar("T", default=Any)


class Piece(NamedTuple, Generic[T]):
    """A piece of a stream's text.

    Attributes:
        text: The text.
        outputs: What the model gave for it, such as pairs `(token, logprob)`. There may be none:
            the text is then the rest of an output's that came before.
    """

    text: str
    outputs: tuple[T, ...]


class PieceDecoder(Generic[T]):
    """Decodes outputs that hold a token id, and keeps them with their text.

    Every output comes with the piece in which its text begins, and one without text with the next
    piece. So an output that completes no character, or whose text may be the beginning of a stop
    string, waits as the text itself does. One whose text would begin in the stop string is dropped,
    as are the outputs behind it.

    Args:
        decoder: Decodes the token ids: a `TextDecoder`. Of another decoder each output comes with
            the first text that follows it, unless it counts the `characters` as well.
        key: Where an output holds its token id, as in `token_ids`: a position in a tuple, a key in
            a dict, or a function of an output.

    Raises:
        TypeError: `decoder` is no decoder.

    Threads: any thread, one call at a time.

    Example:
        >>> from batchstream.text import PieceDecoder, TextDecoder
        >>> class Bytes:
        ...     def decode(self, ids):
        ...         return bytes(ids).decode(errors="replace")
        >>> decoder = PieceDecoder(TextDecoder(Bytes()), key=0)
        >>> [decoder.feed((byte, -0.5)) for byte in "é".encode()]
        [None, Piece(text='é', outputs=((195, -0.5), (169, -0.5)))]
    """

    __slots__ = ("_decoder", "_given", "_pending", "_token_of")

    def __init__(
        self,
        decoder: Decoder[int, str],
        *,
        key: int | str | Callable[[T], object] = 0,
    ) -> None:
        check_decoder(decoder, "decoder")
        self._decoder = decoder
        self._token_of: Callable[[Any], Any] = key if callable(key) else _Found(key)
        self._given = 0  # how many characters
        # With the position at which the text of each begins; nothing is known to begin at -1.
        self._pending: deque[tuple[int, T]] = deque()

    @property
    def stops(self) -> object:
        """The stop strings of the decoder."""
        return getattr(self._decoder, "stops", None)

    @property
    def matched(self) -> object:
        """What has ended the text, as the decoder says."""
        return self._decoder.matched

    @property
    def info(self) -> Mapping[str, Any]:
        """What the decoder says of the end."""
        return self._decoder.info

    def feed(self, *outputs: T) -> Piece[T] | None:
        """Take the next outputs, and return the text that is certain with them, if there is any.

        Raises:
            TypeError: An output holds no token id under the key.
            Exception: What the decoder raises.
        """
        decoder, text = self._decoder, ""
        given: list[T] = []
        for output in outputs:
            if decoder.matched is not None:
                break
            self._pending.append((getattr(decoder, "characters", -1), output))
            new = decoder.feed(self._token_of(output))
            if new:
                text += new
                given += self._take(new)
        return Piece(text, tuple(given)) if text else None

    def finish(self) -> Piece[T] | None:
        """Return the text that is held back, and the outputs without text."""
        text = self._decoder.finish() or ""
        given = self._take(text)
        if self._decoder.matched is None:
            given += [output for _, output in self._pending]
        self._pending.clear()
        return Piece(text, tuple(given)) if text or given else None

    def _take(self, text: str) -> list[T]:
        """Take the outputs whose text begins in a text that is given, or before it."""
        self._given += len(text)
        taken: list[T] = []
        while self._pending and self._pending[0][0] < self._given:
            taken.append(self._pending.popleft()[1])
        return taken


class _Found:
    """Takes the token id out of an output, where it has the key."""

    __slots__ = ("_find", "_key")

    def __init__(self, key: int | str) -> None:
        self._key = key
        self._find = operator.itemgetter(key)

    def __call__(self, output: Any) -> Any:
        try:
            return self._find(output)
        except Exception as error:
            raise TypeError(
                f"a PieceDecoder finds no token id in an output of type {type(output).__name__} "
                f"with key={self._key!r}: pass the key under which outputs hold it; or pass the "
                f"TextDecoder alone, if the outputs are the ids"
            ) from error
