"""`gunicorn --preload`: the application is imported once, and the workers are forked from that."""

import contextlib
import shutil
from functools import partial
from pathlib import Path

import httpx
import pytest

from support.server_recipes import MODEL, model_apart
from support.serving import SECONDS, free_port, is_open, running

APP = Path(__file__).parents[2] / "support" / "preloaded_app.py"

pytest.importorskip("gunicorn")


@contextlib.contextmanager
def preloaded(folder, before, *, remote=False):
    """Run two workers of an application with which this was done `before` the fork.

    With `remote` the model has a process of its own.
    """
    model = model_apart(MODEL, folder) if remote else contextlib.nullcontext()
    with model, forked(folder, before) as port:
        yield port


@contextlib.contextmanager
def forked(folder, before):
    """Run the workers, and no model beside them."""
    port = free_port()
    shutil.copy(APP, folder / "preloaded_app.py")
    (folder / "before").write_text(before)
    command = ["-m", "gunicorn", "preloaded_app:app", "--preload", "--workers", "2"]
    command += ["-k", "gthread", "--threads", "4", "--bind", f"127.0.0.1:{port}"]
    with running(command, partial(is_open, port), folder / "log"):
        yield port


def ask(port):
    """Send a request in a connection of its own, so that any worker may take it."""
    return httpx.get(f"http://127.0.0.1:{port}/spell/word", timeout=SECONDS)


@pytest.mark.rule(27)
@pytest.mark.parametrize("before", ["nothing", "warm"])
@pytest.mark.parametrize("remote", [False, True], ids=["here", "remote"])
def test_every_worker_serves_where_no_request_was_open_at_the_fork(tmp_path, before, remote):
    with preloaded(tmp_path, before, remote=remote) as port:
        workers = set()
        for _ in range(1000):
            response = ask(port)
            assert (response.status_code, response.text) == (200, "word")
            workers.add(response.headers["worker"])
            if len(workers) == 2:
                break
        assert len(workers) == 2
    assert "Error" not in (tmp_path / "log").read_text()


@pytest.mark.rule(27)
def test_a_request_that_was_open_at_the_fork_is_an_error_in_the_log_and_no_overload(tmp_path):
    with preloaded(tmp_path, "open") as port:
        for _ in range(4):
            response = ask(port)
            assert response.status_code == 500
            assert "retry-after" not in response.headers
            assert "fork" not in response.text, "the client learns nothing of the server"
        log = (tmp_path / "log").read_text()
    assert "ForkedError: this batcher had requests when its process was forked" in log
    assert "fork before the first request, or when all have ended; or make a batcher in each" in log
