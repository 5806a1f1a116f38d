"""End to end: what operators ask of a loop. Order, deadlines, request ids and metrics.

Two workers with a slot each, and two server processes, so that what holds here holds for the API.
"""

import pytest

kinds = pytest.mark.parametrize("path", ["/operated", "/operated_single"])


class Busy:
    """An API whose workers are each at a step of a request, the last of which the test leads."""

    def __init__(self, guests, path):
        self.guests = guests
        self.path = path
        self.clients = {}
        for tag in ("busy 0", "busy 1"):
            self.send(tag.replace(" ", ""))
        self.doors = guests.doors()
        for door in self.doors:
            door.make_steps_until(bool)

    def send(self, tag, outputs=1, **more):
        self.clients[tag] = self.guests.send(self.path, tag, outputs, **more)
        return self.clients[tag]

    def queue(self, tag, **more):
        """Send one that waits, behind those before it."""
        waiting = self.guests.server.view()["waiting"][self.path]
        client = self.send(tag, **more)
        self.guests.server.wait_until_there_wait(waiting + 1, self.path)
        return client

    def next_from(self, number):
        """Let a worker end its request, and return the tag of the one that it takes next."""
        old = self.doors[number]
        old.go()
        if self.path == "/operated":
            while not (line := old.next_line()).startswith("add"):
                if line.startswith("step"):
                    old.go()
        else:
            while not (line := old.next_line()).startswith("decode"):
                if not line:
                    self.doors[number] = old = self.guests.street.door()
        tag = line.split()[1]
        old.make_steps_until(lambda tags: tag in tags)
        return tag
