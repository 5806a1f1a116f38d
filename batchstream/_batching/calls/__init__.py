"""What callers ask of a batcher: to submit, to wait, to drain, to change limits."""
