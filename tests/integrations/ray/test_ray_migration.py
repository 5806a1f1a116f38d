"""The deployments of examples/migrations: their callers get the same, and one stops in time.

The streams are read without a cluster: a stand-in is in the place of the replica's context, which
is all that `serve.batch` asks for. One test deploys both.
"""

import asyncio
import importlib
from types import SimpleNamespace

import httpx
import pytest

pytest.importorskip("ray", reason="there is no Ray: make ray-test brings one")

from ray import serve

from support.ray_scenarios import collected, turns

PROGRAMS = {when: f"examples.migrations.ray_{when}" for when in ("before", "after")}
WORDS = ["so", "it", "goes"]
MOST_OF_OURS = 12  # steps that a model without `await` makes before its callers have left
SECONDS = 200


class Watched(str):
    """A word that notes which of its letters the model makes."""

    __slots__ = ("steps",)

    def __init__(self, _):
        self.steps = []

    def __getitem__(self, part):
        self.steps.append(part.start)
        return super().__getitem__(part)


@pytest.fixture
def context(monkeypatch):
    """Put a stand-in in the place of the context of a replica."""
    config = SimpleNamespace(max_ongoing_requests=16)
    monkeypatch.setattr(
        serve, "get_replica_context", lambda: SimpleNamespace(_deployment_config=config)
    )


def in_replica(scenario, when):
    """Run a scenario with what a replica makes of the program's class."""
    program = loaded(when)
    return asyncio.run(scenario(program.Speller.func_or_class(), program.MOST))


def loaded(when):
    """Load a program anew: `serve.batch` keeps the first event loop that it was called in."""
    return importlib.reload(importlib.import_module(PROGRAMS[when]))


@pytest.mark.parametrize("when", PROGRAMS)
def test_ray_callers_get_the_same_letters(context, when):
    async def spelled(speller, _):
        return await asyncio.gather(*(collected(speller.spell(word)) for word in WORDS))

    assert ["".join(letters) for letters in in_replica(spelled, when)] == WORDS


async def steps_for_finished(speller, _):
    """Return how many steps are made for a request that has finished with the third."""
    word = Watched("so")
    assert await collected(speller.spell(word)) == ["s", "o"]
    await turns()
    return len(word.steps)


@pytest.mark.rule(10)
def test_ray_the_model_stops_when_all_requests_have_finished(context):
    assert in_replica(steps_for_finished, "before") == 21
    assert in_replica(steps_for_finished, "after") == 3


async def steps_for_gone(speller, most):
    """Return how many steps are made for callers that leave after their first letter."""
    words = [Watched("a" * most), Watched("b" * most)]
    streams = [speller.spell(word) for word in words]
    await asyncio.gather(*map(anext, streams))
    for stream in streams:
        await stream.aclose()
    await turns()
    return len(words[0].steps)


@pytest.mark.rule(13)
def test_ray_the_model_stops_when_all_callers_have_left(context):
    assert in_replica(steps_for_gone, "before") == 21
    assert in_replica(steps_for_gone, "after") <= MOST_OF_OURS


def test_ray_clients_of_a_replica_get_the_same_text(ray_cluster, deploy):
    deploy(**{when: loaded(when).app for when in PROGRAMS})
    with httpx.Client(timeout=SECONDS) as client:
        for name in PROGRAMS:
            texts = [client.post(f"{ray_cluster.http}/{name}", content=word).text for word in WORDS]
            assert texts == WORDS
