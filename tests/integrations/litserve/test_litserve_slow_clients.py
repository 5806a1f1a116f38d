"""End to end: a client that reads nothing for long, beside others that read."""

import http.client

import pytest

from support.stepwise import MANY, guests_of, numbers_of, serve

TEXT = 200_000  # characters of an output: soon the system takes no more for a client
MOST = 4  # of `MERGING` in the server
MERGED = 5


class Sent:
    """A client that reads nothing, and two that read each output as it comes."""

    def __init__(self, guests, path):
        self.server = guests.server
        self.slow = guests.send(path, "slow", MANY, size=TEXT)
        self.others = {tag: guests.send(path, tag, MANY) for tag in "ab"}
        self.read = {tag: [] for tag in self.others}
        self.door = guests.street.door()
        lines = self.door.make_steps_until_it_serves("slow", *self.others)
        at_steps = [line for line in lines if line.startswith("step") and "slow" in line]
        self.steps = len(at_steps) - 1  # that were made for it

    def step(self):
        """Let the model make a step for all of them, and read what the others get."""
        self.door.go()
        self.steps += 1
        for tag, client in self.others.items():
            self.read[tag].append(client.next_output())
        self.door.make_steps_until_it_serves("slow", *self.others)

    def end(self):
        """Let the model end all of them, and read what the others get."""
        self.door.finish()
        for tag, client in self.others.items():
            outputs = self.read[tag] + client.outputs()
            assert numbers_of(outputs, tag) == list(range(len(outputs)))
        self.door.close()

    def unread(self):
        return max(self.server.view()["unread"])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    apis = ["merging", "merging_encode", "bytes", "bytes_encode"]
    with serve(tmp_path_factory.mktemp("slow"), apis=apis) as server:
        yield server


@pytest.fixture(params=["", "_encode"], ids=["continuous", "batches"])
def send(server, request):
    """Return a function that sends the requests to an API of one of the loops."""
    with guests_of(server) as guests:
        yield lambda kind: Sent(guests, f"/{kind}{request.param}")


@pytest.mark.rule(2, 3, 11, 19)
def test_a_client_that_reads_nothing_for_long_gets_all_of_it_in_fewer_outputs(send):
    sent = send("merging")
    while sent.unread() < MOST:
        sent.step()
    for _ in range(MERGED):
        sent.step()
    assert sent.unread() == MOST
    sent.end()
    sent.server.wait_until(lambda view: view["unread"] == [MOST + 1])  # with the end
    outputs = sent.slow.outputs()
    assert len(outputs) <= sent.steps - MERGED
    text = "".join(output["text"] for output in outputs)
    pieces = [text[begin : begin + TEXT] for begin in range(0, len(text), TEXT)]
    assert [int(piece) for piece in pieces] == list(range(sent.steps))


@pytest.mark.rule(11, 13, 19)
@pytest.mark.cell("LitServe, `BatchedStreamLoop`", "back-pressure", "felt")
@pytest.mark.cell("LitServe, `ContinuousBatchLoop`", "back-pressure", "felt")
def test_a_client_that_leaves_too_many_bytes_unread_is_cut_off_and_the_others_go_on(send):
    sent = send("bytes")
    before = sent.server.log().count("bytes unread (max_buffered_bytes)")
    while sent.server.log().count("bytes unread (max_buffered_bytes)") == before:
        sent.door.go()
        sent.door.make_steps_until(lambda served: served >= set(sent.others))
    sent.door.go()
    sent.door.make_steps_until_it_serves(*sent.others)
    sent.end()
    assert sent.slow.response.status == 200
    with pytest.raises((http.client.HTTPException, OSError)):
        sent.slow.response.read()
