"""In the worker: one request, from what was received to the end of its reply."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchstream.integrations.litserve._reply import Reply


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
        if self.encoding is not None:
            self.encoding.close()


class Encoding:
    """An `encode_response` that reads the outputs of one request, while others are served.

    It is a generator that asks for outputs, and they come when the model has made them. So it is
    only let run when there is one. If it asks for another before it has made something of the
    first, then the model makes its next step there and then, and what that gives to others is kept
    for when it is their turn.

    Args:
        advance: Lets the model make a step, and tells whether there was one.
    """

    def __init__(self, advance: Callable[[], bool]) -> None:
        self._advance = advance
        self._outputs: deque[Any] = deque()
        self._ended = False
        self._encoded: Iterator[Any] = iter(())
        self.over = False

    def begin(self, encode: Callable[[Iterator[Any]], Any]) -> None:
        """Call `encode_response` with the outputs to come.

        Raises:
            TypeError: It does not return an iterator.
            Exception: What it raises.
        """
        encoded = encode(self)
        if not hasattr(encoded, "__next__"):
            raise TypeError(
                f"encode_response is called for each request with an iterator of its outputs, and "
                f"has to yield, got {type(encoded).__name__}"
            )
        self._encoded = encoded

    @property
    def has_nothing(self) -> bool:
        """Whether everything that came has been encoded."""
        return not self._outputs

    def give(self, output: object) -> None:
        """Add an output to those to be encoded."""
        self._outputs.append(output)

    def elements(self, *, ended: bool = False) -> Iterator[Any]:
        """Encode all that has been given, and if that was the end, run to it.

        Raises:
            Exception: What `encode_response` raises.
        """
        self._ended = self._ended or ended
        while not self.over and (self._outputs or self._ended):
            try:
                element = next(self._encoded)
            except StopIteration:
                self.over = True
                return
            yield element

    def close(self) -> None:
        """Stop encoding."""
        self._ended = self.over = True
        self._outputs.clear()
        close = getattr(self._encoded, "close", None)
        if close is not None and self._encoded is not self:
            close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        while not self._outputs:
            if self._ended or not self._advance():
                raise StopIteration
        return self._outputs.popleft()
