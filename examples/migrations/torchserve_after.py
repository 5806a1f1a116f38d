"""The handler of TorchServe as a server of its own: `uvicorn torchserve_after:app --port 8080`.

The loop is the one of before. The path and the chunks of a response are TorchServe's.
"""

from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

from batchstream import EOS, batched
from batchstream.integrations.starlette import TextResponse, exception_handlers

MOST = 20  # outputs


@batched(max_batch_size=8, batch_timeout=0.1)  # batchSize, maxBatchDelay
def handle(words):
    """Spell the words of a batch."""
    for step in range(MOST):
        yield [word[step : step + 1] or EOS for word in words]  # your model's forward


@asynccontextmanager
async def lifespan(_):
    """Close the model when the server is stopped."""
    async with handle:
        yield


app = FastAPI(lifespan=lifespan, exception_handlers=exception_handlers)


@app.post("/predictions/speller")
async def predict(request: Request):
    """Stream the letters of a word."""
    return TextResponse(handle.astream((await request.body()).decode()))
