"""A FastAPI server of many processes that stream from one model; remote_model.py says how.

    python examples/remote_app.py model.sock --workers 4 --port 8000

    curl -N http://127.0.0.1:8000/text?words=9

A process connects with its first request, and again when the model is back after it was gone. Until
then a request is answered with 503.
"""

import argparse
import os
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Query, Response

from batchstream.integrations.starlette import TextResponse, exception_handlers
from batchstream.remote import connect

# Made as the module is imported, in each process; nothing is connected yet.
batcher = connect(os.environ.get("MODEL_SOCKET", "model.sock"))
app = FastAPI(exception_handlers=exception_handlers)


@app.get("/text")
async def text(words: Annotated[int, Query(ge=1)]) -> Response:
    """Stream so many words."""
    return TextResponse(batcher.astream(words))


@app.get("/health")
async def health() -> dict[str, int]:
    """Say which process answers, and how many requests it has."""
    return {"process": os.getpid(), "live": batcher.statistics().live}


def main() -> None:
    """Run the server."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("socket", help="the path of the model's socket")
    parser.add_argument("--workers", type=int, default=4, help="processes that serve")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    args = parser.parse_args()
    os.environ["MODEL_SOCKET"] = str(Path(args.socket).absolute())  # for the other processes
    print(f"starting a server on http://127.0.0.1:{args.port}", flush=True)
    uvicorn.run(
        "remote_app:app",
        app_dir=str(Path(__file__).parent),
        host="127.0.0.1",
        port=args.port,
        workers=args.workers,
        timeout_graceful_shutdown=20,
        timeout_worker_healthcheck=60,  # a process may take long to begin, on a busy machine
    )


if __name__ == "__main__":
    main()
