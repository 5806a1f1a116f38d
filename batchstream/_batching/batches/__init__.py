"""Requests that run together: what is done between two steps, and refills."""
