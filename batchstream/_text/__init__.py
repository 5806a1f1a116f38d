"""From tokens to text: characters, stop strings, and steps of text made of steps of tokens."""
