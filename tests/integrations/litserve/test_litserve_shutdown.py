"""End to end: how servers end, and what they do without requests. As /proc of Linux shows it."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from support.serving import SECONDS, free_port
from support.stepwise import API, MANY, SIZE, Server, Street, guests_of, numbers_of, serve

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

BROKEN_OFF = (http.client.HTTPException, OSError)


# ---- what /proc says


def processes_of(session):
    """The command lines of a session's processes, by pid."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, _parent, _group, of_session, *_ = stat.read_text().rpartition(")")[2].split()
            if int(of_session) == session and state != "Z":
                found[int(stat.parent.name)] = stat.with_name("cmdline").read_bytes()
    return found


def workers_of(session):
    spawned = b"multiprocessing.spawn"
    return {pid for pid, command in processes_of(session).items() if spawned in command}


def wait_until_gone(processes):
    """Wait until there are none; they end by themselves or not at all."""
    deadline = time.monotonic() + SECONDS
    while found := processes():
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def switches_of(pid):
    """How often the threads of a process have gone to sleep."""
    count = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        [line] = [
            line for line in status.read_text().splitlines() if line.startswith("voluntary_ctxt")
        ]
        count += int(line.split()[1])
    return count


# ---- the end


class Streaming:
    """Clients in mid-stream at both kinds of loops, whose models wait in a step."""

    def __init__(self, guests):
        self.clients = [
            (tag, client)
            for path in ["/predict", "/continuous"]
            for tag, client in guests.fill(path, MANY).items()
        ]
        self.doors = [guests.street.door() for _ in range(2)]
        for door in self.doors:
            door.make_steps_until(lambda tags: len(tags) == SIZE)
            door.go()
            door.make_steps_until(lambda tags: len(tags) == SIZE)
        for tag, client in self.clients:
            assert numbers_of([client.next_output()], tag) == [0]

    def let_models_go_on(self):
        for door in self.doors:
            door.close()


@contextlib.contextmanager
def streaming(folder, idle=(), **options):
    with (
        serve(folder, apis=["predict", "continuous", *idle], **options) as server,
        guests_of(server) as guests,
    ):
        yield server, Streaming(guests)


def assert_ended_quietly(server):
    assert server.process.wait(SECONDS) == 0
    wait_until_gone(lambda: processes_of(server.process.pid))
    assert "Traceback" not in server.log()


def assert_cut(client):
    with pytest.raises(BROKEN_OFF) as caught:
        client.response.read()
    assert not isinstance(caught.value, TimeoutError), "it hangs"


SIGNALS = {
    "SIGINT": [signal.SIGINT],
    "SIGTERM twice": [signal.SIGTERM, signal.SIGTERM],
}


@pytest.mark.parametrize("signals", SIGNALS.values(), ids=SIGNALS)
def test_a_client_that_is_served_when_the_server_is_terminated_is_served_to_the_end(
    tmp_path, signals
):
    with streaming(tmp_path) as (server, running):
        for number in signals:
            server.process.send_signal(number)
            server.wait_until_it_has_logged("Shutting down LitServe")
        running.let_models_go_on()
        for tag, client in running.clients:
            assert numbers_of(client.outputs(), tag) == list(range(1, MANY))
        assert_ended_quietly(server)


@pytest.mark.rule(28)
def test_a_client_that_is_not_served_in_time_is_cut_off_and_nothing_is_left(tmp_path):
    with streaming(tmp_path, grace=0.5) as (server, running):
        server.process.send_signal(signal.SIGTERM)
        for _, client in running.clients:
            assert_cut(client)
        assert_ended_quietly(server)


@contextlib.contextmanager
def loading(folder, **options):
    """A server whose workers wait in their setup; nothing can be asked of it yet."""
    with contextlib.ExitStack() as stack:
        street = Street(stack)
        options |= {"port": free_port(), "setup": street.port}
        log_path = folder / "log"
        log = stack.enter_context(log_path.open("ab"))
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(API), json.dumps(options)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        stack.callback(process.wait)
        stack.callback(kill_session, process.pid)
        assert street.door().next_line() == "setup"
        yield Server(f"http://127.0.0.1:{options['port']}", log_path, workers=1, process=process)


def kill_session(session):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


@pytest.mark.rule(28)
def test_a_server_that_is_terminated_while_it_loads_its_model_leaves_nothing(tmp_path):
    with loading(tmp_path, apis=["predict"]) as server:
        server.process.terminate()
        server.process.wait(SECONDS)
        wait_until_gone(lambda: processes_of(server.process.pid))
        assert "Traceback" not in server.log()


@pytest.mark.rule(28)
def test_workers_end_busy_or_idle_when_the_main_process_is_killed(tmp_path):
    with streaming(tmp_path, idle=["encode", "narrow"]) as (server, running):
        assert len(workers_of(server.process.pid)) == 4
        server.process.kill()
        running.let_models_go_on()
        wait_until_gone(lambda: workers_of(server.process.pid))


@pytest.mark.rule(28)
@pytest.mark.xfail(strict=True, raises=AssertionError, reason="all but the main process go on")
def test_no_worker_is_left_of_a_stock_server_that_was_terminated(tmp_path):
    with serve(tmp_path, apis=["stock"]) as server:
        server.process.terminate()
        server.process.wait(SECONDS)
        with contextlib.suppress(httpx.TransportError):
            assert httpx.get(f"{server.url}/health", timeout=SECONDS).status_code != 200
        wait_until_gone(lambda: workers_of(server.process.pid))


# ---- idleness


# With a batch_timeout of 0, which is LitServe's default, its own loop never sleeps.
@pytest.mark.rule(29)
@pytest.mark.parametrize(
    ("kind"),
    [
        "prompt",
        "continuous",
        pytest.param("stock_prompt", marks=pytest.mark.xfail(strict=True, raises=AssertionError)),
    ],
)
def test_an_idle_worker_sleeps(stepwise_servers, tmp_path, kind):
    with contextlib.ExitStack() as stack:
        if kind == "stock_prompt":  # no other request shall be in the batch
            server = stack.enter_context(serve(tmp_path, apis=[kind]))
        else:
            server = stepwise_servers("one worker")
        guests = stack.enter_context(guests_of(server))
        client = guests.send(f"/{kind}", "a", 1, at_door=False)
        [output] = client.outputs()
        client = stack.enter_context(httpx.Client(base_url=server.url, timeout=SECONDS))
        begin, before = time.monotonic(), switches_of(output["pid"])
        for _ in range(100):
            assert client.get("/health").status_code == 200
        switches, seconds = switches_of(output["pid"]) - before, time.monotonic() - begin
    # It looks up once a second, which takes a few; not to sleep takes some ten thousand a second.
    assert switches < 50 * (seconds + 1)
