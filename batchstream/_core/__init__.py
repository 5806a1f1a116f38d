"""Decides what a step gives to which slot. No clock, lock, thread or event loop."""
