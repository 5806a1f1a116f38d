"""A LitServe server with a transformers model: OpenAI's endpoint, text, stop strings.

    python examples/llama_litserve.py

    curl -N http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \
         -d '{"messages": [{"role": "user", "content": "The miller"}], "stream": true, "stop": "."}'

Any client of OpenAI's can talk to it, with `base_url="http://127.0.0.1:8000/v1"`. Requests join the
running batch and leave it between two steps. One that reaches a stop string, or whose client
disconnects, is out of the batch before the next one.
"""

import argparse
from typing import Any

import litserve as ls
import llama_model

from batchstream.integrations.litserve import ContinuousBatchLoop, OpenAISpec
from batchstream.integrations.transformers import Generation, TransformersEngine
from batchstream.text import TextDecoder

MOST_TOKENS = 200  # where a client does not say


class Chat(ls.LitAPI):
    """Makes a request for the engine of each choice that a client asks for."""

    def setup(self, device: str) -> None:
        """Load the model; LitServe calls it in the worker."""
        self.model, self.tokenizer = llama_model.load()
        self.model.to(device)

    def decode_request(self, request: Any, context: dict[str, Any]) -> Generation:
        """Return what the engine is to do; the context has all that the client asks for."""
        messages = [message.model_dump(exclude_none=True) for message in request.messages]
        text = llama_model.prompt_of(self.tokenizer, messages)
        context["prompt_ids"] = ids = self.tokenizer.encode(text)
        seed = context.get("seed")
        return Generation(
            ids,
            context["max_tokens"] or MOST_TOKENS,  # or max_completion_tokens: they are the same
            temperature=context["temperature"] or 0,
            top_p=1 if context["top_p"] is None else context["top_p"],
            # With one seed for all, all choices would be equal.
            seed=None if seed is None else seed + context["choice_index"],
        )

    def make_engine(self) -> TransformersEngine:
        """Return the engine of this worker."""
        return TransformersEngine(self.model)

    def make_decoder(self, context: dict[str, Any]) -> TextDecoder:
        """Return what turns the tokens of one request into text."""
        return TextDecoder(self.tokenizer, stop=context["stop"], prompt_ids=context["prompt_ids"])


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--slots", type=int, default=8, help="how many requests run at a time")
    args = parser.parse_args()
    url = f"http://127.0.0.1:{args.port}/v1/chat/completions"
    print(f"starting a server at {url}", flush=True)

    api = Chat(
        stream=True,
        max_batch_size=args.slots,
        spec=OpenAISpec(models=["llama"]),
        loop=ContinuousBatchLoop(Chat.make_engine, decode=Chat.make_decoder),
    )
    server = ls.LitServer(api, accelerator="cpu", timeout=600)
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False)
