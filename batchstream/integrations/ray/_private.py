"""The names of Ray that are not public: all of them, each for want of a public one.

They were read in Ray 2.60.0. Another version may lack one, and says so here, when it is imported:
not in the middle of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import ray
from ray import serve

try:
    # `serve.get_multiplexed_model_id` reads the second of these; the first says which model a
    # request is for, and what its id is.
    from ray.serve._private.tracing_utils import BatchTraceContextManager, get_trace_context
    from ray.serve.context import (
        ReplicaContext,
        _get_serve_request_context,
        _set_batch_request_context,
        _unset_request_context,
    )

    ReplicaContext.__dataclass_fields__["_deployment_config"]
except (ImportError, AttributeError, KeyError) as error:
    raise ImportError(
        f"batchstream.integrations.ray needs a name of Ray Serve that is not public, and that Ray "
        f"{ray.__version__} does not have ({error}): use ray==2.60.0, or a newer batchstream"
    ) from error


def request_context() -> Any:
    """Return what Ray knows of the request that the calling code serves."""
    return _get_serve_request_context()


def model_id(context: Any) -> str:
    """Return the multiplexed model that a request is for; empty if it is for none."""
    name: str = context.multiplexed_model_id
    return name


def trace_context() -> Any:
    """Return the trace that the calling code is part of, if Ray traces."""
    return get_trace_context()


def trace(context: Any) -> AbstractContextManager[Any]:
    """Return a block in which spans belong to this trace."""
    block: AbstractContextManager[Any] = BatchTraceContextManager(context)
    return block


def enter_batch(contexts: Sequence[Any]) -> None:
    """Let the calling code serve these requests, and none of them alone."""
    _unset_request_context()
    _set_batch_request_context(list(contexts))


def max_ongoing_requests() -> int | None:
    """Return how many requests Ray gives this replica at once; None outside of a replica."""
    try:
        context = serve.get_replica_context()
    except serve.exceptions.RayServeException:
        return None
    most: int = context._deployment_config.max_ongoing_requests  # noqa: SLF001 - see above
    return most
