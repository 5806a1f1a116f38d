"""An iterator that owns the only stream of a `BatchStreamer`."""

from __future__ import annotations

from typing import Any, Generic, Self

from typing_extensions import TypeVar

from batchstream import Stream

T = TypeVar("T", default=Any)


class Reader(Generic[T]):
    """Iterates over a stream, and waits for each output so many seconds at most.

    It holds the only reference to the stream, which is cancelled as the iterator is dropped.
    """

    __slots__ = ("__weakref__", "_stream", "_timeout")

    def __init__(self, stream: Stream[T], timeout: float | None) -> None:
        self._stream = stream
        self._timeout = timeout

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return self._stream.receive(self._timeout)
