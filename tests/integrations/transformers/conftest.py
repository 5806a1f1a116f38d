"""Needs torch and transformers, which the group `models` installs."""

import importlib.util

collect_ignore_glob = []
if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
    collect_ignore_glob.append("test_*.py")
