"""The object that a user passes as `metrics`: it registers all figures, and serves batchers."""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry

from batchstream import Metrics
from batchstream.integrations.prometheus._families import Families
from batchstream.integrations.prometheus._figures import SEPARATORS, TABLES, Names
from batchstream.integrations.prometheus._recorder import Recorder
from batchstream.integrations.prometheus._tenants import MAX_TENANTS, TenantLabels

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping


class PrometheusMetrics(Metrics):
    """The figures of batchers in a registry of prometheus-client; pass it as `metrics`.

    One object serves any number of batchers, whose `name` is the label `batcher`; a batcher without
    one is called by what it runs. [Metrics](metrics.md) lists all names.

    Args:
        name: What the names of the metrics begin with; None for `batchstream`, or for `vllm` with
            `names="vllm"`.
        registry: Where the metrics are registered. It keeps them for good, so make one object for
            a server's whole life, and not one for each request.
        names: `"vllm"` gives what vLLM has as well vLLM's name and the label `model_name`, the
            batcher's name, and leaves out the rest: dashboards and gateways made for vLLM read it.
            For both, `metrics=[PrometheusMetrics(), PrometheusMetrics(names="vllm")]`.
        labels: Labels that all series have besides, with their values. One that is called as a
            label of a figure takes its place: `{"model_name": "llama-3"}`.
        tenants: Which tenants have a label of their own, all others being `"other"`: the first so
            many; or a function of a tenant that returns its label, or None for one of the others.
            Let it return few different ones, as each is about a hundred series.
        cache_usage: A function without arguments that returns which part of the engine's cache is
            in use, from 0 to 1. It is called when the registry is read, and now and then by a
            worker.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind. The registry has such names
            already, or Prometheus does not allow them.

    Threads: any thread.

    Example:
        >>> import batchstream, prometheus_client
        >>> registry = prometheus_client.CollectorRegistry()
        >>> def spell(words):
        ...     for position in range(max(map(len, words)) + 1):
        ...         yield [word[position] if position < len(word) else None for word in words]
        >>> metrics = PrometheusMetrics(registry=registry)
        >>> with batchstream.DynamicBatcher(
        ...     spell, max_batch_size=4, metrics=metrics, name="speller"
        ... ) as batcher:
        ...     print(*batcher.stream("batch"))
        b a t c h
        >>> registry.get_sample_value("batchstream_outputs_total", {"batcher": "speller"})
        5.0

    With `metrics=PrometheusMetrics`, without a call, the object is made with the first request.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        registry: CollectorRegistry = REGISTRY,
        names: Names = "batchstream",
        labels: Mapping[str, str] | None = None,
        tenants: int | Callable[[Hashable], str | None] = MAX_TENANTS,
        cache_usage: Callable[[], float] | None = None,
    ) -> None:
        if names not in TABLES:
            choices = " or ".join(map(repr, TABLES))
            raise ValueError(f"names must be {choices}, got {names!r}")
        if cache_usage is not None and not callable(cache_usage):
            raise TypeError(
                f"cache_usage takes a function without arguments that returns a ratio, "
                f"got {cache_usage!r}"
            )
        self._label_of = TenantLabels(tenants)
        self._labels = dict(labels or {})
        self._recorders: dict[str, Recorder] = {}  # by the names of batchers
        self._cache_usage = cache_usage
        self._lock = RLock()
        self._families = Families(name or names, names, self._labels, self._write)
        try:
            registry.register(self._families)
        except ValueError as error:
            begin = (name or names) + SEPARATORS[names]
            raise ValueError(
                f"the registry has metrics whose names begin with {begin!r} already: pass one "
                f"PrometheusMetrics to all batchers, as their names tell them apart; or give this "
                f"one another `name` or `registry`"
            ) from error

    def for_batcher(self, name: str) -> Recorder:
        """Return what the batcher of this name calls."""
        with self._lock:  # batchers of one name are added up: they have one recorder
            if name not in self._recorders:
                labels = {"batcher": name, "model_name": name, **self._labels}
                self._recorders[name] = Recorder(
                    self._families, labels, self._label_of, self._cache_usage
                )
            return self._recorders[name]

    def _write(self) -> None:
        for recorder in list(self._recorders.values()):
            recorder.write()
