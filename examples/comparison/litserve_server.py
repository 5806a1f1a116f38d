"""A LitServe server for `litserve_cells.py`: `litserve_server.py PORT LOOP`.

LOOP is stock, or of this library: ours, or continuous.

A request is `{"name": ..., "outputs": ...}`, and what else is to happen to it.
"""

import contextlib
import itertools
import socket
import sys
from collections.abc import Iterator
from typing import Any

import litserve as ls
from fastapi import HTTPException

from batchstream.integrations.litserve import BatchedStreamLoop, ContinuousBatchLoop


class Door:
    """Where a model waits before each step, if one of its requests has the port of a gate."""

    def __init__(self) -> None:
        self.gate: socket.socket | None = None

    def find(self, request: dict[str, Any]) -> None:
        """Go to the gate of a request."""
        if "gate" in request and self.gate is None:
            self.gate = socket.create_connection(("127.0.0.1", request["gate"]))

    def wait(self) -> None:
        """Wait until the client lets the model through; once its gate is gone, no more."""
        if self.gate is None:
            return
        try:
            passed = self.gate.send(b".") and self.gate.recv(1)
        except ConnectionError:
            passed = b""
        if not passed:
            self.close()

    def close(self) -> None:
        """Wait no more."""
        if self.gate is not None:
            self.gate.close()
            self.gate = None


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
        with contextlib.closing(Door()) as door:
            for request in requests:
                door.find(request)
            for number in range(max(request["outputs"] for request in requests)):
                door.wait()
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
        self.door = Door()
        self.running: dict[int, tuple[dict[str, Any], Iterator[int]]] = {}

    def add(self, slot: int, request: dict[str, Any]) -> None:
        """Let a request join."""
        self.door.find(request)
        self.running[slot] = request, itertools.count()

    def step(self) -> dict[int, str | None]:
        """Make an output for each."""
        self.door.wait()
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
