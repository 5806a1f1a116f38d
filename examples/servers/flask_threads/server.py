"""Flask, with a thread for each request: it closes what it sends, which cancels the stream.

In the folder `examples/servers`:

    pip install -r flask_threads/requirements.txt
    gunicorn flask_threads.server:app -k gthread --threads 16 --bind 127.0.0.1:8000

    curl -N http://127.0.0.1:8000/spell/word
"""

from flask import Flask, Response
from model import batcher

from batchstream import BatchStreamError
from batchstream.integrations.http import status_of

app = Flask(__name__)


@app.get("/spell/<word>")
def spell(word):
    return Response(batcher.stream(word).begin(), mimetype="text/plain")


@app.errorhandler(BatchStreamError)
def answer(error):
    status = status_of(error)  # 503 if too many requests wait
    return {"detail": status.detail}, status.code, status.headers
