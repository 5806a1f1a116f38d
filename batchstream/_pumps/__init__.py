"""Moves a source step by step, and hands its outputs out: by pull, in a thread, in a task."""
