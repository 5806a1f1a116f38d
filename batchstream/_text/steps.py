"""Steps of text out of steps of tokens: a source that stands between another one and a batch."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from batchstream._core.cores import core_of
from batchstream._core.errors import type_name
from batchstream._core.markers import SKIP
from batchstream._core.rules import EndRules
from batchstream._pumps.source import AsyncSource, Source
from batchstream._text.core import DecodingCore, fed, keep, marked
from batchstream._text.decoder import check_decoder

if TYPE_CHECKING:
    from batchstream._core.records import Delivery
    from batchstream._text.decoder import Decoder


@overload
def decode_steps(
    source: Iterable[Any],
    decoders: Sequence[Decoder[Any, Any] | None],
    *,
    eos: object = None,
    is_eos: Callable[[Any], object] | None = None,
    max_outputs: int | Sequence[int | None] | None = None,
    require_eos: bool = False,
) -> DecodedSteps: ...
@overload
def decode_steps(
    source: AsyncIterable[Any],
    decoders: Sequence[Decoder[Any, Any] | None],
    *,
    eos: object = None,
    is_eos: Callable[[Any], object] | None = None,
    max_outputs: int | Sequence[int | None] | None = None,
    require_eos: bool = False,
) -> AsyncDecodedSteps: ...
def decode_steps(
    source: Iterable[Any] | AsyncIterable[Any],
    decoders: Sequence[Decoder[Any, Any] | None],
    *,
    eos: object = None,
    is_eos: Callable[[Any], object] | None = None,
    max_outputs: int | Sequence[int | None] | None = None,
    require_eos: bool = False,
) -> DecodedSteps | AsyncDecodedSteps:
    """Make a source of text out of a source of tokens, with a decoder for each slot.

    What is returned is a source for `demux`, `BatchedStream`, the function of a `DynamicBatcher`
    and so on. A stop string ends its slot in the step that completes it: the source below learns
    with the next step that the slot is not live. What a decoder holds back is delivered with the
    end, unless the stream is cancelled or fails. A slot without text in a step gets nothing.

    All that looks at tokens belongs here, and not to the batch of text around it: the end mark,
    `is_eos` and `max_outputs`. Where a batcher or a loop has `decode=`, that is the shorter way.

    Args:
        source: The steps of tokens, as `demux` takes them.
        decoders: A `TextDecoder` for each slot, or an object with its methods; None for a slot
            whose outputs stay as they are.
        eos: The end mark in the source's steps, compared by identity; see `demux`.
        is_eos: A predicate on tokens that is true of the one that ends its sequence. That one is
            neither decoded nor counted.
        max_outputs: How many tokens a slot gets at most: one number for all, or one for each. What
            is more ends with the reason `length`.
        require_eos: Slots that are live when the source ends fail with `MissingEOSError`.

    Returns:
        An iterator of steps, with the method `send` for the live slots, and with `close`, which
        closes the source; of an asynchronous source an asynchronous one, with `asend` and `aclose`.
        It ends when no slot is live.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind, or cannot work.

    Example:
        >>> import batchstream
        >>> from batchstream.text import StopStrings, decode_steps
        >>> def model():
        ...     yield ["so ", "on "]
        ...     yield ["be it. ST", "and "]
        ...     yield ["OP", "on"]
        >>> steps = decode_steps(model(), [StopStrings("STOP"), StopStrings("STOP")])
        >>> first, second = batchstream.demux(steps)
        >>> list(first), list(second), first.end.info
        (['so ', 'be it. '], ['on ', 'and ', 'on'], {'stop': 'STOP'})
    """
    given: object = decoders
    if not isinstance(given, list | tuple):
        raise TypeError(
            f"decoders takes a list with a decoder for each slot, got {type_name(decoders)}: pass "
            f"[decoder] for a single slot"
        )
    for decoder in decoders:
        check_decoder(decoder, "a decoder")
    rules: EndRules[Any] = EndRules(eos=eos, is_eos=is_eos, require_eos=require_eos)
    core = DecodingCore(core_of(rules, len(decoders), max_outputs), decoders)
    steps: Any = source
    if hasattr(source, "__aiter__"):
        return AsyncDecodedSteps(AsyncSource(steps), core)
    return DecodedSteps(Source(steps), core)


class DecodedSteps(Iterator[list[Any]]):
    """The steps that `decode_steps` makes of a source, which runs in the context it was made in.

    Threads: any thread, one call at a time.
    """

    def __init__(self, source: Source, core: DecodingCore) -> None:
        self._source = source
        self._core = core

    def __next__(self) -> list[Any]:
        """Advance the source, and return its step after the decoders.

        Raises:
            StopIteration: The source has ended or raised before, or no slot is live.
            BaseException: What the source raises; `StepError` if a step cannot be read.
        """
        core = self._core
        if not (core.running and core.has_live):
            self.close()
            raise StopIteration
        try:
            step = self._source.advance(core.live)
        except StopIteration:
            return elements_of(core.finish(), core.size)
        except BaseException as error:
            core.fail(error)  # it is over: what is held back must not come as if it were whole
            raise
        return elements_of(fed(core, step), core.size)

    def send(self, live: Iterable[int] | None) -> list[Any]:
        """Do the same for these slots alone: the streams of the others have ended."""
        keep(self._core, live)
        return next(self)

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class AsyncDecodedSteps(AsyncIterator[list[Any]]):
    """The steps that `decode_steps` makes of an asynchronous source.

    Threads: the task that reads it.
    """

    def __init__(self, source: AsyncSource, core: DecodingCore) -> None:
        self._source = source
        self._core = core

    async def __anext__(self) -> list[Any]:
        """Advance the source, and return its step after the decoders.

        Raises:
            StopAsyncIteration: The source has ended or raised before, or no slot is live.
            BaseException: What the source raises; `StepError` if a step cannot be read.
        """
        core = self._core
        if not (core.running and core.has_live):
            await self.aclose()
            raise StopAsyncIteration
        try:
            step = await self._source.advance(core.live)
        except StopAsyncIteration:
            return elements_of(core.finish(), core.size)
        except BaseException as error:
            core.fail(error)  # it is over: what is held back must not come as if it were whole
            raise
        return elements_of(fed(core, step), core.size)

    async def asend(self, live: Iterable[int] | None) -> list[Any]:
        """Do the same for these slots alone: the streams of the others have ended."""
        keep(self._core, live)
        return await anext(self)

    async def aclose(self) -> None:
        """Close the source."""
        await self._source.aclose()


def elements_of(delivery: Delivery[Any], size: int) -> list[Any]:
    """Return what was delivered as a step with an element for each of so many slots."""
    step = [SKIP] * size
    for slot, element in marked(delivery).items():
        step[slot] = element
    return step
