"""Wait in an event loop and wake waiters from any thread: asyncio and trio, one protocol."""
