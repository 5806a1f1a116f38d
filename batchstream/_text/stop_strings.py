"""Stop strings in a text that comes in pieces, found as if it came character by character.

Theory of operation
-------------------

Each stop string has a `_Search`, which knows how much of the stop string the text ends with: its
*state*, a number of characters. A character that goes on raises the state; another one lets it fall
back to the longest beginning that the text still ends with (Knuth, Morris and Pratt, 1977). So
every character of the text is looked at about once, however long a stop string is and however the
text is cut. While no stop string has begun, one search for its first character, in C, is all.

The highest state is what has to be held back: that many characters at the end of the text may turn
out to be part of a stop string, and no others.
"""

from __future__ import annotations

from typing import Any


class StopStrings:
    r"""Cuts a text at its stop string, and lets through what is sure not to belong to one.

    Of several stop strings in the text, the one that ends first counts; if several end there, the
    longest. So it makes no difference how the text is cut into pieces. Text is held back only while
    it may be the beginning of a stop string: exactly the longest end of the text that is one.

    It is for the text of one stream. It can be a stream's decoder, see `decode_steps`, where the
    outputs are pieces of text.

    Args:
        *stops: The stop strings.
        include: Whether the stop string itself is let through.

    Attributes:
        stops: The stop strings, each once.
        include: Whether the stop string itself is let through.
        matched: The stop string that was found; None before.

    Raises:
        TypeError: A stop string is no text.
        ValueError: A stop string is empty.

    Threads: any thread, one call at a time.

    Example:
        >>> from batchstream.text import StopStrings
        >>> stops = StopStrings("STOP", "\nUser:")
        >>> stops.feed("so be it. S"), stops.feed("o be it. ST"), stops.feed("OP it now")
        ('so be it. ', 'So be it. ', '')
        >>> stops.matched
        'STOP'
    """

    __slots__ = ("_held", "_searches", "include", "matched", "stops")

    def __init__(self, *stops: str, include: bool = False) -> None:
        self.stops = tuple(dict.fromkeys(map(_checked, stops)))
        self._searches = list(map(_Search, self.stops))
        self.include = include
        self._held = ""
        self.matched: str | None = None

    def __repr__(self) -> str:
        stops = ", ".join(map(repr, self.stops))
        return f"StopStrings({stops}{', include=True' if self.include else ''})"

    @property
    def info(self) -> dict[str, Any]:
        """What the end of a stream says of it: which stop string ended it, under `"stop"`."""
        return {"stop": self.matched}

    def feed(self, *texts: str) -> str:
        """Take the next text, and return what is sure not to belong to a stop string.

        Text behind a stop string is dropped, in this call and in later ones.
        """
        text = texts[0] if len(texts) == 1 else "".join(texts)
        if self.matched is not None:
            return ""
        first_end, state = 0, 0
        for search in self._searches:
            if not search.state and search.first not in text:
                continue
            end = search.feed(text)
            if not end:
                if search.state > state:  # noqa: PLR1730 - max() would take longer than the rest
                    state = search.state
            elif not first_end or (end, -len(search.stop)) < (first_end, -len(self.matched or "")):
                first_end, self.matched = end, search.stop
        held = self._held
        if self.matched is not None:
            self._held = ""
            end = len(held) + first_end
            return (held + text)[: end if self.include else end - len(self.matched)]
        if not state:
            if not held:
                return text
            self._held = ""
            return held + text
        text = held + text
        self._held = text[-state:]
        return text[:-state]

    def finish(self) -> str:
        """Return what is held back: the text has ended without a stop string."""
        held, self._held = self._held, ""
        for search in self._searches:
            search.state = 0
        return held


class _Search:
    """How much of one stop string the text ends with.

    Attributes:
        stop: The stop string.
        first: Its first character.
        state: How many of its characters the text ends with; fewer than all.
    """

    __slots__ = ("_fallbacks", "first", "state", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.first = stop[0]
        self.state = 0
        # By a number of characters: how long the longest beginning is that they also end with.
        self._fallbacks = [0, 0]

    def feed(self, text: str) -> int:
        """Take text, and return at which position of it the stop string ends; 0 if it does not."""
        stop, first, state = self.stop, self.first, self.state
        last = len(stop) - 1
        position, length = 0, len(text)
        while position < length:
            if not state:
                position = text.find(first, position)
                if position < 0:
                    break
            elif text[position] != stop[state]:
                state = self._fallback(state)
                continue
            position += 1
            if state == last:
                return position
            state += 1
        self.state = state
        return 0

    def _fallback(self, state: int) -> int:
        """Return the next lower state for text that ends with so many characters."""
        fallbacks, stop = self._fallbacks, self.stop
        # Worked out as far as the text has come: a stop string may be long, and rarely begins.
        while len(fallbacks) <= state:
            length = len(fallbacks)
            shorter = fallbacks[-1]
            while shorter and stop[shorter] != stop[length - 1]:
                shorter = fallbacks[shorter]
            fallbacks.append(shorter + 1 if stop[shorter] == stop[length - 1] else 0)
        return fallbacks[state]


def _checked(stop: object) -> str:
    if not isinstance(stop, str):
        instead = ": pass StopStrings(*stops)" if isinstance(stop, list | tuple) else ""
        raise TypeError(f"a stop string must be text, got {stop!r}{instead}")
    if not stop:
        raise ValueError("a stop string must not be empty: leave it out")
    return stop
