"""What `python -m batchstream` does; no other module of the package imports it."""
