"""Settings for every test of the core: nothing here needs more than the core's test packages."""

import os
import signal
import sys

import pytest
from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "default", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=5_000)
# For the second core of a Python, where the first was tried in full.
settings.register_profile("brief", settings.get_profile("default"), max_examples=25)
# Where it is enough to know that a test fails: to find the least example takes far longer.
settings.register_profile(
    "mutants",
    settings.get_profile("default"),
    phases=[phase for phase in Phase if phase not in {Phase.shrink, Phase.explain}],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# A shell lets programs in the background ignore interrupts, and these pass that on to what they
# start: here to servers and workers, which then could not be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def unheard(monkeypatch):
    """Collect what `sys.unraisablehook` is given."""
    errors = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: errors.append(about.exc_value))
    return errors
