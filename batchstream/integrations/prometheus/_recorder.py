"""Writes what one batcher does into its series of a registry."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from batchstream import FinishReason, Metrics
from batchstream._batching.telemetry.states import STATES, States
from batchstream._batching.telemetry.step_sums import COUNTED
from batchstream._pumps.worker_thread import LastJob, WorkerThread
from batchstream.integrations.prometheus._figures import ENDS, ERRORS, REFUSALS, VLLM_REASONS
from batchstream.integrations.prometheus._steps import IN_FILES, Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from batchstream import StreamEnd
    from batchstream._batching.life import BatcherState
    from batchstream.integrations.prometheus._families import Families


class TenantFigures:
    """The series of one tenant in one batcher, looked up once.

    Args:
        families: The figures in the registry.
        labels: What the series are labelled with.
    """

    def __init__(self, families: Families, labels: Mapping[str, str]) -> None:
        self.submitted = families.series("submitted", labels)
        self.requeued = families.series("requeued", labels)
        self.waiting = families.series("waiting", labels)
        self.running = families.series("running", labels)
        self.wait = families.series("wait", labels)
        self.first_output = families.series("first_output", labels)
        self.slot = families.series("slot", labels)
        self.request = families.series("request", labels)
        self.outputs = families.series("request_outputs", labels)
        # All reasons from the beginning: a counter that first appears as 1 has had no increase, and
        # its rate would miss the first one.
        self.refused = {
            reason: families.series("refused", {**labels, "reason": reason}) for reason in REFUSALS
        }
        self.finished = {
            reason: families.series(
                "finished",
                {
                    **labels,
                    "reason": reason,
                    "finished_reason": VLLM_REASONS.get(reason, VLLM_REASONS[FinishReason.ERROR]),
                },
            )
            for reason in ENDS
        }


class Recorder(Metrics):
    """What one batcher calls.

    Args:
        families: The figures in the registry.
        labels: What all series of the batcher are labelled with.
        label_of: Returns the label of a tenant.
        cache_usage: Returns which part of the engine's cache is in use.
    """

    def __init__(
        self,
        families: Families,
        labels: Mapping[str, str],
        label_of: Callable[[Hashable], str],
        cache_usage: Callable[[], float] | None,
    ) -> None:
        self._families = families
        self._labels = labels
        self._label_of = label_of
        self._usage = cache_usage
        self._tenants: dict[str, TenantFigures] = {}
        self._of(None)  # the series are there before the first request
        self._cache_usage = () if cache_usage is None else families.series("cache_usage", labels)
        self._batch_size = families.series("batch_size", labels)
        self._prompt_tokens = families.series("prompt_tokens", labels)
        self._steps = Steps(
            [families.series(key, labels) for key in COUNTED],
            families.series("gap", labels),
            families.series("slots", labels),
        )
        self.stepped = self._steps.add  # type: ignore[method-assign] # without a call in between
        self.counts_reader = self._steps.reader
        self.states = States(self._batcher_added, self._state_changed)
        self._state_gauges: dict[BatcherState, tuple[Any, ...]] = {}
        self._written: tuple[int, dict[BatcherState, int]] | None = None

    def _of(self, tenant: Hashable) -> TenantFigures:
        label = "" if tenant is None else self._label_of(tenant)
        figures = self._tenants.get(label)
        if figures is None:
            figures = TenantFigures(self._families, {**self._labels, "tenant": label})
            figures = self._tenants.setdefault(label, figures)
        return figures

    def write(self) -> None:
        """Write what is gathered, the states, and how much of the engine's cache is in use."""
        self._steps.write()
        self._write_states()
        if self._usage is not None:
            usage = self._usage()
            for gauge in self._cache_usage:
                gauge.set(usage)

    # ---- states

    def _batcher_added(self) -> None:
        """Have series of the states, and write them where other processes read them."""
        if not self._state_gauges:  # not before: a process may have no batcher, as in LitServe
            self._state_gauges = {
                state: self._families.series("state", {**self._labels, "state": state})
                for state in STATES
            }
        if IN_FILES:  # in this thread: a program may fork next, and a writing thread holds a lock
            self._write_states()

    def _state_changed(self) -> None:
        """Write the states where other processes read them."""
        if not IN_FILES:
            return
        # In a thread of its own: all series in files have one lock, which is not re-entrant, and a
        # signal's handler that closes the batcher may have interrupted its holder.
        try:
            LastJob(self._write_states).do_in(WorkerThread())
        except RuntimeError:  # the interpreter exits, and no thread can start any more
            self._write_states()

    def _write_states(self) -> None:
        """Write how many batchers have each state."""
        # Of this process: a child that was forked has files of its own, and nothing in them.
        found = os.getpid(), self.states.counts()
        while self._written != found:
            for state, gauges in self._state_gauges.items():
                for gauge in gauges:
                    gauge.set(found[1][state])
            self._written = found
            found = found[0], self.states.counts()  # another thread may have written others

    # ---- requests

    def submitted(self, *, tenant: Hashable = None) -> None:
        """Count a request that was accepted and waits."""
        figures = self._of(tenant)
        _add(figures.submitted, 1)
        _add(figures.waiting, 1)

    def refused(self, reason: str, *, tenant: Hashable = None) -> None:
        """Count a request that was refused."""
        figures = self._of(tenant)
        series = figures.refused.get(reason)
        if series is None:  # a later one of the library's
            labels = {**self._labels, "tenant": self._label_of(tenant), "reason": reason}
            series = figures.refused[reason] = self._families.series("refused", labels)
        _add(series, 1)

    def joined(self, waited: Sequence[float], *, tenants: Sequence[Hashable] = ()) -> None:
        """Count requests that joined a batch together, and how long each had waited."""
        self._steps.run(len(waited))
        for histogram in self._batch_size:
            histogram.observe(len(waited))
        for seconds, tenant in zip(waited, tenants or [None] * len(waited), strict=True):
            figures = self._of(tenant)
            _add(figures.waiting, -1)
            _add(figures.running, 1)
            _observe(figures.wait, seconds)

    def requeued(self, *, tenant: Hashable = None) -> None:
        """Count a request that gave its slot back, and waits again."""
        figures = self._of(tenant)
        _add(figures.requeued, 1)
        _add(figures.running, -1)
        _add(figures.waiting, 1)
        if self._steps.run(-1) <= 0:
            self.write()

    def first_output(self, seconds: float, *, tenant: Hashable = None) -> None:
        """Count the first output of a request."""
        _observe(self._of(tenant).first_output, seconds)

    def finished(
        self,
        end: StreamEnd,
        *,
        joined: bool,
        lasted: float,
        in_slot: float,
        first_output: float | None = None,  # noqa: ARG002 - `first_output` was told
        tenant: Hashable = None,
        refused: bool = False,
    ) -> None:
        """Count a request that has ended; one that was refused leaves its place, and no more."""
        figures = self._of(tenant)
        _add(figures.running if joined else figures.waiting, -1)
        if not refused:
            _add(figures.finished[_reason_of(end)], 1)
            _observe(figures.outputs, end.outputs)
            _observe(figures.request, lasted)
        if joined:
            if not refused:
                _observe(figures.slot, in_slot)
            if self._steps.run(-1) <= 0:
                self.write()
        if self._prompt_tokens and end.info is not None:
            tokens = end.info.get("prompt_tokens")
            if isinstance(tokens, int):
                _add(self._prompt_tokens, tokens)


def _reason_of(end: StreamEnd) -> str:
    """Return what an end counts as."""
    if end.error is not None:
        for kind, reason in ERRORS.items():
            if isinstance(end.error, kind):
                return reason
    return end.reason


def _add(series: Sequence[Any], amount: float) -> None:
    for each in series:
        each.inc(amount)


def _observe(series: Sequence[Any], amount: float) -> None:
    for each in series:
        each.observe(amount)
