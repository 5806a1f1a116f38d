"""The same events, from a model that is called once for all requests: `uvicorn tgi_after:app`.

The model is an engine now. What was an event is made by `encode`, for one request as before.
"""

from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field

from batchstream import ContinuousBatcher, Last
from batchstream.integrations.starlette import EventsResponse, exception_handlers

WORDS = ["</s>", "so", " it", " goes", " on"]


class Parameters(BaseModel):
    """How to generate; TGI has more."""

    max_new_tokens: int = Field(20, ge=1)


class Request(BaseModel):
    """What a client of TGI sends."""

    inputs: str
    parameters: Parameters = Parameters()


def forward(tokens):
    """Return the next tokens: your model's forward, for all requests."""
    return [(token + 1) % len(WORDS) for token in tokens]


class Model:
    """An engine: requests join and leave between any two steps."""

    def __init__(self):
        self.tokens = {}  # the last one of each slot

    def add(self, slot, request):
        """Let a request join."""
        self.tokens[slot] = len(request.inputs) % len(WORDS)

    def step(self):
        """Return the next token of each slot; the last is the one that ends it."""
        self.tokens = dict(zip(self.tokens, forward(self.tokens.values()), strict=True))
        return {slot: token or Last(0) for slot, token in self.tokens.items()}

    def remove(self, slot):
        """Free the slot of a request that has ended, or whose client has left."""
        del self.tokens[slot]


batcher = ContinuousBatcher(
    Model, max_batch_size=8, max_outputs=lambda request: request.parameters.max_new_tokens
)


@asynccontextmanager
async def lifespan(_):
    """Close the model when the server is stopped."""
    async with batcher:
        yield


app = FastAPI(lifespan=lifespan, exception_handlers=exception_handlers)


class Events:
    """Makes the events of one request."""

    def __init__(self, request):
        self.most = request.parameters.max_new_tokens
        self.index, self.text = 0, ""

    def __call__(self, token):
        """Return the event of a token; the last has the whole text."""
        self.index += 1
        special = token == 0
        self.text += "" if special else WORDS[token]
        last = special or self.index == self.most
        return {
            "index": self.index,
            "token": {"id": token, "text": WORDS[token], "logprob": 0.0, "special": special},
            "generated_text": self.text if last else None,
            "details": {
                "finish_reason": "eos_token" if special else "length",
                "generated_tokens": self.index,
            }
            if last
            else None,
        }


@app.post("/generate_stream")
async def generate_stream(request: Request):
    """Stream the events of a request."""
    return EventsResponse(batcher.astream(request), encode=Events(request))
