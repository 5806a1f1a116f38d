"""Waits in an event loop and wakes waiters from any thread: asyncio and trio, one protocol."""
