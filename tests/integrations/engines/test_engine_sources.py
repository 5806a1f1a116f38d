"""What examples/engines has besides step engines: a channel, a batch's source, and speech."""

from __future__ import annotations

import contextlib
import importlib
import threading

import numpy as np
import pytest
import tiny_models as tiny

from batchstream import BatchedStream, ContinuousBatcher, Last, NotNow, RequestError, token_ids
from support.programs import run_program
from support.sources import TIMEOUT
from support.tiny_llama import reply

PROMPTS = [([5 + n] * (1 + n % 7), 2 + 3 * n) for n in range(12)]
EXPECTED = [reply(tuple(ids), most) for ids, most in PROMPTS]

# ---- CTranslate2, pushed


@pytest.fixture(scope="module")
def ctranslate2():
    pytest.importorskip("ctranslate2")
    return importlib.import_module("ctranslate2_channel")


@pytest.fixture(scope="module")
def translator(ctranslate2, tmp_path_factory):
    path = tiny.for_ctranslate2(tmp_path_factory.mktemp("ctranslate2"))
    return ctranslate2.ctranslate2.Generator(str(path), intra_threads=1)


def words(ids):
    return [tiny.TOKENS[token] for token in ids]


def pushed(example, generator, requests):
    prompts = [words(ids) for ids, _ in requests]
    limits = [most for _, most in requests]
    return example.open_channel(generator, prompts, eos=tiny.EOS, max_new_tokens=limits)


def wait_for_thread(name):
    """Wait until the thread of this name has ended, if it has not."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def test_ctranslate2_alone_says_what_the_model_in_numpy_does(translator):
    for (ids, most), (tokens, _) in zip(PROMPTS, EXPECTED, strict=True):
        [result] = translator.generate_batch(
            [words(ids)], max_length=most, include_prompt_in_result=False
        )
        assert result.sequences_ids[0] == tokens


def test_rows_of_ctranslate2_get_what_they_get_alone(ctranslate2, translator):
    channel = pushed(ctranslate2, translator, PROMPTS)
    found = [(list(stream), stream.finish_reason) for stream in channel.streams()]
    assert found == EXPECTED
    wait_for_thread("ctranslate2")
    # Not one token is put behind the end of a row, nor of what was forced.
    puts = sum(len(tokens) + (reason == "eos") for tokens, reason in EXPECTED)
    assert channel.statistics().steps == puts


def test_a_row_of_ctranslate2_that_was_left_is_computed_no_more(ctranslate2, translator):
    asked, is_there, has_left = [], threading.Event(), threading.Event()

    class Generator:
        """The generator, which waits in its third step until a row was left."""

        def generate_batch(self, *args, callback, **options):
            def on_token(result):
                if result.step == 2:
                    is_there.set()
                    assert has_left.wait(TIMEOUT)
                asked.append((result.batch_id, stops := callback(result)))
                return stops

            return translator.generate_batch(*args, callback=on_token, **options)

    channel = pushed(ctranslate2, Generator(), [([4], 400), PROMPTS[0], PROMPTS[7]])
    left, short, stream = channel.streams()
    assert is_there.wait(TIMEOUT)
    left.cancel()
    has_left.set()
    assert (list(short), short.finish_reason) == EXPECTED[0]
    assert (list(stream), stream.finish_reason) == EXPECTED[7]
    wait_for_thread("ctranslate2")
    for row, steps in enumerate([3, len(EXPECTED[0][0]), len(EXPECTED[7][0])]):
        assert [stops for number, stops in asked if number == row] == [False] * (steps - 1) + [True]


def test_what_ctranslate2_raises_is_raised_by_every_stream(ctranslate2, translator):
    channel = ctranslate2.open_channel(translator, [[5], [6]], eos=tiny.EOS, max_new_tokens=[5, 5])
    for stream in channel.streams():
        with pytest.raises(TypeError, match="incompatible function arguments"):
            list(stream)


def test_a_prompt_for_ctranslate2_that_is_empty_is_refused(ctranslate2, translator):
    with pytest.raises(ValueError, match="each prompt needs a token"):
        ctranslate2.open_channel(translator, [words([5]), []], eos=tiny.EOS, max_new_tokens=[5, 5])


# ---- onnxruntime-genai's generator, as a source


@pytest.fixture(scope="module")
def onnxruntime():
    for module in ("onnxruntime_genai", "onnx"):
        pytest.importorskip(module)
    return importlib.import_module("onnxruntime_engine")


@pytest.fixture(scope="module")
def model(onnxruntime, tmp_path_factory):
    return onnxruntime.genai.Model(str(tiny.for_onnxruntime(tmp_path_factory.mktemp("onnx"))))


def test_rows_of_a_generator_that_are_padded_get_what_they_get_alone(onnxruntime, model):
    prompts, limits = zip(*PROMPTS, strict=True)
    source = onnxruntime.generate(model, prompts, max_new_tokens=max(limits))
    with BatchedStream(
        source, size=len(prompts), is_eos=token_ids(tiny.EOS), max_outputs=limits
    ) as batch:
        assert [(list(stream), stream.finish_reason) for stream in batch] == EXPECTED


def test_a_batch_of_a_generator_that_all_have_left_makes_no_further_step(onnxruntime, model):
    steps = []
    source = onnxruntime.generate(model, [[5], [6, 6]], max_new_tokens=100)

    def counted():
        with contextlib.closing(source):
            for step in source:
                steps.append(step)
                yield step

    with BatchedStream(counted(), size=2) as batch:
        first, second = batch
        next(first)
        first.cancel()
        next(second)
        next(second)
        second.cancel()
    assert len(steps) == 2
    assert source.gi_frame is None  # and with it the generator's cache
    assert [first.finish_reason, second.finish_reason] == ["cancelled", "cancelled"]


# ---- speech


@pytest.fixture
def speech():
    return importlib.import_module("speech_engine")


def spoken_alone(speech, request):
    engine = speech.SpeechEngine(1)
    engine.add(0, request)
    chunks = []
    while True:
        [chunk] = engine.step().values()
        if isinstance(chunk, Last):
            return [*chunks, chunk.output]
        chunks.append(chunk)


def test_listeners_get_the_samples_that_they_get_alone(speech):
    requests = [
        speech.Speech(text, pitch)
        for text, pitch in [("hello", 120.0), ("a", 90.0), ("good morning", 200.0), ("bye", 150.0)]
    ]
    with ContinuousBatcher(lambda: speech.SpeechEngine(2), max_batch_size=2) as batcher:
        streams = [batcher.stream(request) for request in requests]
        for request, stream in zip(requests, streams, strict=True):
            chunks = list(stream)
            assert stream.finish_reason == "eos"
            assert len(chunks) == len(request.text) * speech.CHUNKS_A_LETTER
            for chunk, expected in zip(chunks, spoken_alone(speech, request), strict=True):
                assert chunk.base is None  # it keeps no other's samples alive
                assert (chunk.dtype, chunk.shape) == (np.float32, (speech.CHUNK,))
                np.testing.assert_allclose(chunk, expected, atol=1e-5)


def test_a_chunk_becomes_pcm(speech):
    pcm = speech.as_pcm(np.array([0.0, 1.0, -1.0], np.float32))
    assert np.frombuffer(pcm, "<i2").tolist() == [0, 32_767, -32_767]


def test_texts_wait_for_room_and_bad_ones_fail(speech):
    engine = speech.SpeechEngine(2, most_letters=5)
    engine.add(0, speech.Speech("abc"))
    with pytest.raises(NotNow):
        engine.add(1, speech.Speech("def"))
    for text in ("", "abcdef", "A"):
        with pytest.raises(RequestError, match="up to 5 letters"):
            engine.add(1, speech.Speech(text))
    engine.remove(0)
    engine.add(0, speech.Speech("def"))
    assert list(engine.step()) == [0]


# ---- the programs


def test_the_speech_program_prints_how_each_stream_ended(speech):
    ended = run_program(f"import runpy; runpy.run_path({speech.__file__!r}, run_name='__main__')")
    lines = [
        "'hello': 20 chunks, 0.40 s (eos)",
        "'good morning': 48 chunks, 0.96 s (eos)",
        "'bye': 12 chunks, 0.24 s (eos)",
    ]
    assert ended == (0, "".join(f"{line}\n" for line in lines), "")


def test_the_program_of_ctranslate2_prints_how_each_stream_ended(ctranslate2, capsys):
    ctranslate2.main()
    lines = ["<4>: [] (cancelled)"]
    for n, most in enumerate([7, 10, 13], 1):
        tokens, reason = reply((4 + n,) * (1 + n), most)
        lines.append(f"{' '.join(words([4 + n] * (1 + n)))}: {tokens} ({reason})")
    assert capsys.readouterr().out.splitlines() == lines


def test_the_program_of_onnxruntime_prints_its_batch_too(onnxruntime, capsys):
    onnxruntime.main()
    batch = [line for line in capsys.readouterr().out.splitlines() if "in a batch" in line]
    expected = [(ids, *reply(tuple(ids), 6)) for ids in ([5], [6, 6], [7, 7, 7])]
    assert batch == [f"{ids} in a batch: {tokens} ({reason})" for ids, tokens, reason in expected]
