"""A real server of many processes in front of one model: the two examples, as a user runs them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the core's tests run without it")
pytest.importorskip("httpx", reason="the core's tests run without it")
pytest.importorskip("uvicorn", reason="the core's tests run without it")

import httpx

from batchstream.remote import connect
from support.serving import free_port, is_healthy

EXAMPLES = Path(__file__).parents[2] / "examples"
PAGE = Path(__file__).parents[2] / "docs" / "remote.md"
HELD_MODEL = Path(__file__).parents[1] / "support" / "remote_held_model.py"
WORKERS = 2
SECONDS = 100  # a busy machine takes long to start so many processes


class Process:
    """A program in a session of its own, which ends with the block."""

    def __init__(self, log, *command, folder=None):
        self.log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=folder,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def signal(self, number):
        self._process.send_signal(number)

    def kill(self):
        self._process.kill()
        self._process.wait()

    def end(self):
        """Wait until it has ended, and return its status."""
        return self._process.wait(SECONDS)

    @property
    def pid(self):
        return self._process.pid

    @property
    def has_ended(self):
        return self._process.poll() is not None


def poll(condition):
    """Wait for what processes bring about, and return it."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    return found


def listens(path):
    """Whether a server listens at a path."""
    with socket.socket(socket.AF_UNIX) as probe:
        return not probe.connect_ex(str(path))


class HeldModel(Process):
    """A model that makes its first step when so many requests are in it."""

    def __init__(self, path, requests):
        super().__init__(path.with_suffix(".log"), HELD_MODEL, path, str(requests))

    def figures(self):
        """End the model, and return how many words there were, and in how many steps."""
        self.signal(signal.SIGTERM)
        assert self.end() == 0
        line = self.log.read_text().splitlines()[-1]
        return tuple(map(int, re.findall(r"\d+", line)))


@contextlib.contextmanager
def held_model(path, requests):
    """Run such a model, and wait until it can be asked."""
    with HeldModel(path, requests) as model:
        poll(lambda: listens(path))
        yield model


class Service:
    """A server of several processes, in front of a model that each test starts by itself."""

    def __init__(self, folder):
        self.path = folder / "model.sock"
        self._model_log = folder / "model.log"
        self._app_log = folder / "app.log"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._arguments = self.path, "--port", str(port), "--workers", str(WORKERS)

    def __enter__(self):
        command = self._app_log, EXAMPLES / "remote_app.py", *self._arguments
        with contextlib.ExitStack() as stack:  # nothing is left running if it does not start
            self.app = stack.enter_context(Process(*command))
            poll(lambda: is_healthy(self.url))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    @contextlib.contextmanager
    def model_with(self, *options):
        """Run a model with these options."""
        with contextlib.ExitStack() as self._models:
            self._options = options
            self.start_model()
            yield

    def start_model(self):
        """Start the model, and wait until it can be asked."""
        arguments = EXAMPLES / "remote_model.py", self.path, *self._options
        self.model = self._models.enter_context(Process(self._model_log, *arguments))
        poll(lambda: listens(self.path))

    def get(self, words):
        """Ask for a text, on a connection of its own, and return the response."""
        return httpx.get(f"{self.url}/text?words={words}", timeout=SECONDS)

    def get_many(self, *words):
        with ThreadPoolExecutor(len(words)) as pool:
            return list(pool.map(self.get, words))

    @contextlib.contextmanager
    def streams(self, words, count):
        """Begin to read texts; give an iterator over the chunks of each."""
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(httpx.Client(timeout=SECONDS)) for _ in range(count)]
            url = f"{self.url}/text?words={words}"
            responses = [stack.enter_context(it.stream("GET", url)) for it in clients]
            yield [response.iter_raw() for response in responses]

    def workers(self):
        """Return the processes that serve."""
        return workers_of(self.app.pid)

    def wait_until_free(self, slots):
        """Wait until no request has a slot: so many new ones get theirs at once."""
        poll(lambda: {it.status_code for it in self.get_many(*[2] * slots)} == {200})


def workers_of(pid):
    """Return the processes that serve for a process of uvicorn's."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    return {int(pid) for pid, command in commands.items() if b"spawn_main" in command}


def text(words):
    from_model = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    return "".join(from_model[n % len(from_model)] + " " for n in range(words))


def wholes(begun, streams):
    """Return what responses say that have begun so, once they have ended."""
    return [(first + b"".join(rest)).decode() for first, rest in zip(begun, streams, strict=True)]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Service(tmp_path_factory.mktemp("remote")) as service:
        yield service


def texts_of_both(service, path):
    """Return four texts that a server's processes stream, and four that this process does."""
    with connect(path) as batcher:
        streams = [batcher.stream(40) for _ in range(4)]
        responses = service.get_many(*[40] * 4)
        return [it.text for it in responses] + ["".join(stream) for stream in streams]


def test_processes_that_share_one_model_make_half_the_steps_of_two_models(service, tmp_path):
    own = tmp_path / "own.sock"
    with held_model(service.path, 8) as shared:
        assert texts_of_both(service, service.path) == [text(40)] * 8
        assert shared.figures() == (320, 40)
    with held_model(service.path, 4) as one, held_model(own, 4) as other:
        assert texts_of_both(service, own) == [text(40)] * 8
        assert (one.figures(), other.figures()) == ((160, 40), (160, 40))


def test_a_client_that_leaves_frees_its_slot_and_clients_that_are_too_many_get_503(service):
    with service.model_with("--slots", "4", "--pending", "4"):
        with service.streams(100_000, 4) as streams:
            assert all(next(stream).startswith(b"the ") for stream in streams)
        service.wait_until_free(4)
        responses = service.get_many(*[25] * 40)
        statuses = [response.status_code for response in responses]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 8
        for response in responses:
            if response.status_code == 200:
                assert response.text == text(25)
            else:
                assert int(response.headers["retry-after"]) >= 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the processes in /proc")
def test_the_requests_of_a_process_that_is_killed_leave_the_model(service):
    with service.model_with("--slots", "4", "--pending", "4"):
        before = service.workers()
        assert len(before) == WORKERS
        with service.streams(100_000, 4) as streams:
            for stream in streams:
                next(stream)
            for process in before:
                os.kill(process, signal.SIGKILL)
            for stream in streams:
                with pytest.raises(httpx.HTTPError):
                    list(stream)
        poll(lambda: is_healthy(service.url))  # uvicorn starts others
        service.wait_until_free(4)
        assert not before & service.workers()


def test_a_model_that_is_killed_is_missed_visibly_and_found_again(service):
    with service.model_with():
        with service.streams(100_000, 4) as streams:
            for stream in streams:
                next(stream)
            service.model.kill()
            for stream in streams:
                with pytest.raises(httpx.HTTPError):
                    list(stream)
        for response in service.get_many(*[3] * 8):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
        service.start_model()  # in place of the socket that is left over
        assert {it.text for it in service.get_many(*[3] * 16)} == {text(3)}


def test_a_model_that_ends_lets_requests_end_and_refuses_others(service):
    with service.model_with():
        with service.streams(400, 4) as streams:
            begun = [next(stream) for stream in streams]
            service.model.signal(signal.SIGTERM)
            poll(lambda: service.get(1).status_code == 503)
            assert not service.model.has_ended
            assert wholes(begun, streams) == [text(400)] * 4
        assert service.model.end() == 0
        assert not service.path.exists()


def test_requests_go_to_the_next_model_while_the_one_before_drains(service):
    with service.model_with("--drain", "1000"):
        with service.streams(100_000, 4) as streams:
            for stream in streams:
                next(stream)
            first = service.model
            first.signal(signal.SIGTERM)
            poll(lambda: not listens(service.path))
            service.start_model()
            poll(lambda: service.get(1).status_code == 200)
            assert {it.text for it in service.get_many(*[3] * 16)} == {text(3)}
            assert not first.has_ended
            assert all(map(next, streams))
        assert first.end() == 0
        assert {it.text for it in service.get_many(*[3] * 16)} == {text(3)}


def test_a_second_signal_ends_a_model_at_once(service):
    with service.model_with("--drain", "1000"), service.streams(100_000, 1) as [stream]:
        next(stream)
        service.model.signal(signal.SIGINT)
        poll(lambda: service.get(1).status_code == 503)
        service.model.signal(signal.SIGINT)
        with pytest.raises(httpx.HTTPError):
            list(stream)
        assert service.model.end() == 0


def test_a_server_that_ends_lets_its_responses_end(tmp_path):
    with (
        Service(tmp_path) as service,
        service.model_with(),
        service.streams(60, 4) as streams,
    ):
        begun = [next(stream) for stream in streams]
        service.app.signal(signal.SIGTERM)
        assert wholes(begun, streams) == [text(60)] * 4
        service.app.end()
        assert "Traceback" not in service.app.log.read_text()


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


@contextlib.contextmanager
def stopped(processes):
    """Let processes stand still."""
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        poll(lambda: all(map(is_stopped, processes)))
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the processes in /proc")
def test_the_two_commands_of_the_page_start_four_processes_that_share_a_model(tmp_path):
    page = PAGE.read_text()
    model, app = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]
    (tmp_path / "model.py").write_text(model)
    (tmp_path / "app.py").write_text(app)
    commands = re.search(r"```console\n\$ (python model\.py) &\n\$ (uvicorn .*)\n```", page)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log, app_log = tmp_path / "model.log", tmp_path / "app.log"
    with (
        Process(log, *commands[1].split()[1:], folder=tmp_path),
        Process(app_log, "-m", *commands[2].split(), "--port", str(port), folder=tmp_path) as app,
    ):
        poll(lambda: listens(tmp_path / "model.sock"))
        poll(lambda: len(workers_of(app.pid)) == 4)

        def get(count):
            return httpx.get(f"{url}/count?down_from={count}", timeout=SECONDS)

        def is_served():
            with contextlib.suppress(httpx.TransportError):
                return get(1).text == "1\n"

        poll(is_served)
        poll(lambda: app_log.read_text().count("Application startup complete") == 4)
        workers = workers_of(app.pid)
        for worker in workers:
            with stopped(workers - {worker}):
                assert get(3).text == "3\n2\n1\n"
        with ThreadPoolExecutor(16) as pool:
            texts = [response.text for response in pool.map(get, [20] * 16)]
        assert texts == ["".join(f"{n}\n" for n in range(20, 0, -1))] * 16
        assert workers_of(app.pid) == workers
