"""FastAPI: a response that begins with the first output and ends with the stream.

In the folder `examples/servers`:

    pip install -r fastapi_http/requirements.txt
    uvicorn fastapi_http.server:app --port 8000

    curl -N http://127.0.0.1:8000/spell/word

It is the same on two other servers:

    hypercorn fastapi_http.server:app --bind 127.0.0.1:8000 --graceful-timeout 30
    granian --interface asgi fastapi_http.server:app --port 8000
"""

from contextlib import asynccontextmanager

from fastapi import FastAPI
from model import batcher

from batchstream.integrations.starlette import TextResponse, exception_handlers


@asynccontextmanager
async def lifespan(_):
    async with batcher:
        yield


app = FastAPI(lifespan=lifespan, exception_handlers=exception_handlers)


@app.get("/spell/{word}")
async def spell(word: str):
    return TextResponse(batcher.astream(word))
