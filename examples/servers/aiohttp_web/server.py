"""aiohttp: a handler that waits for the first output, and is cancelled when its client leaves.

In the folder `examples/servers`:

    pip install -r aiohttp_web/requirements.txt
    python -m aiohttp_web.server --port 8000

    curl -N http://127.0.0.1:8000/spell/word
"""

import argparse
import logging

from aiohttp import web
from model import batcher

from batchstream import BatchStreamError
from batchstream.integrations.http import status_of


async def spell(request):
    try:
        body = await batcher.astream(request.match_info["word"]).begin(encode=str.encode)
    except BatchStreamError as error:
        status = status_of(error)  # 503 if too many requests wait
        detail = {"detail": status.detail}
        return web.json_response(detail, status=status.code, headers=status.headers)
    return web.Response(body=body, content_type="text/plain")


async def lifespan(_):
    async with batcher:
        yield


app = web.Application()
app.add_routes([web.get("/spell/{word}", spell, allow_head=False)])
app.cleanup_ctx.append(lifespan)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="stream the letters of words")
    parser.add_argument("--port", type=int, default=8000)
    logging.basicConfig()  # for the lines of the batcher
    web.run_app(app, host="127.0.0.1", port=parser.parse_args().port, handler_cancellation=True)
