"""A server under load: five hundred clients at once, some of which leave or never read."""

from itertools import pairwise

import pytest

from support.load_clients import CLIENTS, NEVER_READ, serving

WARM_UP = 8  # rounds, at most: it ends with the first that takes hardly any more memory
HARDLY_ANY = 1  # megabyte; a leak of 2 kB a request would be as much
ROUNDS = 3


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("load")) as load:
        yield load


@pytest.mark.rule(2)
def test_each_of_many_clients_gets_its_own_outputs_and_nothing_is_left_of_any(load):
    # They warm the server up as well: its memory reaches its level after some rounds.
    memory_before = 0
    for seed in range(WARM_UP):
        assert load.run(seed).wrong == []
        taken = load.memory() - memory_before
        memory_before += taken
        if taken < HARDLY_ANY:
            break
    before = load.statistics()
    memory = [load.memory()]
    for seed in range(WARM_UP, WARM_UP + ROUNDS):
        assert load.run(seed).wrong == []
        memory.append(load.memory())
    after = load.statistics()

    finished = {
        reason: count - before["finished"].get(reason, 0)
        for reason, count in after["finished"].items()
    }
    # A client may leave before its request was read, or after its stream had ended.
    assert finished["error"] == ROUNDS * NEVER_READ
    assert sum(finished.values()) <= ROUNDS * CLIENTS
    assert set(finished) == {"eos", "cancelled", "error"}
    assert after["opened"] == sum(after["finished"].values())
    assert load.is_idle(after)
    # A leak takes memory in every round; the allocator takes a piece now and then.
    assert min(later - earlier for earlier, later in pairwise(memory)) < HARDLY_ANY
    # The responses of clients that never read; no other response has raised.
    assert [error for error in load.logged_errors() if "SlowConsumerError" not in error] == []
