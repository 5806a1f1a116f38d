"""A LitServe server whose models give tokens: `python litserve_text_api.py PORT`.

The models say what they were sent, a byte of UTF-8 at a time, and then END: so it is the client's
text that shows what became of it. `/one` has no batches.
"""

import sys

import litserve as ls
from texts import BYTES, END

from batchstream import token_ids
from batchstream.integrations.litserve import BatchedStreamLoop, ContinuousBatchLoop, OpenAISpec
from batchstream.text import TextDecoder


def limit(context):
    return context.get("max_tokens")


class Echo(ls.LitAPI):
    def setup(self, device):
        self.tokenizer = BYTES

    def decode_request(self, request, context):
        if isinstance(request, dict):  # without a spec
            context.update(request)
            ids = self.tokenizer.encode(request["text"])
        else:
            ids = self.tokenizer.encode(request.messages[-1].content)
        context["prompt_ids"] = ids
        return ids

    def decoder(self, context):
        if context.get("user") == "forgotten":
            return TextDecoder(self.tokenizer)
        return TextDecoder(
            self.tokenizer, stop=context.get("stop"), prompt_ids=context["prompt_ids"]
        )

    def predict(self, prompts):
        one = not prompts or isinstance(prompts[0], int)
        prompts = [prompts] if one else prompts
        step = 0
        while True:
            tokens = [ids[step] if step < len(ids) else END for ids in prompts]
            yield tokens[0] if one else tokens
            step += 1


class Engine:
    def __init__(self, api):
        self._ids = {}

    def add(self, slot, ids):
        self._ids[slot] = iter([*ids, END])

    def step(self):
        return {slot: next(ids) for slot, ids in self._ids.items()}

    def remove(self, slot):
        del self._ids[slot]


def batched():
    return BatchedStreamLoop(
        eos_in="predict", is_eos=token_ids(END), max_outputs=limit, decode=Echo.decoder
    )


def continuous():
    return ContinuousBatchLoop(
        Engine, is_eos=token_ids(END), max_outputs=limit, decode=Echo.decoder
    )


def services():
    return {
        "/batched": Echo(spec=OpenAISpec(), loop=batched(), max_batch_size=2, batch_timeout=0.05),
        "/continuous": Echo(spec=ls.OpenAISpec(), loop=continuous(), max_batch_size=2),
        "/one": Echo(spec=OpenAISpec(), loop=batched()),
        "/plain": Echo(loop=continuous(), max_batch_size=2, stream=True, api_path="/plain"),
    }


def main(port):
    apis = services()
    for path, api in apis.items():
        if path != "/plain":
            api.api_path = api.spec.api_path = f"{path}/chat/completions"
    server = ls.LitServer(list(apis.values()), accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
