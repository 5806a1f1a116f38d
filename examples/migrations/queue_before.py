"""A server with a queue for each request, as it is often written: `uvicorn queue_before:app`.

    curl -N http://127.0.0.1:8000/spell/word

A thread takes requests from an inbox, makes batches of them, and puts the outputs into the queue of
each request; None is the end. Do not copy this.
"""

import queue
import threading
import time
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

inbox = queue.Queue()


def forward(words, step):
    """Return the next letter of each word, None after its last: your model's forward."""
    return [word[step : step + 1] or None for word in words]


def spell(words):
    """Spell the words of a batch."""
    for step in range(max(map(len, words)) + 1):
        yield forward(words, step)


def gather():
    """Wait for a request, and then a moment for others."""
    batch = [inbox.get()]
    deadline = time.monotonic() + 0.1
    while len(batch) < 8:
        try:
            batch.append(inbox.get(timeout=max(0, deadline - time.monotonic())))
        except queue.Empty:
            break
    return batch


def work():
    """Run one batch after another."""
    while True:
        batch = gather()
        for letters in spell([word for word, _ in batch]):
            for (_, outputs), letter in zip(batch, letters, strict=True):
                outputs.put(letter)


@asynccontextmanager
async def lifespan(_):
    """Start the thread; it ends with the process."""
    threading.Thread(target=work, daemon=True).start()
    yield


app = FastAPI(lifespan=lifespan)


def read(outputs):
    """Yield what is in the queue of a request, up to its end."""
    while (letter := outputs.get()) is not None:
        yield letter


@app.get("/spell/{word}")
async def answer(word: str):
    """Stream the letters of a word."""
    outputs = queue.Queue()
    inbox.put((word, outputs))
    return StreamingResponse(read(outputs), media_type="text/plain")
