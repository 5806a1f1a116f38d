"""End to end: clients that leave. `litserve_stepwise_api.py` says what a model reports."""

import pytest

from support.stepwise import MANY, guests_of, numbers_of, serve

BATCHES = ["/predict", "/encode"]


@pytest.fixture(params=BATCHES)
def path(request):
    """Where steps are read: in what predict yields, or encode_response, which hears of `live`."""
    return request.param


@pytest.mark.rule(13)
def test_a_client_that_leaves_is_out_before_the_next_step_and_the_others_go_on(guests, path):
    clients = guests.fill(path, 3)
    for door in guests.doors():  # the requests of the second worker come to no harm meanwhile
        leaver, *others = door.decoded()
        door.is_at_step_of(leaver, *others)
        clients[leaver].leave()
        door.wait_for_departure_of(leaver)
        for _ in range(2):
            door.go()
            door.is_at_step_of(*others)
        door.go()
        for tag in others:
            assert numbers_of(clients[tag].outputs(), tag) == [0, 1, 2]
        assert door.next_line() == "closed"


@pytest.mark.rule(13)
@pytest.mark.cell("LitServe, `BatchedStreamLoop`", "disconnect", "at once")
def test_a_client_that_leaves_in_mid_stream_is_out_before_the_next_step(guests, path):
    clients = guests.fill(path, 4)
    for door in guests.doors():
        *others, leaver = door.decoded()
        for _ in range(2):
            door.is_at_step_of(*others, leaver)
            door.go()
        assert [clients[leaver].next_output()["output"] for _ in range(2)] == [0, 1]
        door.is_at_step_of(*others, leaver)
        clients[leaver].leave()
        door.wait_for_departure_of(leaver)
        door.go()
        door.is_at_step_of(*others)
        door.go()
        for tag in others:
            assert numbers_of(clients[tag].outputs(), tag) == [0, 1, 2, 3]


@pytest.mark.rule(10)
def test_the_source_is_closed_when_all_clients_have_left_and_goes_no_further(guests, path):
    clients = guests.fill(path, MANY)
    for door in guests.doors():
        tags = door.decoded()
        door.is_at_step_of(*tags)
        door.go()
        door.is_at_step_of(*tags)
        for tag in tags:
            clients[tag].leave()
            door.wait_for_departure_of(tag)
        door.go()
        assert door.next_line() == "closed"
        assert door.next_line() == ""  # nothing after it
    guests.server.wait_until_it_answers(0)


@pytest.mark.rule(10)
def test_the_source_is_closed_when_one_request_has_ended_and_the_other_clients_have_left(
    guests_of_one_worker, path
):
    guests = guests_of_one_worker
    clients = [guests.send(path, tag, outputs) for tag, outputs in [("a", 1), ("b", 9), ("c", 9)]]
    door = guests.street.door()
    tags = door.decoded()
    left = [tag for tag in tags if tag != "a"]
    for _ in range(2):  # in the second the live slots lack a
        door.is_at_step_of(*tags)
        door.go()
    door.is_at_step_of(*left)
    assert numbers_of(clients[0].outputs(), "a") == [0]
    for client, tag in zip(clients[1:], "bc", strict=True):
        client.leave()
        door.wait_for_departure_of(tag)
    door.go()
    assert door.next_line() == "closed"


# The same on LitServe's own loop, which must fail it, or it proves nothing.
@pytest.fixture(
    params=[
        ("one worker", "/encode"),
        pytest.param(
            ("stock", "/stock"), marks=pytest.mark.xfail(strict=True, raises=AssertionError)
        ),
    ],
    ids=["ours", "stock"],
)
def anywhere(stepwise_servers, stock_stepwise_servers, request):
    """The guests of any server, and a path there."""
    name, path = request.param
    servers = stock_stepwise_servers if name == "stock" else stepwise_servers
    with guests_of(servers(name)) as guests:
        yield guests, path


@pytest.mark.rule(13)
def test_no_steps_are_made_when_all_clients_have_left(anywhere):
    guests, path = anywhere
    clients = guests.fill(path, 50)
    door = guests.street.door()
    tags = door.decoded()
    door.is_at_step_of(*tags)
    for tag, client in clients.items():
        client.leave()
        door.wait_for_departure_of(
            tag
        )  # which a worker with a loop of LitServe's own never hears of
    guests.server.wait_until_it_answers(0)  # but the server has noticed, there as well
    steps = 0
    while steps < 50:
        door.go()
        steps += 1
        if door.next_line() == "closed":
            break
    assert steps == 1


def test_the_model_at_the_door_works_with_a_loop_of_litserves_own(stock_guests):
    """So what fails there is what the test above says."""
    clients = stock_guests.fill("/stock", 2)
    door = stock_guests.street.door()
    tags = door.decoded()
    for _ in range(2):
        door.is_at_step_of(*tags)
        door.go()
    assert door.next_line() == "closed"
    for tag in tags:
        assert numbers_of(clients[tag].outputs(), tag) == [0, 1]


@pytest.mark.rule(13)
def test_a_client_that_leaves_while_its_request_waits_is_not_served(guests_of_one_worker, path):
    guests = guests_of_one_worker
    first = guests.fill(path, 1)
    door = guests.street.door()
    tags = door.decoded()
    door.is_at_step_of(*tags)
    answering = set(guests.server.view()["answering"])
    leaver = guests.send(path, "d", 1)
    guests.server.wait_until_there_wait(1, path)
    [uid] = set(guests.server.view()["answering"]) - answering
    others = {tag: guests.send(path, tag, 1) for tag in "ef"}
    guests.server.wait_until_there_wait(3, path)
    leaver.leave()
    door.wait_for_departure_of(uid)
    door.go()
    assert door.next_line() == "closed"

    door = guests.street.door()
    tags = door.decoded(2)
    assert set(tags) == {"e", "f"}
    door.is_at_step_of(*tags)
    door.go()
    for tag, client in (first | others).items():
        assert numbers_of(client.outputs(), tag) == [0]


def test_a_client_that_has_the_whole_response_does_not_count_as_disconnected(
    guests_of_one_worker, path
):
    guests = guests_of_one_worker
    lengths = {"complete": 1, "leaver": MANY, "other": 3}
    clients = {tag: guests.send(path, tag, outputs) for tag, outputs in lengths.items()}
    door = guests.street.door()
    tags = door.decoded()
    for _ in range(2):
        door.is_at_step_of(*tags)
        door.go()
    tags.remove("complete")
    door.is_at_step_of(*tags)
    assert numbers_of(clients["complete"].outputs(), "complete") == [0]
    clients["complete"].leave()
    guests.server.wait_until_it_answers(2)
    clients["leaver"].leave()
    door.wait_for_departure_of("leaver")  # disconnects come in their order
    assert door.departures() == ["leaver"]
    door.go()
    door.is_at_step_of("other")
    door.go()
    assert door.next_line() == "closed"
    assert numbers_of(clients["other"].outputs(), "other") == [0, 1, 2]


@pytest.mark.parametrize(
    ("hidden", "warning"),
    [
        ("_inference_workers_config_for_api", "does not say how many workers there are"),
        ("_get_request_queue", "has no LitServer._get_request_queue"),
    ],
)
def test_on_another_litserve_that_lacks_something_streams_go_on_and_it_says_so(
    tmp_path, hidden, warning
):
    with serve(tmp_path, apis=["predict"], hidden=hidden) as server, guests_of(server) as guests:
        clients = guests.fill("/predict", 3)
        door = guests.street.door()
        tags = door.decoded()
        for number in range(3):
            door.is_at_step_of(*tags)
            if number == 1:
                clients["b"].leave()
                server.wait_until_it_answers(2)
            door.go()
        assert door.next_line() == "closed"
        for tag in "ac":
            assert numbers_of(clients[tag].outputs(), tag) == [0, 1, 2]
        log = server.log()
    assert log.count("RuntimeWarning") == 1
    assert warning in log
    assert "Traceback" not in log
