"""The code of README.md and the pages where a reader pastes it: in files, at prompts, in notebooks.

The top-level conftest.py runs it, too, each page as one program. `support/pages.py` says what a
file holds.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from support.pages import Page
from support.serving import free_port, is_open, running, without_monitor

ROOT = Path(__file__).parents[2]
PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
if find_spec("torch") is None or find_spec("transformers") is None:
    PATHS.remove(ROOT / "docs" / "transformers.md")
PATHS.remove(ROOT / "docs" / "ray.md")  # tests/integrations/ray/test_ray_page.py runs it
PAGES = [page for page in map(Page, PATHS) if page.blocks]
NOTEBOOKS = [page for page in PAGES if page.is_notebook]
SECONDS = 60.0

# Prints what would show as a traceback. It goes first into an interpreter that is read from a pipe.
RECORDER = (
    "import sys; sys.excepthook = lambda kind, *_: print('RAISED', kind.__name__, flush=True)\n"
)


def of(page, block):
    return f"{page.name}:{block.line}"


programs = pytest.mark.parametrize(
    ("page", "blocks"),
    [
        pytest.param(page, blocks, id=of(page, blocks[0]))
        for page in PAGES
        for blocks in page.programs()
    ],
)
servers = pytest.mark.parametrize(
    "server",
    [
        pytest.param(server, id=of(page, server.block))
        for page in PAGES
        for server in page.servers()
    ],
)
every_notebook = pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.name)


def test_the_pages_are_what_they_say_at_their_top():
    names = {page.name: page for page in PAGES}
    assert not names["README.md"].is_program
    assert names["tutorial.md"].is_program
    assert names["serving.md"].is_program
    assert names["litserve.md"].is_program
    assert names["tutorial.md"] in NOTEBOOKS


# ---- as a file


def run_as_file(folder, blocks):
    path = folder / "page.py"
    path.write_text("\n".join(block.code for block in blocks))
    return subprocess.run(  # noqa: S603 - what the page shows
        [sys.executable, path],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@programs
def test_blocks_run_as_a_file(page, blocks, tmp_path):
    ended = run_as_file(tmp_path, blocks)
    assert (ended.returncode, ended.stderr) == (0, ""), page.name


# ---- served


@contextlib.contextmanager
def started(server, folder):
    """Follow the page in an empty folder, on a free port; give the process and the port."""
    port = str(free_port())
    (folder / f"{server.name}.py").write_text(server.code.replace("8000", port))
    with contextlib.ExitStack() as stack:
        for name, code in server.models:
            (folder / name).write_text(code)
            listens = partial(any_socket, folder)
            stack.enter_context(running([name], listens, folder / f"{name}.log"))
        process = stack.enter_context(run_server(server, folder, port))
        yield process, port


def any_socket(folder):
    """Return whether a model listens in a folder."""
    return any(path.is_socket() for path in folder.iterdir() if path.suffix == ".sock")


def run_server(server, folder, port):
    """Do what the page says before, and start the server."""
    for words in server.prepare:  # `python -c CODE > FILE`
        with (folder / words[words.index(">") + 1]).open("w") as file:
            subprocess.run([sys.executable, "-c", words[2]], stdout=file, check=True)  # noqa: S603
    words = [word.replace("8000", port) for word in server.start]
    if words[0] == "uvicorn":
        if port not in words:
            words += ["--port", port]
        words = ["python", "-m", *words]
    return running(words[1:], partial(is_open, int(port)), folder / "log")


def ask(words, port):
    """Do what a curl command of a page does, and return the response."""
    options = {"-H": [], "-d": []}
    url = None
    rest = iter(words[1:])
    for word in rest:
        if word in options:
            options[word].append(next(rest))
        elif not word.startswith("-"):
            url = word.replace("8000", port)
        else:
            assert word == "-N", f"this test does not know curl's {word}"
    headers = dict(header.split(": ", 1) for header in options["-H"])
    if options["-d"]:
        [data] = options["-d"]
        return httpx.post(url, content=data, headers=headers, timeout=SECONDS)
    return httpx.get(url, headers=headers, timeout=SECONDS)


@servers
def test_a_block_serves(server, tmp_path, monkeypatch):
    # On a busy machine a process takes longer to begin than uvicorn waits for.
    monkeypatch.setenv("UVICORN_TIMEOUT_WORKER_HEALTHCHECK", "60")
    with started(server, tmp_path) as (process, port):
        for words, answer in server.asks:
            response = ask(words, port)
            log = (tmp_path / "log").read_text()
            assert response.status_code == 200, log
            assert response.text
            if answer:
                assert response.text == answer
        if not server.asks:  # the page says nothing to ask; that it answers is enough
            response = ask(["curl", "http://127.0.0.1:8000/"], port)
            assert response.status_code < 500, (tmp_path / "log").read_text()
        process.send_signal(signal.SIGINT)
        process.wait(SECONDS)  # a page's server ends at Ctrl-C
    assert "Traceback" not in without_monitor((tmp_path / "log").read_text())


# ---- at prompts


def entered(page, *, running_loop):
    """Return what goes into an interpreter, and the types of the errors that the page shows."""
    lines, errors = [RECORDER], []
    for block in page.blocks:
        if block.is_main:
            continue
        for piece, error in block.pieces:
            lines += [page.replace(piece) if running_loop else piece, "\n"]
            errors += [] if error is None else [error.rpartition(".")[2]]
    return "".join(lines), errors


@every_notebook
@pytest.mark.parametrize("module", [[], ["-m", "asyncio"]], ids=["python", "python -m asyncio"])
def test_a_page_can_be_pasted_at_the_prompt(page, module, tmp_path):
    text, errors = entered(page, running_loop=bool(module))
    ended = subprocess.run(  # noqa: S603 - what the page shows
        [sys.executable, *(module or ["-i"])],
        input=text,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    raised = [
        line.partition("RAISED ")[2] for line in ended.stdout.splitlines() if "RAISED " in line
    ]
    assert raised == errors
    assert "Error" not in ended.stderr


# ---- in a notebook


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # without it, an old version warns
    from jupyter_client.manager import start_new_kernel  # noqa: PLC0415 - it reads them

    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    client.context.term()


@every_notebook
def test_a_page_can_be_pasted_into_a_notebook(page, kernel):
    for block in page.blocks:
        if block.is_main:
            continue
        outcomes = []
        for piece, error in block.pieces:
            reply = kernel.execute_interactive(
                page.replace(piece), timeout=SECONDS, output_hook=lambda _: None
            )
            name = reply["content"].get("ename")
            outcomes.append((name, error and error.rpartition(".")[2]))
        is_right = all(name == error for name, error in outcomes)
        assert is_right, (block.line, outcomes, reply["content"].get("traceback"))
