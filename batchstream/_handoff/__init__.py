"""Between one pump and one consumer: buffers, and where consumers wait for them."""
