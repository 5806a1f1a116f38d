"""Drives a `StepEngine` by hand as `ContinuousBatcher` does, without a thread."""

from dataclasses import dataclass, field

from batchstream import EOS, End, Fail, Last, NotNow


@dataclass
class Visit:
    """One request: when it comes, what it asks, and after how many outputs it is cancelled."""

    request: object
    comes: int = 0
    leaves: int | None = None
    outputs: list = field(default_factory=list)
    end: object = None
    error: Exception | None = None

    @property
    def over(self):
        """Whether it needs no further step."""
        return self.end is not None or self.error is not None

    def take(self, element):
        """Take what a step has for it."""
        if isinstance(element, Fail):
            self.error = element.error
        elif element is EOS or isinstance(element, End):
            self.end = element
        elif isinstance(element, Last):
            self.outputs.append(element.output)
            self.end = element
        else:
            self.outputs.append(element)
        if self.leaves is not None and len(self.outputs) >= self.leaves:
            self.end = self.end or "left"


def drive(engine, visits, slots=4):
    """Serve all requests, first come first served, in so many slots; return them."""
    waiting = sorted(visits, key=lambda visit: visit.comes)
    seated = {}
    number = 0
    while waiting or seated:
        for slot in [slot for slot, visit in seated.items() if visit.over]:
            engine.remove(slot)
            del seated[slot]
        for slot in range(slots):
            if slot in seated or not waiting or waiting[0].comes > number:
                continue
            visit = waiting[0]
            try:
                engine.add(slot, visit.request)
            except NotNow:
                assert seated, "an empty engine has no room"
                break
            except Exception as error:  # noqa: BLE001 - fails this request alone
                visit.error = error
            else:
                seated[slot] = visit
            del waiting[0]
        if seated:
            step = engine.step()
            assert step.keys() <= seated.keys()
            for slot, element in step.items():
                seated[slot].take(element)
        number += 1
        assert number < 10_000, "a request gets no token"
    return visits
