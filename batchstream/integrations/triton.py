"""Triton: a request of a decoupled model of the Python backend, answered by a stream of a batcher.

Only Triton has the module `triton_python_backend_utils`, so this imports it where it is needed. The
tests call it as the documentation of the Python backend says; they run no Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from batchstream._core.errors import (
    ClosedError,
    DeadlineError,
    OverloadedError,
    RequestError,
    error_text,
)

if TYPE_CHECKING:
    from batchstream import AsyncStream

__all__ = ["error_of", "send_stream"]

T = TypeVar("T")


async def send_stream(
    request: Any,
    submit: Callable[[Any], AsyncStream[T]],
    *,
    encode: Callable[[T], Sequence[Any]],
) -> None:
    """Answer a request with the outputs of a stream: a response for each, and the final flag.

    An error, of `submit` and `encode` too, is the last response, as `error_of` has it. When the
    client has left, the next output ends the stream: Triton wakes no code that waits.

    Args:
        request: An `InferenceRequest` of a decoupled model.
        submit: Returns the stream of the request, such as that of `batcher.astream`.
        encode: Returns the output tensors of the response for an output.

    Cancellation: cancels the stream; the last response is an error, `UNAVAILABLE`.
    Threads: the event loop in which Triton calls `execute`.
    """
    import triton_python_backend_utils as pb_utils  # noqa: PLC0415 - only Triton has it

    sender = request.get_response_sender()
    last = []
    try:
        async with submit(request) as stream:
            async for output in stream:
                if sender.is_cancelled():
                    break
                sender.send(pb_utils.InferenceResponse(output_tensors=encode(output)))
    except Exception as error:  # noqa: BLE001 - whatever it is, the client waits for an end
        last = [pb_utils.InferenceResponse(error=error_of(error))]
    except BaseException:  # it was cancelled: no half answer may look whole
        closed = ClosedError("the task that answers the request was cancelled")
        last = [pb_utils.InferenceResponse(error=error_of(closed))]
        raise
    finally:
        sender.send(*last, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def error_of(error: Exception) -> Any:
    """Return the `TritonError` that a client is told of an error.

    `RequestError` is `INVALID_ARG`, with its text. `OverloadedError`, `ClosedError` and
    `DeadlineError` are `UNAVAILABLE`. Any other error is `INTERNAL`, with its text.
    """
    from triton_python_backend_utils import TritonError  # noqa: PLC0415 - as above

    if isinstance(error, RequestError):
        return TritonError(error_text(error), TritonError.INVALID_ARG)
    if isinstance(error, OverloadedError):
        return TritonError("the server is overloaded", TritonError.UNAVAILABLE)
    if isinstance(error, ClosedError):
        return TritonError("the server is closing", TritonError.UNAVAILABLE)
    if isinstance(error, DeadlineError):
        return TritonError("the request took too long", TritonError.UNAVAILABLE)
    return TritonError(f"the model has failed: {error_text(error)}", TritonError.INTERNAL)
