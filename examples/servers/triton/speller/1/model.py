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
from batchstream.integrations.triton import send_stream

GRACE = 30  # seconds for requests that run when the model is unloaded


class TritonPythonModel:
    """Spells words: `WORD` is one, and each response has one `LETTER`."""

    async def execute(self, requests: list) -> None:
        """Answer requests; requests of later calls run at the same time."""
        await asyncio.gather(*(send_stream(each, spell, encode=tensors) for each in requests))

    def finalize(self) -> None:
        """Let the requests that run end: the model is about to be unloaded."""
        batcher.close(drain=GRACE)


def spell(request: object) -> object:
    """Return the stream of a request."""
    [word] = pb_utils.get_input_tensor_by_name(request, "WORD").as_numpy()
    return batcher.astream(word.decode())


def tensors(letter: str) -> list:
    """Return the tensors of a response."""
    return [pb_utils.Tensor("LETTER", np.array([letter.encode()], dtype=object))]
