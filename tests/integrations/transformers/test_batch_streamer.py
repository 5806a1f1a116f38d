"""The streamer of a `generate` call that is the program's own."""

import asyncio
import copy
import gc
import threading

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from batchstream import ClosedError, SourceError
from batchstream.integrations.transformers import BatchStreamer
from support.tiny_models import (
    EOS,
    FEW,
    Forwards,
    Script,
    generated,
    prompts,
    says,
    tiny,
    tiny_text,
)

SECONDS = 40
MOST = 16
SETTINGS = {"max_new_tokens": MOST, "do_sample": False, "suppress_tokens": FEW}


class Running(threading.Thread):
    """A thread that calls a function, and keeps what that returns or raises."""

    def __init__(self, function, *args, **kwargs):
        super().__init__(daemon=True)
        self._call = function, args, kwargs
        self.returned = self.raised = None
        self.start()

    def run(self):
        function, args, kwargs = self._call
        del self._call
        try:
            self.returned = function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.raised = type(error), str(error)
        del function, args, kwargs

    def result(self):
        self.join(SECONDS)
        assert not self.is_alive()
        return self.returned


def read(streams):
    got = [None] * len(streams)
    threads = [
        Running(lambda at, stream: got.__setitem__(at, list(stream)), at, stream)
        for at, stream in enumerate(streams)
    ]
    for thread in threads:
        thread.result()
        assert thread.raised is None
    return got


@pytest.fixture
def model():
    return tiny(seed=1)


# ---- in place of a TextIteratorStreamer


@pytest.mark.parametrize("skip_prompt", [False, True])
@pytest.mark.parametrize("decode", [{}, {"skip_special_tokens": True}])
def test_it_gives_the_text_that_a_text_iterator_streamer_gives(skip_prompt, decode):
    model, tokenizer = tiny_text(3)
    inputs = tokenizer(["hello"], return_tensors="pt")
    call = {**inputs, "max_new_tokens": 24, "pad_token_id": 0}

    def text_of(kind):
        streamer = kind(tokenizer, skip_prompt, SECONDS, **decode)
        running = Running(model.generate, streamer=streamer, **call)
        text = "".join(streamer)
        running.result()
        return text.removesuffix("</s>")

    assert text_of(BatchStreamer) == text_of(TextIteratorStreamer)


def test_it_is_read_as_an_asynchronous_iterator():
    model, tokenizer = tiny_text()
    inputs = tokenizer(["hello"], return_tensors="pt")

    async def main():
        streamer = BatchStreamer(tokenizer, skip_prompt=True)
        script = says(tokenizer, ["so it is"], 5)
        running = Running(
            streamer.run, model.generate, **inputs, max_new_tokens=30, logits_processor=script
        )
        text = "".join([piece async for piece in streamer])
        running.result()
        return text

    assert asyncio.run(main()) == "so it is"


def test_a_timeout_is_for_the_next_output():
    streamer = BatchStreamer(timeout=0.0)
    with pytest.raises(TimeoutError):
        next(streamer)
    streamer.put(torch.tensor([[5, 6]]))
    assert list(streamer_outputs(streamer, 2)) == [5, 6]


def streamer_outputs(streamer, number):
    for _ in range(number):
        yield next(streamer)


def test_a_streamer_of_several_sequences_is_not_one_stream():
    streamer = BatchStreamer(size=2)
    with pytest.raises(TypeError, match=r"2 sequences .* streamer.streams\(\) returns"):
        iter(streamer)
    with pytest.raises(TypeError, match=r"streamer.astreams\(\) returns"):
        aiter(streamer)


# ---- batches


def without_padding(model):
    """Return settings under which the model never gives the padding id itself."""
    assert model.generation_config.pad_token_id == 0
    return {**SETTINGS, "suppress_tokens": [0, *FEW]}


@pytest.mark.parametrize("by", ["run", "generate", "generate with criteria"])
def test_each_stream_is_given_what_generate_returns_for_its_row(model, by):
    inputs = prompts(3, 7, 1, 5, 2)
    settings = SETTINGS if by == "run" else without_padding(model)
    expected = generated(model, inputs, **settings)
    out = model.generate(**inputs, **settings)
    streamer = BatchStreamer(size=5, eos_token_id=EOS, pad_token_id=0, skip_prompt=True)
    streams = streamer.streams()
    if by == "run":
        running = Running(streamer.run, model.generate, **inputs, **settings)
    else:
        more = {}
        if by == "generate with criteria":
            more["stopping_criteria"] = streamer.stopping_criteria
        running = Running(model.generate, streamer=streamer, **inputs, **settings, **more)
    assert read(streams) == expected
    assert torch.equal(running.result(), out)
    if by == "run":  # which knows the limit of the call
        reasons = ["length" if len(ids) == MOST else "eos" for ids in expected]
        assert [stream.end.reason for stream in streams] == reasons


def test_prompts_come_first_without_their_padding(model):
    inputs = prompts(2, 4)
    expected = generated(model, inputs, **SETTINGS)
    streamer = BatchStreamer(size=2, pad_token_id=0)
    running = Running(streamer.run, model.generate, **inputs, **SETTINGS)
    got = read(streamer.streams())
    running.result()
    ids = inputs["input_ids"].tolist()
    assert ids[0][:2] == [0, 0]
    assert got == [ids[0][2:] + expected[0], ids[1] + expected[1]]


def test_run_learns_the_ends_of_the_model(model):
    inputs = prompts(3, 7)
    settings = {**SETTINGS, "eos_token_id": [5, 7], "pad_token_id": 9}
    streamer = BatchStreamer(size=2, skip_prompt=True)
    running = Running(streamer.run, model.generate, **inputs, **settings)
    got = read(streamer.streams())
    out = running.result()[:, 7:].tolist()
    ends = [next((at for at, it in enumerate(ids) if it in {5, 7}), MOST) for ids in out]
    assert got == [ids[:end] for ids, end in zip(out, ends, strict=True)]


def test_several_tokens_may_come_in_a_step(model):
    inputs = prompts(12)
    settings = {**SETTINGS, "prompt_lookup_num_tokens": 3}
    expected = generated(model, inputs, **settings)[0][:MOST]
    streamer = BatchStreamer(skip_prompt=True)
    running = Running(streamer.run, model.generate, **inputs, **settings)
    assert list(streamer) == expected
    running.result()


def test_text_of_a_batch_ends_at_stop_strings_and_limits():
    model, tokenizer = tiny_text()
    lines = ["so it is. STOP and on", "日本語 👍", "no", "one two"]
    inputs = tokenizer(["p"] * 4, return_tensors="pt")
    streamer = BatchStreamer(
        tokenizer, skip_prompt=True, size=4, stop=["STOP"], max_new_tokens=[None, None, None, 3]
    )
    streams = streamer.streams()
    running = Running(
        streamer.run,
        model.generate,
        **inputs,
        max_new_tokens=60,
        logits_processor=says(tokenizer, lines, 1),
    )
    assert ["".join(pieces) for pieces in read(streams)] == ["so it is. ", lines[1], "no", "one"]
    running.result()
    assert [stream.end.reason for stream in streams] == ["eos", "eos", "eos", "length"]
    assert streams[0].end.info["stop"] == "STOP"


class EndsFirstRow(StoppingCriteria):
    def __call__(self, input_ids, _scores, **_):
        return torch.tensor([input_ids.shape[1] >= 6] + [False] * (len(input_ids) - 1))


@pytest.mark.parametrize("by", ["run", "generate"])
def test_a_row_that_a_criterion_has_stopped_ends(by):
    model, inputs = tiny(), prompts(4, 4)
    call = {**inputs, "max_new_tokens": 30, "stopping_criteria": [EndsFirstRow()]}
    call["stopping_criteria"] = StoppingCriteriaList(call["stopping_criteria"])
    call["logits_processor"] = LogitsProcessorList([Script([[7] * 9, [8] * 9], 4)])
    streamer = BatchStreamer(size=2, skip_prompt=True, eos_token_id=EOS, pad_token_id=0)
    streams = streamer.streams()
    if by == "run":
        running = Running(streamer.run, model.generate, **call)
    else:
        running = Running(model.generate, streamer=streamer, **call)
    assert read(streams) == [[7, 7], [8] * 9]
    running.result()
    told = {"stopping_criterion": "EndsFirstRow"} if by == "run" else None
    assert streams[0].end.info == told


@pytest.mark.parametrize("setting", [{"stop_strings": ["it"]}, {"max_time": 0.0}])
def test_what_a_config_stops_ends_without_padding(setting):
    model, tokenizer = tiny_text()
    config = copy.deepcopy(model.generation_config)
    config.update(**setting, max_new_tokens=60)
    script = says(tokenizer, ["so it is", "no"], 4)
    streamer = BatchStreamer(size=2, skip_prompt=True)
    streams = streamer.streams()
    call = {**prompts(4, 4), "generation_config": config, "logits_processor": script}
    running = Running(streamer.run, model.generate, **call, tokenizer=tokenizer)
    got = [tokenizer.decode(ids) for ids in read(streams)]
    running.result()
    assert got == (["so it", "no"] if "stop_strings" in setting else ["s", "n"])


@pytest.mark.parametrize("limit", [None, 2, 9])
def test_a_limit_of_a_config_ends_with_length(limit):
    model = tiny()
    config = copy.deepcopy(model.generation_config)
    config.update(max_new_tokens=4)
    streamer = BatchStreamer(skip_prompt=True, max_new_tokens=limit)
    (stream,) = streamer.streams()
    call = endless(1, generation_config=config)
    del call["max_new_tokens"]
    running = Running(streamer.run, model.generate, **call)
    assert list(stream) == [7] * min(limit or 4, 4)
    assert stream.end.reason == "length"
    assert (running.result() is None) == (limit == 2)  # its own, before generate ended by itself


def test_of_a_call_with_eos_token_id_these_ids_alone_end_a_stream():
    model, tokenizer = tiny_text()
    assert tokenizer.eos_token_id == EOS
    for eos, expected in ((None, "no</s>no"), (tokenizer.encode("b"), "no</s>no")):
        streamer = BatchStreamer(tokenizer, skip_prompt=True)
        script = LogitsProcessorList([Script([tokenizer.encode("no</s>no")], 4)])
        call = {**prompts(4), "max_new_tokens": 5, "logits_processor": script}
        running = Running(streamer.run, model.generate, **call, eos_token_id=eos)
        assert "".join(streamer) == expected
        assert len(running.result()[0]) == 4 + 5


@pytest.mark.parametrize("seed", range(2))
def test_run_returns_what_a_limit_has_ended_in_a_step_of_several_tokens(seed):
    inputs = prompts(6, seed=seed)
    inputs = {name: tensor.repeat(1, 4) for name, tensor in inputs.items()}
    script = Script([inputs["input_ids"][0, :6].tolist() * 6], 24)
    call = {**inputs, "logits_processor": LogitsProcessorList([script])}
    call |= {"prompt_lookup_num_tokens": 3, "max_new_tokens": 13}
    expected = tiny().generate(**call)
    streamer = BatchStreamer(skip_prompt=True)
    (stream,) = streamer.streams()
    running = Running(streamer.run, tiny().generate, **call)
    assert list(stream) == expected[0, 24:][:13].tolist()
    assert torch.equal(running.result(), expected)


class EndsAt(StoppingCriteria):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, _scores, **_):
        return input_ids[:, -1] == self.token


@pytest.mark.parametrize(("seed", "token"), [(3, 3), (4, 3), (7, 5), (10, 7)])  # as in lockstep
def test_run_returns_what_generate_does_where_it_asks_of_drafts(seed, token):
    criteria = StoppingCriteriaList([EndsAt(token)])
    call = {**prompts(12, seed=seed), **SETTINGS, "prompt_lookup_num_tokens": 3}
    expected = tiny().generate(**call, stopping_criteria=criteria)
    streamer = BatchStreamer(skip_prompt=True)
    (stream,) = streamer.streams()
    running = Running(streamer.run, tiny().generate, **call, stopping_criteria=criteria)
    ids = expected[0, 12:][:MOST].tolist()
    assert list(stream) == (ids[: ids.index(EOS)] if EOS in ids else ids)
    assert torch.equal(running.result(), expected)


def test_a_prompt_may_begin_with_the_id_of_padding():
    ids = torch.tensor([[EOS, 5, 6]])  # as GPT-2's do, whose padding is the end of a text
    streamer = BatchStreamer(timeout=SECONDS, pad_token_id=EOS)
    running = Running(streamer.run, tiny().generate, input_ids=ids, max_new_tokens=2)
    assert list(streamer)[:3] == [EOS, 5, 6]
    running.result()


@pytest.mark.parametrize("returned", [1, 2])
def test_the_attention_mask_says_what_of_prompts_is_padding(returned):
    ids = torch.tensor([[9, 9, 9, 5], [9, 6, 6, 9]])
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    size = 2 * returned
    streamer = BatchStreamer(size=size, pad_token_id=9)
    call = {
        "input_ids": ids,
        "attention_mask": mask,
        "num_return_sequences": returned,
        "do_sample": True,
    }
    running = Running(streamer.run, tiny().generate, **call, max_new_tokens=1)
    got = [prompt[:3] for prompt in read(streamer.streams())]
    running.result()
    first = [[9, 5], [9, 5]][:returned]
    assert [prompt[:2] for prompt in got[:returned]] == first
    assert got[returned:] == [[6, 6, 9]] * returned


def test_run_knows_the_padding_id_as_a_token():
    model, inputs = tiny(), prompts(4, 4)
    script = LogitsProcessorList([Script([[0, 7, 0], [8] * 5], 4)])
    streamer = BatchStreamer(size=2, skip_prompt=True)
    streams = streamer.streams()
    call = {**inputs, "max_new_tokens": 30, "logits_processor": script}
    running = Running(streamer.run, model.generate, **call)
    assert read(streams) == [[0, 7, 0], [8] * 5]
    running.result()


# ---- leaving


def endless(size, **kwargs):
    inputs = prompts(*[4] * size)
    script = LogitsProcessorList([Script([[7] * 500] * size, 4)])
    return {**inputs, "max_new_tokens": 400, "logits_processor": script, **kwargs}


def test_a_loop_that_is_left_stops_generate():
    model, streamer = tiny(), BatchStreamer(skip_prompt=True, max_buffered=1)
    with Forwards(model) as forwards:
        running = Running(streamer.run, model.generate, **endless(1))
        for _ in streamer:
            break
        running.result()
    assert len(forwards.rows) <= 4


def test_a_loop_of_a_task_that_is_left_stops_generate():
    model = tiny()

    async def main():
        streamer = BatchStreamer(skip_prompt=True, max_buffered=1)
        running = Running(streamer.run, model.generate, **endless(1))
        async for _ in streamer:
            break
        return running

    with Forwards(model) as forwards:
        asyncio.run(main()).result()
    assert len(forwards.rows) <= 4


def test_what_next_has_read_of_a_streamer_a_loop_goes_on_with():
    streamer = BatchStreamer()
    streamer.put(torch.tensor([[5, 6, 7, 8]]))
    assert next(streamer) == 5
    reader = iter(streamer)
    assert (next(reader), next(streamer), next(reader)) == (6, 7, 8)


@pytest.mark.parametrize("by", ["run", "criteria", "neither"])
def test_generate_ends_when_all_streams_have_left(by):
    model = tiny()
    streamer = BatchStreamer(size=2, skip_prompt=True, max_buffered=1)
    first, second = streamer.streams()
    with Forwards(model) as forwards:
        if by == "run":
            running = Running(streamer.run, model.generate, **endless(2))
        else:
            criteria = {"stopping_criteria": streamer.stopping_criteria}
            more = criteria if by == "criteria" else {}
            running = Running(model.generate, streamer=streamer, **endless(2, **more))
        assert [next(first), next(second)] == [7, 7]
        first.cancel()
        second.cancel()
        running.result()
    # One step was buffered and one waited for room; without `run` it takes one more to see it.
    assert len(forwards) <= (3 if by == "run" else 4)
    if by == "neither":
        kind, message = running.raised
        assert kind is ClosedError
        assert "streamer.run(model.generate, ...)" in message
    else:
        assert running.raised is None


def test_a_row_that_has_left_is_padded_and_the_others_go_on():
    model = tiny()
    streamer = BatchStreamer(size=2, skip_prompt=True, max_buffered=1)
    first, second = streamer.streams()
    running = Running(streamer.run, model.generate, **endless(2, max_new_tokens=9))
    assert [next(first), next(second)] == [7, 7]
    first.cancel()
    assert list(second) == [7] * 8
    out = running.result()
    assert out[1, 4:].tolist() == [7] * 9
    assert out[0, -1] == 0


def test_generate_waits_for_streams_that_are_not_read():
    model = tiny()
    streamer = BatchStreamer(skip_prompt=True, max_buffered=2)
    (stream,) = streamer.streams()
    with Forwards(model) as forwards:
        running = Running(streamer.run, model.generate, **endless(1, max_new_tokens=9))
        assert next(stream) == 7
        assert len(forwards) <= 4
        assert list(stream) == [7] * 8
    running.result()


# ---- errors


def fails(size):
    call = endless(size)
    call["logits_processor"] = LogitsProcessorList([Script([[7] * 500] * size, 4, fails_at=3)])
    return call


def test_an_error_in_run_reaches_each_stream_behind_what_it_was_given():
    streamer = BatchStreamer(size=2, skip_prompt=True)
    streams = streamer.streams()
    running = Running(streamer.run, tiny().generate, **fails(2))
    for stream in streams:
        got = []
        with pytest.raises(ZeroDivisionError, match="no such step"):
            got.extend(stream)
        assert got == [7, 7, 7]
    assert running.result() is None
    assert running.raised is None


def test_an_error_that_no_stream_can_raise_is_raised_by_run():
    streamer = BatchStreamer(size=2, skip_prompt=True)
    for stream in streamer.streams():
        stream.cancel()

    def generate(**_):
        raise ZeroDivisionError("by itself")

    with pytest.raises(ZeroDivisionError, match="by itself"):
        streamer.run(generate)


def test_an_interrupt_is_raised_by_run_and_fails_the_streams():
    streamer = BatchStreamer(skip_prompt=True)

    def generate(**_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        streamer.run(generate)
    with pytest.raises(BaseException) as caught:
        next(streamer)
    assert not isinstance(caught.value, StopIteration)


def test_what_generate_refuses_reaches_the_streams():
    streamer = BatchStreamer(skip_prompt=True)
    running = Running(streamer.run, tiny().generate, **prompts(4), no_such_setting=1)
    with pytest.raises(ValueError, match="no_such_setting"):
        next(streamer)
    running.result()


def test_the_streams_fail_when_the_thread_of_generate_dies():
    streamer = BatchStreamer(size=2, skip_prompt=True)  # which stays referenced
    streams = streamer.streams()
    running = Running(tiny().generate, streamer=streamer, **fails(2))
    for stream in streams:
        got = []
        with pytest.raises(SourceError, match=r"call streamer.run\(model.generate, ...\)"):
            got.extend(stream)
        assert got == [7, 7, 7]
    running.result()
    assert running.raised[0] is ZeroDivisionError


def test_the_streams_fail_when_the_streamer_is_dropped():
    streamer = BatchStreamer(size=2, skip_prompt=True)
    streams = streamer.streams()
    streamer.put(torch.tensor([[5], [6]]))
    streamer.put(torch.tensor([7, 8]))
    del streamer
    gc.collect()
    for stream, token in zip(streams, [7, 8], strict=True):
        assert next(stream) == token
        with pytest.raises(SourceError):
            next(stream)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_batch_of_another_size_is_refused(rows):
    streamer = BatchStreamer(size=2, skip_prompt=True)
    streams = streamer.streams()
    running = Running(streamer.run, tiny().generate, **endless(rows))
    message = rf"a batch of {rows} sequences, expected 2: pass size={rows} .*num_return_sequences"
    for stream in streams:
        with pytest.raises(ValueError, match=message):
            next(stream)
    running.result()
    assert running.raised is None


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"stop_strings": ["x"]}, ValueError, "no tokenizer: pass tokenizer="),
        ({"eos_token_id": "x"}, TypeError, "takes whole numbers, got 'x'"),
    ],
)
def test_what_cannot_be_prepared_reaches_the_streams(more, kind, message):
    streamer = BatchStreamer(skip_prompt=True, size=2)
    streams = streamer.streams()
    running = Running(streamer.run, tiny().generate, **prompts(4, 4), **more)
    running.result()
    assert running.raised is None
    for stream in streams:
        with pytest.raises(kind, match=message):
            next(stream)


@pytest.mark.parametrize("puts", [False, True])
def test_the_streams_end_when_generate_returns_and_calls_no_end(puts):
    def generate(streamer, **_):
        if puts:
            streamer.put(torch.tensor([[5]]))
            streamer.put(torch.tensor([6]))
        return 1

    streamer = BatchStreamer(skip_prompt=True)
    (stream,) = streamer.streams()
    if puts:
        assert streamer.run(generate) == 1
        assert list(stream) == [6]
    else:
        assert streamer.run(generate) is None
        with pytest.raises(SourceError, match="put nothing into its streamer"):
            next(stream)


@pytest.mark.parametrize("by_name", [False, True])
def test_run_takes_arguments_by_position(by_name):
    model, config = tiny(), copy.deepcopy(tiny().generation_config)
    config.update(max_new_tokens=3)
    script = LogitsProcessorList([Script([[7] * 9], 4)])

    def without_names(*args, **kwargs):
        return model.generate(*args, **kwargs)

    generate = model.generate if by_name else without_names
    streamer = BatchStreamer(skip_prompt=True)
    (stream,) = streamer.streams()
    out = streamer.run(generate, prompts(4)["input_ids"], config, script)
    assert list(stream) == [7] * 3
    assert out[0, 4:].tolist() == [7] * 3
    assert stream.end.reason == ("length" if by_name else "exhausted")


def test_an_argument_that_is_there_twice_reaches_the_stream():
    ids = prompts(4)["input_ids"]
    streamer = BatchStreamer(skip_prompt=True)
    streamer.run(tiny().generate, ids, inputs=ids)
    with pytest.raises(TypeError, match="multiple values for argument 'inputs'"):
        next(streamer)


def test_run_is_given_no_streamer_but_itself():
    streamer = BatchStreamer(skip_prompt=True)
    streamer.run(tiny().generate, **prompts(4), max_new_tokens=2, streamer=streamer)
    assert len(list(streamer)) == 2
    other = BatchStreamer(skip_prompt=True)
    other.run(tiny().generate, **prompts(4), max_new_tokens=2, streamer=streamer)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'streamer'"):
        next(other)


def test_a_call_within_a_call_is_refused_and_does_not_end_it():
    streamer = BatchStreamer(skip_prompt=True)
    (stream,) = streamer.streams()

    def generate(streamer, **_):
        with pytest.raises(ClosedError, match="for one call of generate"):
            streamer.run(generate)
        streamer.put(torch.tensor([[5]]))
        streamer.put(torch.tensor([6]))
        streamer.end()

    streamer.run(generate)
    assert list(stream) == [6]


def test_a_streamer_is_for_one_call():
    model, inputs = tiny(seed=1), prompts(3)
    streamer = BatchStreamer(skip_prompt=True)
    streamer.run(model.generate, **inputs, **SETTINGS)
    with pytest.raises(ClosedError):
        streamer.run(model.generate, **inputs, **SETTINGS)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ([4], {}, "takes a tokenizer, or nothing for token ids, got 4: pass size=4"),
        ([], {"stop": ["x"]}, "has no tokenizer, so that stop= has no meaning"),
        ([], {"skip_special_tokens": True}, "so that skip_special_tokens= has no meaning"),
        ([object()], {}, "a method decode"),
        ([tiny()], {}, r"a method decode, got LlamaForCausalLM: pass a tok"),
        ([], {"eos_token_id": "</s>"}, "takes whole numbers"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused(arguments, more, message):
    with pytest.raises(TypeError, match=message):
        BatchStreamer(*arguments, **more)


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="size"):
        BatchStreamer(size=-1)
    with pytest.raises(ValueError, match="max_new_tokens has 1 limits, expected 2"):
        BatchStreamer(size=2, max_new_tokens=[1])
