"""A LitServe server with the OpenAI endpoints of `services`: `python litserve_openai_api.py PORT`.

The last message of a request is JSON that says what the model does for each of its choices:
`{"tag": ..., "plans": [plan, ...]}`, with a tag that no other request has. A plan is a list of
elements, of which the model gives the n-th at its n-th step, and None when there are no more; after
one whose word is "forever" there always are. Elements are lists, a word and its argument; see
`encoded`. "undecodable" comes first, if at all, "raise" and "stop" concern the batch.

If a request has a "gate", a port, the model waits there before each step that it makes for the
first choice and its batch; it also reports what it does, which choices of the batch are live when
that changes, and when it is closed.
"""

import json
import sys
from collections import Counter
from contextlib import closing

import litserve as ls
from litserve.specs.openai import ChatMessageWithUsage
from litserve_api import Door, error

from batchstream import SKIP, End, Fail, Last, Many, per_request
from batchstream.integrations.litserve import BatchedStreamLoop, ContinuousBatchLoop, OpenAISpec


def limit(context):
    return context["max_completion_tokens"] or context["max_tokens"]


def stops(context):
    stop = context["stop"]
    if stop is None:
        return None
    texts = [stop] if isinstance(stop, str) else stop
    return lambda output: isinstance(output, dict) and output["content"] in texts


def said(text):
    return {"role": "assistant", "content": text}


def encoded(element):
    if element is None:
        return None
    word, *arguments = element
    return {
        "out": said,
        "forever": said,
        "message": lambda message: message,
        "with usage": lambda message: ChatMessageWithUsage(**message),
        "last": lambda text, end: Last(said(text), **end),
        "end": lambda end: End(**end),
        "skip": lambda: SKIP,
        "many": lambda *texts: Many([said(text) for text in texts]),
        "many and text": lambda text, other: Many([said(text), other]),
        "many and fail": lambda text, *why: Many([said(text), Fail(error(*why))]),
        "fail": lambda *why: Fail(error(*why)),
        "text": lambda text: text,
    }[word](*arguments)


def element_of(plan, step):
    if step >= len(plan) and plan and plan[-1][0] == "forever":
        return plan[-1]
    return plan[step] if step < len(plan) else None


class Planned(ls.LitAPI):
    """Knows which choice a request is from how many of the same tag have come before it."""

    def setup(self, device):
        self._come = Counter()

    def decode_request(self, request):
        content = json.loads(request.messages[-1].content)
        choice = self._come[content["tag"]]
        self._come[content["tag"]] += 1
        plan = content["plans"][choice]
        if plan and plan[0][0] == "undecodable":
            raise error(*plan[0][1:])
        gate = {"gate": content["gate"]} if "gate" in content and choice == 0 else {}
        return {"plan": plan} | gate


class Stepping(Planned):
    stops = False  # whether a batch ends when all plans have ended; a loop of ours need not ask

    def predict(self, requests):
        self._door = Door(requests)
        self._live = range(len(requests))
        try:
            step = 0
            while True:
                self._door.pass_through(step)
                elements = [element_of(request["plan"], step) for request in requests]
                words = {element[0]: element for element in elements if element is not None}
                if "raise" in words:
                    raise error(*words["raise"][1:])
                if "stop" in words or (self.stops and not words):
                    return
                self.report(live=(yield self.predicted(elements)))
                step += 1
        finally:
            self._door.close()

    def predicted(self, elements):
        return elements

    def report(self, live):
        if live is not None and list(live) != list(self._live):
            self._live = live
            self._door.report(f"live {list(live)}")


class Batched(Stepping):
    def encode_response(self, steps):
        for elements in steps:
            self.report(live=(yield [encoded(element) for element in elements]))


class StockBatched(Batched):
    stops = True


class Single(Stepping):
    """Has no batches."""

    def predict(self, request):
        with closing(super().predict([request])) as steps:
            for [element] in steps:
                yield element

    def encode_response(self, elements):
        for element in elements:
            yield encoded(element)


class EncodedBySpec(Stepping):
    """Has no `encode_response`."""

    def predicted(self, elements):
        return [encoded(element) for element in elements]


class Unbatched(Planned):
    def predict(self, request):
        yield from request["plan"]

    def encode_response(self, elements):
        for element in elements:
            yield encoded(element)


class Engine:
    """Has a door for as long as there are requests, if the first of them has a gate."""

    def __init__(self, lit_api):
        self._plans = {}
        self._steps = {}
        self._door = None
        self._step = 0

    def add(self, slot, request):
        if self._door is None:
            self._door = Door([request])
            self._step = 0
        self._plans[slot] = request["plan"]
        self._steps[slot] = 0

    def step(self):
        self._door.pass_through(self._step)
        self._step += 1
        elements = {}
        for slot, plan in self._plans.items():
            elements[slot] = element_of(plan, self._steps[slot])
            self._steps[slot] += 1
        for element in elements.values():
            if element is not None and element[0] == "raise":
                raise error(*element[1:])
        return {slot: encoded(element) for slot, element in elements.items()}

    def remove(self, slot):
        del self._plans[slot]
        self._door.report(f"removed {slot}")
        if not self._plans:
            self._door.close()
            self._door = None


class Continuous(Planned):
    """Has no `predict`, and no `encode_response` either."""


class UsersSpec(OpenAISpec):
    def populate_context(self, context, request):
        super().populate_context(context, request)
        if context["user"] == "on a free plan":
            context["max_tokens"] = 1


def services():
    return {
        # Its batches are full always: no request waits so long for the last to join.
        "/v1": Batched(
            spec=ls.OpenAISpec(),
            loop=BatchedStreamLoop(max_outputs=limit),
            max_batch_size=3,
            batch_timeout=20,
        ),
        "/predict": EncodedBySpec(
            spec=OpenAISpec(handles_stop=True),
            loop=BatchedStreamLoop(eos_in="predict", is_eos=per_request(stops), max_outputs=limit),
            max_batch_size=2,
            batch_timeout=0.05,
        ),
        "/continuous": Continuous(
            spec=OpenAISpec(handles_stop=True),
            loop=ContinuousBatchLoop(Engine, is_eos=per_request(stops), max_outputs=limit),
            max_batch_size=2,
        ),
        "/subclass": Single(
            spec=UsersSpec(), loop=BatchedStreamLoop(max_outputs=limit, max_pending=3)
        ),
        "/auto": Unbatched(spec=OpenAISpec()),
        "/stock": StockBatched(spec=ls.OpenAISpec(), max_batch_size=2, batch_timeout=0.05),
    }


def main(port):
    apis = services()
    for path, api in apis.items():
        # LitServe looks for collisions before specs take over the path of their API.
        api.api_path = api.spec.api_path = f"{path}/chat/completions"
    server = ls.LitServer(list(apis.values()), accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
