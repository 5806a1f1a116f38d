"""Tokenizers of transformers, made from trained ones of `tokenizers`: no hub is asked."""

from __future__ import annotations

import pytest

from batchstream.text import TextDecoder
from support.texts import SPECIALS, TRAINED

transformers = pytest.importorskip("transformers")

TEXT = "hello there. It's done 日本 👍 please\nUser: stop"


def tokenizer_of(name):
    """Return a tokenizer of transformers around a trained one."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=TRAINED[name](),
        eos_token="</s>",  # noqa: S106 - a name
        additional_special_tokens=SPECIALS[3:],
        clean_up_tokenization_spaces=False,
    )


@pytest.mark.parametrize("name", TRAINED)
def test_text_is_what_their_decode_gives(name):
    tokenizer = tokenizer_of(name)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    decoder = TextDecoder(tokenizer, prompt_ids=ids)
    text = "".join(map(decoder.feed, ids)) + decoder.finish()
    whole, before = tokenizer.decode(ids + ids), tokenizer.decode(ids)
    assert text == whole.removeprefix(before)


@pytest.mark.parametrize("name", TRAINED)
def test_their_special_tokens_are_stop_strings(name):
    tokenizer = tokenizer_of(name)
    ids = tokenizer("hello", add_special_tokens=False)["input_ids"]
    for stop in ("<|im_end|>", tokenizer.eos_token):
        decoder = TextDecoder(tokenizer, stop=["STOP", stop])
        end = tokenizer.convert_tokens_to_ids(stop)
        assert "".join(map(decoder.feed, [*ids, end, *ids])) == "hello"
        assert decoder.info == {"stop": stop, "completion_tokens": len(ids) + 1}


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_ids_of_a_prompt_may_be_an_array(kind):
    tokenizer = tokenizer_of("metaspace")
    pytest.importorskip({"pt": "torch", "np": "numpy"}[kind])
    ids = tokenizer("the quick", add_special_tokens=False, return_tensors=kind)["input_ids"]
    decoder = TextDecoder(tokenizer, prompt_ids=ids[0])
    brown = tokenizer("brown", add_special_tokens=False, return_tensors=kind)["input_ids"][0]
    assert "".join(map(decoder.feed, brown)) == " brown"
    assert decoder.info["prompt_tokens"] == len(ids[0])
    with pytest.raises(TypeError, match="the token ids of one prompt"):
        TextDecoder(tokenizer, prompt_ids=ids)
