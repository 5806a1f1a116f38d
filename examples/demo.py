"""Watch two requests share a batch on a LitServe server, and end one by one.

    python examples/demo.py

starts the server of batched_streaming_with_eos.py on a free port, sends it a short and a long
prompt at the same time, and shows every chunk of the two responses as it arrives. The exit status
is 0 if the short response was complete before the long one.
"""

import argparse
import contextlib
import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

SERVER = Path(__file__).with_name("batched_streaming_with_eos.py")
PROMPTS = ("short", "long")
SECONDS_TO_START = 60.0
SECONDS_TO_STOP = 5.0
SECONDS_OF_SILENCE = 30.0


@dataclass(frozen=True)
class Arrival:
    """What one client saw, and when: a chunk, or (without one) the end of its response."""

    seconds: float
    prompt: str
    chunk: str | None = None
    error: Exception | None = None


def free_port() -> int:
    """Find a port that is free, and below those that outgoing connections are given."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Run the server for as long as the block lasts, and give its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, os.fspath(SERVER), "--port", str(port)]
        server = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_until_ready(server, url)
            yield url
        except Exception:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise
        finally:
            stop(server)


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Ask the server for its health until it is well."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server did not start, its exit status is {server.returncode}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health").status_code == httpx.codes.OK:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the server was not ready within {SECONDS_TO_START:.0f} s")


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to stop, and make sure that none of its processes runs on."""
    server.send_signal(signal.SIGINT)  # LitServe stops its workers at SIGINT only
    try:
        server.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # the whole session
        server.wait()


def arrivals(url: str) -> Iterator[Arrival]:
    """Send all prompts at the same time, and yield what arrives as it does."""
    seen: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
    together = threading.Barrier(len(PROMPTS))
    client = httpx.Client(base_url=url, timeout=SECONDS_OF_SILENCE)
    start = time.monotonic()

    def request(prompt: str) -> None:
        def tell(**what: object) -> None:
            seen.put(Arrival(time.monotonic() - start, prompt, **what))

        try:
            together.wait()
            with client.stream("POST", "/predict", json={"prompt": prompt}) as response:
                response.raise_for_status()
                for line in response.iter_lines():
                    tell(chunk=line)
            tell()
        except Exception as error:  # noqa: BLE001 - handed to the main thread
            tell(error=error)

    with client:
        for prompt in PROMPTS:
            threading.Thread(target=request, args=(prompt,), daemon=True).start()
        open_prompts = set(PROMPTS)
        while open_prompts:
            arrival = seen.get()
            if arrival.error is not None:
                raise RuntimeError(f"{arrival.prompt} failed: {arrival.error!r}") from arrival.error
            if arrival.chunk is None:
                open_prompts.remove(arrival.prompt)
            yield arrival


@contextlib.contextmanager
def lines() -> Iterator[Callable[[Arrival], None]]:
    """Show arrivals as lines of text."""

    def show(arrival: Arrival) -> None:
        what = "complete" if arrival.chunk is None else arrival.chunk
        print(f"{arrival.seconds:5.2f} s  {arrival.prompt:<5}  {what}", flush=True)

    yield show


@contextlib.contextmanager
def live_table() -> Iterator[Callable[[Arrival], None]]:
    """Show arrivals as rows of a table that grows, with a column for each prompt."""
    from rich.live import Live  # noqa: PLC0415 - needed on a terminal only
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table("arrived", *PROMPTS, title="the content of each chunk")
    with Live(table) as live:

        def show(arrival: Arrival) -> None:
            cell = Text("complete", "bold green")
            if arrival.chunk is not None:
                cell = Text(json.loads(arrival.chunk)["content"])
            cells = [cell if prompt == arrival.prompt else "" for prompt in PROMPTS]
            table.add_row(f"{arrival.seconds:.2f} s", *cells)
            live.refresh()

        yield show


def display() -> contextlib.AbstractContextManager[Callable[[Arrival], None]]:
    """Return the way to show arrivals that suits where the output goes."""
    return live_table() if sys.stdout.isatty() else lines()


def summarize(seen: list[Arrival]) -> None:
    """Say when each stream ended, and what that saved; exit if they ended together."""
    chunks = {p: sum(a.prompt == p and a.chunk is not None for a in seen) for p in PROMPTS}
    ends = {arrival.prompt: arrival for arrival in seen if arrival.chunk is None}
    for prompt in PROMPTS:
        print(f"{prompt} was complete after {chunks[prompt]} outputs, {ends[prompt].seconds:.2f} s")

    after_short = seen[seen.index(ends["short"]) + 1 :]
    if sum(arrival.chunk is not None for arrival in after_short) <= 1:  # one was on its way
        sys.exit("demo failed: the short response was not complete before the long one")
    print(
        f"{chunks['long'] - chunks['short']} outputs were never sent: if all streams of a batch "
        f"ended together,\nshort would have been padded to {chunks['long']}, and its client kept "
        f"waiting for them"
    )


def main() -> None:
    """Run the demonstration."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, _: sys.exit(128 + number))  # run the clean-up
    print("starting a LitServe server, max_batch_size=4", flush=True)
    seen = []
    with running_server() as url, display() as show:
        for arrival in arrivals(url):
            seen.append(arrival)
            show(arrival)
    summarize(seen)


if __name__ == "__main__":
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    try:
        main()
    except RuntimeError as error:
        sys.exit(f"demo failed: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
