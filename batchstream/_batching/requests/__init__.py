"""What a request goes through, and how it is ended."""
