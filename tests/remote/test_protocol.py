"""What goes over a connection, without any: whatever is sent, it arrives however it is cut."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchstream
from batchstream._remote import protocol
from batchstream._remote.protocol import (
    ACKNOWLEDGE,
    CANCEL,
    END,
    ERROR,
    FROM_CLIENT,
    FROM_SERVER,
    OUTPUTS,
    SUBMIT,
    Incoming,
    Outgoing,
    Record,
    client_greeting,
    count_in,
    counted,
    greeting,
    is_too_large,
    read_client_greeting,
    read_greeting,
    read_server_greeting,
    server_greeting,
)
from batchstream.remote import ProtocolError

MAX_FRAME = 200
RECORDS = st.lists(
    st.builds(
        Record,
        st.sampled_from(sorted(FROM_SERVER | FROM_CLIENT)),
        st.integers(0, 2**64 - 1),
        st.binary(max_size=100),
    ),
    max_size=30,
)


def cut(data, places):
    """Return the data in pieces."""
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def sent(records, takes):
    """Return the bytes of records, taken out after each record whose number is in `takes`."""
    outgoing, data = Outgoing(MAX_FRAME), b""
    for number, record in enumerate(records):
        outgoing.add(*record)
        if number in takes:
            data += outgoing.take()
    return data + outgoing.take()


@given(records=RECORDS, takes=st.sets(st.integers(0, 30)), places=st.lists(st.integers(0, 5000)))
def test_records_arrive_in_their_order_wherever_the_bytes_are_cut(records, takes, places):
    incoming = Incoming(FROM_SERVER | FROM_CLIENT, MAX_FRAME)
    found = []
    for piece in cut(sent(records, takes), places):
        incoming.feed(piece)
        found += incoming.take_records()
    assert found == records


@given(records=RECORDS)
def test_no_frame_is_larger_than_it_may_be(records):
    data = sent(records, ())
    while data:
        (size,) = struct.unpack_from("!I", data)
        assert size <= MAX_FRAME
        data = data[4 + size :]


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)))
def test_bytes_of_any_kind_are_records_or_an_error_of_the_protocol(data, places):
    incoming = Incoming(FROM_CLIENT, MAX_FRAME)
    try:
        for piece in cut(data, places):
            incoming.feed(piece)
            for record in incoming.take_records():
                assert record.kind in FROM_CLIENT
    except ProtocolError:
        pass


def test_what_is_taken_is_sent_once_and_nothing_is_nothing():
    outgoing = Outgoing(MAX_FRAME)
    assert not outgoing
    assert outgoing.take() == b""
    outgoing.add(CANCEL, 1)
    assert outgoing
    assert outgoing.take()
    assert not outgoing
    assert outgoing.take() == b""


def test_the_records_of_one_step_are_one_frame():
    outgoing = Outgoing(1 << 20)
    for number in range(50):
        outgoing.add(OUTPUTS, number, b"output")
    data = outgoing.take()
    assert struct.unpack_from("!I", data) == (len(data) - 4,)


@pytest.mark.parametrize("extra", [0, 1])
def test_a_payload_is_too_large_if_no_frame_has_room_for_its_record(extra):
    head = struct.calcsize("!BQI")  # the kind, the number and the length
    payload = b"x" * (MAX_FRAME - head + extra)
    assert is_too_large(payload, MAX_FRAME) == bool(extra)
    data = sent([Record(SUBMIT, 1, payload)], ())
    incoming = Incoming(FROM_CLIENT, MAX_FRAME)
    incoming.feed(data)
    if extra:
        with pytest.raises(ProtocolError, match=r"a frame has 201 bytes, more than 200"):
            incoming.take_records()
    else:
        assert incoming.take_records() == [(SUBMIT, 1, payload)]


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (struct.pack("!BQI", 99, 1, 0), "of the kind 99"),
        (struct.pack("!BQI", END, 1, 0), f"of the kind {END}"),
        (struct.pack("!BQI", SUBMIT, 7, 50), "request 7 has 50 bytes, and its frame 0"),
        (struct.pack("!BQI", CANCEL, 7, 0) + b"abc", "ends with 3 bytes"),
    ],
)
def test_a_frame_that_is_not_as_it_has_to_be_is_an_error(frame, text):
    incoming = Incoming(FROM_CLIENT, MAX_FRAME)
    incoming.feed(struct.pack("!I", len(frame)) + frame)
    with pytest.raises(ProtocolError, match=text):
        incoming.take_records()


def test_a_frame_that_is_too_large_is_refused_before_it_has_come():
    incoming = Incoming(FROM_CLIENT, MAX_FRAME)
    incoming.feed(b"\xff\xff\xff\xff")
    with pytest.raises(ProtocolError, match=r"a frame has 4294967295 bytes"):
        incoming.take_records()


@given(st.integers(0, 2**32 - 1))
def test_an_acknowledgement_says_a_count(count):
    assert count_in(Record(ACKNOWLEDGE, 1, counted(count))) == count


def test_an_acknowledgement_without_a_count_is_an_error():
    with pytest.raises(ProtocolError, match="has 3 bytes, expected 4"):
        count_in(Record(ACKNOWLEDGE, 1, b"abc"))


# ---- the greeting


FRAMES = st.integers(protocol.LEAST_IN_FRAME, protocol.MOST_IN_FRAME)


@given(
    window=st.integers(1, 10**9 - 1),
    max_frame=FRAMES,
    places=st.lists(st.integers(0, 600)),
    rest=st.binary(),
)
def test_a_greeting_is_read_wherever_it_is_cut_and_records_follow(window, max_frame, places, rest):
    incoming = Incoming(FROM_SERVER, MAX_FRAME)
    lines = []
    data = client_greeting(window, max_frame) + sent([Record(ERROR, 1, rest[:100])], ())
    for piece in cut(data, places):
        incoming.feed(piece)
        if not lines and (line := incoming.take_line()) is not None:
            lines.append(line)
    said = read_greeting(lines[0])
    assert said.difference("the server") is None
    assert read_client_greeting(said.rest) == (window, max_frame)
    assert incoming.take_records() == [(ERROR, 1, rest[:100])]


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\n", b"x" * 600])
def test_what_is_no_greeting_is_an_error_that_shows_it(data):
    incoming = Incoming(FROM_CLIENT, MAX_FRAME)
    incoming.feed(data)
    with pytest.raises(ProtocolError, match=r"is no batchstream\.remote: it has sent b'"):
        read_greeting(incoming.take_line() or b"")


def test_a_greeting_without_an_end_is_an_error():
    incoming = Incoming(FROM_CLIENT, MAX_FRAME)
    incoming.feed(b"batchstream-remote 1 1.0 " + b"x" * 600)
    with pytest.raises(ProtocolError, match="no end within 512 bytes"):
        incoming.take_line()


def test_a_greeting_is_one_line_that_is_not_too_long():
    line = greeting("refused: one\ntwo\r\n" + "\N{SNOWMAN}" * 600)
    assert line.count(b"\n") == 1
    assert len(line) <= 512
    assert read_greeting(line[:-1]).rest.startswith("refused: one two")


@pytest.mark.parametrize(
    ("protocol_", "version"), [(protocol.PROTOCOL + 1, None), (protocol.PROTOCOL, "9.9"), (0, "x")]
)
def test_other_versions_differ_and_the_text_says_both(protocol_, version):
    line = f"batchstream-remote {protocol_} {version or batchstream.__version__} ok"
    difference = read_greeting(line.encode()).difference("the other")
    assert f"the other has batchstream {version or batchstream.__version__}" in difference
    assert f"with protocol {protocol_}" in difference
    assert f"this process has batchstream {batchstream.__version__}" in difference
    assert f"with protocol {protocol.PROTOCOL}:" in difference


@pytest.mark.parametrize(
    "rest",
    [
        *("ok max_frame=4096", "window=4", "max_frame=4096", ""),
        *(f"window={it} max_frame=4096" for it in ("0", "-1", "x", "")),
        *(f"window=4 max_frame={it}" for it in ("0", "-1", "x", "", "999", "4096 more")),
    ],
)
def test_a_client_that_does_not_say_its_window_and_max_frame_is_refused(rest):
    with pytest.raises(ProtocolError, match="says its window and max_frame"):
        read_client_greeting(rest)


@given(max_frame=FRAMES)
def test_a_server_says_how_large_a_frame_it_takes(max_frame):
    said = read_greeting(server_greeting(max_frame)[:-1])
    assert read_server_greeting(said.rest) == max_frame


@pytest.mark.parametrize("rest", ["refused: not today", "ok", "ok max_frame=x", ""])
def test_what_else_a_server_says_is_why_it_refuses(rest):
    with pytest.raises(ProtocolError) as caught:
        read_server_greeting(rest)
    assert str(caught.value) == rest
