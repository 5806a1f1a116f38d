"""A LitServe server with one of the loops, for litserve_loops.py: `litserve_server.py OPTIONS`.

A request is `{"number": ..., "length": ..., "seconds": ...}`: it gets so many outputs, and the
model takes so long for each step of its batch. `{"report": true}` is answered with what the worker
has noted down since the last report. The server ends when its standard input does, however the
process at the other end ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import litserve
from litserve.transport.process_transport import MPQueueTransport
from models import Request

from batchstream import Last
from batchstream.integrations import litserve as ours


@dataclass
class Diary:
    """What a worker notes down; all times in seconds.

    Attributes:
        steps: How many the model has made.
        outputs: How many it has made in them.
        model: The time that it took.
        sends: Messages to server processes.
        sending: The time that they took.
        begin: When the first request was decoded.
        end: When the last message was sent.
    """

    steps: int = 0
    outputs: int = 0
    model: float = 0.0
    sends: int = 0
    sending: float = 0.0
    begin: float = 0.0
    end: float = 0.0

    def clear(self) -> None:
        """Begin anew."""
        for field in fields(self):
            setattr(self, field.name, 0)
        self.begin = time.perf_counter()


DIARY = Diary()


def note_sends() -> None:
    """Let every message to a server process be noted down."""
    send = MPQueueTransport.send

    def noted(transport: MPQueueTransport, item: object, consumer_id: int) -> None:
        begin = time.perf_counter()
        send(transport, item, consumer_id)
        DIARY.end = time.perf_counter()
        DIARY.sending += DIARY.end - begin
        DIARY.sends += 1

    MPQueueTransport.send = noted


@dataclass(frozen=True)
class Job:
    """What the model does for a request."""

    outputs: list[str]
    seconds: float = 0.0


def take_time(live: Sequence[Job]) -> None:
    """Do what takes the time of a step."""
    seconds = max(job.seconds for job in live)
    begin = time.perf_counter()
    if seconds:
        time.sleep(seconds)
    DIARY.model += time.perf_counter() - begin
    DIARY.steps += 1
    DIARY.outputs += len(live)


def element(job: Job, position: int, ends: str) -> Any:
    """Return what a step has for a request: it ends by `Last`, by None, or with all others."""
    if position >= len(job.outputs):
        return "" if ends == "together" else None
    output = job.outputs[position]
    return Last(output) if ends == "Last" and position == len(job.outputs) - 1 else output


class Service(litserve.LitAPI):
    """The model, as the batched loops call it."""

    told = True  # a report; the next request begins a new page
    ends = "together"

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Begin the diary."""
        note_sends()

    def decode_request(self, request: dict) -> Job:
        """Say what the model has to do."""
        if "report" in request:
            self.told = True
            return Job([json.dumps(asdict(DIARY))])
        if self.told:
            self.told = False
            DIARY.clear()
        outputs = Request(request["number"], request["length"]).outputs()
        return Job([f"{output}\n" for output in outputs], request["seconds"])

    def predict(self, jobs: Sequence[Job]) -> Iterator[list[Any]]:
        """Yield the steps of a batch that runs to its end."""
        for position in range(max(len(job.outputs) for job in jobs)):
            take_time([job for job in jobs if position < len(job.outputs)])
            yield [element(job, position, self.ends) for job in jobs]

    def encode_response(self, outputs: Iterator[Any]) -> Iterator[Any]:
        """Pass everything on, be it steps of a batch or outputs of a request."""
        yield from outputs


class Engine:
    """The model, as the continuous loop drives it."""

    def __init__(self, _: Service) -> None:
        self.jobs: dict[int, tuple[Job, Iterator[int]]] = {}

    def add(self, slot: int, job: Job) -> None:
        """Take a request in."""
        assert slot not in self.jobs
        self.jobs[slot] = job, iter(range(len(job.outputs)))

    def step(self) -> dict[int, Any]:
        """Make an output for each."""
        take_time([job for job, _ in self.jobs.values()])
        return {
            slot: element(job, next(positions), "Last")
            for slot, (job, positions) in self.jobs.items()
        }

    def remove(self, slot: int) -> None:
        """Forget a request."""
        del self.jobs[slot]


def loop_of(name: str) -> Any:
    """Return a loop by its name."""
    if name == "stock":
        return "auto"
    return ours.BatchedStreamLoop() if name == "batched" else ours.ContinuousBatchLoop(Engine)


def end_with_input() -> None:
    """Kill all processes of this server at the end of its input."""

    def wait() -> None:
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main(port: int, loop: str, size: int, timeout: float, ends: str) -> None:
    """Serve."""
    end_with_input()
    api = Service(stream=True, max_batch_size=size, batch_timeout=timeout, loop=loop_of(loop))
    api.ends = ends
    server = litserve.LitServer(api, accelerator="cpu", timeout=100)

    @server.app.get("/processes")
    def processes() -> dict[str, int]:
        return {
            "worker": server.inference_workers[0].pid,
            "manager": server.transport_config.manager._process.pid,  # noqa: SLF001
            "server": os.getpid(),
        }

    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
