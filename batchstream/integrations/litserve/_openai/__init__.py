"""OpenAI's interface to an API: what a client may ask, and what it gets."""
