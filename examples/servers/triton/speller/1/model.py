"""Triton's Python backend: a decoupled model, each request of which is answered by its own stream.

The folder `speller` is a model of a model repository. In the folder `examples/servers`, put the
batcher beside this file, and start Triton, 24.04 or later, with batchstream in its Python:

    cp model.py triton/speller/1/batching.py
    tritonserver --model-repository triton

The tests call it as the documentation of Triton's Python backend says that Triton does, and run no
Triton. A client that leaves is noticed by the next output: `is_cancelled` wakes no code that waits.
One instance of the model serves all requests: Triton calls `execute` again while earlier requests
still wait for outputs, and the batcher makes the batches.
"""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils

from batching import batcher
from batchstream import ClosedError, DeadlineError, OverloadedError, RequestError

GRACE = 30  # seconds for requests that run when the model is unloaded
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """Spells words: `WORD` is one, and each response has one `LETTER`."""

    async def execute(self, requests: list) -> None:
        """Answer requests; requests of later calls run at the same time."""
        await asyncio.gather(*map(respond, requests))

    def finalize(self) -> None:
        """Let the requests that run end: the model is about to be unloaded."""
        batcher.close(drain=GRACE)


async def respond(request: object) -> None:
    """Send the letters of one word, and its end."""
    sender = request.get_response_sender()
    error = None
    try:
        [word] = pb_utils.get_input_tensor_by_name(request, "WORD").as_numpy()
        async with batcher.astream(word.decode()) as stream:
            async for letter in stream:
                if sender.is_cancelled():
                    break
                tensor = pb_utils.Tensor("LETTER", np.array([letter.encode()], dtype=object))
                sender.send(pb_utils.InferenceResponse(output_tensors=[tensor]))
    except Exception as raised:  # noqa: BLE001 - whatever it is, the client waits for an end
        error = pb_utils.InferenceResponse(error=triton_error(raised))
    if error is None:
        sender.send(flags=FINAL)
    else:
        sender.send(error, flags=FINAL)


def triton_error(error: Exception) -> object:
    """Return what a client is told of an error."""
    if isinstance(error, RequestError):
        return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    if isinstance(error, (ClosedError, DeadlineError, OverloadedError)):
        return pb_utils.TritonError("the server is busy", pb_utils.TritonError.UNAVAILABLE)
    return pb_utils.TritonError(f"the model has failed: {error}", pb_utils.TritonError.INTERNAL)
