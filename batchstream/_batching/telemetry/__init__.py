"""What metrics and traces of the user's own are told."""
