"""A LitServe server that answers with what it was asked: `python litserve_openai_echo.py PORT`.

`/echo` has a request class and models of its own, `/stops` an API that handles `stop`. `/planned`
and `/pinged` have the model of `litserve_openai_api.py`; the latter sends pings.
"""

import json
import sys

import litserve as ls
from fastapi import HTTPException, Request
from litserve_openai_api import EncodedBySpec
from pydantic import Field, field_validator

from batchstream import Last, RequestError
from batchstream.integrations.litserve import (
    BatchedStreamLoop,
    ChatCompletionRequest,
    OpenAISpec,
)


class EchoRequest(ChatCompletionRequest):
    top_k: int = Field(50, ge=1)
    repetition_penalty: float = Field(1.0, ge=1)
    mood: str = "calm"

    @field_validator("mood")
    @classmethod
    def _be_polite(cls, mood):
        if mood == "rude":
            raise ValueError("be polite")
        return mood


class Echo(ls.LitAPI):
    def setup(self, device):
        pass

    def authorize(self, request: Request):
        if request.headers.get("authorization") == "Bearer wrong":
            raise HTTPException(401, "Incorrect API key provided.")

    def decode_request(self, request, context):
        if context.get("too_long"):
            detail = {"message": "too long", "code": "context_length_exceeded", "param": "messages"}
            raise HTTPException(400, detail)
        if context.get("rejected"):
            raise RequestError("no poems")
        messages = [message.model_dump(exclude_unset=True) for message in request.messages]
        return json.dumps({"context": dict(context), "messages": messages})

    def predict(self, requests):
        yield [Last(request) for request in requests]


def limit(context):
    return context["max_tokens"]


def services():
    spec = OpenAISpec(request_type=EchoRequest, models=["small", "org/large"])
    return {
        "/echo": Echo(spec=spec, loop=BatchedStreamLoop(eos_in="predict", max_outputs=limit)),
        "/stops": Echo(
            spec=OpenAISpec(handles_stop=True), loop=BatchedStreamLoop(eos_in="predict")
        ),
        "/planned": EncodedBySpec(spec=OpenAISpec(), loop=BatchedStreamLoop(eos_in="predict")),
        "/pinged": EncodedBySpec(
            spec=OpenAISpec(ping=0.01), loop=BatchedStreamLoop(eos_in="predict")
        ),
    }


def main(port):
    apis = services()
    for path, api in apis.items():
        api.api_path = api.spec.api_path = f"{path}/chat/completions"
        api.max_batch_size, api.batch_timeout = 3, 0.05
    server = ls.LitServer(list(apis.values()), accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
