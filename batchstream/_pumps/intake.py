"""How an output comes into a stream whose bound asks for more than to count: to merge, to measure.

Theory of operation
-------------------

*Merging.* Where a stream is full, a new output is merged with the last one that it holds. The
consumer may take that one at any time, so it is not taken out for this: the pump reads it, calls
the user's function, and then puts the merged one in its place, by one call, `outputs[-1] = merged`.
A consumer takes from the left. So if there is anything, the last one is still there; and if there
is nothing, the consumer has it, and the new output is appended as it is.

*Measuring.* The pump alone measures outputs, as it gives them. A consumer counts nothing: how many
outputs it has taken is seen from how many are left, see `Sizes`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from batchstream._core.errors import SourceError, error_text, type_name

if TYPE_CHECKING:
    from collections.abc import Collection

    from batchstream._core.arguments import Bound
    from batchstream._handoff.buffer import Buffer


class Sizes:
    """How many bytes a stream holds.

    Kept as sums, so that what a stream holds is one difference, however many outputs these are. Any
    thread may ask; the pump alone adds. Where a receive was broken off and has given outputs back,
    some of these may not be counted any more.

    Args:
        limit: How many bytes make the stream full.

    Attributes:
        limit: The same.
    """

    __slots__ = ("_sums", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # How many bytes the stream had been given up to each output that it holds, the oldest
        # first; before these, up to one that it does not hold any more.
        self._sums = deque([0])

    def held(self, unread: int) -> int:
        """Return how many bytes so many outputs have, which the stream holds."""
        sums = self._sums
        try:
            return sums[-1] - sums[-1 - unread]
        except IndexError:
            return sums[-1] - sums[0]

    def are_full(self, unread: int) -> bool:
        """Whether so many outputs, which the stream holds, have as many bytes as make it full."""
        return self.held(unread) >= self.limit

    def add(self, size: int, unread: int) -> None:
        """Add an output, behind so many that the stream holds."""
        sums = self._sums
        sums.append(sums[-1] + size)
        while len(sums) > unread + 2:
            sums.popleft()

    def replace_last(self, size: int) -> None:
        """Measure the last output anew, which was merged with another."""
        sums = self._sums
        sums[-1] = sums[-2] + size


def sizes_of(bound: Bound) -> Sizes | None:
    """Return what counts the bytes of a stream with this bound; None if none are counted."""
    if bound.max_buffered_bytes is None:
        return None
    return Sizes(bound.max_buffered_bytes + bound.ends_streams)


class Intake:
    """Gives outputs to streams, and merges and measures them where the bound says so.

    Args:
        bound: The bound.
        limit: How many outputs make a stream full.
        collectors: Not empty while streams have no bound.
    """

    __slots__ = ("_collectors", "_limit", "_merge", "_size_of")

    def __init__(self, bound: Bound, limit: int, collectors: Collection[object]) -> None:
        self._merge = bound.merge
        self._size_of = bytes_of if bound.size_of is None else bound.size_of
        self._limit = limit
        self._collectors = collectors

    def give(self, buffer: Buffer[Any], output: Any) -> None:
        """Give a stream an output; behind an error it has what it had before.

        Raises:
            Exception: What `merge` or `size_of` has raised.
        """
        outputs = buffer.outputs  # in a local: a cancel takes it from the buffer
        merges = self._merge is not None and not self._collectors
        if merges and buffer.is_full(self._limit) and self._merge_into_last(buffer, output):
            return
        if (sizes := buffer.sizes) is not None:
            sizes.add(self._measured(output), len(outputs))
        outputs.append(output)

    def _merge_into_last(self, buffer: Buffer[Any], output: Any) -> bool:
        """Merge an output with the last one; False if the consumer has taken that one."""
        outputs = buffer.outputs
        assert self._merge is not None  # noqa: S101 - for the type checker
        try:
            last = outputs[-1]  # no other is ever last, as long as this one is not taken
        except IndexError:
            return False
        try:
            merged = self._merge(last, output)
        except (StopIteration, StopAsyncIteration) as error:
            raise _not_an_end("merge", error) from error
        sizes = buffer.sizes
        size = 0 if sizes is None else self._measured(merged)
        try:
            outputs[-1] = merged  # one call: see the top of this module
        except IndexError:
            return False
        if sizes is not None:
            sizes.replace_last(size)
        return True

    def _measured(self, output: Any) -> int:
        try:
            size = self._size_of(output)
        except (StopIteration, StopAsyncIteration) as error:
            raise _not_an_end("size_of", error) from error
        if type(size) is int and size >= 0:
            return size
        raise TypeError(
            f"size_of returns how many bytes an output has, a whole number of at least 0, got "
            f"{size!r}"
        )


def bytes_of(output: object) -> int:
    """Return how many bytes text or bytes have; text in UTF-8, as it is sent.

    Raises:
        TypeError: It is something else.
    """
    if type(output) is str:
        return len(output) if output.isascii() else len(output.encode("utf-8", "surrogatepass"))
    if type(output) in (bytes, bytearray):
        return len(output)  # type: ignore[arg-type] # it is one of these
    raise TypeError(
        f"max_buffered_bytes counts text and bytes by itself, got an output of type "
        f"{type_name(output)}: pass size_of, a function of an output that returns its bytes"
    )


def _not_an_end(name: str, error: Exception) -> SourceError:
    """Return the error of a function that raised what a consumer would take for the end."""
    return SourceError(f"{name} raised {type_name(error)}: {error_text(error)}")
