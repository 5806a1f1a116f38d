"""Needs torch and transformers, which the group `models` installs; the examples, their servers."""

import importlib.util

collect_ignore_glob = []
if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
    collect_ignore_glob.append("test_*.py")

if any(importlib.util.find_spec(name) is None for name in ("fastapi", "litserve", "openai")):
    collect_ignore_glob.append("test_examples_llama.py")
