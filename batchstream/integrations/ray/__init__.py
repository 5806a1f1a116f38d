"""Ray Serve."""

from batchstream.integrations.ray._autoscaling import autoscaling_stats
from batchstream.integrations.ray._metrics import RayMetrics

__all__ = ["RayMetrics", "autoscaling_stats"]
