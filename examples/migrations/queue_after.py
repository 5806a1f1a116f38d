"""The server without inbox, thread and queues: `uvicorn queue_after:app`.

    curl -N http://127.0.0.1:8000/spell/word

The model's loop is unchanged. `batched` makes the batches, and gives each request a stream.
"""

from contextlib import asynccontextmanager

from fastapi import FastAPI

from batchstream import batched
from batchstream.integrations.starlette import TextResponse, exception_handlers


def forward(words, step):
    """Return the next letter of each word, None after its last: your model's forward."""
    return [word[step : step + 1] or None for word in words]


@batched(max_batch_size=8, batch_timeout=0.1)
def spell(words):
    """Spell the words of a batch."""
    for step in range(max(map(len, words)) + 1):
        yield forward(words, step)


@asynccontextmanager
async def lifespan(_):
    """Close the model when the server is stopped."""
    async with spell:
        yield


app = FastAPI(lifespan=lifespan, exception_handlers=exception_handlers)


@app.get("/spell/{word}")
async def answer(word: str):
    """Stream the letters of a word."""
    return TextResponse(spell.astream(word))
