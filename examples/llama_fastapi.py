"""A FastAPI server with a transformers model: OpenAI's endpoint, text, stop strings.

    python examples/llama_fastapi.py

    curl -N http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \
         -d '{"messages": [{"role": "user", "content": "The miller"}], "stream": true, "stop": "."}'

Any client of OpenAI's can talk to it, with `base_url="http://127.0.0.1:8000/v1"`. An answer has one
choice; fields that `ChatCompletion` has not are left out of account, such as `tools`. `/complete`
takes a prompt and streams plain text. Requests join the running batch and leave it between two
steps. One that reaches a stop string, or whose client disconnects, is out of the batch before the
next one, whether or not its answer is streamed.
"""

import argparse
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

import llama_model
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sse_starlette import ServerSentEvent

from batchstream import AsyncStream, ContinuousBatcher, RequestError, StreamEnd
from batchstream.integrations.starlette import (
    EventsResponse,
    NDJSONResponse,
    TextResponse,
    exception_handlers,
)
from batchstream.integrations.transformers import Generation, TransformersEngine
from batchstream.text import TextDecoder

MOST_TOKENS = 200  # where a client does not say
STARTED = int(time.time())

model, tokenizer = llama_model.load()


class Settings(BaseModel):
    """How a text goes on; OpenAI's clients may send null for what they leave open."""

    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)  # its name until 2024
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None

    def generation(self, prompt: str) -> Generation:
        """Return what the engine is to do."""
        return Generation(
            tokenizer.encode(prompt),
            self.max_completion_tokens or self.max_tokens or MOST_TOKENS,
            temperature=self.temperature or 0,
            top_p=1 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=self.stop,
        )


class Completion(Settings):
    """A prompt that is to go on."""

    prompt: str = Field(min_length=1)


class Message(BaseModel):
    """One of a conversation."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(BaseModel):
    """What a streamed answer has besides."""

    include_usage: bool | None = None


class ChatCompletion(Settings):
    """A conversation that is to go on, as OpenAI's clients send it."""

    messages: list[Message] = Field(min_length=1)
    model: str = "llama"
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def make_decoder(generation: Generation) -> TextDecoder:
    """Return what turns the tokens of one request into text."""
    return TextDecoder(tokenizer, stop=generation.stop_strings, prompt_ids=generation.ids)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
    """Keep a batcher for as long as the server runs."""
    async with ContinuousBatcher(
        lambda: TransformersEngine(model), max_batch_size=app.state.slots, decode=make_decoder
    ) as batcher:
        yield {"batcher": batcher}


async def refuse(_: Request, error: Exception) -> Response:
    """Tell a client of OpenAI's what is wrong with its request; it shows no other form."""
    message = str(error)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    shown = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": shown}, 400)


app = FastAPI(
    lifespan=lifespan,
    exception_handlers=exception_handlers | {RequestError: refuse, RequestValidationError: refuse},
)
app.state.slots = 8


@app.get("/health")
async def health(request: Request) -> dict[str, int]:
    """Tell that the server is there, and how busy it is."""
    figures = request.state.batcher.statistics()
    return {"live": figures.live, "waiting": figures.waiting}


@app.get("/v1/models")
async def models() -> dict[str, object]:
    """List the only model, as OpenAI's server does; a request may name any."""
    only = {"id": "llama", "object": "model", "created": STARTED, "owned_by": "batchstream"}
    return {"object": "list", "data": [only]}


@app.post("/complete")
async def complete(asked: Completion, request: Request) -> Response:
    """Stream how the prompt goes on."""
    return TextResponse(request.state.batcher.astream(asked.generation(asked.prompt)))


@app.post("/v1/chat/completions")
async def chat(asked: ChatCompletion, request: Request) -> Response:
    """Answer as OpenAI's server does, with one choice."""
    prompt = llama_model.prompt_of(tokenizer, [it.model_dump() for it in asked.messages])
    stream = request.state.batcher.astream(asked.generation(prompt))
    answer = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time())}
    answer["model"] = asked.model
    if not asked.stream:
        # A single line of JSON. An endpoint that returned it would not notice that its client left.
        headers = {"content-type": "application/json"}
        return NDJSONResponse(whole(stream, answer), headers=headers)
    asks_usage = asked.stream_options is not None and asked.stream_options.include_usage
    return EventsResponse(events(stream, answer, include_usage=bool(asks_usage)))


async def whole(stream: AsyncStream[str], answer: dict[str, object]) -> AsyncIterator[object]:
    """Yield an answer that is not streamed, once it is complete."""
    async with stream:  # a client that disconnects frees its slot
        text = "".join([piece async for piece in stream])
    choice = {"index": 0, "finish_reason": reason_of(stream.end), "logprobs": None}
    choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    answer["object"] = "chat.completion"
    yield answer | {"choices": [choice], "usage": usage_of(stream.end)}


async def events(
    stream: AsyncStream[str], answer: dict[str, object], *, include_usage: bool
) -> AsyncIterator[object]:
    """Yield the chunks of an answer, and the word that ends it."""
    answer["object"] = "chat.completion.chunk"
    delta = {"role": "assistant", "content": ""}
    async with stream:  # a client that disconnects frees its slot
        async for piece in stream:
            delta |= {"content": piece}
            yield answer | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            delta = {}
    last = {"index": 0, "delta": {}, "finish_reason": reason_of(stream.end)}
    yield answer | {"choices": [last]}
    if include_usage:
        yield answer | {"choices": [], "usage": usage_of(stream.end)}
    yield ServerSentEvent("[DONE]")


def reason_of(end: StreamEnd) -> str:
    """Return OpenAI's word for the reason."""
    return "length" if end.reason == "length" else "stop"


def usage_of(end: StreamEnd) -> dict[str, int]:
    """Return the numbers of tokens."""
    prompt, completion = end.info["prompt_tokens"], end.info["completion_tokens"]
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--slots", type=int, default=8, help="how many requests run at a time")
    args = parser.parse_args()
    app.state.slots = args.slots
    print(f"starting a server at http://127.0.0.1:{args.port}/v1/chat/completions", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=args.port, timeout_graceful_shutdown=5)
