"""What a consumer holds: streams and batches of streams, for threads and for event loops."""
