"""An `encode_response` that is called for one request, and read while others are served."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Self

from batchstream._core.errors import call_quietly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class RequestEncoder:
    """The generator of one request's `encode_response`, and the outputs that wait for it.

    The generator asks for outputs, and they come when the model has made them. So it runs only
    while there is one. If it asks for another before it has yielded an element for the first, it
    looks ahead: the model makes its next step while the generator waits.

    Args:
        encode: Calls `encode_response` with an iterator of the outputs to come.
        look_ahead: Makes a step; returns False if there will be no more.

    Attributes:
        outputs: What the generator has not read yet.
        running: Whether the generator is running.
        over: Whether it will yield no more elements.

    Raises:
        TypeError: `encode_response` does not return an iterator.
        Exception: What it raises.
    """

    def __init__(
        self, encode: Callable[[Iterator[Any]], Any], look_ahead: Callable[[], bool]
    ) -> None:
        self.outputs: deque[Any] = deque()
        self.running = False
        self.over = False
        self._look_ahead = look_ahead
        self._ended = False
        self._failed = False
        self._has_yielded = False
        self._has_looked_ahead = False
        self._elements: Any = None
        elements = encode(OutputIterator(self))
        if not hasattr(elements, "__next__"):
            raise TypeError(
                f"encode_response is called for each request with an iterator of its outputs, and "
                f"has to yield, got {type(elements).__name__}"
            )
        self._elements = elements

    @property
    def is_streaming(self) -> bool:
        """Whether it probably yields an element for what it has, without looking ahead."""
        return self._ended or (self._has_yielded and not self._has_looked_ahead)

    @property
    def is_starved(self) -> bool:
        """Whether it has no output to read, but may get another."""
        return not self.outputs and not self._ended

    def end(self, *, failed: bool) -> None:
        """Say that no output will be added. A failed request's generator must not see an end."""
        self._ended = True
        self._failed = failed

    def elements(self) -> Iterator[Any]:
        """Encode all outputs that have been added, and what follows them once that was all.

        Raises:
            Exception: What `encode_response` raises.
        """
        while not self.over and (self.outputs or (self._ended and not self._failed)):
            self.running = True
            try:
                element = next(self._elements)
            except (StopIteration, _NoEndError):
                self.over = True
                return
            finally:
                self.running = False
            self._has_yielded = True
            if not self.over:  # it may have been closed while it ran
                yield element
        if self.over:
            self._close_elements()

    def close(self) -> None:
        """Stop encoding: now or, if the generator's own look-ahead led here, when it returns.

        An error goes to `sys.unraisablehook`, like that of a generator that is dropped.
        """
        self._ended = self.over = True
        self.outputs.clear()
        if not self.running:
            self._close_elements()

    def _close_elements(self) -> None:
        elements, self._elements = self._elements, iter(())
        if hasattr(elements, "close"):
            call_quietly(elements.close)

    def next_output(self) -> Any:
        """Return the next output as soon as there is one, for the iterator that the user has.

        Raises:
            StopIteration: The request has got its last output.
        """
        if self._elements is None:
            raise RuntimeError(
                "encode_response asks for an output while it is called, before the model is: "
                "make it a generator function, whose code runs when there is one"
            )
        while not self.outputs:
            if self._failed or self.over:
                raise _NoEndError
            if self._ended:
                raise StopIteration
            self._has_looked_ahead = True
            if not self._look_ahead():
                raise StopIteration
        return self.outputs.popleft()


class OutputIterator:
    """What an `encode_response` is given: an iterator that can be closed, and nothing else."""

    def __init__(self, encoder: RequestEncoder) -> None:
        self._encoder = encoder
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._closed:
            raise StopIteration
        return self._encoder.next_output()

    def close(self) -> None:
        """Read nothing more. What was read can still be encoded."""
        self._closed = True


class _NoEndError(GeneratorExit):
    """Closes a generator from within that waits for an output which will not come."""
