"""Litestar: a handler may return our response, as that is an ASGI application.

In the folder `examples/servers`:

    pip install -r litestar_asgi/requirements.txt
    uvicorn litestar_asgi.server:app --port 8000

    curl -N http://127.0.0.1:8000/spell/word
"""

from litestar import Litestar, Response, get
from litestar.types import ASGIApp
from model import batcher

from batchstream import BatchStreamError
from batchstream.integrations.http import status_of
from batchstream.integrations.starlette import TextResponse


@get("/spell/{word:str}")
async def spell(word: str) -> ASGIApp:
    return TextResponse(batcher.astream(word))


def answer(_, error):
    status = status_of(error)  # 503 if too many requests wait
    return Response({"detail": status.detail}, status_code=status.code, headers=status.headers)


app = Litestar([spell], lifespan=[lambda _: batcher], exception_handlers={BatchStreamError: answer})
