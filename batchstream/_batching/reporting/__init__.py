"""What a batcher tells: log lines, metrics, traces, its own figures."""
