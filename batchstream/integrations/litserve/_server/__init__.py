"""In a server process: clients' requests on their way to the workers, and the responses."""
