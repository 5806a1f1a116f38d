"""A LitServe server whose model is a stand-in: a step takes the same time, for any batch.

It is run with a port, the slots of a batch, the seconds of a step, and the file for its diary.
"""

import itertools
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import litserve as ls

from batchstream.integrations.litserve import BatchedStreamLoop


def is_padding(word: str) -> bool:
    """Return whether this stands for a reply that is complete."""
    return not word


LOOP = BatchedStreamLoop(eos_in="predict", is_eos=is_padding)


class Words(ls.LitAPI):
    """Streams one word of each reply at each step."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Open the diary: a line for each step, with its time and the clients that it is for."""
        self.seconds = float(sys.argv[3])
        self.diary = Path(sys.argv[4]).open("a", buffering=1)  # noqa: SIM115 - as long as the worker

    def decode_request(self, request: dict[str, int]) -> dict[str, int]:
        """Take a request as it is: which client asks, and how long its reply is."""
        return request

    def predict(self, requests: list[dict[str, int]]) -> Generator[list[str], Sequence[int] | None]:
        """Yield a word for each reply that is not complete, until all are."""
        live: Sequence[int] = range(len(requests))
        try:
            for position in itertools.count():
                live = [slot for slot in live if position < requests[slot]["length"]]
                if not live:
                    return
                print(time.monotonic(), *(requests[s]["client"] for s in live), file=self.diary)
                time.sleep(self.seconds)  # the model works
                words = [f"word{position}\n" if s in live else "" for s in range(len(requests))]
                told = yield words  # the slots that have a client: only our loop says which
                live = live if told is None else told
        finally:
            print(time.monotonic(), file=self.diary)  # a line without clients: the batch is over

    def encode_response(self, words: Iterator[Any]) -> Any:  # LitServe wants no Iterator here
        """Pass everything on, be it the steps of a batch or the words of one reply."""
        yield from words


if __name__ == "__main__":
    api = Words(stream=True, max_batch_size=int(sys.argv[2]), batch_timeout=2.0, loop=LOOP)
    server = ls.LitServer(api, accelerator="cpu", timeout=120)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
