"""One module per framework; each imports its own, and is imported by nobody."""
