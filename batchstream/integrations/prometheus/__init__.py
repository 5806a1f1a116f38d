"""Prometheus: the figures of batchers as counters, gauges and histograms.

Theory of operation
-------------------

What there is to count stands in tables (`_figures.py`), one for this library's names and one for
vLLM's: the registry, the page *Metrics* and the dashboard are held against them. Each batcher has
an object of its own (`_recorder.py`) that writes all its series. What happens once for a request is
written at once; steps are gathered, as a registry costs more than a step does, and written when the
registry is read, after some steps, and when nothing runs.
"""

from batchstream.integrations.prometheus._metrics import PrometheusMetrics as PrometheusMetrics

__all__ = ["PrometheusMetrics"]
