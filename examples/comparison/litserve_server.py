"""A LitServe server for `litserve_cells.py`: `litserve_server.py PORT LOOP`.

LOOP is stock, or of this library: ours, or continuous.

A request is `{"name": ..., "outputs": ...}`, and what else is to happen to it.
"""

import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any

import litserve as ls
from fastapi import HTTPException

from batchstream.integrations.litserve import BatchedStreamLoop, ContinuousBatchLoop

PACE = 0.02  # seconds for a step


class Scripted(ls.LitAPI):
    """Does what its requests say."""

    end: str | None = None

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Count steps."""
        self.steps = 0

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Refuse a request that asks for it."""
        if request.get("refuse"):
            raise HTTPException(400, "refused")
        return request

    def predict(self, requests: list[dict[str, Any]]) -> Iterator[list[str | None]]:
        """Yield the name of each request again and again; the end is None, or an empty text."""
        for number in range(max(request["outputs"] for request in requests)):
            time.sleep(PACE)
            self.steps += 1
            if any(request.get("fails_at") == number for request in requests):
                raise OSError("device lost")
            yield [
                self.output(request, number)
                for request in requests
                if request.get("lacks") != number
            ]

    def output(self, request: dict[str, Any], number: int) -> str | None:
        """Return what a step has for a request."""
        if number >= request["outputs"]:
            return self.end
        if request["name"] == "report":
            return f"{self.steps - 1}\n"
        return f"{request['name']}\n" * request.get("size", 1)

    # LitServe reads annotations here: this one has to be of a response.
    def encode_response(self, steps: Iterator[list[str | None]]) -> Any:
        """Pass the steps on."""
        yield from steps


class Engine:
    """The same, one step for all that are there."""

    def __init__(self, api: Scripted) -> None:
        self.api = api
        self.running: dict[int, tuple[dict[str, Any], Iterator[int]]] = {}

    def add(self, slot: int, request: dict[str, Any]) -> None:
        """Let a request join."""
        self.running[slot] = request, itertools.count()

    def step(self) -> dict[int, str | None]:
        """Make an output for each."""
        time.sleep(PACE)
        return {
            slot: self.api.output(request, next(numbers))
            for slot, (request, numbers) in self.running.items()
        }

    def remove(self, slot: int) -> None:
        """Forget a request."""
        del self.running[slot]


def main(port: int, loop: str) -> None:
    """Serve."""
    loops = {
        "stock": "auto",
        "ours": BatchedStreamLoop(max_buffered=8),
        "continuous": ContinuousBatchLoop(Engine),
    }
    api = Scripted(stream=True, max_batch_size=2, batch_timeout=0.5, loop=loops[loop])
    api.end = "" if loop == "stock" else None  # by None, LitServe's own loop cuts the connection
    server = ls.LitServer(api, accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
