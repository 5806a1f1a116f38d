"""What crosses processes: plain data, and pipes that exist before any other process starts."""
