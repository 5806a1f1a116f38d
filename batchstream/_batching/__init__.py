"""Requests in, streams out: gathers requests into batches and runs them."""
