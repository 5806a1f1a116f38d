"""What tests of OpenAI's interface share: OpenAI's own client, and a check against its schema.

The models of the `openai` package are generated from the schema that OpenAI publishes. Its client
takes whatever comes; here every answer has to fit: no field missing, none of another type, and none
that the schema lacks.
"""

import contextlib
import json
import uuid

import httpx
import openai
from openai.types.chat import ChatCompletionMessage, ChatCompletionTokenLogprob
from openai.types.chat import chat_completion as whole
from openai.types.chat import chat_completion_chunk as chunks
from pydantic import BaseModel

from support.serving import SECONDS, free_port, running

STOCK = "/stock"  # the path of LitServe's own endpoint, which does not keep to the schema

# Fields that the schema requires and that may be null: the models have them as optional.
REQUIRED = {
    whole.Choice: {"logprobs"},
    whole.ChoiceLogprobs: {"content", "refusal"},
    chunks.Choice: {"finish_reason"},
    chunks.ChoiceLogprobs: {"content", "refusal"},
    ChatCompletionMessage: {"content", "refusal"},
    ChatCompletionTokenLogprob: {"bytes"},
}


def check_schema(answer):
    """Hold a chunk or a whole answer, as the client has parsed it, against the schema."""
    data = answer.to_dict(mode="python")
    check_model(type(answer).model_validate(data, strict=True))


def check_model(model):
    assert not model.model_extra, f"{type(model).__name__} has no {list(model.model_extra)}"
    missing = REQUIRED.get(type(model), set()) - model.model_fields_set
    assert not missing, f"{type(model).__name__} lacks {missing}"
    for _, value in model:
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, BaseModel):
                check_model(part)


class Service:
    """A running server, and clients of it."""

    def __init__(self, url, log_path, client, http):
        self.url = url
        self.http = http
        self._client = client
        self._log_path = log_path

    def log(self):
        return self._log_path.read_text(errors="replace")

    def client(self, path):
        return self._client.with_options(base_url=f"{self.url}{path}")

    def create(self, path, *plans, **options):
        answer = self.client(path).chat.completions.create(**asking(*plans, **options))
        if not options.get("stream"):
            check_schema(answer)
        return answer

    def chunks(self, path, *plans, **options):
        with self.create(path, *plans, stream=True, **options) as stream:
            found = list(stream)
        for chunk in found:
            if path != STOCK:
                check_schema(chunk)
        return found

    def events(self, path, *plans, **options):
        """Return the bytes of a stream's events."""
        request = asking(*plans, stream=True, **options)
        response = self.http.post(f"{path}/chat/completions", json=request)
        assert response.status_code == 200
        assert response.content.endswith(b"\n\n")
        return response.content.removesuffix(b"\n\n").split(b"\n\n")


@contextlib.contextmanager
def serving_openai(api, folder):
    """Run a program as a server for as long as the block lasts."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        running([str(api), str(port)], url, folder / "log"),
        openai.OpenAI(api_key="none", base_url=url, max_retries=0, timeout=SECONDS) as client,
        httpx.Client(base_url=url, timeout=SECONDS) as http,
    ):
        yield Service(url, folder / "log", client, http)


def asking(*plans, gate=None, **options):
    """What a client sends so that the model makes choices by these plans."""
    content = {"tag": uuid.uuid4().hex, "plans": plans}
    if gate is not None:
        content["gate"] = gate.port
    messages = [{"role": "user", "content": json.dumps(content)}]
    return {"model": "model", "messages": messages, "n": len(plans)} | options


def outs(*texts):
    return [["out", text] for text in texts]


def streamed(chunks, number):
    """Return what each choice has been given, and why it ended."""
    texts = {index: [] for index in range(number)}
    reasons = {}
    for chunk in chunks:
        for choice in chunk.choices:
            assert choice.index not in reasons
            if choice.finish_reason is None:
                if choice.delta.content:  # a choice may begin, or end, with no text
                    texts[choice.index].append(choice.delta.content)
            else:
                assert choice.delta.content is None
                reasons[choice.index] = choice.finish_reason
    return [(texts[index], reasons.get(index)) for index in range(number)]
