"""Ends, leaving, errors, threads and refusals of `stream_generate`."""

import asyncio
import inspect
import threading
import weakref

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer

from batchstream import AsyncBatchedStream, BatchedStream, FinishReason, batched, demux
from batchstream.integrations.transformers import _rows, stream_generate
from support.tiny_models import EOS, FEW, Forwards, Script, generated, prompts, tiny

LINES = [[10, 11, 12], [20], [30, 31, 32, 33, 34, 35], [40, 41]]
SECONDS = 40
# Its name in calls of generate, which later releases have changed.
CACHE = "cache" if "cache" in inspect.signature(tiny().forward).parameters else "past_key_values"


def scripted(lines=LINES, *, prompt=4, fails_at=None):
    return LogitsProcessorList([Script(lines, prompt, fails_at=fails_at)])


def source(lines=LINES, **kwargs):
    """Return the model, and a source of it that says what is written."""
    model, inputs = tiny(), prompts(*[4] * len(lines))
    settings = {"max_new_tokens": 64, "logits_processor": scripted(lines), **kwargs}
    return model, stream_generate(model, inputs, **settings)


# ---- ends


def test_a_slot_ends_in_the_step_in_which_its_sequence_does():
    _, steps = source()
    made = BatchedStream(steps, 4).steps()
    ends = [{slot: end.reason for slot, end in step.ends} for step in made]
    expected = [{}, {1: "eos"}, {3: "eos"}, {0: "eos"}, {}, {}, {2: "eos"}]
    assert ends == expected


@pytest.mark.parametrize("limits", [[2, 5, 3, 1], (2, 5, 3, 1), torch.tensor([2, 5, 3, 1])])
def test_each_slot_has_a_limit_of_its_own(limits):
    _, steps = source(max_new_tokens=limits)
    streams = demux(steps, 4)
    assert [list(stream) for stream in streams] == [[10, 11], [20], [30, 31, 32], [40]]
    reasons = [stream.end.reason for stream in streams]
    assert reasons == ["length", "eos", "length", "length"]


def test_the_model_makes_no_step_behind_the_last_limit():
    model, steps = source(max_new_tokens=[2, 1, 3, 1])
    with Forwards(model) as forwards:
        for stream in demux(steps, 4):
            list(stream)
    assert len(forwards) == 3


class AtLength(StoppingCriteria):
    """Ends the rows that a test names, each at a length."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __call__(self, input_ids, _scores, **_):
        assert input_ids.shape[0] == len(self.lengths)  # it counts rows
        return torch.tensor([input_ids.shape[1] >= length for length in self.lengths])


def test_a_criterion_of_the_callers_ends_a_slot_with_its_name():
    criteria = StoppingCriteriaList([AtLength([99, 99, 6, 99])])
    _, steps = source(stopping_criteria=criteria)
    streams = demux(steps, 4)
    assert [list(stream) for stream in streams] == [[10, 11, 12], [20], [30, 31], [40, 41]]
    assert streams[2].end.reason is FinishReason.EOS
    assert streams[2].end.info == {"stopping_criterion": "AtLength"}
    assert streams[0].end.info is None


def test_time_that_is_up_is_a_limit():
    _, steps = source(max_time=0.0)
    streams = demux(steps, 4)
    assert [list(stream) for stream in streams] == [[10], [20], [30], [40]]
    ends = [stream.end for stream in streams]
    assert {end.reason for end in ends} == {FinishReason.LENGTH}
    assert ends[0].info == {"stopping_criterion": "MaxTimeCriteria"}


# ---- leaving


def test_when_all_have_left_the_model_makes_no_step():
    model, steps = source([[7] * 60] * 3)
    with Forwards(model) as forwards:
        streams = demux(steps, 3)
        assert [next(stream) for stream in streams] == [7, 7, 7]
        for stream in streams:
            stream.cancel()
        assert len(forwards) == 1
    with pytest.raises(StopIteration):
        next(steps)


@pytest.mark.parametrize("drop_rows", [False, True])
def test_a_row_is_computed_no_more_when_its_stream_has_left(drop_rows):
    only = [token for token in range(64) if token != 7]
    model, steps = source(
        [[7]] * 3,
        max_new_tokens=6,
        logits_processor=None,
        suppress_tokens=only,
        drop_rows=drop_rows,
    )
    with Forwards(model) as forwards:
        first, second, third = demux(steps, 3)
        assert next(first) == 7
        second.cancel()
        assert [len(list(first)), len(list(third))] == [5, 6]
    fewer = 2 if drop_rows else 3
    assert forwards.rows == [3] + [fewer] * 5


def test_rows_that_leave_do_not_change_the_others():
    model, inputs = tiny(seed=1), prompts(3, 7, 1, 5, 2)
    expected = generated(model, inputs, max_new_tokens=20)
    streams = demux(stream_generate(model, inputs, max_new_tokens=20), 5)
    got = [[next(stream)] for stream in streams]
    streams[0].cancel()
    streams[3].cancel()
    for slot in (1, 2, 4):
        assert got[slot] + list(streams[slot]) == expected[slot]


def test_a_source_that_is_closed_or_never_moved_has_done_nothing_more():
    model, steps = source()
    with Forwards(model) as forwards:
        steps.close()
        model, steps = source()
        next(steps)
        steps.close()
        with pytest.raises(StopIteration):
            next(steps)
    assert len(forwards) == 1


class Keeps(LogitsProcessor):
    """A processor that keeps something for each row, as the caller's may."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, _input_ids, scores):
        assert scores.shape[0] == self.rows
        return scores


def test_rows_stay_where_something_may_count_them():
    model, inputs = tiny(seed=1), prompts(3, 7, 1)

    def rows(**more):
        with Forwards(model) as forwards:
            steps = stream_generate(model, inputs, max_new_tokens=[1, 6, 4], **more)
            ends = [list(stream) for stream in demux(steps, 3)]
        assert ends == [ids[: len(got)] for ids, got in zip(whole(**more), ends, strict=True)]
        return forwards.rows[-1]

    def whole(cache=None, past_key_values=None, **more):
        return generated(model, inputs, max_new_tokens=6, **more)

    cache = {CACHE: DynamicCache(config=model.config)}
    assert rows() == 1
    assert rows(logits_processor=LogitsProcessorList([Keeps(3)])) == 3
    assert rows(stopping_criteria=StoppingCriteriaList([AtLength([99] * 3)])) == 3
    assert rows(prefix_allowed_tokens_fn=lambda _row, _ids: list(range(60))) == 3
    assert rows(guidance_scale=1.5) == 3
    assert rows(**cache) == 3


def test_the_caller_may_vouch_for_what_is_not_known():
    _, inputs = tiny(), prompts(4, 4)
    model = tiny()
    processors = LogitsProcessorList([Keeps(2)])
    steps = stream_generate(
        model, inputs, max_new_tokens=[1, 4], logits_processor=processors, drop_rows=True
    )
    with pytest.raises(AssertionError):  # so it was dropped
        [list(stream) for stream in demux(steps, 2)]


@pytest.mark.parametrize(
    ("architecture", "more", "why"),
    [
        ("Mamba", {}, "cannot select rows"),
        ("Qwen3Next", {}, "cannot select rows"),
        ("Llama", {"cache_implementation": "static"}, "StaticCache cannot select rows"),
        (
            "Llama",
            {"prefix_allowed_tokens_fn": lambda _row, _ids: [5]},
            "PrefixConstrainedLogitsProcessor keeps something for each row",
        ),
    ],
)
def test_rows_that_cannot_be_dropped_are_not(architecture, more, why):
    steps = stream_generate(
        tiny(architecture), prompts(4, 4), max_new_tokens=4, drop_rows=True, **more
    )
    with pytest.raises(ValueError, match=f"drop_rows=True is not possible, as .*{why}"):
        next(steps)


# ---- errors


def test_an_error_reaches_each_stream_behind_what_it_was_given():
    _, steps = source(
        [[7] * 60, [8, 9], [7] * 60],
        logits_processor=scripted([[7] * 60, [8, 9], [7] * 60], fails_at=3),
    )
    streams = demux(steps, 3)
    assert list(streams[1]) == [8, 9]
    for stream in (streams[0], streams[2]):
        got = []
        with pytest.raises(ZeroDivisionError, match="no such step"):
            got.extend(stream)  # which keeps what came before
        assert got == [7, 7, 7]


class NoMemory(LogitsProcessor):
    """Fails in the third step."""

    def __init__(self):
        self.steps = 0

    def __call__(self, _input_ids, scores):
        self.steps += 1
        if self.steps == 3:
            raise MemoryError("no memory")
        return scores


@pytest.mark.parametrize("where", ["processor", "forward", "thread"])
def test_an_error_does_not_keep_the_cache(where):
    model, inputs = tiny(), prompts(4)
    seen = []

    def note(_model, _args, output):
        seen.append(weakref.ref(output[CACHE].layers[0].keys))
        if where == "forward" and len(seen) == 3:
            raise MemoryError("no memory")

    more = {"prompt_lookup_num_tokens": 2} if where == "thread" else {}
    if where != "forward":
        more["logits_processor"] = LogitsProcessorList([NoMemory()])
    hook = model.register_forward_hook(note)
    try:
        (stream,) = demux(stream_generate(model, inputs, max_new_tokens=9, **more), 1)
        with pytest.raises(MemoryError) as caught:
            list(stream)
    finally:
        hook.remove()
    assert stream.end.error is not None
    assert caught.value is not None
    assert len(seen) == 3
    assert [ref() for ref in seen] == [None] * 3


def test_what_the_caller_was_handling_keeps_its_frames():
    _, steps = source([[7] * 60], logits_processor=scripted([[7] * 60], fails_at=0))
    try:
        _fails_with("its own")
    except KeyError as before:
        with pytest.raises(ZeroDivisionError):
            next(steps)
        frame = before.__traceback__.tb_next.tb_frame
        assert frame.f_locals == {"mine": "its own"}


def _fails_with(mine):
    raise KeyError(mine)


# ---- threads


def test_streams_may_be_read_in_several_threads():
    model, inputs = tiny(seed=1), prompts(3, 7, 1, 5, 2)
    expected = generated(model, inputs, max_new_tokens=12)
    streams = demux(stream_generate(model, inputs, max_new_tokens=12), 5)
    got = [None] * 5

    def read(slot):
        got[slot] = list(streams[slot])

    threads = [threading.Thread(target=read, args=[slot]) for slot in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert got == expected


def test_torch_keeps_the_state_of_the_thread_that_moves_the_source():
    _, steps = source()
    with torch.enable_grad():
        next(steps)
        assert torch.is_grad_enabled()
        steps.send((0, 2))
        assert torch.is_grad_enabled()
    with torch.inference_mode():
        next(steps)
        assert torch.is_inference_mode_enabled()
    next(steps)
    assert not torch.is_inference_mode_enabled()
    steps.close()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("way", [{}, {"prompt_lookup_num_tokens": 2}])
def test_autocast_is_that_of_the_call(way):
    model, inputs = tiny(), prompts(5)
    dtypes, grads = [], []

    def note(_model, _inputs, output):
        dtypes.append(output.dtype)
        grads.append(torch.is_grad_enabled())

    hook = model.lm_head.register_forward_hook(note)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            steps = stream_generate(model, inputs, max_new_tokens=3, **way)
        list(demux(steps, 1)[0])
        assert not torch.is_autocast_enabled("cpu")
    finally:
        hook.remove()
    assert set(dtypes) == {torch.bfloat16}
    assert not any(grads)


# ---- where it is used


def test_it_is_the_function_of_a_batcher():
    model = tiny(seed=1)

    @batched(max_batch_size=4, batch_timeout=SECONDS)
    def replies(lengths):
        return stream_generate(model, prompts(*lengths), max_new_tokens=8)

    lengths = [3, 7, 1, 5]
    expected = generated(model, prompts(*lengths), max_new_tokens=8)
    try:
        streams = [replies.stream(length) for length in lengths]
        assert [list(stream) for stream in streams] == expected
    finally:
        replies.close()


def test_it_is_the_source_of_an_asynchronous_batch():
    model, inputs = tiny(seed=1), prompts(3, 7)
    expected = generated(model, inputs, max_new_tokens=8)

    async def main():
        steps = stream_generate(model, inputs, max_new_tokens=8)
        async with AsyncBatchedStream(steps, 2) as streams:

            async def read(stream):
                return [token async for token in stream]

            return await asyncio.gather(*map(read, streams))

    assert asyncio.run(main()) == expected


def test_it_takes_ids_alone_and_a_config():
    model, ids = tiny(seed=1), prompts(4, 4)["input_ids"]
    config = GenerationConfig(
        do_sample=False, suppress_tokens=FEW, eos_token_id=EOS, pad_token_id=0
    )
    expected = generated(model, {"input_ids": ids}, generation_config=config, max_new_tokens=9)
    steps = stream_generate(model, ids, max_new_tokens=9, generation_config=config)
    assert [list(stream) for stream in demux(steps)] == expected


# ---- refusals


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_beams": 4}, "beam search, got num_beams=4.*pass num_beams=1"),
        ({"num_beams": 4, "do_sample": True}, "beam search, got num_beams=4"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "beam search, got num_beams=2"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search, got penalty_alpha=0.6"),
        ({"dola_layers": "high"}, "DoLa, got dola_layers='high'"),
        ({"force_words_ids": [[5]]}, "constrained beam search, got force_words_ids"),
        ({"cache_implementation": "paged"}, "cache_implementation='paged'.*TransformersEngine"),
        ({"streamer": object()}, "takes no streamer.*BatchStreamer"),
        ({"custom_generate": object()}, "takes no custom_generate"),
        ({"stop": ["x"]}, "takes no stop: .*stream_text"),
        ({"max_length": 9}, "takes no max_length: pass max_new_tokens"),
        ({"output_scores": True}, "takes no output_scores: a source hands out token ids alone"),
        ({"return_dict_in_generate": True}, "takes no return_dict_in_generate"),
        ({"drop_rows": [1]}, r"drop_rows must be 'auto', True or False, got \[1\]"),
        ({"drop_rows": 1}, "drop_rows must be 'auto', True or False, got 1"),
        ({"drop_rows": "yes"}, "drop_rows must be 'auto', True or False, got 'yes'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": [3, -1]}, "max_new_tokens must be at least 1, got -1"),
        ({"max_new_tokens": []}, "max_new_tokens is empty"),
        ({"max_new_tokens": [3]}, "max_new_tokens has 1 limits, expected 2"),
        ({"max_new_tokens": [3, 3], "num_return_sequences": 2}, "has 2 limits, expected 4"),
    ],
)
def test_what_cannot_be_streamed_is_refused_by_name(more, message):
    with pytest.raises(ValueError, match=message):
        stream_generate(tiny(), prompts(4, 4), **{"max_new_tokens": 9, **more})


@pytest.mark.parametrize(
    ("model", "inputs", "limit", "message"),
    [
        (object(), prompts(4), 3, "a model with a method generate, got object"),
        (tiny(), [[5, 6]], 3, "return_tensors='pt'"),
        (tiny(), torch.tensor([5, 6]), 3, r"of shape \(prompts, length\), got one of \(2,\)"),
        (tiny(), {"input_ids": torch.tensor([5])}, 3, r"\(prompts, length\), got one of \(1,\)"),
        (tiny(), {"input_ids": [[5, 6]]}, 3, "input_ids takes a tensor, got list: call the tok"),
        (tiny(), prompts(4) | {"attention_mask": [[1] * 4]}, 3, "attention_mask takes a tensor"),
        (tiny(), prompts(4), 1.5, "max_new_tokens takes whole numbers, got 1.5"),
        (tiny(), prompts(4), True, "max_new_tokens takes whole numbers, got True"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused(model, inputs, limit, message):
    with pytest.raises(TypeError, match=message):
        stream_generate(model, inputs, max_new_tokens=limit)


def test_what_generate_refuses_is_raised_with_the_first_step():
    steps = stream_generate(tiny(), prompts(4), max_new_tokens=3, no_such_setting=1)
    with pytest.raises(ValueError, match="no_such_setting"):
        next(steps)


# ---- caches


class HoldsMore(DynamicLayer):
    """A layer that holds more than keys and values, as a layer with linear attention does."""


@pytest.mark.parametrize(
    ("layer", "why"), [(DynamicLayer, None), (HoldsMore, "a HoldsMore of its cache cannot select")]
)
def test_a_layer_that_is_not_known_keeps_all_rows(layer, why):
    cache = DynamicCache()
    cache.layers.append(layer())
    told = _rows.obstacle(tiny(), {CACHE: cache, "use_cache": True}, [])
    assert told is None if why is None else told.startswith(why)


@pytest.mark.parametrize(
    ("kept", "name"),
    [
        ({"pixel_values": torch.zeros(2, 3)}, "pixel_values"),
        ({"position_ids": torch.zeros(3, 2, 4)}, "position_ids"),
        ({"states": [torch.zeros(2)]}, "states"),
    ],
)
def test_what_is_kept_and_not_known_keeps_all_rows(kept, name):
    why = f"it is not known which part of {name!r} belongs to which row"
    assert _rows.obstacle(tiny(), kept, []) == why
