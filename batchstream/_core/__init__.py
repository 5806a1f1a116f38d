"""Decides which slot gets which outputs of a step. No clock, lock, thread or event loop."""
