"""Steps of text out of steps of tokens, in every form of batch."""

from __future__ import annotations

import asyncio

import pytest

from batchstream import (
    EOS,
    SKIP,
    BatchedStream,
    End,
    Fail,
    FinishReason,
    Last,
    Many,
    MissingEOSError,
    SourceError,
    StepError,
    demux,
    token_ids,
)
from batchstream.text import StopStrings, TextDecoder, decode_steps
from support.forms import every_form
from support.texts import BYTES


def steps_of(*texts, eos=None):
    """Return the steps in which each slot is given its text, a byte at a time."""
    length = max(len(text.encode()) for text in texts)
    rows = [[*text.encode(), *[eos] * (length - len(text.encode()))] for text in texts]
    return [list(step) for step in zip(*rows, strict=True)]


def decoders(*stops, **options):
    return [TextDecoder(BYTES, stop=stop, **options) for stop in stops]


async def texts(form, batch):
    return ["".join(await form.rest(stream)) for stream in batch]


@pytest.mark.rule(2, 3, 7)
@every_form
async def test_each_stream_is_its_text_and_its_end_says_how_it_came_to_it(form):
    source = form.script([*steps_of("a STOP b", "日本", "x\ny"), [None, None, None]])
    steps = decode_steps(source, decoders("STOP", (), ["\n", "y"], prompt_ids=[1, 2]))
    batch = form.open(steps, 3)
    assert await texts(form, batch) == ["a ", "日本", "x"]
    assert [stream.finish_reason for stream in batch] == [FinishReason.EOS] * 3
    counts = [(end.info["stop"], end.info["completion_tokens"]) for end in (it.end for it in batch)]
    assert counts == [("STOP", 6), (None, 6), ("\n", 2)]
    assert all(stream.end.info["prompt_tokens"] == 2 for stream in batch)


@pytest.mark.rule(13)
@every_form
async def test_a_slot_is_free_in_the_step_that_completes_its_stop_string(form):
    source = form.script(steps_of("aXYbb", "ccccc"))
    batch = form.open(decode_steps(source, decoders("XY", ())), 2)
    assert await texts(form, batch) == ["a", "ccccc"]
    assert source.sent[1:5] == [(0, 1), (0, 1), (1,), (1,)]


@pytest.mark.rule(10)
@every_form
async def test_no_step_is_made_once_all_have_stopped(form):
    source = form.script(steps_of("aXbbb", "cXddd"))
    batch = form.open(decode_steps(source, decoders("X", "X")), 2)
    assert await texts(form, batch) == ["a", "c"]
    await source.closed.wait()
    assert (source.asked, source.closings) == (2, 1)


@pytest.mark.rule(13)
@every_form
async def test_the_source_learns_of_a_stream_that_was_cancelled_and_nothing_is_flushed(form):
    gate = form.gate()
    source = form.script(steps_of("aXbb", "cccc"), gates={2: gate})
    batch = form.open(decode_steps(source, decoders("XY", ())), 2)
    assert await form.receive(batch[0]) == "a"
    if form.runs_ahead:
        await gate.reached.wait()
    batch[0].cancel()
    gate.open()
    assert await form.rest(batch[0]) == []
    assert "".join(await form.rest(batch[1])) == "cccc"
    assert source.sent[-1] == (1,)


@pytest.mark.rule(5, 14, 16)
@every_form
async def test_an_error_of_the_source_comes_behind_what_was_certain_and_flushes_nothing(form):
    source = form.script([*steps_of("abX", "cde"), ArithmeticError("broken")])
    batch = form.open(decode_steps(source, decoders("XY", ())), 2)
    for stream, text in zip(batch, ["ab", "cde"], strict=True):
        outputs, [error] = await form.read(stream)
        assert "".join(outputs) == text
        assert isinstance(error, ArithmeticError)


@pytest.mark.rule(15)
@every_form
async def test_a_failure_of_one_slot_leaves_the_others_alone_and_follows_its_text(form):
    failing = [Many([*b"cd", Fail(ArithmeticError("alone"))]), 98]
    batch = form.open(decode_steps(form.script([[97, 97], failing, [98, 99]]), decoders((), ())), 2)
    outputs, [error] = await form.read(batch[0])
    assert (outputs, str(error)) == (["a", "cd"], "alone")
    assert await form.rest(batch[1]) == ["a", "b", "c"]


@pytest.mark.rule(8)
@every_form
async def test_a_malformed_step_fails_all_streams_and_closes_the_source(form):
    source = form.script([*steps_of("a", "b"), [97]])
    batch = form.open(decode_steps(source, decoders((), ())), 2)
    for stream in batch:
        outputs, [error] = await form.read(stream)
        assert len(outputs) == 1
        assert isinstance(error, StepError)
        assert error.step == 1
    await source.closed.wait()


@every_form
async def test_tokens_of_one_step_behind_a_stop_string_are_dropped(form):
    source = form.script([[Many([*b"ab"])], [Many([*b"cSTOP and on"])]])
    batch = form.open(decode_steps(source, decoders("STOP")), 1)
    assert await form.rest(batch[0]) == ["ab", "c"]
    assert batch[0].end.info == {"stop": "STOP", "completion_tokens": 7}


@every_form
async def test_limits_count_tokens_and_what_is_held_back_comes_with_the_end(form):
    source = form.script(steps_of("aXXXX", "日本日本日", "cXYbb"))
    steps = decode_steps(source, decoders("XY", (), "XY"), max_outputs=[2, 4, 3])
    batch = form.open(steps, 3)
    assert await texts(form, batch) == ["aX", "日\ufffd", "c"]
    # A stop string that the last token completes is what ended the third.
    reasons = [FinishReason.LENGTH, FinishReason.LENGTH, FinishReason.EOS]
    assert [stream.finish_reason for stream in batch] == reasons
    assert [stream.end.info["completion_tokens"] for stream in batch] == [2, 4, 3]


@every_form
async def test_an_end_that_is_found_by_its_token_is_neither_text_nor_counted(form):
    source = form.script([[97], [98], [10], [99]])
    steps = decode_steps(source, decoders("bc"), is_eos=token_ids(10))
    [stream] = form.open(steps, 1)
    assert await form.rest(stream) == ["a", "b"]
    assert stream.end.info == {"stop": None, "completion_tokens": 2}


@every_form
async def test_the_end_of_the_source_gives_what_is_held_back(form):
    source = form.script([[97, 98], [88, 0xC3]])
    batch = form.open(decode_steps(source, decoders("XY", ())), 2)
    assert await texts(form, batch) == ["aX", "b\ufffd"]
    assert [stream.finish_reason for stream in batch] == [FinishReason.EXHAUSTED] * 2


@every_form
async def test_the_source_may_have_to_end_its_streams(form):
    source = form.script(steps_of("ab", "aX"))
    batch = form.open(decode_steps(source, decoders((), "X"), require_eos=True), 2)
    outputs, [error] = await form.read(batch[0])
    assert outputs == ["a", "b"]
    assert isinstance(error, MissingEOSError)
    assert await form.rest(batch[1]) == ["a"]


@every_form
async def test_a_step_without_text_is_no_output(form):
    source = form.script([[97], [SKIP], *([byte] for byte in "👍".encode()), {}, [256], [Last(98)]])
    [stream] = form.open(decode_steps(source, decoders(())), 1)
    assert await form.rest(stream) == ["a", "👍", "b"]


@every_form
async def test_what_the_source_says_of_an_end_is_kept(form):
    ends = [End("length", {"completion_tokens": 9, "cached": 3}), Last(98, "cancelled")]
    batch = form.open(decode_steps(form.script([[97, 97], ends]), decoders((), "bc")), 2)
    assert await texts(form, batch) == ["a", "a"]  # one that was cancelled is not complete
    assert batch[0].end.info == {"stop": None, "completion_tokens": 9, "cached": 3}
    assert batch[1].finish_reason is FinishReason.CANCELLED


class Raises:
    """A decoder that raises in one of its methods."""

    matched = None

    def __init__(self, method):
        self._method = method
        self._fed = False

    def _call(self, method):
        if method == self._method and self._fed:
            raise ArithmeticError(method)

    @property
    def info(self):
        self._call("info")
        return {}

    def feed(self, *outputs):
        self._call("feed")
        self._fed = True
        return str(outputs)

    def finish(self):
        self._call("finish")


@pytest.mark.rule(15)
@pytest.mark.parametrize("method", ["feed", "finish", "info"])
@every_form
async def test_an_error_of_a_decoder_fails_its_stream_alone(form, method):
    source = form.script([[97, 97], [98, 98], [None, 99]])
    steps = decode_steps(source, [Raises(method), TextDecoder(BYTES)])
    batch = form.open(steps, 2)
    _, [error] = await form.read(batch[0])
    assert (type(error), str(error)) == (ArithmeticError, method)
    assert await form.rest(batch[1]) == ["a", "b", "c"]


@pytest.mark.rule(17)
@pytest.mark.parametrize("raised", [StopIteration("x"), StopAsyncIteration("x")])
@every_form
async def test_a_decoder_that_raises_what_ends_a_loop_is_named(form, raised):
    class Stopping(StopStrings):
        def feed(self, *texts):
            raise raised

    [stream] = form.open(decode_steps(form.script([["a"]]), [Stopping("b")]), 1)
    _, [error] = await form.read(stream)
    says = f"the decoder StopStrings('b') raised {type(raised).__name__}: x"
    assert (type(error), str(error)) == (SourceError, says)


@every_form
async def test_a_slot_without_a_decoder_has_its_outputs_as_they_are(form):
    source = form.script([[97, 97], [Many([98, 99]), 98], [None, None]])
    batch = form.open(decode_steps(source, [None, *decoders(())]), 2)
    assert await form.rest(batch[0]) == [97, 98, 99]
    assert batch[0].end.info is None
    assert await form.rest(batch[1]) == ["a", "b"]


@every_form
async def test_outputs_that_are_text_already_need_stop_strings_alone(form):
    source = form.script([["so be it. S", "on"], ["TOP it", " and "], ["x", None]])
    batch = form.open(decode_steps(source, [StopStrings("STOP"), StopStrings()]), 2)
    assert await texts(form, batch) == ["so be it. ", "on and "]
    assert batch[0].end.info == {"stop": "STOP"}


# ---- as an iterator


def test_it_makes_steps_as_wide_as_the_batch_which_need_no_size():
    steps = decode_steps(iter(steps_of("ab", "cX")), decoders((), "X"))
    assert next(steps) == ["a", "c"]
    text, end = next(steps)
    assert (text, end.reason, end.info["stop"]) == ("b", FinishReason.EOS, "X")
    [(last, nothing)] = steps
    assert (last.reason, nothing) == (FinishReason.EXHAUSTED, SKIP)


def test_it_ends_with_its_last_slot_and_closes_the_source_then():
    closed = []

    def source():
        try:
            while True:
                yield [88]
        finally:
            closed.append(True)

    steps = decode_steps(source(), decoders("X"))
    assert [type(element) for [element] in steps] == [End]
    assert closed == [True]


def test_an_asynchronous_one_does_as_well():
    closed = []

    async def source():
        try:
            while True:
                yield [88]
        finally:
            closed.append(True)

    async def main():
        steps = decode_steps(source(), decoders("X"))
        assert [type(element) async for [element] in steps] == [End]
        assert closed == [True]

    asyncio.run(main())


@every_form
async def test_the_outputs_of_a_slot_without_a_decoder_may_be_many_up_to_its_end(form):
    source = form.script([[Many([97, 98, Last(99)])], [Many([97])]])
    [stream] = form.open(decode_steps(source, [None]), 1)
    assert await form.rest(stream) == [97, 98, 99]
    assert stream.finish_reason is FinishReason.EOS


def test_a_source_that_was_never_read_is_closed_as_well():
    class Source:
        closed = 0

        def __iter__(self):
            return self

        def __next__(self):
            return [97]

        def close(self):
            self.closed += 1

    source = Source()
    with BatchedStream(decode_steps(source, decoders(())), 1):
        pass
    assert source.closed == 1


class Broken:
    """A source of which a step raises, and that would go on behind it."""

    def __init__(self):
        self._steps = iter([[88], ArithmeticError("broken"), [89]])

    def __iter__(self):
        return self

    def __next__(self):
        if isinstance(step := next(self._steps), Exception):
            raise step
        return step


def broken():
    yield from Broken()


async def asynchronously_broken():
    for step in Broken():
        yield step


@pytest.mark.rule(14, 32)
@pytest.mark.parametrize("source", [Broken, broken])
def test_what_was_held_back_when_the_source_raised_is_no_normal_end_later(source):
    steps = decode_steps(source(), decoders("XYZ"))
    assert next(steps) == [SKIP]
    with pytest.raises(ArithmeticError, match="broken"):
        next(steps)
    assert list(steps) == []


def test_nor_is_that_of_an_asynchronous_source():
    async def main():
        steps = decode_steps(asynchronously_broken(), decoders("XYZ"))
        assert await anext(steps) == [SKIP]
        with pytest.raises(ArithmeticError, match="broken"):
            await anext(steps)
        assert [step async for step in steps] == []

    asyncio.run(main())


def test_a_batch_may_be_decoded_in_a_loop_of_ones_own():
    steps = decode_steps(iter(steps_of("abX", "cde")), decoders("X", ()))
    assert next(step for step in steps if SKIP not in step) == ["a", "c"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"decoders": TextDecoder(BYTES)}, r"pass \[decoder\] for a single slot"),
        ({"decoders": [BYTES]}, "a decoder must have the methods feed and finish"),
        ({"decoders": [TextDecoder]}, "a class: call it"),
        ({"decoders": [TextDecoder(BYTES)], "source": 3}, "source must be an iterable of steps"),
        ({"decoders": [TextDecoder(BYTES)], "is_eos": 2}, r"pass is_eos=token_ids\(2\)|token_ids"),
    ],
)
def test_what_cannot_work_is_refused_at_once(arguments, says):
    with pytest.raises(TypeError, match=says):
        decode_steps(**({"source": []} | arguments))


def test_limits_of_another_number_of_slots_are_refused():
    with pytest.raises(ValueError, match="max_outputs has 1 entries, expected 2"):
        decode_steps([], decoders((), ()), max_outputs=[3])


def test_the_end_mark_may_be_an_object_of_the_programs_own():
    over = object()
    steps = decode_steps([[97], [over]], decoders(()), eos=over)
    assert [list(stream) for stream in demux(steps, eos=EOS)] == [["a"]]
