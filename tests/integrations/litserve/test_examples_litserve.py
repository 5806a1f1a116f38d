"""The example and the demonstration, run as a user runs them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import pytest

from support.serving import SECONDS, Call, free_port, marked, running

EXAMPLES = Path(__file__).parents[3] / "examples"
EXAMPLE = EXAMPLES / "batched_streaming_with_eos.py"
COUNTS = {"short": 3, "medium": 6, "long": 9}

# The two commands that the example has always been shown with.
SEEDED = """
curl -X POST http://127.0.0.1:8000/predict \\
     -H "Content-Type: application/json" \\
     -d '{"prompt": "short"}'
curl -X POST http://127.0.0.1:8000/predict \\
     -H "Content-Type: application/json" \\
     -d '{"prompt": "long"}'
"""


def commands(text):
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [shlex.split(line) for line in lines if line.strip().startswith("curl")]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running([str(EXAMPLE), "--port", str(port)], url, folder / "log"):
        yield url
    assert [path.name for path in folder.iterdir()] == ["log"]  # it leaves no client.py behind


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("text", [SEEDED, EXAMPLE.read_text()], ids=["seed", "docstring"])
def test_the_printed_commands_work(url, text):
    short, long = commands(text)
    for command, count in ((short, 3), (long, 9)):
        assert "http://127.0.0.1:8000/predict" in command
        here = [part.replace("http://127.0.0.1:8000", url) for part in command]
        done = subprocess.run(  # noqa: S603
            [*here, "-sS", "--fail"], capture_output=True, text=True, timeout=SECONDS, check=True
        )
        assert len(done.stdout.splitlines()) == count


def test_a_response_is_one_json_object_a_line(url):
    with httpx.Client(base_url=url, timeout=SECONDS) as client:
        call = Call(client, "/predict", {"prompt": "short"}).wait()
    assert call.body.decode().splitlines() == [
        '{"role": "assistant", "content": "Short"}',
        '{"role": "assistant", "content": "and"}',
        '{"role": "assistant", "content": "sweet."}',
    ]


def test_prompts_that_come_together_each_get_what_is_theirs(url):
    with httpx.Client(base_url=url, timeout=SECONDS) as client:
        calls = {p: Call(client, "/predict", {"prompt": p}) for p in [*COUNTS, "unheard-of"]}
        for call in calls.values():
            assert call.wait().error is None
    assert calls.pop("unheard-of").status == 400
    assert {p: len(call.body.splitlines()) for p, call in calls.items()} == COUNTS


def assert_gone(mark):
    deadline = time.monotonic() + SECONDS
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel is clearing them away
    assert left == []


def test_the_demonstration_shows_the_short_response_end_first_and_leaves_nothing_running():
    mark = uuid.uuid4().hex
    done = subprocess.run(  # noqa: S603
        [sys.executable, EXAMPLES / "demo.py"],
        env=os.environ | {"MARK": mark},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = [line.split(maxsplit=3) for line in done.stdout.splitlines() if " s  " in line]
    ends = [prompt for _, _, prompt, what in shown if what == "complete"]
    assert ends == ["short", "long"]
    assert len(shown) == 3 + 9 + 2
    assert "6 outputs were never sent" in done.stdout
    assert_gone(mark)


def test_the_demonstration_fails_with_the_log_of_a_server_that_does_not_start(tmp_path):
    demo = shutil.copy(EXAMPLES / "demo.py", tmp_path)
    (tmp_path / EXAMPLE.name).write_text("raise SystemExit('no model today')")
    done = subprocess.run(  # noqa: S603
        [sys.executable, demo], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 1
    assert "no model today" in done.stderr
    assert "demo failed: the server did not start" in done.stderr


def test_the_demonstration_fails_if_the_short_response_does_not_end_first(tmp_path):
    demo = shutil.copy(EXAMPLES / "demo.py", tmp_path)
    padded = EXAMPLE.read_text().replace("len(responses[slot])", "9")
    padded = padded.replace("responses[slot][position]", "(responses[slot] + [''] * 9)[position]")
    stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    (tmp_path / EXAMPLE.name).write_text(stubborn + padded)
    mark = uuid.uuid4().hex
    done = subprocess.run(  # noqa: S603
        [sys.executable, demo],
        env=os.environ | {"MARK": mark},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert "demo failed: the short response was not complete before" in done.stderr
    assert_gone(mark)
