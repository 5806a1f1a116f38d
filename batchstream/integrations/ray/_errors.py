"""The error of a request that no batch can hold."""

from __future__ import annotations

from batchstream._core.errors import RequestError


class ItemSizeError(RequestError, RuntimeError):
    """The request alone is larger than `max_batch_size`, by `batch_size_fn`.

    With `serve.batch` it is a plain `RuntimeError`. As a `RequestError` it is answered with 422.
    """
