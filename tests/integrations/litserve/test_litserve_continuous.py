"""End to end: continuous batching. `litserve_stepwise_api.py` says what an engine reports."""

import http.client
import random

import pytest

from support.stepwise import MANY, SIZE, guests_of, numbers_of, serve

PATH = "/continuous"
NARROW = "/narrow"  # one slot, and two may wait for it
CLIENTS = 24
UNKNOWN = (500, {"detail": "Internal server error"})


@pytest.fixture
def one(guests_of_one_worker):
    return guests_of_one_worker


# ---- joining


@pytest.mark.rule(30)
@pytest.mark.cell("LitServe, `ContinuousBatchLoop`", "ends", "yes")
def test_requests_join_a_running_batch_between_two_steps(one):
    long = one.send(PATH, "long", MANY)
    door = one.street.door()
    door.make_steps_until_it_serves("long")
    alone = door.step_of("long")
    short = one.send(PATH, "short", 2)
    door.go()
    *before, decode, add, _ = door.make_steps_until_it_serves("long", "short")
    slot = door.slots["short"]
    assert (decode, add) == ("decode short", f"add short {slot}")
    assert set(before) <= {alone}
    for _ in range(2):  # in the second it will say that short has ended
        door.go()
        assert door.next_line() == door.step_of("long", "short")
    door.go()
    assert door.next_lines(2) == [f"remove short {slot}", alone]
    assert numbers_of(short.outputs(), "short") == [0, 1]  # while the other goes on
    assert numbers_of([long.next_output() for _ in range(3)], "long") == [0, 1, 2]


@pytest.mark.rule(29)
def test_all_requests_that_come_during_one_step_join(one):
    clients = {"a": one.send(PATH, "a", 3)}
    door = one.street.door()
    door.make_steps_until_it_serves("a")
    for tag in "bc":
        clients[tag] = one.send(PATH, tag, 3)
    one.server.wait_until(
        lambda view: len(view["answering"]) == 3 and view["waiting"][PATH] == 1
    )  # the worker has one of them
    door.close()
    for tag, client in clients.items():
        assert numbers_of(client.outputs(), tag) == [0, 1, 2]


@pytest.mark.rule(2)
def test_many_clients_get_their_own_outputs_all_of_them_in_order(guests):
    chance = random.Random(5)  # noqa: S311
    lengths = {f"client {number}": chance.randrange(20) for number in range(CLIENTS)}
    clients = {
        tag: guests.send(PATH, tag, outputs, at_door=False) for tag, outputs in lengths.items()
    }
    for tag, client in clients.items():
        assert numbers_of(client.outputs(), tag) == list(range(lengths[tag]))


def test_each_worker_has_an_engine_with_slots_of_its_own(guests):
    guests.fill(PATH, MANY)
    served = []
    for door in guests.doors():
        door.make_steps_until(lambda tags: len(tags) == SIZE)
        assert sorted(door.slots.values()) == ["0", "1", "2"]
        served += door.slots
    assert sorted(served) == sorted(set(served))


# ---- leaving


@pytest.mark.rule(13)
@pytest.mark.cell("LitServe, `ContinuousBatchLoop`", "disconnect", "at once")
def test_a_request_whose_client_leaves_is_removed_before_the_next_step(guests):
    clients = guests.fill(PATH, MANY)
    doors = guests.doors()
    for door in doors:
        door.make_steps_until(lambda tags: len(tags) == SIZE)
    for door in doors:
        leaver, *others = door.slots
        slot = door.slots[leaver]
        clients[leaver].leave()
        door.wait_for_departure_of(leaver)
        door.go()
        assert door.next_line() == f"remove {leaver} {slot}"
        door.make_steps_until_it_serves(*others)
        for tag in others:
            assert clients[tag].next_output()["tag"] == tag


@pytest.mark.rule(30)
def test_the_slot_of_a_client_that_has_left_goes_to_a_waiting_request(one):
    clients = one.fill(PATH, MANY)
    door = one.street.door()
    door.make_steps_until_it_serves("a", "b", "c")
    slot = door.slots["b"]
    waiting = one.send(PATH, "d", 1)
    one.server.wait_until_there_wait(1, PATH)
    clients["b"].leave()
    door.wait_for_departure_of("b")
    door.go()
    lines = door.make_steps_until_it_serves("a", "c", "d")
    assert lines[0] == f"remove b {slot}"
    assert f"add d {slot}" in lines
    door.close()
    assert numbers_of(waiting.outputs(), "d") == [0]
    assert numbers_of(clients["a"].outputs(), "a") == list(range(MANY))


@pytest.mark.rule(13)
def test_the_engine_makes_no_step_when_all_clients_have_left(one):
    clients = one.fill(PATH, MANY)
    door = one.street.door()
    door.make_steps_until_it_serves("a", "b", "c")
    for tag, client in clients.items():
        client.leave()
        door.wait_for_departure_of(tag)
    door.go()
    assert {line.split()[0] for line in door.next_lines(3)} == {"remove"}
    one.send(PATH, "d", 1)
    assert door.next_line() == "decode d"  # and no step before


@pytest.mark.rule(13)
def test_a_client_that_leaves_while_its_request_waits_is_not_served(one):
    busy = one.send(NARROW, "busy", MANY)
    door = one.street.door()
    door.make_steps_until_it_serves("busy")
    leaver = one.send(NARROW, "leaver", 1)
    one.server.wait_until_there_wait(1, NARROW)
    patient = one.send(NARROW, "patient", 1)
    one.server.wait_until_there_wait(2, NARROW)
    leaver.leave()
    one.server.wait_until_there_wait(1, NARROW)
    busy.leave()
    door.wait_for_departure_of("busy")
    door.go()
    assert door.next_lines(2) == ["remove busy 0", "decode patient"]  # its only slot
    door.close()
    assert numbers_of(patient.outputs(), "patient") == [0]


# ---- more than it can take


@pytest.mark.cell("LitServe, `ContinuousBatchLoop`", "overload", "503, Retry-After")
def test_a_client_that_finds_the_queue_full_is_asked_to_come_again_and_served_then(one):
    clients = {"a": one.send(NARROW, "a", 1)}
    door = one.street.door()
    door.make_steps_until_it_serves("a")
    for number, tag in enumerate("bc", 1):
        clients[tag] = one.send(NARROW, tag, 1)
        one.server.wait_until_there_wait(number, NARROW)
    refused = one.send(NARROW, "d", 1)
    assert refused.answer() == (503, {"detail": "Service Unavailable"})
    assert refused.response.getheader("retry-after") == "1"
    for tag in "bc":  # first come, first served
        door.go()
        door.make_steps_until_it_serves(tag)
    door.close()
    for tag, client in clients.items():
        assert numbers_of(client.outputs(), tag) == [0]
    again = one.send(NARROW, "d", 1, at_door=False)
    assert numbers_of(again.outputs(), "d") == [0]


def test_a_request_that_has_waited_too_long_gets_504_and_the_others_go_on(one):
    one.send(PATH, "a", MANY, limit=1e-9)
    door = one.street.door()
    door.make_steps_until_it_serves("a")
    late = one.send(PATH, "late", 1)
    while not late.has_answer():
        door.go()
        assert door.next_line() == door.step_of("a")
    assert late.answer() == (504, {"detail": "Request timed out"})


# ---- errors


@pytest.mark.rule(15)
@pytest.mark.parametrize("where", ["decode", "add", "encode"])
@pytest.mark.parametrize(
    ("kind", "status"),
    [("http", 429), ("rejecting", 422), ("plain", None), ("unpicklable", None)],
)
@pytest.mark.cell("LitServe, `ContinuousBatchLoop`", "bad request", "422")
def test_an_error_of_one_request_fails_it_alone(one, where, kind, status):
    other = one.send(PATH, "other", MANY)
    door = one.street.door()
    door.make_steps_until_it_serves("other")
    bad = one.send(PATH, "bad", 9, trouble=[where, 0, kind])
    while not bad.has_answer():
        door.go()
        door.make_steps_until(lambda tags: "other" in tags)
    assert bad.answer() == (UNKNOWN if status is None else (status, {"detail": where}))
    door.go()
    door.make_steps_until_it_serves("other")
    door.close()
    assert numbers_of(other.outputs(), "other") == list(range(MANY))


@pytest.mark.rule(15)
def test_an_error_of_one_encode_response_in_mid_stream_cuts_off_one_client(one):
    other = one.send(PATH, "other", MANY)
    door = one.street.door()
    door.make_steps_until_it_serves("other")
    bad = one.send(PATH, "bad", 9, trouble=["encode", 1, "plain"])
    door.go()
    door.make_steps_until_it_serves("other", "bad")
    slot = door.slots["bad"]
    door.go()
    assert door.next_line() == door.step_of("other", "bad")
    door.go()
    assert door.next_lines(2) == [f"remove bad {slot}", door.step_of("other")]
    assert bad.next_output()["output"] == 0
    with pytest.raises(http.client.IncompleteRead):
        bad.response.read()
    door.close()
    assert numbers_of(other.outputs(), "other") == list(range(MANY))


@pytest.mark.rule(18)
@pytest.mark.parametrize("kind", ["plain", "unpicklable", "unshowable", "stop iteration"])
@pytest.mark.cell("LitServe, `ContinuousBatchLoop`", "early error", "500")
def test_whatever_a_step_raises_the_worker_lives_and_makes_a_new_engine(one, kind):
    before = one.send(PATH, "before", 1, at_door=False).outputs()
    failing = one.send(PATH, "failing", 1, trouble=["step", 0, kind])
    door = one.street.door()
    door.make_steps_until_it_serves("failing")
    door.go()
    assert failing.answer() == UNKNOWN
    after = one.send(PATH, "after", 1)
    assert door.next_lines(3) == ["decode after", "engine", "add after 0"]
    door.close()
    [output] = after.outputs()
    assert output["pid"] == before[0]["pid"]


@pytest.mark.rule(15)
@pytest.mark.cell("LitServe, `ContinuousBatchLoop`", "error", "cut")
def test_an_error_in_a_step_fails_all_in_the_engine_and_no_waiting_request(one):
    clients = {tag: one.send(PATH, tag, MANY) for tag in "ab"}
    door = one.street.door()
    door.make_steps_until_it_serves("a", "b")
    clients["c"] = one.send(PATH, "c", MANY, trouble=["step", 1, "plain"])
    door.go()
    door.make_steps_until_it_serves("a", "b", "c")
    waiting = one.send(PATH, "waiting", 2)
    one.server.wait_until_there_wait(1, PATH)
    door.go()
    assert door.next_line().startswith("step")
    door.go()
    for client in clients.values():
        assert client.response.status == 200
        with pytest.raises(http.client.IncompleteRead):
            client.response.read()
    assert door.next_lines(3) == ["decode waiting", "engine", "add waiting 0"]
    door.close()
    assert numbers_of(waiting.outputs(), "waiting") == [0, 1]


# ---- LitServe's own


@pytest.fixture(
    params=["ours", pytest.param("stock", marks=pytest.mark.xfail(strict=True, raises=TypeError))]
)
def anywhere(stepwise_servers, tmp_path, request):
    """The guests of any server with continuous batching, and a path there."""
    if request.param == "ours":
        with guests_of(stepwise_servers("one worker")) as guests:
            yield guests, PATH
    else:
        # Its loop sleeps between two reads of the queue: no other request should be there first.
        with (
            serve(tmp_path, apis=["stock_continuous"]) as server,
            guests_of(server) as guests,
        ):
            yield guests, "/stock_continuous"


def test_the_first_request_is_served(anywhere):
    guests, path = anywhere
    client = guests.send(path, "a", 3, at_door=False)
    assert client.response.status == 200
    error = "TypeError: DefaultContinuousBatchingLoop.add_request()"
    guests.server.wait_until(lambda view: not view["answering"] or error in guests.server.log())
    if error in guests.server.log():
        raise TypeError(error)
    assert numbers_of(client.outputs(), "a") == [0, 1, 2]
