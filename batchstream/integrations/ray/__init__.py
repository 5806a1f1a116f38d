"""Ray Serve: `batch`, a decorator like `serve.batch` whose streams end when they have ended.

Theory of operation
-------------------

A decorated function is a function again, as Ray finds out by `inspect` how a method is called. What
it needs stands in a `Handler` (`_handler.py`): it reads the arguments of a call by the function's
own signature (`_arguments.py`), notes the context of the request, and submits both to a
`DynamicBatcher`. Its source (`_source.py`) calls the function with one list for each
parameter, in the contexts of the batch's requests, and reads `StopIteration` as an end mark. Ray
pickles a deployment's class by value: a handler pickles as its definition, and each replica makes
its own.

Ray has no public way to what tells a batch its requests. The names that are used instead stand in
one module (`_private.py`), which says so when it is imported if this version of Ray lacks one.

`RayMetrics` and `autoscaling_stats` stand beside that, for batchers of any kind.
"""

from batchstream.integrations.ray._autoscaling import autoscaling_stats as autoscaling_stats
from batchstream.integrations.ray._batch import batch as batch
from batchstream.integrations.ray._errors import ItemSizeError as ItemSizeError
from batchstream.integrations.ray._metrics import RayMetrics as RayMetrics
from batchstream.integrations.ray._ongoing import warn_if_never_full as warn_if_never_full

__all__ = ["ItemSizeError", "RayMetrics", "autoscaling_stats", "batch", "warn_if_never_full"]
