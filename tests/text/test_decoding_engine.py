"""An engine of text out of one of tokens."""

from __future__ import annotations

import pytest

from batchstream import FinishReason, NotNow, StepError, per_request, token_ids
from batchstream.text import DecodingEngine, StopStrings, TextDecoder
from support.engines import continuous_batchers
from support.texts import BYTES


class Ask(list):
    """A request: the tokens that the model gives for it, and what stops it."""

    def __init__(self, text, stop=(), **options):
        super().__init__(text.encode())
        self.stop = stop
        self.limit = options.get("limit")
        self.eos = options.get("eos")


def decode(ask):
    return TextDecoder(BYTES, stop=ask.stop)


def limit(ask):
    return ask.limit


def own_eos(ask):
    return token_ids(ask.eos)


def engine_of(model, slots=2):
    return DecodingEngine(
        model, decode, slots=slots, is_eos=per_request(own_eos), max_outputs=limit
    )


@pytest.mark.rule(2, 7, 30)
@continuous_batchers
async def test_it_drives_an_engine_of_tokens_as_one_of_text(form):
    model = form.model()
    batcher = form.batcher(engine_of(model), max_batch_size=2)
    asks = [
        Ask("a STOP b", "STOP"),
        Ask("日本"),
        Ask("aXb", ["XY"], limit=2),
        Ask("ab\nc", eos=10),
        Ask("aX", "XY"),
    ]
    streams = [form.submit(batcher, ask) for ask in asks]
    texts = ["".join(await form.rest(stream)) for stream in streams]
    assert texts == ["a ", "日本", "aX", "ab", "aX"]
    reasons = ["eos", "eos", "length", "eos", "eos"]
    assert [str(stream.finish_reason) for stream in streams] == reasons
    assert [stream.end.info["completion_tokens"] for stream in streams] == [6, 6, 2, 2, 2]
    assert [call for call in model.calls if call[0] == "remove"]


def test_a_request_is_removed_before_the_step_behind_its_stop_string():
    class Recorded:
        calls: list = []  # noqa: RUF012 - one object

        def add(self, slot, request):
            self.calls.append(("add", slot))

        def step(self):
            self.calls.append(("step",))
            return {0: 88}

        def remove(self, slot):
            self.calls.append(("remove", slot))

        def close(self):
            self.calls.append(("close",))

    engine = engine_of(Recorded(), slots=1)
    engine.add(0, Ask("", "X"))
    [(slot, end)] = engine.step().items()
    assert (slot, end.reason, end.info["stop"]) == (0, FinishReason.EOS, "X")
    engine.remove(0)
    engine.add(0, Ask("", "Y"))
    assert engine.step() == {0: "X"}
    engine.close()
    assert [name for name, *_ in Recorded.calls] == [
        "add",
        "step",
        "remove",
        "add",
        "step",
        "close",
    ]


def test_an_engine_that_cannot_be_closed_need_not_be():
    class Plain:
        def add(self, slot, request):
            raise LookupError("full")

        def step(self):
            return [1, 2, 3]

        def remove(self, slot):
            pass

    engine = engine_of(Plain())
    with pytest.raises(LookupError, match="full"):
        engine.add(0, Ask(""))
    engine.close()


def test_a_step_that_cannot_be_read_raises():
    class Wide:
        def add(self, slot, request):
            pass

        def step(self):
            return [1, 2, 3]

    engine = engine_of(Wide())
    engine.add(0, Ask(""))
    with pytest.raises(StepError, match="step 0 has 3 outputs, expected 2"):
        engine.step()


class Careless:
    """An engine that gives each request its letters, but for the steps listed in `bad`."""

    def __init__(self):
        self.requests = {}
        self.bad = []
        self.refusal = None

    def add(self, slot, request):
        if self.refusal is not None:
            raise self.refusal
        self.requests[slot] = iter(request)

    def step(self):
        if self.bad:
            return self.bad.pop(0)
        return {slot: next(letters, None) for slot, letters in self.requests.items()}

    def remove(self, slot):
        del self.requests[slot]


@pytest.mark.rule(8)
@continuous_batchers
async def test_an_engine_goes_on_after_a_step_that_cannot_be_read(form):
    model = Careless()
    engine = DecodingEngine(model, lambda request: StopStrings("X"), slots=2)
    batcher = form.batcher(engine, max_batch_size=2)
    model.bad = [5]
    _, [error] = await form.read(form.submit(batcher, "ab"))
    assert isinstance(error, StepError)
    assert await form.rest(form.submit(batcher, "abXc")) == ["a", "b"]
    await form.close(batcher)
    assert model.requests == {}


def test_a_step_that_cannot_be_read_raises_in_an_engine_without_requests():
    model = Careless()
    model.bad = [5, [1, 2]]
    engine = DecodingEngine(model, lambda request: None, slots=1)
    for says in ("per slot, got int", "step 0 has 2 outputs, expected 1"):
        with pytest.raises(StepError, match=says):
            engine.step()
    engine.add(0, "a")
    assert engine.step() == {0: "a"}


def test_nothing_is_added_to_an_engine_in_a_slot_that_is_not_free():
    model = Careless()
    engine = DecodingEngine(model, lambda request: None, slots=1)
    with pytest.raises(IndexError, match="no slot 1, the DecodingEngine has slots=1: make it with"):
        engine.add(1, "a")
    assert model.requests == {}
    engine.add(0, "ab")
    with pytest.raises(ValueError, match="slot 0 is live"):
        engine.add(0, "c")
    assert (engine.step(), engine.step()) == ({0: "a"}, {0: "b"})


def test_a_slot_is_free_again_when_the_engine_refuses_its_request():
    model = Careless()
    engine = DecodingEngine(model, lambda request: None, slots=1)
    model.refusal = NotNow()
    with pytest.raises(NotNow):
        engine.add(0, "a")
    model.refusal = None
    engine.add(0, "b")
    assert engine.step() == {0: "b"}


def test_a_request_whose_decoder_cannot_be_made_is_not_added():
    added = []

    class Engine:
        def add(self, slot, request):
            added.append(request)

    engine = DecodingEngine(Engine(), lambda request: request, slots=1)
    with pytest.raises(TypeError, match="what decode returns must have the methods feed"):
        engine.add(0, "a")
    assert added == []


@pytest.mark.parametrize(
    ("decode", "says"),
    [
        (TextDecoder(BYTES), "a decoder is for one stream, so pass lambda request"),
        (None, "decode takes a function of one request that returns a decoder, got None"),
    ],
)
def test_what_makes_no_decoders_is_refused(decode, says):
    with pytest.raises(TypeError, match=says):
        DecodingEngine(object(), decode, slots=1)


def test_decoders_are_made_at_once():
    async def decode(request):
        pass

    with pytest.raises(TypeError, match="got the coroutine function"):
        DecodingEngine(object(), decode, slots=1)
