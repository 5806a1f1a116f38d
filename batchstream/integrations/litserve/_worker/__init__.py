"""In a worker: serving requests with the model, and sending what clients get."""
