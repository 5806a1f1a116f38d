"""Spans and metrics of batchers, by the conventions of OpenTelemetry for generative AI.

Needs the extra `opentelemetry`, which is the API alone: where spans and metrics go is set up with
OpenTelemetry's SDK, in the program that serves. The package says nowhere whose they are, and so a
program without the SDK runs as before.

The conventions are `open-telemetry/semantic-conventions-genai`, version 0.1.0. They are in
development: names may change with a later version of this package.
"""

from batchstream.integrations.opentelemetry._metrics import OpenTelemetryMetrics
from batchstream.integrations.opentelemetry._traces import OpenTelemetryTraces

__all__ = ["OpenTelemetryMetrics", "OpenTelemetryTraces"]
