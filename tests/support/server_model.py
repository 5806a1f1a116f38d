"""The model that takes the place of `examples/servers/model.py`, under the same name.

It goes as far as a test lets it. A request is the text `GATE.LETTERS.SIZE`: the port of a
`serving.Gate`, of one that all requests at a time have in common, how many outputs the request
gets, and of how many characters each is. If that number of outputs is negative, the request gets as
many without the sign, and then its client is at fault. The model tells the gate each of its steps,
from its first request to its last, and then that it is closed. It fails if the gate is gone.

Once there was a request, what the batcher counts is to be had at a port, whose number is in the
file `figures` beside this one. So a test asks the batcher and not the server.
"""

import json
import socket
import threading
from pathlib import Path

from batchstream import EOS, ContinuousBatcher, Fail, RequestError

SLOTS = 3
PENDING = 1


class Gated:
    """An engine that waits at a gate before each step."""

    def __init__(self):
        self._requests = {}
        self._gate = self._lines = None
        self._steps = 0
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=tell_figures, args=[listener], daemon=True).start()
        file = Path(__file__).with_name("figures")
        file.with_suffix(".new").write_text(str(listener.getsockname()[1]))
        file.with_suffix(".new").rename(file)  # there as a whole, or not at all

    def add(self, slot, request):
        try:
            gate, letters, size = map(int, request.split("."))
        except ValueError:
            raise RequestError(f"expected GATE.LETTERS.SIZE, got {request!r}") from None
        if not self._requests:
            self._gate = socket.create_connection(("127.0.0.1", gate))
            self._lines = self._gate.makefile()
            self._steps = 0
        end = EOS if letters >= 0 else Fail(RequestError("it has no end"))
        self._requests[slot] = (iter(range(abs(letters))), size, end)

    def step(self):
        self._steps += 1
        self._gate.sendall(f"step {self._steps}\n".encode())
        if not self._lines.readline():
            raise ConnectionError("the gate is gone")
        return {slot: output(*request) for slot, request in self._requests.items()}

    def remove(self, slot):
        del self._requests[slot]
        if not self._requests:
            with self._gate, self._lines:
                self._gate.sendall(b"closed\n")


def output(numbers, size, end):
    return end if next(numbers, None) is None else "x" * (size - 1) + "\n"


def tell_figures(listener):
    while True:
        connection, _ = listener.accept()
        figures = batcher.statistics()
        with connection:
            told = {"live": figures.live, "running": figures.running}
            connection.sendall(json.dumps(told).encode())


batcher = ContinuousBatcher(
    Gated, max_batch_size=SLOTS, max_pending=PENDING, max_buffered=8, drain=60
)
