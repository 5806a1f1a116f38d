"""What a batcher calls as things happen, for users' figures, in a way that cannot hurt it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from batchstream._batching.telemetry.states import States
from batchstream._batching.telemetry.step_sums import CountsReader
from batchstream._log import report_of_user

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from contextvars import Context

    from batchstream._batching.telemetry.states import Watched
    from batchstream._core.records import StreamEnd


class Metrics:
    """What a batcher calls as things happen; `statistics()` has the same as totals.

    Every method does nothing here. Derive a class, and write the methods that you need: a batcher
    calls no other. Let each take `**_`, as a later version may pass it more.

    Requests wait, then run, then end. To know how many do at the moment: `submitted` adds one that
    waits; `joined` moves some from waiting to running, and `requeued` one back; `finished` takes
    one away, that runs if `joined` is true, and else waits. Of one request `joined`, `first_output`
    and `finished` come in this order, each in full before the next is called.

    A *tenant* is what the batcher's option `tenant` returned for the request; None without one.

    What a method raises goes to `sys.unraisablehook`, and the batch goes on. One that takes long
    holds up the worker or the caller that it is called in, and no lock.

    Threads: `submitted` and `refused` are called in the thread that submits, the others mostly in a
        worker's; so in several at the same time.
    """

    def for_batcher(self, name: str) -> Metrics:
        """Return the object that the batcher of this name calls: this one, if not overridden.

        Called once for each batcher, before any other method. A class whose object serves several
        batchers, and keeps their figures apart, returns an object for each.
        """
        del name
        return self

    def submitted(self, *, tenant: Hashable = None) -> None:
        """A request was accepted, and waits."""

    def refused(self, reason: str, *, tenant: Hashable = None) -> None:
        """A request was refused, and counts as nothing else.

        One that the model of a `batchstream.remote.connect` refuses was `submitted` before, and has
        `joined`; `finished` is called for it next.

        Args:
            reason: `pending` for `max_pending`, or what else an `OverloadedError` gives as its
                reason; `cost` for one that costs more than a batch may; `closed`, or `draining`.
            tenant: Whose it was.
        """

    def joined(self, waited: Sequence[float], *, tenants: Sequence[Hashable] = ()) -> None:
        """So many requests joined a batch together.

        Args:
            waited: How many seconds each has waited since it was submitted; one that joins again,
                since it was `requeued`.
            tenants: Whose they are, in the same order.
        """

    def requeued(self, *, tenant: Hashable = None) -> None:
        """A request has given its slot back, and waits again."""

    def first_output(self, seconds: float, *, tenant: Hashable = None) -> None:
        """A request had its first output, so many seconds after it was submitted.

        With `decode` that is the first of the model's outputs, a token for example.
        """

    def stepped(  # noqa: PLR0917 - all by position, as the docstring says
        self,
        live: int,
        capacity: int,
        outputs: int,
        gap: float | None,
        going_on: int,
        prefilling: int,
        wasted: int,
    ) -> None:
        """A step was made for so many live slots out of `capacity`.

        All comes by position, which is quicker: so a method that needs the first two alone is
        `def stepped(self, live, capacity, *_, **__)`.

        Args:
            live: How many slots the step was made for.
            capacity: `max_batch_size`; or `live` if that is more, since it was made less. How many
                requests began the batch, if `max_batch_size` is no limit (`sys.maxsize`).
            outputs: How many outputs it gave.
            gap: Seconds since the step before, in this batch; None for its first. That is the time
                between two outputs of each slot that is going on.
            going_on: How many of the live slots had had an output before this step.
            prefilling: How many of the live slots have still had none after it.
            wasted: How many of the live slots belong to requests that had left before the step was
                done: their client is gone, or their time is over.
        """

    def finished(
        self,
        end: StreamEnd,
        *,
        joined: bool,
        lasted: float,
        in_slot: float,
        first_output: float | None = None,
        tenant: Hashable = None,
        refused: bool = False,
    ) -> None:
        """A request has ended, once for each that was submitted.

        Args:
            end: How it ended, and how many outputs it had.
            joined: Whether it was in a batch then: not one that was `requeued`, and waits again.
            lasted: How many seconds after it was submitted this was noticed.
            in_slot: How many seconds after it joined its batch; 0 if it was in none.
            first_output: How many seconds after it was submitted it had its first output; None if
                it had none.
            tenant: Whose it was.
            refused: Whether a model in another process has refused it; passed only where it is
                true. `refused` was called for it, so count it as no request that has failed.
        """


OneMetrics: TypeAlias = "Metrics | Callable[[], Metrics]"
MetricsOrFactory: TypeAlias = "OneMetrics | Sequence[OneMetrics]"

_EVENTS: Final = (
    "submitted",
    "refused",
    "joined",
    "requeued",
    "first_output",
    "stepped",
    "finished",
)


class MetricsCaller:
    """Calls a user's metrics, and lets no error of theirs out.

    Args:
        metrics: The metrics; or a function without arguments that makes them, such as their class.
            Or several of these in a sequence, each of which is called.
        name: The name of the batcher.

    Raises:
        TypeError: They have none of the methods of `Metrics`.

    Attributes:
        unmade: Whether they are still to be made, by `make`.
        methods: The methods of theirs that do something, by name.
        counts_readers: What read the counts of batches, in place of a call of `stepped`.
        stepped: Calls this method of those that do not, if any.
        states: What asks batchers for their state, of metrics that show it; see `states.py`.
    """

    def __init__(self, metrics: MetricsOrFactory, name: str = "") -> None:
        is_factory = callable(metrics) and (isinstance(metrics, type) or not _hears(metrics))
        self._name = name
        self._factory = metrics if is_factory else None
        self._parts: Sequence[MetricsCaller] = ()  # those of several
        self.unmade = True
        self.methods: dict[str, Callable[..., object]] = {}
        self.counts_readers: Sequence[CountsReader] = ()
        self.stepped: Callable[..., object] | None = None
        self.states: States | None = None
        self._batcher: weakref.ref[Watched] | None = None
        if not is_factory:
            self._bind(metrics)
        # Guards the factory alone, which is called once: whatever else comes meanwhile has to wait.
        self._making = RLock()

    def make(self, context: Context) -> None:
        """Call the factory in a context, unless another thread has; before any event.

        Raises:
            TypeError: It returns what has no method.
            Exception: What it raises. The next call tries again.
        """
        with self._making:
            if callable(self._factory):
                self._bind(context.run(self._factory))
                self._factory = None
            if self.unmade:
                for part in self._parts:  # the ones that are made already stay
                    part.make(context)
                self._combine()

    def _bind(self, metrics: Any) -> None:
        """Look the methods up that the batcher of this name calls."""
        is_one = isinstance(metrics, str) or _hears(metrics)
        if isinstance(metrics, Sequence) and not is_one:
            self._parts = [MetricsCaller(each, self._name) for each in metrics]
            self._show_state()
            if not any(part.unmade for part in self._parts):
                self._combine()
            return
        # In the class: an object that has every attribute, to record calls, means no such method.
        if hasattr(type(metrics), "for_batcher"):
            metrics = metrics.for_batcher(self._name)
        self.methods = _methods_of(metrics)
        reader = getattr(metrics, "counts_reader", None)
        if isinstance(reader, CountsReader):
            self.counts_readers = (reader,)
        else:
            self.stepped = self.methods.get("stepped")
        states = getattr(metrics, "states", None)
        self.states = states if isinstance(states, States) else None
        self._metrics = metrics
        self.unmade = False
        self._show_state()

    def _combine(self) -> None:
        """Call the methods of all parts."""
        for event in _EVENTS:
            method = _one_of_all(self._parts, event)
            if method is not None:
                self.methods[event] = method
        self.counts_readers = [it for part in self._parts for it in part.counts_readers]
        self.stepped = _one_of_all([it for it in self._parts if it.stepped is not None], "stepped")
        self.unmade = False

    def watch(self, batcher: Watched) -> None:
        """Let the metrics show the state of a batcher, as soon as they are made."""
        self._batcher = weakref.ref(batcher)
        self._show_state()

    def _show_state(self) -> None:
        batcher = None if self._batcher is None else self._batcher()
        if batcher is None:
            return
        for part in self._parts:
            part.watch(batcher)
        if self.states is not None:
            try:
                self.states.watch(batcher)
            except BaseException as error:  # noqa: BLE001 - see `failed`
                self.failed(error)

    def state_changed(self) -> None:
        """Tell metrics that show the state of the batcher that it has another."""
        for part in self._parts:
            part.state_changed()
        if self.states is not None:
            try:
                self.states.changed()
            except BaseException as error:  # noqa: BLE001 - see `failed`
                self.failed(error)

    def after_fork(self) -> None:
        """Forget what the parent has: its batches, and another thread that was in the factory."""
        self._making = RLock()
        for reader in self.counts_readers:
            reader.after_fork()
        for part in self._parts:
            part.after_fork()

    def __call__(self, event: str, *args: object, **kwargs: object) -> None:
        """Call the method of this name, if there is one."""
        method = self.methods.get(event)
        if method is not None:
            try:
                method(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - see `failed`
                self.failed(error)

    def failed(self, error: BaseException) -> None:
        """Report what a method has raised.

        Raises:
            KeyboardInterrupt: It is one, in the program's main thread.
        """
        report_of_user(error)


def _hears(metrics: object) -> bool:
    """Return whether an object has one of the methods."""
    return any(hasattr(metrics, event) for event in _EVENTS)


def _one_of_all(parts: Sequence[MetricsCaller], event: str) -> Callable[..., object] | None:
    """Return what calls the method of this name of all that have it."""
    hearing = [part for part in parts if event in part.methods]
    if len(hearing) == 1:  # as if it were alone
        return hearing[0].methods[event]
    return partial(_call_each, hearing, event) if hearing else None


def _call_each(
    callers: Sequence[MetricsCaller], event: str, *args: object, **kwargs: object
) -> None:
    """Call the method of this name of each, whatever the others raise."""
    for caller in callers:
        caller(event, *args, **kwargs)


def _methods_of(metrics: object) -> dict[str, Callable[..., object]]:
    """Return the methods that do something.

    Raises:
        TypeError: It has none, not even one that does nothing.
    """
    found = {event: getattr(metrics, event, None) for event in _EVENTS}
    methods = {event: method for event, method in found.items() if callable(method)}
    if not methods:
        raise TypeError(
            f"metrics must have one of the methods {', '.join(_EVENTS[:-1])} and {_EVENTS[-1]}, "
            f"got {metrics!r}: derive its class from batchstream.Metrics, and write the methods "
            "that you need; several such objects go into a list"
        )
    return {
        event: method
        for event, method in methods.items()
        if getattr(method, "__func__", None) is not vars(Metrics)[event]
    }
