"""Replays LitServe's own tests with BatchedStreamLoop in place of its BatchedStreamingLoop.

    python tests/support/litserve_upstream.py [--checkout DIR] [--torch REQUIREMENT] [-k …]

What the stock loop does for its users is written down nowhere better than in LitServe's
tests. They are taken from the source distribution of the LitServe that is installed here, and run
twice in an environment made for them: with the stock loop, then with ours under its name wherever
LitServe has that name, so that `loop="auto"` means ours as well. A test that passes the first time
only is an error, unless EXPECTED says why that is right. Arguments not known here are pytest's.

Tests that import torch are run if `--torch` says which (`torch` may be gigabytes; a `+cpu` build
does), and fail both times otherwise. Left out are the tests of the command line, the README, MCP
and others that have to do with no loop. Servers that would listen on every interface listen on
127.0.0.1. The end-to-end tests need the ports 8000 and 8080, and are left out while one is taken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
from collections import Counter
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 1200  # for a run of the tests, or of pip
SECONDS_A_TEST = 60
NOT_RUN = ("not run", "")

UNIT = (
    *("batch", "callbacks", "examples", "failed_workers", "form", "lit_server", "litapi", "loops"),
    *("multiple_endpoints", "openai_embedding", "pydantic", "request_handlers", "simple", "specs"),
    *("torch", "transport", "utils", "zmq_queue"),
)
END_TO_END = "tests/e2e/test_e2e.py"
FILES = (END_TO_END, "tests/integration", *(f"tests/unit/test_{name}.py" for name in UNIT))

NOT_INSTALLED = ("coverage", "fastmcp", "lightning", "mypy", "pytest-cov", "torch", "transformers")
"""What upstream's tests ask for and these do without, by how the requirements begin."""

EXPECTED: dict[str, str] = {}
"""Tests that pass with the stock loop and are right to fail with ours, and why they are."""

PATCH = '''
"""Found by every Python of the replay, and by every one that the tests start."""
import json, os, sys
import litserve.loops.loops
import uvicorn

def bind(config, bind=uvicorn.Config.bind_socket):
    config.host = "127.0.0.1"
    bound = bind(config)
    bound.listen(config.backlog)  # the tests connect as soon as uvicorn says that it has started
    return bound

uvicorn.Config.bind_socket = bind
if os.environ["REPLAYED_LOOP"] == "ours":
    from batchstream.integrations.litserve import BatchedStreamLoop
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "litserve" and hasattr(module, "BatchedStreamingLoop"):
            module.BatchedStreamingLoop = BatchedStreamLoop

loop = litserve.loops.BatchedStreamingLoop

def init(self, *args, init=loop.__init__, **options):
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    with open(os.environ["REPLAY_NOTES"], "a") as notes:
        print(json.dumps([test, "loop made", ""]), file=notes)
    init(self, *args, **options)

loop.__init__ = init
'''

PLUGIN = '''
"""Makes sure of the loop, and notes what becomes of each test as soon as it is known."""
import json, os
import pytest
from litserve.loops.loops import get_default_loop

def pytest_configure():
    package = {"stock": "litserve", "ours": "batchstream"}[os.environ["REPLAYED_LOOP"]]
    loop = get_default_loop(stream=True, max_batch_size=2)
    if type(loop).__module__.partition(".")[0] != package:
        raise pytest.UsageError(f"the loop should be one of {package}, got {loop!r}")

def note(report):
    crash = getattr(report.longrepr, "reprcrash", None)
    why = crash.message if crash else str(report.longrepr or "")
    line = json.dumps([report.nodeid, report.outcome, " ".join(why.split())[:300]])
    with open(os.environ["REPLAY_NOTES"], "a") as notes:
        print(line, file=notes)

def pytest_runtest_logreport(report):
    if report.when == "call" or not report.passed:
        note(report)

def pytest_collectreport(report):
    if report.failed:
        note(report)
'''


def run(command, seconds, **how):
    """Run a command in a session of its own, which is gone afterwards; return its exit status."""
    process = subprocess.Popen(  # noqa: S603 - pip and pytest
        [*map(str, command)], stdin=subprocess.DEVNULL, start_new_session=True, **how
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"not done after {seconds} seconds: {' '.join(process.args)}")
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def pip(python, *arguments):
    if run([python, "-m", "pip", *arguments, "-qq"], SECONDS) != 0:
        sys.exit(f"pip {arguments[0]} failed; what it printed is above")


def fill_environment(python, checkout, litserve_version, torch):
    """Install this checkout, that LitServe, and what its tests ask for."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text())
    asked = project.get("dependency-groups", {}).get("dev", [])
    needed = [one for one in asked if isinstance(one, str) and not one.startswith(NOT_INSTALLED)]
    needed += ["pytest-timeout", f"litserve=={litserve_version}", f"{ROOT}[litserve]"]
    print(f"installing {', '.join(needed + torch)}", flush=True)
    pip(python, "install", *needed, *torch)


def download(python, litserve_version, folder):
    """Download and unpack LitServe's source distribution; return where it is."""
    wanted = [f"litserve=={litserve_version}", "--no-deps", "--no-binary=litserve"]
    pip(python, "download", *wanted, "--dest", folder)
    (archive,) = folder.glob("litserve-*.tar.gz")
    with tarfile.open(archive) as unpacked:
        unpacked.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def is_free(port):
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def files_to_run(checkout):
    """Return the files that exist and can be run now; say which are left out."""
    files = [file for file in FILES if (checkout / file).exists()]
    if missing := set(FILES).difference(files):
        print(f"not among this version's tests: {', '.join(sorted(missing))}")
    taken = [port for port in (8000, 8080) if not is_free(port)]
    if taken and END_TO_END in files:
        print(f"left out, because port {taken[0]} is taken: {END_TO_END}")
        files.remove(END_TO_END)
    return files


def replay(python, checkout, loop, files, arguments):
    """Run the tests with one of the loops; return what became of each, and why."""
    print(f"\nwith the {loop} loop:", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(checkout / "tests", Path(folder, "tests"))  # some leave files there
        for settings in checkout.glob("py*.*"):
            shutil.copy(settings, folder)
        Path(folder, "sitecustomize.py").write_text(PATCH)
        Path(folder, "upstream_replay.py").write_text(PLUGIN)
        notes = Path(folder, "notes")
        notes.touch()
        told = {"REPLAYED_LOOP": loop, "REPLAY_NOTES": str(notes), "PYTHONPATH": folder}
        told["PATH"] = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "upstream_replay"]
        command += ["--tb=short", "--color=no", f"--timeout={SECONDS_A_TEST}"]
        command += ["--continue-on-collection-errors", *files, *arguments]
        run(command, SECONDS, cwd=folder, env={**os.environ, **told})
        noted = [json.loads(line) for line in notes.read_text().splitlines()]
    made = {test for test, outcome, _ in noted if test and outcome == "loop made"}
    became = {test: (outcome, why) for test, outcome, why in noted if outcome != "loop made"}
    print(f"{len(made)} of {len(became)} tests made a batched streaming loop")
    return became  # a retry's are the later


def compare(stock, ours):
    """Print what became of the tests; return whether ours fails one that it should not."""
    became = {}
    for test in sorted({*stock, *ours}):
        pair = stock.get(test, NOT_RUN)[0], ours.get(test, NOT_RUN)[0]
        became.setdefault(pair, []).append(test)
    print(f"\n{'stock loop':12}{'ours':12}tests")
    for pair, tests in became.items():
        print(f"{pair[0]:12}{pair[1]:12}{len(tests)}")
    wrong = Counter()
    for pair, tests in became.items():
        if pair in {("passed", "passed"), ("skipped", "skipped")}:
            continue
        print(f"\n{pair[0]} with the stock loop, {pair[1]} with ours:")
        for test in tests:
            why = ours.get(test, NOT_RUN)[1] or stock.get(test, NOT_RUN)[1]
            if pair[0] == "passed":
                wrong[test in EXPECTED] += 1
                why += f"\n        expected: {EXPECTED[test]}" if test in EXPECTED else ""
            print(f"    {test}\n        {why}")
    print(f"\n{wrong[False]} that pass with the stock loop only, and {wrong[True]} expected ones")
    return bool(wrong[False]) or ("passed", "passed") not in became


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--checkout", type=Path, help="LitServe's sources, to take the tests from")
    parser.add_argument("--torch", action="append", default=[], help="requirement to install too")
    parser.add_argument("--python", type=Path, help="run them by this Python, which has all of it")
    options, of_pytest = parser.parse_known_args(arguments)
    litserve_version = version("litserve")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python = (options.python or folder / "environment" / "bin" / "python").absolute()
        if not options.python:
            venv.create(folder / "environment", symlinks=True, with_pip=True)
        checkout = options.checkout or download(python, litserve_version, folder)
        if not (checkout / "tests").is_dir():
            sys.exit(
                f"no tests in {checkout.name}: clone LitServe, check out the tag of version "
                f"{litserve_version}, and pass the folder as --checkout"
            )
        if not options.python:
            fill_environment(python, checkout, litserve_version, options.torch)
        files = files_to_run(checkout)
        stock = replay(python, checkout, "stock", files, of_pytest)
        ours = replay(python, checkout, "ours", files, of_pytest)
        return int(compare(stock, ours))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
