"""In the worker: one request, from what was received to the end of its reply."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Self

from batchstream._core.errors import INTERRUPTS, report_unraisable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchstream.integrations.litserve._worker.reply import Reply


class Context(dict[str, Any]):
    """What LitServe hands to the hooks as a request's `context`: a dict.

    Attributes:
        live: Whether somebody waits for the request's outputs: it has neither finished nor failed,
            and its client has not left.
    """

    live = True


class Member:
    """One request that is served together with others.

    Args:
        reply: The way back.
        request: What was received.

    Attributes:
        value: The request, and what it becomes on its way to the model.
        context: Its context for the hooks.
        limit: How many outputs it gets at most.
        encoding: Its own `encode_response`, if it has one.
    """

    __slots__ = ("context", "encoding", "limit", "reply", "value")

    def __init__(self, reply: Reply, request: object) -> None:
        self.reply = reply
        self.value = request
        self.context = Context()
        self.limit: int | None = None
        self.encoding: Encoding | None = None

    def leave(self) -> None:
        """Let go of what the request needed; it gets nothing any more."""
        self.context.live = False
        self.value = None
        if self.encoding is not None:
            self.encoding.close()
            self.encoding = None


class Encoding:
    """An `encode_response` that reads the outputs of one request, while others are served.

    It is a generator that asks for outputs, and they come when the model has made them. So it is
    only let run when there is one. If it asks for another before it has made something of the
    first, it looks ahead: the model makes its next step while this generator waits.

    Args:
        look_ahead: Does that, once; returns False if there will be no more.

    Attributes:
        over: Whether it has nothing more to say.
        running: Whether it is in the midst of saying something.
    """

    def __init__(self, look_ahead: Callable[[], bool]) -> None:
        self._look_ahead = look_ahead
        self._outputs: deque[Any] = deque()
        self._encoded: Iterator[Any] = iter(())
        self._begun = False
        self._ended = False
        self._failed = False
        self._has_yielded = False
        self._has_looked_ahead = False
        self.running = False
        self.over = False

    def begin(self, encode: Callable[[Iterator[Any]], Any]) -> None:
        """Call `encode_response` with the outputs to come.

        Raises:
            TypeError: It does not return an iterator.
            Exception: What it raises.
        """
        encoded = encode(Outputs(self))
        if not hasattr(encoded, "__next__"):
            raise TypeError(
                f"encode_response is called for each request with an iterator of its outputs, and "
                f"has to yield, got {type(encoded).__name__}"
            )
        self._encoded = encoded
        self._begun = True

    @property
    def is_steady(self) -> bool:
        """Whether it is expected to make something of what it has, and not to look ahead."""
        return self._ended or (self._has_yielded and not self._has_looked_ahead)

    @property
    def wants(self) -> bool:
        """Whether it has nothing to read, and is to get something."""
        return not self._outputs and not self._ended

    def give(self, output: object) -> None:
        """Add an output to those to be encoded."""
        self._outputs.append(output)

    def end(self, *, failed: bool) -> None:
        """Tell that nothing will be added, and whether that is an end at all."""
        self._ended = True
        self._failed = failed

    def elements(self) -> Iterator[Any]:
        """Encode all that has been given, and what follows if that was all.

        Raises:
            Exception: What `encode_response` raises.
        """
        while not self.over and (self._outputs or (self._ended and not self._failed)):
            self.running = True
            try:
                element = next(self._encoded)
            except (StopIteration, _NoEndError):
                self.over = True
                return
            finally:
                self.running = False
            self._has_yielded = True
            if not self.over:
                yield element
        if self.over:
            self._let_go()

    def close(self) -> None:
        """Stop encoding: now or, where the encoding itself has led to this, when it returns.

        An error goes to `sys.unraisablehook`, as that of a generator that is dropped.
        """
        self._ended = self.over = True
        self._outputs.clear()
        if not self.running:
            self._let_go()

    def _let_go(self) -> None:
        encoded, self._encoded = self._encoded, iter(())
        close = getattr(encoded, "close", None)
        if close is None:
            return
        try:
            close()
        except INTERRUPTS:
            raise
        except BaseException as error:  # noqa: BLE001 - of a request that has had its end
            report_unraisable(error)

    def next_output(self) -> Any:
        """Return the next output, as soon as there is one.

        Raises:
            StopIteration: The request has got its last one.
        """
        if not self._begun:
            raise RuntimeError(
                "encode_response asks for an output while it is called, before the model is: "
                "make it a generator function, whose code runs when there is one"
            )
        while not self._outputs:
            if self._failed or self.over:
                raise _NoEndError
            if self._ended:
                raise StopIteration
            self._has_looked_ahead = True
            if not self._look_ahead():
                raise StopIteration
        return self._outputs.popleft()


class Outputs:
    """What an `encode_response` is given: an iterator that can be closed, and nothing else."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._closed:
            raise StopIteration
        return self._encoding.next_output()

    def close(self) -> None:
        """Read nothing more. What was read can still be encoded."""
        self._closed = True


class _NoEndError(GeneratorExit):
    """Closes a generator from within, which waits for an output that will not come."""
