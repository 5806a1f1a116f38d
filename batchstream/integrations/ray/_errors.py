"""The errors of a batch whose types Ray's users know."""

from __future__ import annotations

from typing import Any

from ray.serve.exceptions import RayServeException

from batchstream._core.errors import RequestError


class ItemSizeError(RequestError, RuntimeError):
    """The request alone is larger than `max_batch_size`, by `batch_size_fn`.

    With `serve.batch` it is a plain `RuntimeError`. As a `RequestError` it is answered with 422.
    """


def check_length(returned: Any, size: int) -> None:
    """Refuse results, or a step, that do not have one element for each request.

    What has no length is left to the code that reads it.

    Raises:
        RayServeException: They have another length.
    """
    if hasattr(type(returned), "__len__") and len(returned) != size:
        raise RayServeException(
            f"Batched function doesn't preserve batch size. The input list has length {size} but "
            f"the returned list has length {len(returned)}."
        )
