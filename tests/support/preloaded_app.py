"""An application that `gunicorn --preload` imports before it forks, in one of three ways.

What stands in the file `before` says what is done with the batcher at import: `nothing`, `warm` for
a whole request, `open` for one that goes on while the workers are forked. Where there is a
`model.py`, the batcher is the one in it: that of a model in a process of its own.
"""

import os
from pathlib import Path

from flask import Flask, Response

from batchstream import EOS, BatchStreamError, ContinuousBatcher
from batchstream.integrations.http import status_of


class Speller:
    def __init__(self):
        self.rest = {}

    def add(self, slot, word):
        self.rest[slot] = iter(word)

    def step(self):
        return {slot: next(letters, EOS) for slot, letters in self.rest.items()}

    def remove(self, slot):
        del self.rest[slot]


if Path("model.py").exists():
    from model import batcher
else:
    batcher = ContinuousBatcher(Speller, max_batch_size=8, max_buffered=2, on_overflow="wait")
app = Flask(__name__)

before = Path("before").read_text()
if before != "nothing":
    request = batcher.stream("so" if before == "warm" else "so it goes on")
    next(request)
if before == "warm":
    assert list(request) == ["o"]


@app.get("/spell/<word>")
def spell(word):
    response = Response(batcher.stream(word).begin(), mimetype="text/plain")
    response.headers["worker"] = str(os.getpid())
    return response


@app.errorhandler(BatchStreamError)
def answer(error):
    status = status_of(error)
    return {"detail": status.detail}, status.code, status.headers
