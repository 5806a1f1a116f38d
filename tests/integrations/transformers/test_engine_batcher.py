"""The engine in a `ContinuousBatcher`: ends, errors, leaving, and the memory of the cache."""

import gc
import threading
import weakref

import pytest
import torch

from batchstream import ContinuousBatcher, FinishReason, RequestError
from batchstream.integrations.transformers import Generation, TransformersEngine
from support.driving import Visit, drive
from support.engine_models import alone, new
from support.tiny_models import EOS, VOCABULARY, tiny


class Watch:
    """Notes down each forward of a model: its rows and columns, its cache, and torch's modes.

    Args:
        model: The model.
        fails: A function of a forward's input ids that says whether it raises.
    """

    def __init__(self, model, fails=lambda ids: False):
        self.forwards = []
        self.caches = weakref.WeakSet()
        self.modes = set()
        self.fails = fails
        self.called = threading.Event()
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _model, _args, kwargs):
        self.forwards.append((*kwargs["attention_mask"].shape, kwargs["input_ids"].shape[1]))
        self.caches.add(kwargs.get("cache", kwargs.get("past_key_values")))
        self.modes.add(torch.is_grad_enabled())
        self.called.set()
        if self.fails(kwargs["input_ids"].tolist()):
            raise torch.OutOfMemoryError("no memory is left")

    @property
    def held(self):
        """How many caches have not been freed."""
        gc.collect()
        layers = [layer for cache in self.caches for layer in cache.layers]
        return len([layer for layer in layers if layer.keys is not None]) // 2

    @property
    def decoded(self):
        """How many rows each forward of the running batch had."""
        return [rows for rows, columns, tokens in self.forwards if tokens == 1 != columns]


def greedy(ids, max_new_tokens):
    return [token for token, _ in alone("Llama", tuple(ids), max_new_tokens, eos=None)]


@pytest.fixture
def llama():
    return new()


def test_streams_end_with_eos_or_length_and_say_how_many_tokens_they_had():
    ends = tuple(range(3, 10))
    requests = [Generation([30 + number, 40], 20) for number in range(12)]
    engine = TransformersEngine(tiny(), eos_token_id=ends)
    with ContinuousBatcher(engine, max_batch_size=3) as batcher:
        streams = [batcher.stream(request) for request in requests]
        outputs = [list(stream) for stream in streams]
    reasons = []
    for request, stream, output in zip(requests, streams, outputs, strict=True):
        expected = [token for token, _ in alone("Llama", request.ids, 20, eos=ends)]
        ended = expected[-1] in ends
        assert output == (expected[:-1] if ended else expected)
        reasons.append(stream.end.reason)
        assert stream.end.reason is (FinishReason.EOS if ended else FinishReason.LENGTH)
        assert stream.end.info == {"prompt_tokens": 2, "completion_tokens": len(output)}
    assert len({len(output) for output in outputs}) > 3  # ragged
    assert set(reasons) == {FinishReason.EOS, FinishReason.LENGTH}


def test_a_stop_id_of_a_request_ends_it_alone():
    expected = greedy((7, 8), 12)
    stop = expected[5]
    at = expected.index(stop)
    engine = TransformersEngine(tiny(), eos_token_id=())
    with ContinuousBatcher(engine, max_batch_size=2) as batcher:
        stopped = batcher.stream(Generation([7, 8], 12, stop=[stop]))
        whole = batcher.stream(Generation([7, 8], 12))
        assert list(stopped) == expected[:at]
        assert list(whole) == expected
    assert stopped.end.reason is FinishReason.EOS
    assert stopped.end.info == {"prompt_tokens": 2, "completion_tokens": at, "stop": stop}


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (
            Generation([3, VOCABULARY], 5),
            RequestError,
            f"ids must be below {VOCABULARY}, .* got 64",
        ),
        (Generation([3], 1_000), RequestError, "must be at most 512 tokens together"),
        (Generation([3] * 60, 41), RequestError, "must be at most 100 tokens together"),
        ([3, 4], TypeError, r"must be a Generation, got \[3, 4\]: pass Generation"),
    ],
)
def test_a_bad_request_fails_alone(bad, error, message):
    engine = TransformersEngine(tiny(), eos_token_id=(), cache_tokens=100)
    with ContinuousBatcher(engine, max_batch_size=4) as batcher:
        streams = [
            batcher.stream(each) for each in (Generation([5, 6], 5), bad, Generation([7], 5))
        ]
        assert list(streams[0]) == greedy([5, 6], 5)
        with pytest.raises(error, match=message):
            list(streams[1])
        assert list(streams[2]) == greedy([7], 5)


def test_a_prompt_that_raises_in_the_model_fails_alone_and_keeps_no_cache(llama):
    watch = Watch(llama, fails=lambda ids: ids[0] == [60, 7])
    engine = TransformersEngine(llama, eos_token_id=(), prefill_chunk=2)
    with ContinuousBatcher(engine, max_batch_size=4) as batcher:
        good, joining = (batcher.stream(Generation(ids, 8)) for ids in ([5, 6, 7], [8, 9, 10]))
        bad = batcher.stream(Generation([5, 6, 60, 7], 8))
        with pytest.raises(torch.OutOfMemoryError) as caught:
            list(bad)
        assert list(good) == greedy([5, 6, 7], 8)
        assert list(joining) == greedy([8, 9, 10], 8)  # it was through in the step of the error
    assert watch.held == 0
    assert caught.value is not None  # it is held, and so is the stream's own


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_without_probabilities_fails_alone(llama, value):
    def spoil(_model, _args, kwargs, output):
        output.logits[kwargs["input_ids"][:, -1] == 60, :, 5] = value

    llama.register_forward_hook(spoil, with_kwargs=True)
    outputs = greedy([5, 6], 8)
    assert 60 in outputs[:-1]
    requests = [
        Generation([5, 6], 8, logprobs=True),
        Generation([5, 6], 8, temperature=1e-3, top_p=0.5),
        Generation([60], 8, temperature=1.0),
        Generation([8, 9, 10], 4),
    ]
    visits = drive(TransformersEngine(llama, eos_token_id=()), list(map(Visit, requests)))
    for visit in visits[:3]:
        with pytest.raises(
            ArithmeticError, match=f"token {len(visit.outputs)} of the request, but"
        ):
            raise visit.error
    assert [token.id for token in visits[0].outputs] == outputs[: outputs.index(60) + 1]
    assert visits[3].outputs == greedy([8, 9, 10], 4)


def test_an_error_in_a_step_reaches_each_after_its_outputs_and_keeps_no_cache(llama):
    watch = Watch(llama)
    watch.fails = lambda ids: len(watch.decoded) == 4
    engine = TransformersEngine(llama, eos_token_id=())
    with ContinuousBatcher(engine, max_batch_size=3) as batcher:
        requests = [Generation([5, 6], 9), Generation([7], 9), Generation([8, 9, 10], 9)]
        streams = [batcher.stream(request) for request in requests]
        errors = []
        for request, stream in zip(requests, streams, strict=True):
            outputs = []
            with pytest.raises(torch.OutOfMemoryError) as caught:
                outputs.extend(iter(stream.receive, None))
            errors.append(caught.value)
            assert 0 < len(outputs) < 9
            assert outputs == greedy(request.ids, 9)[: len(outputs)]
        assert watch.held == 0
        watch.fails = lambda ids: False
        assert list(batcher.stream(Generation([5, 6], 9))) == greedy([5, 6], 9)


def test_a_step_that_raises_frees_the_cache_at_once(llama):
    watch = Watch(llama)
    engine = TransformersEngine(llama, eos_token_id=(), prefill_chunk=2)
    for slot, ids in enumerate([[5, 6], [7], [8] * 9]):
        engine.add(slot, Generation(ids, 9))
    engine.step()
    assert watch.held == 2  # the running batch, and the prompt that is not through
    watch.fails = lambda ids: len(ids) == 2
    with pytest.raises(torch.OutOfMemoryError) as caught:
        engine.step()
    assert watch.held == 0
    assert engine.step() == {}
    assert caught.value is not None  # it is held all the time


def test_the_rows_of_a_stream_that_leaves_are_computed_no_more(llama):
    watch = Watch(llama)
    visits = [Visit(Generation([5, 6], 12), leaves=leaves) for leaves in (None, 4, 8)]
    drive(TransformersEngine(llama, eos_token_id=()), visits)
    assert watch.decoded == [3] * 3 + [2] * 4 + [1] * 4  # the prompts gave one more each


def test_columns_that_only_a_row_that_left_had_are_gone(llama):
    watch = Watch(llama)
    visits = [Visit(Generation([5] * 30, 12), leaves=4), Visit(Generation([6, 7], 8))]
    drive(TransformersEngine(llama, eos_token_id=()), visits)
    columns = [columns for rows, columns, tokens in watch.forwards if tokens == 1]
    assert columns == [31, 32, 33, 6, 7, 8, 9]


def test_no_forward_follows_once_all_have_left(llama):
    watch = Watch(llama)
    with ContinuousBatcher(lambda: TransformersEngine(llama), max_batch_size=2) as batcher:
        streams = [batcher.stream(Generation([5, number], 100)) for number in (6, 7)]
        assert watch.called.wait(60)
        for stream in streams:
            stream.cancel()
        # Of a request that comes later, all the rows are its own.
        forwards = len(watch.forwards)
        list(batcher.stream(Generation([5, 6, 8], 3)))
    begun = next(number for number, (_, _, tokens) in enumerate(watch.forwards) if tokens == 3)
    assert begun <= forwards + 1  # a step may have been under way
    assert [rows for rows, _, _ in watch.forwards[begun:]] == [1, 1, 1]


def test_the_cache_is_freed_as_the_last_one_leaves(llama):
    watch = Watch(llama)
    engine = TransformersEngine(llama)
    drive(engine, [Visit(Generation([5, 6], 4)), Visit(Generation([7], 6))])
    assert watch.held == 0


def test_a_request_that_ends_with_its_first_token_joins_no_batch(llama):
    watch = Watch(llama)
    engine = TransformersEngine(llama, eos_token_id=())
    engine.add(0, Generation([5, 6], 1))
    assert engine.step()[0].output == greedy([5, 6], 1)[0]
    assert watch.held == 0


@pytest.mark.parametrize("steps", [1, 3])
def test_closing_frees_the_cache(llama, steps):
    watch = Watch(llama)
    engine = TransformersEngine(llama, eos_token_id=(), prefill_chunk=2)
    for slot, ids in enumerate([[5, 6], [7] * 9]):
        engine.add(slot, Generation(ids, 9))
    for _ in range(steps):
        engine.step()
    assert watch.held == 2  # the long prompt is on its way
    engine.close()
    engine.close()
    assert watch.held == 0


def test_a_batcher_closes_the_engine_that_it_made(llama):
    watch = Watch(llama)
    batcher = ContinuousBatcher(lambda: TransformersEngine(llama), max_batch_size=2)
    stream = batcher.stream(Generation([5, 6], 100))
    next(stream)
    batcher.close()
    assert watch.held == 0


def test_requests_wait_while_the_cache_has_no_room(llama):
    room = 60
    watch = Watch(llama)
    requests = [
        Generation([5 + number] * (1 + 7 * number % 20), 1 + 5 * number % 17)
        for number in range(12)
    ]
    engine = TransformersEngine(llama, eos_token_id=(), cache_tokens=room)
    with ContinuousBatcher(engine, max_batch_size=8) as batcher:
        streams = [batcher.stream(request) for request in requests]
        assert [list(each) for each in streams] == [
            greedy(request.ids, request.max_new_tokens) for request in requests
        ]
    held = [rows * columns for rows, columns, tokens in watch.forwards if tokens == 1]
    assert max(held) <= room
    assert max(watch.decoded) > 1


def test_a_long_prompt_in_chunks_lets_the_running_requests_go_on(llama):
    watch = Watch(llama)
    engine = TransformersEngine(llama, eos_token_id=(), prefill_chunk=4)
    engine.add(0, Generation([5, 6], 20))
    assert engine.step().keys() == {0}
    engine.add(1, Generation([7] * 11, 20))
    steps = [engine.step().keys() for _ in range(4)]
    assert steps == [{0}, {0}, {0, 1}, {0, 1}]
    assert [tokens for _, _, tokens in watch.forwards] == [2, 1, 4, 1, 4, 1, 3, 1]


def test_a_step_computes_no_more_prompts_than_allowed(llama):
    watch = Watch(llama)
    engine = TransformersEngine(llama, eos_token_id=(), max_prefills=2)
    for slot in range(5):
        engine.add(slot, Generation([5, 6, slot], 20))
    steps = [engine.step().keys() for _ in range(3)]
    assert steps == [{0, 1}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}]
    assert [tokens for _, _, tokens in watch.forwards] == [3, 3, 1, 3, 3, 1, 3]


def test_a_slot_is_taken_again_before_its_row_has_left():
    engine = TransformersEngine(tiny(), eos_token_id=())
    for slot in range(2):
        engine.add(slot, Generation([5, 6 + slot], 20))
    engine.step()
    engine.remove(0)
    engine.add(0, Generation([9, 10, 11], 20))
    steps = [engine.step() for _ in range(3)]
    assert [step[0] for step in steps] == greedy([9, 10, 11], 20)[:3]
    assert [step[1] for step in steps] == greedy([5, 7], 20)[1:4]


def test_the_model_runs_without_gradients_and_the_thread_keeps_its_mode(llama):
    watch = Watch(llama)
    with torch.enable_grad():
        drive(TransformersEngine(llama), [Visit(Generation([5, 6], 4))])
        assert torch.is_grad_enabled()
    assert watch.modes == {False}


def test_engines_of_one_model_run_beside_each_other():
    requests = [Generation([5, 6 + number], 10) for number in range(8)]
    engines = [TransformersEngine(tiny(), eos_token_id=()) for _ in range(2)]
    batchers = [ContinuousBatcher(engine, max_batch_size=3) for engine in engines]
    streams = [[batcher.stream(request) for request in requests] for batcher in batchers]
    for each in streams:
        assert [list(stream) for stream in each] == [greedy(one.ids, 10) for one in requests]
    for batcher in batchers:
        batcher.close()


def test_the_models_own_end_ids_count_unless_others_are_given(llama):
    [token, *_] = outputs = greedy((5, 6), 6)
    llama.generation_config.eos_token_id = [EOS, outputs[3]]
    assert token != outputs[3]

    def served(**options):
        [visit] = drive(TransformersEngine(llama, **options), [Visit(Generation([5, 6], 6))])
        return visit.outputs

    assert served() == outputs[: outputs.index(outputs[3])]
    assert served(eos_token_id=()) == outputs
    assert served(eos_token_id=outputs[4]) == outputs[: outputs.index(outputs[4])]
    assert served(eos_token_id=[1, outputs[4]]) == outputs[: outputs.index(outputs[4])]
