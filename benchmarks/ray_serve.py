"""Ray Serve's `@serve.batch` in this process: no cluster, no replica, and no port is opened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import ray.serve.context
from models import Request
from ray import serve
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.schema import ReplicaRank

# The decorator asks its replica whether it admits as many requests as a batch takes. Its own tests
# answer as is done here.
ray.serve.context._set_internal_replica_context(  # noqa: SLF001
    replica_id=ReplicaID("benchmark", DeploymentID("benchmark")),
    servable_object=None,
    _deployment_config=DeploymentConfig(max_ongoing_requests=10_000),
    rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
    world_size=1,
)


def batch(function: Callable, size: int, wait: float) -> Callable:
    """Return the function with batching by Ray Serve, which collects a batch for so long."""
    return serve.batch(max_batch_size=size, batch_wait_timeout_s=wait)(function)


def steps_of(batch: Sequence[Request], seconds: float) -> Iterator[list[str | type]]:
    """Yield the steps of a batch, with Ray Serve's own mark for an end.

    The mark takes a step of its own, but for the longest: these end with the generator.
    """
    outputs = [request.outputs() for request in batch]
    for _ in range(max(request.length for request in batch)):
        if seconds:
            time.sleep(seconds)
        yield [next(mine, StopIteration) for mine in outputs]
