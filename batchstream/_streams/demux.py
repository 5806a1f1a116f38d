"""The one function for every source: streams alone, of the kind that the source asks for."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, overload

from typing_extensions import TypeVar, Unpack

from batchstream._streams.async_batch import AsyncBatchedStream
from batchstream._streams.async_stream import AsyncStream
from batchstream._streams.batch import BatchedStream
from batchstream._streams.stream import Stream

if TYPE_CHECKING:
    from batchstream._core.arguments import OnOverflow
    from batchstream._core.elements import Step, StepWithNone

T = TypeVar("T", default=Any)


class _Options(TypedDict, total=False):
    include_eos: bool
    max_outputs: int | Sequence[int | None] | None
    require_eos: bool
    max_buffered: int | None


class _AsyncOptions(_Options, total=False):
    on_overflow: OnOverflow
    merge: Callable[[Any, Any], Any] | None
    max_buffered_bytes: int | None
    size_of: Callable[[Any], int] | None


@overload
def demux(
    source: AsyncIterable[StepWithNone[T]],
    size: int,
    *,
    eos: None = None,
    is_eos: Callable[[T], object] | None = None,
    **options: Unpack[_AsyncOptions],
) -> tuple[AsyncStream[T], ...]: ...
@overload
def demux(
    source: AsyncIterable[Step[T]],
    size: int,
    *,
    eos: object,
    is_eos: Callable[[T], object] | None = None,
    **options: Unpack[_AsyncOptions],
) -> tuple[AsyncStream[T], ...]: ...
@overload
def demux(
    source: AsyncIterable[Any],
    size: int,
    *,
    eos: object = None,
    is_eos: Callable[[Any], object] | None = None,
    **options: Unpack[_AsyncOptions],
) -> tuple[AsyncStream[Any], ...]: ...
@overload
def demux(
    source: Iterable[StepWithNone[T]],
    size: int | None = None,
    *,
    eos: None = None,
    is_eos: Callable[[T], object] | None = None,
    **options: Unpack[_Options],
) -> tuple[Stream[T], ...]: ...
@overload
def demux(
    source: Iterable[Step[T]],
    size: int | None = None,
    *,
    eos: object,
    is_eos: Callable[[T], object] | None = None,
    **options: Unpack[_Options],
) -> tuple[Stream[T], ...]: ...
@overload
def demux(
    source: Iterable[Any],
    size: int | None = None,
    *,
    eos: object = None,
    is_eos: Callable[[Any], object] | None = None,
    **options: Unpack[_Options],
) -> tuple[Stream[Any], ...]: ...
def demux(
    source: Iterable[Any] | AsyncIterable[Any],
    size: int | None = None,
    *,
    eos: object = None,
    is_eos: Callable[[Any], object] | None = None,
    include_eos: bool = False,
    max_outputs: int | Sequence[int | None] | None = None,
    require_eos: bool = False,
    max_buffered: int | None = None,
    on_overflow: OnOverflow = "wait",
    merge: Callable[[Any, Any], Any] | None = None,
    max_buffered_bytes: int | None = None,
    size_of: Callable[[Any], int] | None = None,
) -> tuple[Stream[Any], ...] | tuple[AsyncStream[Any], ...]:
    """Return one stream per slot of a batched source, an `AsyncStream` if the source is async.

    The streams stand for themselves: the source is closed when the last of them has ended, was
    cancelled or is no longer referenced. Where a block should close it use `BatchedStream` or
    `AsyncBatchedStream`, which take the same arguments, raise the same errors and say more of
    them; the latter also lets a synchronous source be consumed in an event loop.

    An asynchronous source needs `size`. It is moved by a task, which begins with the first receive
    and runs ahead of the streams; there `max_buffered=None` means 1024 outputs, and `on_overflow`
    says what happens to a stream that holds so many; see `AsyncBatchedStream` for its `merge`, and
    for `max_buffered_bytes`.

    Blocking: only without `size`: until the source has yielded its first step.
    Cancellation: an exception from a signal during the first step closes the source.
    Threads: any; each stream may be read in a thread of its own.

    Example:
        >>> import batchstream
        >>> def model(prompts):
        ...     words = [prompt.split() for prompt in prompts]
        ...     for position in range(9):
        ...         yield [text[position] if position < len(text) else None for text in words]
        >>> short, long = batchstream.demux(model(["so it ends", "and the other one goes on"]))
        >>> list(short)
        ['so', 'it', 'ends']
        >>> list(long)
        ['and', 'the', 'other', 'one', 'goes', 'on']
    """
    batch: Any = AsyncBatchedStream if isinstance(source, AsyncIterable) else BatchedStream
    return tuple(
        batch(
            source,
            size,
            eos=eos,
            is_eos=is_eos,
            include_eos=include_eos,
            max_outputs=max_outputs,
            require_eos=require_eos,
            max_buffered=max_buffered,
            on_overflow=on_overflow,
            merge=merge,
            max_buffered_bytes=max_buffered_bytes,
            size_of=size_of,
        )
    )
