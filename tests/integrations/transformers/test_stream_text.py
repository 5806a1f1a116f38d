"""Prompts in, the text of their replies out, up to a stop string."""

import threading

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from batchstream import RequestError, batched, demux
from batchstream.integrations.transformers import stream_text
from support.tiny_models import Forwards, says, tiny, tiny_text

LINES = ["so it is. STOP and on", "日本語 👍", "no", "one\n\ntwo"]
PROMPTS = ["a prompt", "b", "the third of them", "d?"]
LONGEST = 17


def text(lines=LINES, prompts=PROMPTS, **kwargs):
    model, tokenizer = tiny_text()
    settings = {"max_new_tokens": 60, **kwargs}
    settings.setdefault("logits_processor", says(tokenizer, lines, max(map(len, prompts))))
    streams = demux(stream_text(model, tokenizer, prompts, **settings), len(lines))
    return ["".join(stream) for stream in streams], streams


def test_each_slot_is_given_whole_characters_up_to_its_end():
    got, streams = text()
    assert got == LINES
    ends = [stream.end for stream in streams]
    assert {end.reason for end in ends} == {"eos"}
    assert ends[1].info == {
        "stop": None,
        "completion_tokens": len(LINES[1].encode()),
        "prompt_tokens": 1,
    }


def test_prompts_without_a_common_length_are_given_what_each_is_given_alone():
    model, tokenizer = tiny_text(3)
    settings = {"max_new_tokens": 24, "skip_special_tokens": False}

    def replies(*prompts):
        source = stream_text(model, tokenizer, list(prompts), **settings)
        return ["".join(stream) for stream in demux(source, len(prompts))]

    alone = [replies(prompt)[0] for prompt in PROMPTS]
    assert replies(*PROMPTS) == alone
    assert len(set(alone)) > 1
    ids = tokenizer(PROMPTS[0], return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=24, pad_token_id=0)[0, ids["input_ids"].shape[1] :]
    assert alone[0] == tokenizer.decode(out).removesuffix("</s>")


def test_a_stop_string_ends_its_slot():
    got, streams = text(stop=["STOP", "\n\n"])
    assert got == ["so it is. ", LINES[1], "no", "one"]
    assert [stream.end.info["stop"] for stream in streams] == ["STOP", None, None, "\n\n"]
    assert streams[0].end.info["completion_tokens"] == len("so it is. STOP")


@pytest.mark.parametrize("place", ["call", "model"])
def test_stop_strings_of_a_config_hold_for_all_slots(place, monkeypatch):
    model, _ = tiny_text()
    config = GenerationConfig(eos_token_id=2, pad_token_id=0, stop_strings=["STOP", "\n\n"])
    more = {"generation_config": config}
    if place == "model":
        monkeypatch.setattr(model, "generation_config", config)
        more = {}
    got, streams = text(stop=[["is"], None, None, ["o"]], **more)
    assert got == ["so it ", LINES[1], "no", ""]
    assert [stream.end.info["stop"] for stream in streams] == ["is", None, None, "o"]
    got, streams = text(**more)
    assert got == ["so it is. ", LINES[1], "no", "one"]
    assert [stream.end.info["stop"] for stream in streams] == ["STOP", None, None, "\n\n"]


def test_the_model_makes_no_step_behind_the_last_stop():
    model, _ = tiny_text()
    with Forwards(model) as forwards:
        assert text(["so STOP and on"], ["p"], stop="STOP")[0] == ["so "]
    assert len(forwards) == len("so STOP")


def test_a_stop_string_drops_its_row():
    model, tokenizer = tiny_text(3)
    only = {"suppress_tokens": [it for it in range(len(tokenizer)) if it != 70]}  # one letter
    letter = tokenizer.decode([70])
    source = stream_text(
        model, tokenizer, ["a", "bcd"], max_new_tokens=6, stop=[[letter * 2], None], **only
    )
    with Forwards(model) as forwards:
        assert ["".join(stream) for stream in demux(source, 2)] == ["", letter * 6]
    assert forwards.rows == [2, 2, 1, 1, 1, 1]


def test_each_slot_has_stop_strings_and_a_limit_of_its_own():
    stops = [["is"], None, ["STOP"], ("e", "\n")]
    got, streams = text(stop=stops, max_new_tokens=[60, 3, 60, 60])
    assert got == ["so it ", "日", "no", "on"]
    assert [stream.end.reason for stream in streams] == ["eos", "length", "eos", "eos"]
    assert [stream.end.info["stop"] for stream in streams] == ["is", None, None, "e"]


def test_a_stop_string_may_be_included_and_special_tokens_shown():
    got, _ = text(["a<|user|>b STOP c"], ["p"], stop="STOP", include_stop=True)
    assert got == ["ab STOP"]
    got, _ = text(["a<|user|>b STOP c"], ["p"], skip_special_tokens=False)
    assert got == ["a<|user|>b STOP c"]


def test_a_stop_string_may_be_a_special_token():
    got, (stream,) = text(["a<|user|>b"], ["p"], stop=["<|user|>"])
    assert got == ["a"]
    assert stream.end.info["stop"] == "<|user|>"


def test_a_prompt_may_be_a_chat_or_ids():
    model, tokenizer = tiny_text(3)
    chat = [{"role": "user", "content": "hello"}]
    ids = tokenizer("<|user|>hello<|assistant|>")["input_ids"]
    source = stream_text(model, tokenizer, [chat, ids, "hello"], max_new_tokens=12)
    first, second, third = ("".join(stream) for stream in demux(source, 3))
    assert first == second != third


def test_a_prompt_may_have_several_sequences():
    model, tokenizer = tiny_text(3)
    torch.manual_seed(0)
    source = stream_text(
        model,
        tokenizer,
        ["a", "bcd"],
        max_new_tokens=9,
        do_sample=True,
        num_return_sequences=2,
        stop=[["x"], None, ["y"], None],
    )
    streams = demux(source, 4)
    assert len({"".join(stream) for stream in streams}) > 1
    assert [stream.end.info["prompt_tokens"] for stream in streams] == [1, 1, 3, 3]


def test_the_tokenizer_is_not_changed():
    model, tokenizer = tiny_text()
    before = (tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.backend_tokenizer.to_str())
    text()
    after = (tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.backend_tokenizer.to_str())
    assert after == before
    assert tokenizer.padding_side == "right"
    assert model.generation_config.pad_token_id in {0, None}


def test_sources_of_several_threads_share_a_tokenizer():
    model, tokenizer = tiny_text(3)
    prompts = [["a" * n, "b" * (2 * n)] for n in range(1, 7)]

    def replies(of):
        source = stream_text(model, tokenizer, of, max_new_tokens=6)
        return ["".join(stream) for stream in demux(source, 2)]

    expected = list(map(replies, prompts))
    got = [None] * len(prompts)
    go = threading.Barrier(len(prompts))

    def work(at):
        go.wait(20)
        got[at] = replies(prompts[at])

    threads = [threading.Thread(target=work, args=[at]) for at in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == expected


def test_it_is_the_function_of_a_batcher():
    model, tokenizer = tiny_text(3)

    @batched(max_batch_size=4, batch_timeout=20)
    def replies(prompts):
        return stream_text(model, tokenizer, prompts, max_new_tokens=8)

    try:
        streams = [replies.stream(prompt) for prompt in PROMPTS]
        got = ["".join(stream) for stream in streams]
    finally:
        replies.close()
    source = stream_text(model, tokenizer, PROMPTS, max_new_tokens=8)
    assert got == ["".join(stream) for stream in demux(source, 4)]


class NoSides:
    """The tokenizer of a model whose vocabulary is smaller: what is said are its ids."""

    pad_token_id = None
    eos_token_id = 2

    def __call__(self, prompt, **_):
        return {"input_ids": [3 + ord(letter) % 9 for letter in prompt]}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(97 + token) for token in ids if not (skip_special_tokens and token < 3))


def test_an_encoder_has_its_padding_on_the_right():
    model = tiny("T5", 1)
    seen = []
    hook = model.encoder.register_forward_hook(
        lambda _model, _args, kwargs, _out: seen.append(kwargs["attention_mask"].tolist()),
        with_kwargs=True,
    )
    try:
        source = stream_text(model, NoSides(), ["ab", "c"], max_new_tokens=3)
        first, second = demux(source, 2)
        assert list(first) is not None
        list(second)
    finally:
        hook.remove()
    assert seen == [[[1, 1], [1, 0]]]
    assert [stream.end.info["prompt_tokens"] for stream in (first, second)] == [2, 1]


def test_what_ends_a_sequence_is_the_tokenizers_if_the_model_does_not_know():
    model, tokenizer = tiny(seed=1), NoSides()
    settings = model.generation_config
    known = settings.eos_token_id, settings.pad_token_id
    source = {"max_new_tokens": 16, "suppress_tokens": list(range(12, 64))}
    expected = [
        "".join(it) for it in demux(stream_text(model, tokenizer, ["ab", "c"], **source), 2)
    ]
    settings.eos_token_id = settings.pad_token_id = None
    try:
        streams = demux(stream_text(model, tokenizer, ["ab", "c"], **source), 2)
        assert ["".join(stream) for stream in streams] == expected
    finally:
        settings.eos_token_id, settings.pad_token_id = known
    assert "eos" in {stream.end.reason for stream in streams}


@pytest.mark.parametrize(
    ("prompts", "more", "kind", "message"),
    [
        ("hello", {}, TypeError, r"prompts takes a list, got str: pass \[prompt\] for one"),
        ([], {}, ValueError, "prompts is empty"),
        (["a"], {"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
        (["a"], {"max_new_tokens": []}, ValueError, "max_new_tokens is empty"),
        (["a"], {"max_new_tokens": [1, 2]}, ValueError, "max_new_tokens has 2 limits, expected 1"),
        ([{"role": "user", "content": "a"}], {}, TypeError, r"one chat: pass \[messages\]"),
        (torch.tensor([[5, 6]]), {}, TypeError, "got Tensor: .* use stream_generate"),
        ({"input_ids": [[5, 6]]}, {}, TypeError, "got dict: .* use stream_generate"),
        (["a"], {"stop": 5}, TypeError, "stop takes a text or several, got 5"),
        (["a"], {"stop": b"x"}, TypeError, "stop takes a text or several, got b'x'"),
        (["a"], {"stop": ["x", ["y"]]}, TypeError, r"got both: 'x' is a text, write \['x'\]"),
        (["a"], {"stop": [["x"], ["y"]]}, ValueError, "stop has 2 lists .*, expected 1"),
        (["a"], {"stop": ""}, ValueError, "stop"),
        (["a"], {"stop_strings": "x"}, ValueError, "takes no stop_strings: pass stop"),
        (["a"], {"num_beams": 2}, ValueError, "beam search"),
    ],
)
def test_what_cannot_work_is_refused(prompts, more, kind, message):
    model, tokenizer = tiny_text()
    with pytest.raises(kind, match=message):
        stream_text(model, tokenizer, prompts, **{"max_new_tokens": 4, **more})


def test_what_is_no_model_or_no_tokenizer_is_named():
    model, tokenizer = tiny_text()
    for other in (model.generate, tokenizer, "gpt2"):
        with pytest.raises(TypeError, match="stream_text takes a model with a method generate"):
            stream_text(other, tokenizer, ["a"], max_new_tokens=4)
    for other in (model, None, "gpt2"):
        kind = type(other).__name__
        with pytest.raises(TypeError, match=f"a tokenizer of transformers, got {kind}: pass what"):
            stream_text(model, other, ["a"], max_new_tokens=4)


# ---- a request that cannot work


BAD = {
    "no tokens": ("", 6, None, RequestError, "the prompt has no tokens"),
    "a stop string": ("c", 6, ["x", ""], RequestError, "stop"),
    "no text": ("c", 6, [3], TypeError, "stop"),
    "no stop strings": ("c", 6, 3, TypeError, "stop takes a text or several, got 3"),
    "a limit": ("c", 0, None, RequestError, "max_new_tokens must be at least 1, got 0"),
    "no number": ("c", 2.5, None, TypeError, "max_new_tokens takes whole numbers, got 2.5"),
    "another kind": (3.5, 6, None, TypeError, "a prompt is a text, a list of messages"),
    "an id": ([5, 9999], 6, None, RequestError, "from 0 to 260, .*, got 9999"),
    "below 0": ([5, -1], 6, None, RequestError, "got -1"),
}
GOOD = [("a", 6, None), ("bcd", 4, ["x"])]


def replies(requests, more=(), model=None):
    own, tokenizer = tiny_text(3)
    prompts, limits, stops = zip(*requests, strict=True)
    source = stream_text(
        model or own,
        tokenizer,
        list(prompts),
        max_new_tokens=list(limits),
        stop=list(stops),
        **dict(more),
    )
    return list(demux(source, len(requests)))


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("bad", BAD)
def test_a_request_that_cannot_work_fails_alone(bad, at):
    *request, kind, message = BAD[bad]
    requests = list(GOOD)
    requests.insert(at, tuple(request))
    streams = replies(requests)
    with pytest.raises(kind, match=message):
        list(streams.pop(at))
    assert [list(stream) for stream in streams] == [list(stream) for stream in replies(GOOD)]
    assert [stream.end.info["prompt_tokens"] for stream in streams] == [1, 3]


def test_what_the_tokenizer_raises_fails_its_prompt_alone():
    model, tokenizer = tiny("Llama", 1), NoSides()

    class Raising(NoSides):
        def __call__(self, prompt, **options):
            if prompt == "bad":
                raise LookupError("no such word")
            return super().__call__(prompt, **options)

    first, second = demux(stream_text(model, Raising(), ["bad", "ab"], max_new_tokens=3), 2)
    with pytest.raises(LookupError, match="no such word"):
        list(first)
    [alone] = demux(stream_text(model, tokenizer, ["ab"], max_new_tokens=3), 1)
    assert list(second) == list(alone)


def test_a_request_that_cannot_work_is_told_before_the_model_runs():
    model, _ = tiny_text(3)
    with Forwards(model) as forwards:
        good, bad = replies([GOOD[0], ("", 6, None)])
        with pytest.raises(RequestError):
            next(bad)
        assert not forwards
        list(good)
    assert forwards.rows == [2, 1, 1, 1, 1, 1]


def test_the_model_does_not_run_if_no_request_can_work():
    model, _ = tiny_text(3)
    with Forwards(model) as forwards:
        for stream in replies([("", 6, None), ("c", 0, None)]):
            with pytest.raises(RequestError):
                next(stream)
    assert not forwards


def test_what_counts_rows_finds_each_request_in_its_place():
    model, tokenizer = tiny_text(3)
    lines = says(tokenizer, ["so", "", "it"], 1)
    source = stream_text(model, tokenizer, ["a", "", "b"], max_new_tokens=9, logits_processor=lines)
    first, _, third = demux(source, 3)
    assert ("".join(first), "".join(third)) == ("so", "it")


def test_all_sequences_of_a_prompt_fail_with_it():
    model, tokenizer = tiny_text(3)
    source = stream_text(
        model,
        tokenizer,
        ["a", "b"],
        max_new_tokens=3,
        num_return_sequences=2,
        do_sample=True,
        stop=[None, None, None, [""]],
    )
    first, second, *others = demux(source, 4)
    for stream in others:
        with pytest.raises(RequestError):
            list(stream)
    list(first), list(second)
    assert {stream.end.info["prompt_tokens"] for stream in (first, second)} == {1}


@pytest.mark.parametrize("bad", [("x" * 61, 4), ("x" * 65, 1), ("x", 64)])
def test_a_request_beyond_the_models_positions_fails_alone(bad):
    model = gpt2()
    requests = [("x" * 60, 4, None), (*bad, None), ("y", 5, None)]
    first, second, third = replies(requests, {"eos_token_id": 2}, model)
    with pytest.raises(RequestError, match=r"at most 64 tokens together, .*, got"):
        list(second)
    list(first), list(third)
    assert first.end.info["prompt_tokens"] == 60


def gpt2():
    config = GPT2Config(vocab_size=261, n_positions=64, n_embd=8, n_layer=1, n_head=2)
    return GPT2LMHeadModel(config).eval()


def test_positions_that_are_rotated_have_no_end():
    model, _ = tiny_text(3)
    longest = model.config.max_position_embeddings
    [stream] = replies([("x" * (longest + 1), 2, None)])
    list(stream)
    assert stream.end.info["completion_tokens"] <= 2


def test_an_encoder_counts_positions_of_its_own():
    model, positions = bart(), 64
    limits = [1, 1, positions + 1]
    prompts = ["a", "b" * (positions + 1), "c"]
    first, *others = demux(stream_text(model, NoSides(), prompts, max_new_tokens=limits), 3)
    for stream in others:
        with pytest.raises(RequestError, match=f"at most {positions} tokens each"):
            list(stream)
    list(first)
    assert first.end.info["completion_tokens"] <= 1


def bart():
    parts = {
        f"{part}_{name}": number
        for part in ("encoder", "decoder")
        for name, number in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 8))
    }
    config = BartConfig(vocab_size=64, max_position_embeddings=64, d_model=8, **parts)
    return BartForConditionalGeneration(config).eval()
