"""One model, many server processes: streams over a Unix socket."""
