"""What fills the streams of requests, as their consumers see it: wherever the request is by now."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Generic

from typing_extensions import TypeVar

from batchstream._core.errors import ClosedError
from batchstream._core.records import FinishReason, StreamEnd
from batchstream._handoff.parking import Place, Places

if TYPE_CHECKING:
    from batchstream._batching.request import Request
    from batchstream._batching.runs import BatchRun
    from batchstream._eventloops.base import EventLoop
    from batchstream._handoff.buffer import View

T = TypeVar("T")


class RequestFeed(Generic[T]):
    """What the streams of a batcher ask of it, see `_feeds`; none of it takes a lock.

    Whoever ends a request that has not joined a batch sets its end, and then looks whether it has
    joined one since. Whoever lets it join notes the batch in the request, and then looks whether it
    has ended. So at least one of the two tells the batch.

    Attributes:
        places: Where consumers wait.
        forked: Whether this is a copy in a forked child, of no use there.
    """

    moves = 0  # `pull` looks at the buffer itself

    def __init__(self) -> None:
        self.places = Places()
        self.forked = False
        self._runs: set[BatchRun[T]] = set()

    def check_view(self, view: View) -> None:
        """Allow it: there is no other."""

    def read_by(self, view: View) -> None:
        """Allow it: there is no other."""

    def check_timeouts(self) -> None:
        """Allow them: nobody waits for the model in the consumer's own thread."""

    def cancel(self, request: Request[T]) -> None:
        """Give a request up."""
        if self.forked or request.cancelled:
            return
        pump = request.pump  # in a local, as it is let go of when the request has ended
        if request.ends:
            request.shut()
        elif pump is not None:
            pump.cancel(request)
        else:
            request.cancel(StreamEnd(FinishReason.CANCELLED, 0))
            self._tell(request)

    def begin(self, loop: EventLoop | None) -> None:
        """Refuse to wait for ever; the work has begun when the request was submitted.

        Raises:
            RuntimeError: The calling code is that of a batch, which would wait for its own worker.
            ClosedError: This is a fork of the process that uses the batcher.
        """
        del loop
        if self.forked:
            raise self._forked_error()
        if self._is_waited_for():
            raise RuntimeError("the source of a batch waits for a request to its own batcher")

    def pull(self, request: Request[T], moves: int, deadline: float | None) -> None:
        """Wait until the buffer may hold something, or its stream has ended.

        Raises:
            TimeoutError: The deadline has passed.
            RuntimeError, ClosedError: See `begin`.
        """
        del moves
        self.begin(None)
        patience = self.patience(request, None)
        times = [] if patience is None else [monotonic() + patience]
        if deadline is not None:
            times.append(deadline)
        if self.places.wait_in_thread(request, min(times, default=None)):
            return
        self.look_after(request)
        if deadline is not None and deadline <= monotonic():
            raise TimeoutError("no output came within the timeout; the stream is unchanged")

    def place_in(self, loop: EventLoop) -> Place:
        """Return where the consumers of a loop wait; from within that loop."""
        return self.places.in_loop(loop)

    def patience(self, request: Request[T] | None, loop: EventLoop | None) -> float | None:
        """Return after how many seconds whoever waits here is to `look_after`, if ever."""
        del loop
        deadline = None if request is None else request.deadline  # once: it changes as it joins
        return None if deadline is None else max(deadline - monotonic(), 0.0)

    def look_after(self, request: Request[T] | None) -> None:
        """Let a request fail whose time is over, even if its worker is in a long step."""
        if request is not None and (error := request.overdue(monotonic())) is not None:
            self._fail(request, error)

    async def wait_if_idle(self, loop: EventLoop) -> None:
        """Wait for nothing: other requests keep the model busy."""

    def _is_waited_for(self) -> bool:
        """Whether a batch waits for the calling code, which is its source's."""
        return any(run.runs_here for run in tuple(self._runs))

    def _fail(self, request: Request[T], error: BaseException) -> None:
        """Let a request fail, wherever it is."""
        pump = request.pump
        if pump is not None:
            pump.break_off(request, error)
        else:
            request.finish(StreamEnd(FinishReason.ERROR, 0, error=error))
            self._tell(request)

    def _tell(self, request: Request[T]) -> None:
        """Wake who waits for a request that has ended; and tell its batch, if it joined one now."""
        self.places.wake((request,))
        if (pump := request.pump) is not None:
            pump.note_departure(request)

    def _forked_error(self) -> ClosedError:
        return ClosedError(
            "this batcher was in use in another process, and cannot be used in a fork of it"
        )
