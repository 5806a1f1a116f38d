"""What waits for a client that reads slowly: merged, measured, and bounded; without processes."""

import json
import operator

import hypothesis.strategies as st
import litserve as ls
import pytest
from hypothesis import given, settings
from litserve.utils import LitAPIStatus
from pydantic import BaseModel
from test_litserve_link import Sending, sent_disconnects
from test_litserve_loop import FINISHED
from test_litserve_options import Engine, everywhere, ready, served

from batchstream._core.arguments import UNLIMITED, Bound
from batchstream.integrations.litserve import (
    BatchedStreamLoop,
    ChatCompletionRequest,
    ContinuousBatchLoop,
    OpenAISpec,
)
from batchstream.integrations.litserve._link.outputs import JsonText
from batchstream.integrations.litserve._openai.deltas import Choice, sum_of
from batchstream.integrations.litserve._openai.request import choices_of
from batchstream.integrations.litserve._server.response_queue import FailedError

OK, FINISH = LitAPIStatus.OK, LitAPIStatus.FINISH_STREAMING


def merging(merge=operator.add, *, most=2, **more):
    return Bound(most, "merge", merge, **more)


class Arriving(Sending):
    """The messages for a client that reads nothing, beside one that reads everything."""

    def __init__(self, bound):
        super().__init__(bound=bound)
        self.slow, self.reads = self.responses[0].queues
        self.read = []

    def step(self, *outputs):
        """Let a step give these outputs to both clients."""
        for output in outputs:
            self.put(0, 0, output)
            self.put(0, 1, output)
        self.outbox.flush()
        self.read += self.reads.take()

    def end(self):
        for number in (0, 1):
            self.put(0, number, "", FINISH)
        self.outbox.flush()
        self.read += self.reads.take()


@pytest.fixture(autouse=True)
def never_waits(monkeypatch):
    monkeypatch.setattr("batchstream.integrations.litserve._worker.outbox._PATIENCE", 0)


# ---- merging


@pytest.mark.rule(2, 3, 19)
@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("kind", [str, str.encode], ids=["text", "bytes"])
def test_what_comes_for_a_client_that_is_behind_is_merged_with_the_last_that_waits(most, kind):
    arriving = Arriving(merging(most=most))
    letters = [kind(letter) for letter in "abcdefg"]
    for letter in letters:
        arriving.step(letter)
    assert len(arriving.slow.response_queue) == most
    arriving.end()
    assert arriving.read == letters
    assert arriving.slow.take() == [*letters[: most - 1], kind("abcdefg"[most - 1 :])]
    assert arriving.slow.over
    assert sent_disconnects(arriving.link) == []


@pytest.mark.rule(2, 3)
def test_outputs_of_one_step_are_merged_one_by_one_and_the_end_stays_behind_them():
    arriving = Arriving(merging(most=1))
    for output in ("a", "b", "c"):
        arriving.put(0, 0, output)
    arriving.put(0, 0, "", FINISH)
    arriving.outbox.flush()
    assert [status for _, status in arriving.slow.response_queue] == [OK, FINISH]
    assert (arriving.slow.take(), arriving.slow.over) == (["abc"], True)


def test_after_the_client_has_read_outputs_come_as_they_are():
    arriving = Arriving(merging(most=2))
    arriving.step("a", "b", "c")
    assert arriving.slow.take() == ["a", "bc"]
    arriving.step("d", "e")
    assert arriving.slow.take() == ["d", "e"]


def test_merge_gets_the_earlier_output_first_and_dicts_as_json_has_them():
    calls = []

    def merge(earlier, later):
        calls.append((earlier, later))
        return {"text": earlier["text"] + later["text"]}

    arriving = Arriving(merging(merge, most=1))
    for text in "abc":
        arriving.step(JsonText(json.dumps({"text": text}) + "\n"))
    assert calls == [({"text": "a"}, {"text": "b"}), ({"text": "ab"}, {"text": "c"})]
    assert arriving.read == ['{"text": "a"}\n', '{"text": "b"}\n', '{"text": "c"}\n']
    assert arriving.slow.take() == ['{"text": "abc"}\n']


class Piece(BaseModel):
    text: str


@pytest.mark.parametrize(
    ("merged", "sent"),
    [
        ("é", "é"),
        (bytearray(b"a"), b"a"),
        ({"a": 1}, '{"a": 1}\n'),
        (Piece(text="é"), '{"text":"é"}\n'),
    ],
    ids=["text", "bytes", "dict", "model"],
)
def test_merge_may_return_what_encode_response_may_yield(merged, sent):
    arriving = Arriving(merging(lambda *_: merged, most=1))
    arriving.step("a", "b")
    [taken] = arriving.slow.take()
    assert (taken, type(taken)) == (sent, type(sent))


@pytest.mark.rule(15)
@pytest.mark.parametrize(
    ("result", "said"),
    [
        (ValueError("no"), "no"),
        (StopIteration("no"), "merge raised StopIteration: no"),
        (None, "merge returns text, bytes, a dict or a pydantic model, got NoneType"),
        ("\ud800", "surrogates not allowed"),
        ({"a": object()}, "not JSON serializable"),
    ],
    ids=["an error", "StopIteration", "None", "a surrogate", "no JSON"],
)
def test_a_merge_that_fails_fails_that_request_alone_behind_what_waits(result, said, caplog):
    def merge(*_):
        if isinstance(result, Exception):
            raise result
        return result

    arriving = Arriving(merging(merge, most=2))
    for letter in "abcd":
        arriving.step(letter)
    assert arriving.slow.take() == ["a", "b"]
    with pytest.raises(FailedError) as raised:
        arriving.slow.take()
    assert (raised.value.status_code, raised.value.detail) == (500, "Internal server error")
    assert arriving.read == ["a", "b", "c", "d"]
    error = "HTTPException 500: Internal server error"
    assert sent_disconnects(arriving.link) == [f"{arriving.slow.uid} {error}"]
    [record] = caplog.records
    assert (record.kind, record.request_id) == ("failed", arriving.slow.uid)
    assert said in str(record.exc_info[1])


@st.composite
def arrivals(draw):
    """Return steps with outputs of one kind, and after which of them the client reads."""
    pieces = draw(
        st.sampled_from(
            [
                st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
                st.binary(max_size=3),
                st.lists(st.integers(), max_size=2).map(lambda items: {"items": items}),
            ]
        )
    )
    steps = draw(st.lists(st.lists(pieces, max_size=4), max_size=20))
    return steps, draw(st.integers(1, 4)), draw(st.sets(st.integers(0, 19)))


def joined(earlier, later):
    if isinstance(earlier, dict):
        return {"items": earlier["items"] + later["items"]}
    return earlier + later


@pytest.mark.rule(2, 3, 19)
@given(arrivals())
@settings(deadline=None)
def test_however_a_client_reads_what_was_merged_is_all_that_came_in_order(arrivals):
    steps, most, reads = arrivals
    arriving, taken = Arriving(merging(joined, most=most)), []
    for number, outputs in enumerate(steps):
        arriving.step(
            *[JsonText(json.dumps(it) + "\n") if isinstance(it, dict) else it for it in outputs]
        )
        assert len(arriving.slow.response_queue) <= most
        if number in reads:
            taken += arriving.slow.take()
    arriving.end()
    taken += arriving.slow.take()
    assert arriving.slow.over
    came = [output for outputs in steps for output in outputs]
    if came and isinstance(came[0], dict):
        got = [item for line in taken for item in json.loads(line)["items"]]
        assert got == [item for output in came for item in output["items"]]
    else:
        empty = type(came[0])() if came else ""
        assert empty.join(taken) == empty.join(came)


def test_openai_messages_are_merged_as_the_dicts_that_the_model_gives():
    arriving = Arriving(merging(lambda earlier, later: sum_of([earlier, later]), most=1))
    for content in ("a", "b", "c"):
        arriving.step(JsonText(json.dumps({"content": content}) + "\n"))
    arriving.end()
    [delta] = Choice(0, arriving.slow).take()
    assert delta.fields == {"role": "assistant", "content": "abc"}


# ---- bytes


@pytest.mark.rule(19)
@pytest.mark.parametrize(
    "outputs",
    [["ab", "éx", "cd"], [b"abc", b"cd"], [JsonText('{"a": 1}\n')]],
    ids=["text", "bytes", "JSON"],
)
def test_a_client_that_leaves_too_many_bytes_unread_is_cut_off(outputs, caplog):
    held = sum(len(it.text if isinstance(it, JsonText) else it) for it in outputs)
    held += outputs.count("éx")  # a letter of two bytes
    arriving = Arriving(Bound(UNLIMITED, "cancel", max_buffered_bytes=held))
    arriving.step(*outputs)
    arriving.step("x")  # it has left no more than it may
    arriving.step("late")
    assert len(arriving.slow.take()) == len(outputs) + 1
    with pytest.raises(FailedError):
        arriving.slow.take()
    [record] = caplog.records
    assert record.kind == "slow"
    unread = f"{len(outputs) + 1} messages of {held + 1} bytes unread (max_buffered_bytes)"
    assert unread in record.getMessage()
    error = f"SlowConsumerError the client has left {unread}"
    assert sent_disconnects(arriving.link) == [f"{arriving.slow.uid} {error}"]


def test_bytes_that_have_been_read_do_not_count():
    arriving = Arriving(Bound(UNLIMITED, "cancel", max_buffered_bytes=4))
    for _ in range(9):
        arriving.step("aaa", "aa")
        assert arriving.slow.take() == ["aaa", "aa"]


@pytest.mark.rule(19)
def test_what_was_merged_beyond_its_bytes_is_cut_off():
    arriving = Arriving(merging(most=2, max_buffered_bytes=3))
    for letter in "abcdef":
        arriving.step(letter)
    assert arriving.slow.take() == ["a", "bcd"]
    with pytest.raises(FailedError):
        arriving.slow.take()


@pytest.mark.rule(19)
def test_a_merge_that_keeps_an_output_small_never_exceeds_the_bytes():
    arriving = Arriving(merging(lambda _, later: later, most=1, max_buffered_bytes=1))
    for letter in "abcdef":
        arriving.step(letter)
    assert arriving.slow.take() == ["f"]


def test_size_of_gets_the_output_and_not_what_is_sent():
    sizes = []

    def size_of(output):
        sizes.append(output)
        return output["bytes"]

    bound = Bound(UNLIMITED, "cancel", max_buffered_bytes=5, size_of=size_of)
    arriving = Arriving(bound)
    for size in (5, 1, 1):
        arriving.step(JsonText(json.dumps({"bytes": size}) + "\n"))
    assert len(arriving.slow.take()) == 2
    assert {"bytes": 5} in sizes
    with pytest.raises(FailedError):
        arriving.slow.take()


@pytest.mark.rule(15)
@pytest.mark.parametrize("size", [-1, "1", True, None])
def test_an_output_that_cannot_be_measured_fails_its_request_alone(size, caplog):
    def size_of(output):
        return size if output == "b" else 1

    sending = Sending(bound=Bound(UNLIMITED, "cancel", max_buffered_bytes=9, size_of=size_of))
    fails, other = sending.responses[0].queues
    for number, text in ((0, "ab"), (1, "xy")):
        for output in text:
            sending.put(0, number, output)
    sending.outbox.flush()
    assert (fails.take(), other.take()) == (["a"], ["x", "y"])
    with pytest.raises(FailedError):
        fails.take()
    [record] = caplog.records
    assert "size_of returns how many bytes an output has" in str(record.exc_info[1])


# ---- what a worker says of its outputs


ELEMENTS = [{"a": 1}, Piece(text="é"), "text", b"bytes", None]


@pytest.fixture
def formatted_by_litserve(monkeypatch):
    monkeypatch.delattr("test_litserve_options.Letters.format_encoded_response")


@everywhere
def test_a_worker_says_which_text_is_json_where_functions_of_the_users_read_it(
    where, formatted_by_litserve
):
    api = ready(where, on_overflow="merge", merge=operator.add)
    assert served(api, ELEMENTS) == [
        [
            (OK, JsonText('{"a": 1}\n')),
            (OK, JsonText('{"text":"é"}\n')),
            (OK, "text"),
            (OK, b"bytes"),
            FINISHED,
        ]
    ]


@everywhere
@pytest.mark.parametrize("options", [{}, {"max_buffered_bytes": 9}], ids=repr)
def test_and_nothing_more_than_the_text_where_none_does(where, options, formatted_by_litserve):
    [sent] = served(ready(where, **options), ELEMENTS)
    assert [type(data) for _, data in sent[:-1]] == [str, str, str, bytes]


@everywhere
def test_text_that_an_api_has_formatted_by_itself_is_no_json(where):
    api = ready(where, on_overflow="merge", merge=operator.add)
    [sent] = served(api, [ELEMENTS[0], None])
    assert sent == [(OK, "{'a': 1}"), FINISHED]


class Assistant(ls.LitAPI):
    request_timeout = 30

    def decode_request(self, request):
        return [*request.messages[-1].content, {"content": "!"}, None]

    def predict(self, replies):
        for number in range(9):
            yield [reply[number] if number < len(reply) else None for reply in replies]


@pytest.mark.parametrize(
    "loop",
    [
        BatchedStreamLoop(on_overflow="merge", merge=operator.or_),
        BatchedStreamLoop(eos_in="predict", on_overflow="merge", merge=operator.or_),
        ContinuousBatchLoop(Engine, on_overflow="merge", merge=operator.or_),
    ],
    ids=["encode_response", "predict", "engine"],
)
def test_with_openais_interface_text_is_a_part_of_a_message_too(loop):
    api = Assistant(stream=True, max_batch_size=2, spec=OpenAISpec(), loop=loop)
    api.pre_setup()
    loop.pre_setup(api)
    question = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    [request] = choices_of(ChatCompletionRequest(**question))
    [[*outputs, _end]] = served(api, request)
    assert outputs == [(OK, JsonText('{"content": "a"}\n')), (OK, JsonText('{"content": "!"}\n'))]
