"""One Ray for all the tests of this folder: `make ray-test` runs them where Ray may bind.

Ray binds all interfaces, so it is started only where loopback is the only one. Each test deploys
its applications beside those of the others: a replica takes seconds to start, so the tests of a
module share them where they can.
"""

import contextlib
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from support import serving
from support.serving import is_open, wait_until_ready

if importlib.util.find_spec("ray") is not None:  # else each module says that it is skipped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydantic, about how Ray uses it
        from ray import serve

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

PATIENCE = 150  # seconds: a dozen processes start, perhaps beside those of other tests
ATTEMPTS = 4  # Ray gives itself up where its own processes take more than 30 seconds
TESTS = Path(serving.__file__).parents[1]


@dataclass(frozen=True)
class Cluster:
    """Where the Ray of these tests is reached.

    Attributes:
        http: Where the proxy of Serve listens: an application is below its name.
        metrics: What Prometheus would read.
    """

    http: str
    metrics: str


def pytest_collection_modifyitems(items):
    """Take what Ray leaves open for what it is: no fault of the test in which it is found."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))
            item.add_marker(pytest.mark.timeout(ATTEMPTS * PATIENCE))  # the first waits for Ray


@pytest.fixture(scope="session")
def ray_cluster():
    """Start a Ray, with Serve in it, which ends with the tests."""
    interfaces = {name for _, name in socket.if_nameindex()}
    if interfaces != {"lo"}:
        pytest.skip(f"Ray would listen on {sorted(interfaces)}; make ray-test hides all but lo")
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # its sockets need a short path
    try:
        with contextlib.ExitStack() as stack:
            for attempt in range(ATTEMPTS):
                try:
                    stack.enter_context(started(folder / str(attempt)))
                    break
                except AssertionError:
                    if attempt == ATTEMPTS - 1:
                        raise
            yield from connected()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def started(folder):
    """Run a Ray for as long as the block lasts."""
    folder.mkdir()
    log = folder / "start.log"
    # A deployment of a module of these tests is found by name, in the replicas too.
    paths = [str(TESTS.parent), str(TESTS), str(Path(__file__).parent)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_register_timeout_seconds": str(PATIENCE),
        "RAY_TMPDIR": str(folder),
    }
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--num-cpus=4", "--object-store-memory=100000000", "--include-dashboard=false"),
                *("--node-ip-address=127.0.0.1", f"--temp-dir={folder}"),
                *(f"--{name}={port}" for name, port in PORTS.items()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment,
        )
    try:
        wait_until_ready(process, partial(has_started, log), log, PATIENCE)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        end_those_of(folder)


def end_those_of(folder):
    """End the processes of one Ray, by their ids: if it gives itself up, it leaves some behind."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{folder}/".encode() in command.read_bytes():
                os.kill(int(command.parent.name), signal.SIGKILL)


def has_started(log):
    return "Ray runtime started" in log.read_text() and is_open(PORTS["port"])


def connected():
    """Connect to the Ray that has been started, with Serve in it."""
    import ray  # noqa: PLC0415 - only where it is installed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(address=f"127.0.0.1:{PORTS['port']}", log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": HTTP_PORT})
            yield Cluster(
                f"http://127.0.0.1:{HTTP_PORT}",
                f"http://127.0.0.1:{PORTS['metrics-export-port']}/metrics",
            )
        finally:
            ray.shutdown()  # and not Serve: its replicas would take their time


numbers = itertools.count()


@pytest.fixture(scope="module")
def deploy(ray_cluster):
    """Return a function that runs applications, for as long as the module's tests last.

    It takes applications, and returns the handle of each; those of one call start at once. One is
    reached over HTTP below its name, such as `/one` with `deploy(one=Model.bind())`; `deploy(app)`
    makes a name. A name that runs already is redeployed.
    """
    names = []

    def run(*apps, **named):
        targets = {f"app{next(numbers)}": app for app in apps} | named
        names.extend(targets)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            handles = serve.run_many(
                [
                    serve.RunTarget(target=app, name=name, route_prefix=f"/{name}")
                    for name, app in targets.items()
                ],
                wait_for_applications_running=True,
            )
        return handles[0] if len(handles) == 1 else handles

    yield run
    for name in dict.fromkeys(names):
        serve.delete(name, _blocking=False)
