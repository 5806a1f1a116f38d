"""Carries out what was decided: the lock, threads and tasks."""
