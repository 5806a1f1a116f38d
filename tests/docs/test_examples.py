"""The examples that need nothing but the library, run as a user runs them."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import show_examples

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = (
    "asyncio_from_a_thread.py",
    "queue_per_request_broken.py",
    "queue_per_request_fixed.py",
    "threads.py",
)
# These are tested in tests/integrations.
OF_LITSERVE = ("batched_streaming_with_eos.py",)
OF_SERVING = ("batched_function.py", "custom_server.py", "flood.py", "threaded_server.py")
OF_REMOTE = ("remote_app.py", "remote_model.py")
OF_ENGINES = (
    "engines/ctranslate2_channel.py",
    "engines/llama_cpp_engine.py",
    "engines/mlx_engine.py",
    "engines/onnxruntime_engine.py",
    "engines/openvino_engine.py",
    "engines/speech_engine.py",
    "engines/tiny_models.py",
)
# Their imports take seconds: what the two tests of programs below say, a file of their own says.
OF_TRANSFORMERS = ("llama_fastapi.py", "llama_litserve.py", "llama_model.py")
ALL = (*NAMES, *OF_LITSERVE, *OF_SERVING, *OF_REMOTE, *OF_ENGINES, *OF_TRANSFORMERS)
SECONDS = 60.0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run each example once, elsewhere; give what it printed, in lines, and its stderr."""
    done = {}

    def run_once(name):
        if name not in done:
            done[name] = subprocess.run(  # noqa: S603
                [sys.executable, "-W", "error", EXAMPLES / name],
                cwd=tmp_path_factory.getbasetemp(),
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=True,
            )
        return done[name].stdout.splitlines(), done[name].stderr

    return run_once


def test_every_example_is_tested():
    names = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    elsewhere = (
        "comparison/",
        "migrations/",
        "servers/",
    )  # tested with the pages that they belong to
    assert {name for name in names if not name.startswith(elsewhere)} == set(ALL)


PAGE = (EXAMPLES.parent / "docs" / "examples.md").read_text()


def test_the_page_of_examples_has_each_and_its_text_where_the_documentation_is_built():
    names = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert set(names) == set(ALL)
    assert len(names) == len(set(names))
    sections = re.split(r"^## .+\n", show_examples.with_programs(PAGE), flags=re.MULTILINE)[1:]
    for name, section in zip(names, sections, strict=True):
        assert f"[`examples/{name}`](../examples/{name})" in section
        assert re.findall(r"^```{literalinclude} (.+)$", section, re.MULTILINE) == [
            f"../examples/{name}"
        ]


def test_a_link_to_an_example_leads_to_its_text_where_the_documentation_is_built():
    line = "[a](../examples/threads.py) and [b](../examples/custom_server.py), [c](tutorial.md#x)"
    assert show_examples.with_links(line) == (
        "[a](examples.md#threadspy) and [b](examples.md#custom_serverpy), [c](tutorial.md#x)"
    )


def test_the_page_of_servers_has_each_program_and_its_text_where_the_documentation_is_built():
    page = (EXAMPLES.parent / "docs" / "servers.md").read_text()
    included = re.findall(
        r"^```{literalinclude} \.\./examples/(.+)$", show_examples.with_servers(page), re.MULTILINE
    )
    programs = [path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("servers/**/*.py")]
    assert sorted(included) == sorted(programs)
    line = "[a](../examples/servers/model.py)"
    assert show_examples.with_links(line) == "[a](servers.md)"


def imported_by(path):
    """Return the packages that an example imports at its top, but for what lies beside it."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
    return {name for name in found if not path.with_name(f"{name}.py").exists()}


@pytest.mark.parametrize("name", ALL)
def test_an_example_says_what_it_shows_and_how_to_run_it(name):
    text = ast.get_docstring(ast.parse((EXAMPLES / name).read_text()))
    assert f"python examples/{name}" in text


@pytest.mark.parametrize("name", [name for name in ALL if name not in OF_TRANSFORMERS])
def test_an_example_that_is_asked_for_help_prints_what_it_shows(name, tmp_path):
    missing = [it for it in imported_by(EXAMPLES / name) if importlib.util.find_spec(it) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", EXAMPLES / name, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert ast.get_docstring(ast.parse((EXAMPLES / name).read_text())) in done.stdout
    assert done.stderr == ""


# What an example calls when it begins with what takes its time.
LONG = {
    "batched_function.py": "uvicorn.run",
    "batched_streaming_with_eos.py": "litserve.LitServer.run",
    "custom_server.py": "uvicorn.run",
    "flood.py": "threading.Thread.start",
    "threaded_server.py": "http.server.ThreadingHTTPServer.serve_forever",
}
EXIT_THERE = """
import os, pkgutil, runpy, sys

owner, _, name = sys.argv.pop(1).rpartition(".")
exit_at_once = lambda *_, **__: os._exit(0)  # what was printed and not flushed is lost
setattr(pkgutil.resolve_name(owner), name, exit_at_once)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def printed_before(target, *command):
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", EXIT_THERE, target, *command],
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", LONG)
def test_an_example_says_what_it_does_before_it_takes_its_time(name):
    [line] = printed_before(LONG[name], EXAMPLES / name, "--port", "0")
    assert line.startswith("starting a ")


def test_each_case_of_a_queue_per_request_is_printed_as_it_is_through():
    lines = printed_before("asyncio.to_thread", EXAMPLES / "queue_per_request_broken.py")
    assert len(lines) == 1  # the first case is printed, the second waits for its model


@pytest.mark.parametrize("name", [*NAMES, "flood.py", "threaded_server.py"])
def test_an_example_needs_nothing_but_the_library(name):
    tree = ast.parse((EXAMPLES / name).read_text())
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
    roots = {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names)
    assert roots <= {"batchstream", *(Path(name).stem for name in NAMES)}


@pytest.mark.parametrize("name", [name for name in NAMES if "broken" not in name])
def test_an_example_is_silent_on_stderr(run, name):
    assert run(name)[1] == ""


def test_clients_in_asyncio_end_at_their_own_steps_and_the_model_forgets_closed_ones(run):
    (*clients, steps, worked), _ = run("asyncio_from_a_thread.py")
    assert clients == [
        "client 0: 3 tokens, ended in step 3",
        "client 1: 2 tokens, then it gave up (cancelled)",
        "client 2: 5 tokens, ended in step 5",
        "client 3: 8 tokens, ended in step 8",
    ]
    assert steps == "model: 9 steps in the thread 'batchstream pump'"
    [count] = re.findall(r"^model: worked for client 1 in (\d+) of 41 steps$", worked)
    assert 2 <= int(count) <= 2 + 4  # what it received, and what it may hold unread


def test_a_timeout_loses_nothing_and_a_slow_thread_delays_no_other(run):
    lines, _ = run("threads.py")
    too_slow = (
        "stream 2 holds 9 unread outputs, more than 8 (max_buffered), "
        "and was ended for it (on_overflow='cancel'): read the streams at the same time; or pass "
        "a larger max_buffered; or take all outputs with collect(); or pass on_overflow='wait' to "
        "let the source wait for it"
    )
    assert lines == [
        "short: received [0, 1, 2], waited in vain: yes (eos)",
        "long: received [0, 1, 2, 3, 4, 5, 6, 7] (eos)",
        f"slow: received 9 outputs, then: {too_slow} (error)",
        "model: 9 steps, closed: yes",
    ]


def test_a_queue_per_request_breaks_in_four_ways(run):
    lines, errors = run("queue_per_request_broken.py")
    assert lines == [
        "a client that timed out once received 1 2 3 of 0 1 2 3",
        "all went away after one output, and the model made 2001 steps",
        "one read its 3 outputs at once, the other held 2000, and then the end",
        "the model raised after 2 outputs, and the client is still waiting",
    ]
    assert errors.count("OSError: device lost") == 1  # seen in the log, if it is read


def test_the_same_cases_go_well_with_streams(run):
    (timed_out, left, slow, raised), _ = run("queue_per_request_fixed.py")
    assert timed_out == "a client that timed out once received 0 1 2 3 of 0 1 2 3"
    [steps] = re.findall(r"^all went away after one output, and the model made (\d+) steps$", left)
    assert 1 <= int(steps) <= 1 + 9  # what they received, and one more than they may hold unread
    assert slow.startswith("one read its 3 outputs at once, the other held 9, and then SlowConsum")
    assert raised == "the model raised after 2 outputs, and then OSError: device lost"
