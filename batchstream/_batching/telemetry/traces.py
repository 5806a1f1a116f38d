"""What a batcher calls for each single request and batch, for users' traces, and cannot be hurt by.

Theory of operation
-------------------

Metrics hear of requests in sum; a trace follows each. So each request has an object of its own,
made in the call that submits it, where the caller's trace context is current. It is told what
happens to the request from whichever thread notices it.

The requests that join a batch together are a *group*, as they are for `statistics()`. It has one
`BatchTrace`, which ends when the last of them has left. Of a `DynamicBatcher` a group is the whole
batch. A `ContinuousBatcher` may run for days without being idle, and a trace of that would say
nothing; what shares a prompt's step and the slots from then on is the group.

A request may end in one thread while another lets it join. Each of the two first notes what it has
done, and then looks for what the other has noted; what only one of them may do is an entry of a
list, which it pops. No lock is held, as what is called is the user's code.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from batchstream._log import report_of_user

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from batchstream._core.records import StreamEnd


class BatchTrace:
    """What is told of the requests that joined a batch together; derive your own.

    Threads: called once, in any thread.
    """

    def ended(self, ends: Sequence[StreamEnd]) -> None:
        """The last of the requests has left the batch.

        Args:
            ends: How the requests ended, but for requests that gave their slot back and wait again.
        """


class RequestTrace:
    """What is told of one request; derive your own, and write the methods that you need.

    They come in this order, each once: `joined`, `first_output`, `ended`. Only `ended` is sure to
    come. A request that gives its slot back is told `requeued`, and then `joined` once more.

    Threads: `ended` may come in another thread than the others, just as they do.
    """

    def joined(self, batch: BatchTrace | None) -> None:
        """It has joined a batch.

        Args:
            batch: What `Traces.joined` has returned for it and the requests that joined with it.
        """

    def first_output(self) -> None:
        """It had its first output. With `decode` that is the first of the model's outputs."""

    def requeued(self) -> None:
        """It has given its slot back, and waits again."""

    def ended(self, end: StreamEnd) -> None:
        """It has ended, and nothing else comes.

        Args:
            end: How it ended. The error of a request that was refused is that of the refusal.
        """


class Traces:
    """What a batcher calls to trace its requests, one by one; `Metrics` is for figures.

    Derive a class, and write the methods that you need; each takes `**_` well, as a later version
    may tell it more. A request or batch for which none is returned is not traced.

    What a method raises goes to `sys.unraisablehook`, and the batch goes on. One that takes long
    holds up the worker or the caller that it is called in, and no lock. A forked child is told of
    no request of its parent's.

    Threads: `submitted` is called in the thread that submits, `joined` in a worker's; so both in
        several at the same time.
    """

    def for_batcher(self, name: str) -> Traces:
        """Return the object that the batcher of this name calls: this one, if not overridden.

        Called once for each batcher, before any other method.
        """
        del name
        return self

    def submitted(
        self,
        request: Any,
        *,
        request_id: str,
        tenant: Hashable,
        max_outputs: int | None,
        carrier: Mapping[str, str] | None = None,
        waited: float = 0.0,
    ) -> RequestTrace | None:
        """Return what is told of a request from now on, until it has ended or is refused.

        It is called in the call that submits: what is current there, such as a context variable, is
        the caller's. `map` submits a request for which there is no room again, later, and it then
        gets another object; the one before is told nothing.

        Args:
            request: The request, as the model gets it.
            request_id: What the caller calls it, or its number as text.
            tenant: What the option `tenant` has returned for it; None without one.
            max_outputs: How many outputs it gets at most; None for any number.
            carrier: What `carrier` has returned for it, in another process.
            waited: How many seconds ago it was submitted, there.
        """

    def carrier(self, headers: Mapping[str, str]) -> Mapping[str, str] | None:
        """Return what carries the caller's trace context to another process, as plain text.

        The LitServe loops call it in the server process, in the call that receives the request, and
        `submitted` in the worker; of a request that no worker reports, `submitted` too in the
        server process, as the request is refused or ends. A batcher never calls it.

        Args:
            headers: The headers of the HTTP request.
        """
        del headers
        return None

    def joined(self, requests: Sequence[RequestTrace]) -> BatchTrace | None:
        """Return what is told of these requests, which join a batch together.

        Args:
            requests: What `submitted` has returned for them, where it was not None.
        """


_METHODS: Final = ("for_batcher", "submitted", "joined", "carrier")


class TracesCaller:
    """Calls a user's traces, and lets no error of theirs out.

    Args:
        traces: The traces.
        name: The name of the batcher.

    Raises:
        TypeError: They have not the methods of `Traces`.
    """

    def __init__(self, traces: Traces, name: str) -> None:
        self._traces = check_traces(traces).for_batcher(name)

    def submitted(self, content: Any, **about: Any) -> RequestTracing | None:
        """Return what to tell of a request that is about to be submitted, if it is traced."""
        trace = _quietly(self._traces.submitted, content, **about)
        return None if trace is None else RequestTracing(trace)

    def joined(self, requests: Sequence[RequestTracing]) -> None:
        """Tell requests that they have joined a batch together."""
        traced = [tracing for tracing in requests if not tracing.has_ended]
        if not traced:
            return
        batch = _quietly(self._traces.joined, [tracing.trace for tracing in traced])
        group = None if batch is None else _Group(batch, len(traced))
        for tracing in traced:
            tracing.joined(group)


def check_traces(traces: Traces) -> Traces:
    """Return what has the methods of `Traces`.

    Raises:
        TypeError: Some are missing, or it is a class.
    """
    if isinstance(traces, type):
        raise TypeError(
            f"traces takes an object, got the class {traces.__qualname__}: pass "
            f"{traces.__qualname__}()"
        )
    missing = [name for name in _METHODS if not callable(getattr(traces, name, None))]
    if missing:
        raise TypeError(
            f"traces must have the methods {', '.join(_METHODS[:-1])} and {_METHODS[-1]}, got "
            f"{traces!r} without {' and '.join(missing)}: derive its class from batchstream.Traces"
        )
    return traces


def carrier_of(traces: Traces, headers: Mapping[str, str]) -> dict[str, str] | None:
    """Return what carries the caller's trace context to another process, if anything does."""
    carrier = _quietly(traces.carrier, headers)
    return dict(carrier) if carrier else None


class RequestTracing:
    """What the batcher knows of the trace of one request.

    Args:
        trace: The user's object.

    Attributes:
        trace: The same.
    """

    __slots__ = ("_end", "_groups", "_unended", "trace")

    def __init__(self, trace: RequestTrace) -> None:
        self.trace = trace
        self._end: StreamEnd | None = None
        # Popped, which is atomic, by the one thread that tells of the end.
        self._unended: list[None] = [None]
        self._groups: list[_Group] = []

    @property
    def has_ended(self) -> bool:
        """Whether it was told of its end."""
        return not self._unended

    def joined(self, group: _Group | None) -> None:
        """Tell it that it has joined a batch, in this group; unless it has ended meanwhile."""
        if group is not None:
            self._groups.append(group)
        if not self.has_ended:
            _quietly(self.trace.joined, None if group is None else group.batch)
        # Behind the appending: the thread that has ended it may not have seen the group.
        if self._end is not None:
            self._leave(self._end)

    def first_output(self) -> None:
        """Tell it that it had its first output."""
        _quietly(self.trace.first_output)

    def requeued(self) -> None:
        """Tell it that it waits again, unless it has ended meanwhile."""
        if not self.has_ended:
            _quietly(self.trace.requeued)
        self._leave(None)

    def ended(self, end: StreamEnd) -> None:
        """Tell it that it has ended, unless it was told."""
        if not _popped(self._unended):
            return
        _quietly(self.trace.ended, end)
        self._end = end
        self._leave(end)

    def _leave(self, end: StreamEnd | None) -> None:
        """Leave the group, if it is in one."""
        with suppress(IndexError):
            self._groups.pop().leave(end)


class _Group:
    """The requests that joined a batch together, and are traced.

    Args:
        batch: The user's object.
        size: How many they are.
    """

    __slots__ = ("_ends", "_left", "batch")

    def __init__(self, batch: BatchTrace, size: int) -> None:
        self.batch = batch
        self._ends: list[StreamEnd] = []
        self._left = [True] + [False] * (size - 1)  # popped by each; the last gets the first entry

    def leave(self, end: StreamEnd | None) -> None:
        """Note that one of them has left; the last ends the batch."""
        if end is not None:
            self._ends.append(end)
        if self._left.pop():
            _quietly(self.batch.ended, self._ends)


def _popped(entries: list[None]) -> bool:
    """Whether this call has popped the one entry."""
    try:
        entries.pop()
    except IndexError:
        return False
    return True


def _quietly(method: Callable[..., Any], *args: object, **kwargs: object) -> Any:
    """Call a method of the user's; return None if it raises.

    Raises:
        KeyboardInterrupt: It raises one, in the program's main thread.
    """
    try:
        return method(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001 - see `report_of_user`
        report_of_user(error)
        return None
