"""Settings for every test of the core: nothing here needs more than the core's test packages."""

import gc
import os
import signal
import sys
from zlib import crc32

import pytest
from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "default", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=5_000)
# For runs that follow one another: each draws other examples.
settings.register_profile("short", settings.get_profile("default"), max_examples=50)
# For the second core of a Python, where the first was tried in full.
settings.register_profile("brief", settings.get_profile("default"), max_examples=25)
# Where it is enough to know that a test fails: to find the least example takes far longer.
settings.register_profile(
    "mutants",
    settings.get_profile("default"),
    phases=[phase for phase in Phase if phase not in {Phase.shrink, Phase.explain}],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# No test speaks TLS, but each client of httpx would read all certificates of the machine, which
# takes longer than most tests.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.devnull

# A shell lets programs in the background ignore interrupts, and these pass that on to what they
# start: here to servers and workers, which then could not be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    """Let a run be a part of all tests: the same test is in the same part on every Python."""
    parser.addoption("--part", metavar="K/N", help="run the K-th of N parts of the tests alone")


def pytest_collection_modifyitems(config, items):
    """Leave the tests out that are in other parts."""
    if config.getoption("part", None) is None:
        return
    number, parts = map(int, config.getoption("part").split("/"))
    chosen, others = [], []
    for item in items:
        here = crc32(item.nodeid.encode()) % parts == number % parts
        (chosen if here else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = chosen


def pytest_collection_finish():
    """Keep what was imported and collected out of the collector's way.

    It is a million objects where models are tested, and many tests collect all garbage again and
    again.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # else old cycles, and files in them, stay until there are a quarter as many more


@pytest.fixture
def unheard(monkeypatch):
    """Collect what `sys.unraisablehook` is given."""
    errors = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: errors.append(about.exc_value))
    return errors
