"""TGI's events, from a model that is called for each request alone: `uvicorn tgi_before:app`.

A loop of this kind stands behind many a replacement of TGI's server: each request has the model to
itself, and a client that leaves is noticed when the next event is written.
"""

import json

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

WORDS = ["</s>", "so", " it", " goes", " on"]
app = FastAPI()


class Parameters(BaseModel):
    """How to generate; TGI has more."""

    max_new_tokens: int = Field(20, ge=1)


class Request(BaseModel):
    """What a client of TGI sends."""

    inputs: str
    parameters: Parameters = Parameters()


def forward(token):
    """Return the next token: your model's forward, for one request."""
    return (token + 1) % len(WORDS)


def events(request):
    """Yield one event for each token; the last has the whole text."""
    text, token = "", len(request.inputs) % len(WORDS)
    for index in range(1, request.parameters.max_new_tokens + 1):
        token = forward(token)
        special = token == 0
        text += "" if special else WORDS[token]
        last = special or index == request.parameters.max_new_tokens
        event = {
            "index": index,
            "token": {"id": token, "text": WORDS[token], "logprob": 0.0, "special": special},
            "generated_text": text if last else None,
            "details": {
                "finish_reason": "eos_token" if special else "length",
                "generated_tokens": index,
            }
            if last
            else None,
        }
        yield f"data:{json.dumps(event)}\n\n"
        if last:
            return


@app.post("/generate_stream")
def generate_stream(request: Request):
    """Stream the events of a request."""
    return StreamingResponse(events(request), media_type="text/event-stream")
