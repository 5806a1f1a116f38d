"""A server of threads that streams, with nothing but the standard library and batchstream.

    python examples/threaded_server.py

    curl -N http://127.0.0.1:8000/27

Each request has a thread, which waits for its own stream; all share the steps of one model. The
model follows a number by the rule of Collatz, half of it or three times it and one, down to 1. Some
get there in three steps and some in thousands.
"""

import argparse
import contextlib
import json
import os
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from batchstream import BatchStreamError, DeadlineError, DynamicBatcher, Last, Stream

PACE = float(os.environ.get("PACE", "0.02"))  # seconds for a step, so that one can watch
DIGITS = 400


def follow(starts: list[int]) -> Iterator[dict[int, object]]:
    """Yield the next number of every slot, until it is 1."""
    numbers = dict(enumerate(starts))
    live = tuple(numbers)
    while True:  # closed when no request is live
        live = yield {slot: Last(1) if numbers[slot] == 1 else numbers[slot] for slot in live}
        time.sleep(PACE)
        numbers = {slot: following(numbers[slot]) for slot in live}


def following(number: int) -> int:
    """Return the number that follows."""
    return 3 * number + 1 if number % 2 else number // 2


batcher = DynamicBatcher[int, int](follow, max_batch_size=16, workers=2, max_pending=32)


class Handler(BaseHTTPRequestHandler):
    """One connection, in a thread of its own."""

    protocol_version = "HTTP/1.1"  # which has chunks: a reply that was cut can be told from a whole
    timeout = 30  # seconds that a client may take to read what it is sent, or to ask again

    def do_GET(self) -> None:
        """Answer."""
        path = self.path.removeprefix("/")
        if path == "health":
            figures = batcher.statistics()
            self.reply(HTTPStatus.OK, {"live": figures.live, "waiting": figures.waiting})
        elif path.isdecimal() and len(path) <= DIGITS and int(path) > 0:
            self.reply_with_stream(int(path))
        else:
            self.reply(HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": "ask for a number, like /27"})

    def reply(self, status: HTTPStatus, content: object) -> None:
        """Send a reply at once."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def reply_with_stream(self, number: int) -> None:
        """Send outputs as they come, each in a line."""
        try:
            stream = batcher.stream(number, wait_timeout=10)
            first = next(stream)  # an error has a status only if it comes before the first output
        except DeadlineError:
            self.reply(HTTPStatus.GATEWAY_TIMEOUT, {"detail": "no batch had room in time"})
        except BatchStreamError as error:
            self.reply(HTTPStatus.SERVICE_UNAVAILABLE, {"detail": str(error)})
        else:
            with contextlib.closing(stream):  # cancels it, however this ends
                self.send_chunks(first, stream)

    def send_chunks(self, first: int, stream: Stream[int]) -> None:
        """Send the body of a reply, or as much of it as can be sent."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        try:
            self.end_headers()
            self.send_chunk([first])
            for output in stream:
                self.send_chunk([output, *stream.drain()])  # all that there is, in one write
            self.wfile.write(b"0\r\n\r\n")
        except (
            OSError,
            BatchStreamError,
        ) as error:  # the client has disconnected, or there is no more
            self.log_error("broken off: %r", error)
            self.close_connection = True

    def send_chunk(self, outputs: list[int]) -> None:
        """Send a piece of a body."""
        lines = "".join(f"{output}\n" for output in outputs).encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(lines), lines))


class Server(ThreadingHTTPServer):
    """Lets connections wait until they are accepted, more than the 5 that are usual."""

    request_queue_size = 128


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    print(f"starting a server at http://127.0.0.1:{args.port}/27", flush=True)
    server = Server(("127.0.0.1", args.port), Handler)
    with batcher, server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
