r"""A LitServe server that streams a batch in which every response ends at its own last token.

Run it, then ask for a short and a long response at the same time, from two terminals:

    python examples/batched_streaming_with_eos.py

    curl -X POST http://127.0.0.1:8000/predict \
         -H "Content-Type: application/json" -d '{"prompt": "short"}'
    curl -X POST http://127.0.0.1:8000/predict \
         -H "Content-Type: application/json" -d '{"prompt": "long"}'

The two share a batch. The short response has 3 outputs and is complete with the third, while the
long one goes on to its 9. `medium` has 6. Break one of them off with Ctrl-C: the model stops
working for it at its next step, and stops altogether when no request is live.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from typing import Any

import litserve as ls
from fastapi import HTTPException

from batchstream import Last
from batchstream.integrations.litserve import BatchedStreamLoop

RESPONSES = {
    "short": "Short and sweet.",
    "medium": "This one takes a bit longer.",
    "long": "The long one goes on when others have finished.",
}

Word = str
Message = dict[str, str]


class BatchedStreaming(ls.LitAPI):
    """Streams one word of every response at each step."""

    def __init__(self, seconds_per_step: float = 0.2, **options: Any) -> None:
        super().__init__(**options)
        self.seconds_per_step = seconds_per_step

    def decode_request(self, request: dict[str, str]) -> list[Word]:
        """Look the prompt up; one that is not known fails its own request only."""
        prompt = request.get("prompt")
        if prompt not in RESPONSES:
            raise HTTPException(400, f"prompt must be one of {', '.join(RESPONSES)}")
        return RESPONSES[prompt].split()

    def predict(self, responses: list[list[Word]]) -> Iterator[dict[int, Word | Last[Word]]]:
        """Yield one word for each response that a client waits for, with a mark on its last one.

        It goes on until the loop closes it, which it does when no request is live.
        """
        live: tuple[int, ...] = tuple(range(len(responses)))
        for position in itertools.count():
            time.sleep(self.seconds_per_step)  # the model works
            step: dict[int, Word | Last[Word]] = {}
            for slot in live:
                word = responses[slot][position]
                step[slot] = word if position + 1 < len(responses[slot]) else Last(word)
            live = yield step

    def encode_response(self, words: Iterator[Word]) -> Iterator[Message]:
        """Make a message of each word of one response. The loop calls it for each."""
        for word in words:
            yield {"role": "assistant", "content": word}


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    print(f"starting a server at http://127.0.0.1:{args.port}/predict", flush=True)

    api = BatchedStreaming(
        stream=True,
        max_batch_size=4,
        batch_timeout=0.1,
        loop=BatchedStreamLoop(eos_in="predict"),
    )
    server = ls.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False)
