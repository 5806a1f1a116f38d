"""What is shown of a batcher: numbers, ready to be printed or painted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batchstream._cli.top.changes import buckets, quantile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchstream._cli.top.changes import Changes, History
    from batchstream._cli.top.page import Labels

_TIMES: Final = {
    "first_output": "first output",
    "gap": "gap",
    "wait": "in the queue",
    "slot": "in a slot",
    "request": "whole request",
}


@dataclass(frozen=True)
class Times:
    """How long something took.

    Attributes:
        what: What was measured.
        half: The time that half of them took at most, in seconds.
        most: The time that 95 of a hundred took at most.
        recent: Whether only the window counts; else all since the server's start.
    """

    what: str
    half: float
    most: float
    recent: bool


@dataclass(frozen=True)
class Tenant:
    """What one tenant has of a batcher.

    Attributes:
        name: The label's value; empty for the requests that have none.
        waiting: How many of its requests wait.
        running: How many are in a slot.
        per_second: How many it submits in a second.
        outputs: How many outputs in a second its requests had that have ended.
        refused: How many were refused since the server's start.
    """

    name: str
    waiting: float | None
    running: float | None
    per_second: float | None
    outputs: float | None
    refused: float | None


@dataclass(frozen=True)
class View:
    """A batcher at the moment; None stands for what the page does not say.

    Attributes:
        name: Of the batcher.
        slots: How many requests can run together.
        running: How many are in a slot, prefilling ones included.
        prefilling: How many of these have had no output yet, estimated from the last steps.
        waiting: How many wait for a slot.
        requests: How many are submitted in a second.
        outputs: How many outputs there are in a second.
        steps: How many steps the model makes in a second.
        occupancy: Which share of the slots the steps had in use.
        wasted: Which share of these the steps had in use for a request that had left.
        cache: Which part of the engine's cache is in use.
        times: How long things took.
        refused: How many requests were refused since the server's start, by the reason.
        refused_rate: How many are refused in a second.
        state: `closed` or `draining`, if it is; `1 of 4 draining`, of several that are added up;
            else empty.
        finished: How many requests have ended since then, by the reason.
        requeued: How many slots were given back since then by requests that wait again.
        tenants: The tenants, if the figures tell them apart.
    """

    name: str
    slots: int | None
    running: int | None
    prefilling: int
    waiting: int | None
    requests: float | None
    outputs: float | None
    steps: float | None
    occupancy: float | None
    wasted: float | None
    cache: float | None
    times: tuple[Times, ...]
    refused: Mapping[str, float]
    refused_rate: float | None
    state: str
    finished: Mapping[str, float]
    requeued: float
    tenants: tuple[Tenant, ...]


def views(history: History) -> list[View]:
    """Return what is to be shown of each batcher on the page that was read last."""
    return [_view(name, history.changes(name)) for name in history.last().batchers]


def _view(name: str, changes: Changes) -> View:
    now = changes.value
    running = _running(now("running"), now("unfinished"), now("waiting"))
    prefilling = (_recent_ratio(changes, "prefilling", "live") or 0) * (running or 0)
    requests = changes.rate("submitted")
    return View(
        name=name,
        slots=_slots(changes, running),
        running=_whole(running),
        prefilling=round(prefilling),
        waiting=_whole(now("waiting")),
        requests=changes.rate("finished") if requests is None else requests,
        outputs=changes.rate("outputs"),
        steps=changes.rate("steps"),
        occupancy=_ratio(changes, "live", "slot_steps"),
        wasted=_ratio(changes, "wasted", "live") if changes.has("wasted") else None,
        cache=now("cache_usage"),
        times=tuple(times for figure in _TIMES if (times := _times(changes, figure)) is not None),
        refused=_by("reason", changes.now.get("refused", {})),
        refused_rate=changes.rate("refused"),
        state=_state(changes),
        finished=_by_any(("reason", "finished_reason"), changes.now.get("finished", {})),
        requeued=now("requeued") or 0,
        tenants=_tenants(changes),
    )


def _running(
    running: float | None, unfinished: float | None, waiting: float | None
) -> float | None:
    """Return how many requests are in a slot; unfinished requests may wait, too."""
    if running is not None or unfinished is None:
        return running
    return max(unfinished - (waiting or 0), 0)


def _slots(changes: Changes, running: float | None) -> int | None:
    """Return how many slots there are.

    Each step counts the slots of its batch. Several workers have a batch each, so that more can run
    than one batch has slots.
    """
    slots = round(changes.value("slots") or _ratio(changes, "slot_steps", "steps") or 0)
    return slots * max(1, math.ceil((running or 0) / slots)) if slots else None


def _ratio(changes: Changes, part: str, whole: str) -> float | None:
    """Return the ratio of two counters' growth; since the server's start, if there was none."""
    if (recent := _recent_ratio(changes, part, whole)) is not None:
        return recent
    if not (total := changes.value(whole)):
        return None
    return (changes.value(part) or 0) / total


def _recent_ratio(changes: Changes, part: str, whole: str) -> float | None:
    grown = changes.growth(whole)
    return changes.growth(part) / grown if grown else None


def _times(changes: Changes, figure: str) -> Times | None:
    for recent in (True, False):
        counts = buckets(changes.grown(figure) if recent else changes.now.get(figure, {}))
        half, most = quantile(0.5, counts), quantile(0.95, counts)
        if half is not None and most is not None:
            return Times(_TIMES[figure], half, most, recent)
    return None


def _state(changes: Changes) -> str:
    """Return the state that a batcher has; where the page does not say, by what it refuses."""
    batchers = _by("state", changes.now.get("state", {}))
    found = batchers or _by("reason", changes.grown("refused"))
    state = next((state for state in ("closed", "draining") if state in found), "")
    if state and batchers and (count := batchers[state]) < (total := sum(batchers.values())):
        return f"{count:.0f} of {total:.0f} {state}"
    return state


def _by(label: str, series: Mapping[Labels, float]) -> dict[str, float]:
    """Add up the series that have the same value of a label; without the label it is empty."""
    counts: dict[str, float] = {}
    for labels, value in series.items():
        key = dict(labels).get(label, "")
        counts[key] = counts.get(key, 0) + value
    return {key: value for key, value in sorted(counts.items()) if value}


def _by_any(names: tuple[str, ...], series: Mapping[Labels, float]) -> dict[str, float]:
    present = {key for labels in series for key, _ in labels}
    return _by(next((name for name in names if name in present), names[0]), series)


def _tenants(changes: Changes) -> tuple[Tenant, ...]:
    def of(series: Mapping[Labels, float]) -> dict[str, float]:
        labelled = {labels: value for labels, value in series.items() if "tenant" in dict(labels)}
        counts: dict[str, float] = {}
        for labels, value in labelled.items():
            name = dict(labels)["tenant"]
            counts[name] = counts.get(name, 0) + value
        return counts

    now = {figure: of(changes.now.get(figure, {})) for figure in _OF_TENANTS}
    submitted, outputs = (of(changes.grown(each)) for each in ("submitted", "outputs_of_ended"))

    def rate(grown: Mapping[str, float], name: str) -> float | None:
        return grown[name] / changes.seconds if name in grown and changes.seconds else None

    # A page may have the figures of requests without a tenant before there is any.
    names = sorted({name for counts in now.values() for name in counts if name or counts[name]})
    if names == [""]:  # no request has one
        return ()
    return tuple(
        Tenant(
            name,
            now["waiting"].get(name),
            _running(
                now["running"].get(name), now["unfinished"].get(name), now["waiting"].get(name)
            ),
            rate(submitted, name),
            rate(outputs, name),
            now["refused"].get(name),
        )
        for name in names
    )


_OF_TENANTS: Final = ("waiting", "running", "unfinished", "submitted", "refused")


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
