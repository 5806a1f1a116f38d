"""A Ray of its own for tests and benchmarks, where loopback is the only interface.

Ray binds all interfaces, so it is started nowhere else.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from support.serving import is_open

# Processes of Ray that choose their ports by themselves take longer to start. In a network
# namespace of its own every port is free.
PORTS = {
    "port": 6379,
    "dashboard-agent-grpc-port": 52301,
    "dashboard-agent-listen-port": 52302,
    "runtime-env-agent-port": 52303,
    "metrics-export-port": 52304,
}
HTTP_PORT = 8000
STARTS = 4
PATIENCE = 150  # seconds: a dozen processes start, perhaps beside other programs

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cluster:
    """Where a Ray is reached.

    Attributes:
        http: Where the proxy of Serve listens: an application is below its name.
        metrics: What Prometheus would read.
    """

    http: str
    metrics: str


def why_not():
    """Return why no Ray may be started here, or None."""
    interfaces = {name for _, name in socket.if_nameindex()}
    if interfaces == {"lo"}:
        return None
    return f"Ray would listen on {sorted(interfaces)}; make ray-test hides all but lo"


@contextlib.contextmanager
def running_ray(*paths):
    """Run a Ray with Serve in it, and connect to it, for as long as the block lasts.

    Args:
        paths: Folders of modules that replicas import by name, besides the folders of the tests.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # for short paths of sockets
    log = folder / "start.log"
    everywhere = [*map(str, paths), str(ROOT), str(ROOT / "tests")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*everywhere, os.environ.get("PYTHONPATH", "")]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_register_timeout_seconds": str(PATIENCE),
        "RAY_prestart_worker_first_driver": "0",  # one for each of the CPUs, which are mere numbers
        "RAY_worker_niceness": "0",  # else a busy machine runs everything else before a replica
        "RAY_TMPDIR": str(folder),
        # Else it asks for the token that another Ray of this user has made, if there is one.
        "RAY_AUTH_MODE": "disabled",
    }
    try:
        with started(folder, log, environment), connected() as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def started(folder, log, environment):
    """Run Ray; begin again if it gives up, as it does where its processes take 30 seconds."""
    for attempt in range(STARTS):
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                    *("--num-cpus=16", "--object-store-memory=100000000"),
                    *("--include-dashboard=false", "--node-ip-address=127.0.0.1"),
                    f"--temp-dir={folder / str(attempt)}",
                    *(f"--{name}={port}" for name, port in PORTS.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment,
            )
        try:
            while not has_started(log) and process.poll() is None:
                time.sleep(0.05)
            if process.returncode is None:
                yield
                return
        finally:
            end(process, folder)
    raise AssertionError(f"Ray has not started:\n{log.read_text()}")


def end(process, folder):
    """End a Ray, and by their ids the processes that it leaves behind if it gives up."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)  # some of its processes take half a minute
    process.kill()
    process.wait()
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{folder}/".encode() in command.read_bytes():
                os.kill(int(command.parent.name), signal.SIGKILL)


def has_started(log):
    return "Ray runtime started" in log.read_text() and is_open(PORTS["port"])


@contextlib.contextmanager
def connected():
    """Connect to the Ray that has been started, with Serve in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydantic, about how Ray uses it
        import ray  # noqa: PLC0415 - only where it is installed
        from ray import serve  # noqa: PLC0415

        ray.init(address=f"127.0.0.1:{PORTS['port']}", log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": HTTP_PORT})
            yield Cluster(
                f"http://127.0.0.1:{HTTP_PORT}",
                f"http://127.0.0.1:{PORTS['metrics-export-port']}/metrics",
            )
        finally:
            ray.shutdown()  # and not Serve: its replicas would take their time
