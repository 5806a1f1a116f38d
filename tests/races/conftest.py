"""Fixtures for races."""

from __future__ import annotations

import pytest

from support import knobs


@pytest.fixture
def short_turns(monkeypatch):
    """Let what happens every 64 outputs happen in a short scenario."""
    knobs.set_turns(monkeypatch, receives=2, calls=1)
