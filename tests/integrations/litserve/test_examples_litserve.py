"""The example, run as a user runs it."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from support.serving import SECONDS, Call, free_port, running

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
