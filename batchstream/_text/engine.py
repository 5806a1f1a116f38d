"""An engine of text out of an engine of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol

from typing_extensions import TypeVar

from batchstream._core.arguments import check_count, check_limit
from batchstream._core.cores import core_of
from batchstream._core.per_request import per_request
from batchstream._core.rules import EndRules
from batchstream._text.core import DecodingCore, fed, marked
from batchstream._text.decoder import Decoder, check_decode, check_decoder

T = TypeVar("T", default=Any)
RequestT = TypeVar("RequestT", default=Any)
_RequestT_contra = TypeVar("_RequestT_contra", contravariant=True)


class TokenEngine(Protocol[_RequestT_contra]):
    """What a `DecodingEngine` takes: a `StepEngine`."""

    def add(self, slot: int, request: _RequestT_contra) -> None:
        """Let a request join."""

    def step(self) -> Any:
        """Make one step."""

    def remove(self, slot: int) -> None:
        """Free what the slot's request needed."""


class DecodingEngine(Generic[RequestT, T]):
    """A `StepEngine` of text out of a `StepEngine` of tokens, with a decoder for each request.

    For engines that are driven by something else than a batcher or a loop of this library: these
    have `decode=`, which does the same and is shorter. A stop string ends its request in the step
    that completes it; the request is then removed before the next one.

    All that looks at tokens belongs here, and not to what drives the engine: the end mark, `is_eos`
    and `max_outputs`.

    Args:
        engine: The engine of tokens.
        decode: A function of a request that returns its decoder, such as a `TextDecoder`, or None
            for a request whose outputs stay as they are. It is called when the request joins.
        slots: How many slots the engine has: the `max_batch_size` of what drives it.
        eos: The end mark in the engine's steps, compared by identity.
        is_eos: A predicate on tokens that is true of the one that ends its sequence, which is
            neither decoded nor counted; or `per_request` of a function that returns a request's
            own.
        max_outputs: How many tokens a request gets at most: a number, or a function of a request
            that returns one or None.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.

    Threads: as the engine of tokens.

    Example:
        >>> from batchstream.text import DecodingEngine, StopStrings
        >>> class Words:
        ...     def __init__(self):
        ...         self.words = {}
        ...
        ...     def add(self, slot, request):
        ...         self.words[slot] = iter(request.split(" "))
        ...
        ...     def step(self):
        ...         return {slot: next(words, None) for slot, words in self.words.items()}
        ...
        ...     def remove(self, slot):
        ...         del self.words[slot]
        >>> engine = DecodingEngine(Words(), lambda request: StopStrings("b c"), slots=2)
        >>> engine.add(0, "a b a")
        >>> engine.step(), engine.step(), engine.step()
        ({0: 'a'}, {}, {0: 'ba'})
    """

    def __init__(
        self,
        engine: TokenEngine[RequestT],
        decode: Callable[[RequestT], Decoder[Any, T] | None],
        *,
        slots: int,
        eos: object = None,
        is_eos: Callable[[Any], object] | per_request[RequestT, Any] | None = None,
        max_outputs: int | Callable[[RequestT], int | None] | None = None,
    ) -> None:
        check_decode(decode, "one request")
        self._engine = engine
        self._decode = decode
        self._rules: EndRules[Any] = EndRules(eos=eos, is_eos=is_eos, has_requests=True)
        self._max_outputs = max_outputs if callable(max_outputs) else check_limit(max_outputs)
        self._size = check_count("slots", slots, at_least=1)
        self._core = self._vacant_core()

    def _vacant_core(self) -> DecodingCore:
        return DecodingCore(core_of(self._rules, self._size, vacant=True))

    def add(self, slot: int, request: RequestT) -> None:
        """Let a request join, in a slot that is free.

        Raises:
            TypeError, ValueError: The decoder, the limit or the predicate of the request is none.
            IndexError: There is no such slot: `slots` is less than what drives the engine has.
            ValueError: The slot is not free.
            Exception: What the engine or a function of the request raises; nothing was added.
        """
        limit = self._max_outputs
        max_outputs = check_limit(limit(request)) if callable(limit) else limit
        is_eos = self._rules.is_eos_of(request)
        decoder = self._decode(request)
        check_decoder(decoder, "what decode returns")
        if not 0 <= slot < self._size:
            raise IndexError(
                f"no slot {slot!r}, the DecodingEngine has slots={self._size}: make it with as "
                f"many as the max_batch_size of what drives it"
            )
        # First, as it may refuse; what the engine has taken would have to be removed again.
        self._core.open(slot, max_outputs=max_outputs, is_eos=is_eos, decoder=decoder)
        try:
            self._engine.add(slot, request)
        except BaseException:
            self._core.cancel(slot)
            raise

    def step(self) -> dict[int, Any]:
        """Make one step, and return what the decoders make of it.

        Raises:
            StepError: The engine's step cannot be read. All requests have failed: remove them, and
                others can be added.
            Exception: What the engine raises.
        """
        try:
            return marked(fed(self._core, self._engine.step()))
        finally:
            if not self._core.running:
                self._core = self._vacant_core()

    def remove(self, slot: int) -> None:
        """Free what the slot's request needed."""
        self._core.cancel(slot)
        self._engine.remove(slot)

    def wake(self) -> None:
        """Let a step that waits return, if the engine has a way to do so; from any thread."""
        wake = getattr(self._engine, "wake", None)
        if wake is not None:
            wake()

    def close(self) -> None:
        """Close the engine, if it can be closed."""
        close = getattr(self._engine, "close", None)
        if close is not None:
            close()
