"""The wire: whole, byte by byte, with trailing bytes, and with what no peer should send."""

import itertools
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore import audiosocket
from callcore.audiosocket import (
    BYTES_PER_OTHER,
    MAX_AUDIO_BYTES,
    MAX_KIND_CHANGES,
    MAX_OTHERS,
    NEED_DATA,
    RATES,
    Audio,
    Connection,
    Dtmf,
    Event,
    Hangup,
    Kind,
    PeerError,
    Unknown,
    UuidReceived,
    encode,
    silence_frame,
)
from callcore.errors import LocalProtocolError, RemoteProtocolError

STREAM = uuid.UUID("3f2504e0-4f89-41d3-9a0c-0305e82c3301")
HELLO = encode(Kind.UUID, STREAM.bytes)
FRAME = encode(Kind.SLIN, bytes(range(256)) + bytes(64))
HOSTILE = sorted((Path(__file__).parent / "data" / "audiosocket").glob("*.bin"))

#: A stream with everything that Asterisk, and a later one, may send.
STORY = b"".join(
    [
        HELLO,
        FRAME * 3,
        encode(Kind.DTMF, b"5"),
        encode(Kind.SLIN, b"\1\2\3\4"),
        encode(Kind.SLIN16, bytes(640)),
        encode(0x42, b"later version"),
        encode(Kind.SLIN, b""),
        encode(Kind.ERROR, b"\2"),
        FRAME,
        encode(Kind.HANGUP),
    ]
)
EVENTS: list[Event] = [
    UuidReceived(str(STREAM)),
    *[Audio(0x10, 8000, FRAME[3:])] * 3,
    Dtmf("5"),
    Audio(0x10, 8000, b"\1\2\3\4"),
    Audio(0x12, 16000, bytes(640)),
    Unknown(0x42, 13),
    Audio(0x10, 8000, b""),
    PeerError(2),
    Audio(0x10, 8000, FRAME[3:]),
    Hangup(),
]


def drain(connection: Connection, *, batch: bool = False) -> list[Event]:
    events = []
    ask = connection.next_batch if batch else connection.next_event
    while (event := ask()) is not NEED_DATA:
        events.append(event)
    return events


def fed(*pieces: bytes, batch: bool = False) -> list[Event]:
    connection = Connection()
    events = []
    for piece in pieces:
        connection.receive_data(piece)
        events += drain(connection, batch=batch)
    return events


def greeted() -> Connection:
    connection = Connection()
    connection.receive_data(HELLO)
    assert connection.next_event() == UuidReceived(str(STREAM))
    return connection


def flat(events: list[Event]) -> list[object]:
    """Events without where audio was cut: one entry per run of a kind of audio."""
    out: list[object] = []
    for event in events:
        if not isinstance(event, Audio):
            out.append(event)
        elif out and isinstance(out[-1], list) and out[-1][0] == event.kind:
            out[-1][1] += event.samples
            out[-1][2] += event.frames
        else:
            out.append([event.kind, event.samples, event.frames])
    return out


def test_a_whole_stream_is_told_message_by_message():
    assert fed(STORY) == EVENTS


def test_a_stream_is_told_alike_byte_by_byte():
    assert fed(*(STORY[i : i + 1] for i in range(len(STORY)))) == EVENTS


def test_bytes_after_the_last_whole_message_wait():
    connection = Connection()
    connection.receive_data(HELLO + FRAME + FRAME[:100])
    assert len(drain(connection)) == 2
    connection.receive_data(FRAME[100:])
    assert drain(connection) == [Audio(0x10, 8000, FRAME[3:])]


def test_a_batch_joins_the_audio_of_one_kind_and_nothing_else():
    events = fed(STORY, batch=True)
    assert events[1] == Audio(0x10, 8000, FRAME[3:] * 3, frames=3)
    assert [type(event) for event in events[2:5]] == [Dtmf, Audio, Audio]
    assert flat(events) == flat(EVENTS)


@given(st.lists(st.integers(0, len(STORY)), max_size=12), st.booleans())
def test_messages_do_not_depend_on_how_tcp_splits_them(cuts: list[int], batch: bool):
    assert told(split(STORY, cuts), batch=batch) == flat(EVENTS)


def told(pieces: list[bytes], *, batch: bool) -> list[object]:
    """Everything told until the end or the first fault, whose message comes last."""
    connection, events = Connection(), []
    ask = connection.next_batch if batch else connection.next_event
    try:
        for piece in pieces:
            connection.receive_data(piece)
            while (event := ask()) is not NEED_DATA:
                events.append(event)
    except RemoteProtocolError as error:
        return [*flat(events), str(error)]
    return flat(events)


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


def told_by_frames(pieces: list[bytes]) -> list[object]:
    """The same of a reader who tries the short way first."""
    connection, events = Connection(), []
    try:
        for piece in pieces:
            samples = connection.take_frame(piece)
            if samples is not None:
                events.append(Audio(0x10, 8000, samples))
                continue
            connection.receive_data(piece)
            while (event := connection.next_batch()) is not NEED_DATA:
                events.append(event)
    except RemoteProtocolError as error:
        return [*flat(events), str(error)]
    return flat(events)


#: What reads bring: whole frames as a rule, and everything that may come between them.
READS = [
    *[FRAME] * 6,
    FRAME * 2,
    FRAME[:100],
    FRAME[100:],
    FRAME[:1],
    FRAME[1:],
    encode(Kind.DTMF, b"5"),
    encode(Kind.SLIN16, bytes(640)),
    encode(Kind.SLIN16, bytes(320)),
    encode(Kind.SLIN, bytes(319)),
    encode(Kind.SLIN, b""),
    encode(Kind.HANGUP),
    HELLO,
]


@given(st.lists(st.sampled_from(READS), max_size=30))
def test_the_short_way_of_a_frame_tells_what_the_long_one_does(reads: list[bytes]):
    pieces = [HELLO, *reads]
    assert told_by_frames(pieces) == told([b"".join(pieces)], batch=False)


def test_the_short_way_is_open_between_whole_messages_of_8_khz_only():
    connection = Connection()
    assert connection.take_frame(FRAME) is None  # no UUID yet
    connection = greeted()
    assert connection.take_frame(FRAME) is None  # not told what kind of audio comes
    connection.receive_data(FRAME)
    assert connection.take_frame(FRAME) is None  # not asked for what is there
    drain(connection)
    assert connection.take_frame(FRAME) == FRAME[3:]
    assert connection.take_frame(FRAME[:-1]) is None
    assert connection.take_frame(FRAME) == FRAME[3:]
    connection.receive_data(FRAME[:-1])
    drain(connection)
    assert connection.take_frame(FRAME) is None  # in the middle of a frame
    connection.receive_data(FRAME[-1:] + encode(Kind.HANGUP))
    drain(connection)
    assert connection.take_frame(FRAME) is None


def test_frames_on_the_short_way_pay_for_what_comes_between():
    connection = greeted()
    for _ in range(MAX_OTHERS + 10):
        connection.receive_data(encode(Kind.DTMF, b"5"))
        drain(connection)
        if connection.take_frame(FRAME) is None:
            connection.receive_data(FRAME)
            drain(connection)
    # Without pay the digits above were too many.


@given(st.sampled_from([b"", HELLO]), st.binary(max_size=2000), st.lists(st.integers(0, 2000)))
def test_random_bytes_raise_nothing_but_remote_protocol_errors(
    start: bytes, noise: bytes, cuts: list[int]
):
    whole = told([start + noise], batch=False)
    assert told(split(start + noise, cuts), batch=False) == whole
    assert told(split(start + noise, cuts), batch=True) == whole


@given(
    st.lists(
        st.tuples(st.sampled_from([*RATES, 0x03, 0x42, 0xFF, 0x01]), st.binary(max_size=40)),
        max_size=12,
    ),
    st.lists(st.integers(0, 600), max_size=6),
)
def test_any_messages_are_told_alike_however_they_are_split(
    messages: list[tuple[int, bytes]], cuts: list[int]
):
    stream = HELLO + b"".join(encode(kind, payload) for kind, payload in messages)
    whole = told([stream], batch=False)
    assert told(split(stream, cuts), batch=False) == whole
    assert told(split(stream, cuts), batch=True) == whole


@pytest.mark.parametrize(("kind", "rate"), RATES.items())
def test_every_audio_kind_has_its_rate_and_a_frame_of_20_ms(kind: int, rate: int):
    connection = greeted()
    connection.receive_data(silence_frame(kind))
    event = connection.next_event()
    assert isinstance(event, Audio)
    assert (event.kind, event.rate, event.frames) == (kind, rate, 1)
    assert len(event.samples) == rate // 50 * 2


def test_a_short_last_frame_is_audio_like_any_other():
    connection = greeted()
    connection.receive_data(encode(Kind.SLIN, bytes(24)))
    assert connection.next_event() == Audio(0x10, 8000, bytes(24))


@pytest.mark.parametrize("ask", ["next_event", "next_batch"])
def test_half_a_sample_at_the_end_of_a_frame_is_left_out(ask: str):
    connection = greeted()
    connection.receive_data(encode(Kind.SLIN, b"\1\0\2\0\3") + encode(Kind.SLIN, b"\4\0"))
    samples = b""
    while (event := getattr(connection, ask)()) is not NEED_DATA:
        samples += event.samples
    assert samples == b"\1\0\2\0\4\0"


@pytest.mark.parametrize("kind", [0x00, 0x03, 0x10, 0x42, 0xFF])
def test_anything_before_the_uuid_is_an_error(kind: int):
    connection = Connection()
    connection.receive_data(encode(kind, b"1"))
    with pytest.raises(RemoteProtocolError, match=f"UUID message first, got kind {kind:#04x}"):
        connection.next_event()


def test_a_fault_is_seen_in_the_header_before_the_payload_came():
    connection = Connection()
    connection.receive_data(b"\x01\xff\xff")
    with pytest.raises(RemoteProtocolError, match="16 bytes, got 65535"):
        connection.next_event()


def test_a_second_uuid_is_an_error():
    connection = greeted()
    connection.receive_data(HELLO)
    with pytest.raises(RemoteProtocolError, match="second"):
        connection.next_event()


def test_more_audio_than_any_frame_holds_is_an_error():
    connection = greeted()
    connection.receive_data(encode(Kind.SLIN192, bytes(MAX_AUDIO_BYTES)))
    assert isinstance(connection.next_event(), Audio)
    connection.receive_data(encode(Kind.SLIN192, bytes(MAX_AUDIO_BYTES + 1)))
    with pytest.raises(RemoteProtocolError, match="at most 16384 bytes"):
        connection.next_event()


def test_a_digit_is_one_byte_and_printable():
    connection = greeted()
    connection.receive_data(encode(Kind.DTMF, b"\n") + encode(Kind.DTMF, b"12"))
    assert connection.next_event() == Dtmf("?")
    with pytest.raises(RemoteProtocolError, match="1 byte, got 2"):
        connection.next_event()


def test_an_error_stays_an_error():
    connection = greeted()
    connection.receive_data(HELLO)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            connection.next_event()
    connection.receive_data(FRAME)
    with pytest.raises(RemoteProtocolError):
        connection.next_batch()


def test_audio_before_a_fault_is_still_told():
    connection = greeted()
    connection.receive_data(FRAME + FRAME + encode(Kind.SLIN, bytes(MAX_AUDIO_BYTES + 2)))
    assert connection.next_batch() == Audio(0x10, 8000, FRAME[3:] * 2, frames=2)
    with pytest.raises(RemoteProtocolError):
        connection.next_batch()


def test_the_longest_unknown_message_is_skipped():
    connection = greeted()
    connection.receive_data(encode(0x77, bytes(65535)) + FRAME)
    assert drain(connection) == [Unknown(0x77, 65535), Audio(0x10, 8000, FRAME[3:])]


def test_what_follows_a_hangup_is_ignored():
    connection = greeted()
    connection.receive_data(encode(Kind.HANGUP) + FRAME)
    assert drain(connection) == [Hangup()]
    connection.receive_data(FRAME)
    assert drain(connection) == []


def test_an_error_message_may_be_empty():
    connection = greeted()
    connection.receive_data(encode(Kind.ERROR))
    assert connection.next_event() == PeerError(None)


# ---- what a peer may cost


def told_before_the_fault(stream: bytes, *, batch: bool = False) -> tuple[int, str]:
    """Return how many events came before the fault, and the fault."""
    *events, fault = told([HELLO + stream], batch=batch)
    assert isinstance(fault, str)
    return len(events), fault


def test_a_peer_that_keeps_changing_the_kind_of_audio_is_cut_off():
    # Fault held off: 256 kB of it made 52,000 resamplers and stopped all calls for 46 s.
    flood = (encode(Kind.SLIN12, b"ab") + encode(Kind.SLIN16, b"ab")) * 100
    events, fault = told_before_the_fault(flood, batch=True)
    assert events == 1 + 1 + MAX_KIND_CHANGES
    assert "changes of the kind of audio" in fault


def test_empty_audio_that_keeps_changing_its_kind_is_cut_off_as_well():
    # Fault held off: 306 ms a read, and a resampler for each change.
    flood = (encode(Kind.SLIN12) + encode(Kind.SLIN16)) * 100
    assert told_before_the_fault(flood) == (
        1 + 1 + MAX_KIND_CHANGES,
        f"expected at most {MAX_KIND_CHANGES} changes of the kind of audio",
    )


def test_a_stream_may_change_its_kind_of_audio_now_and_then():
    kinds = [Kind.SLIN, Kind.SLIN16] * (MAX_KIND_CHANGES // 2) + [Kind.SLIN]
    assert len(fed(HELLO, *(silence_frame(kind) * 50 for kind in kinds), batch=True)) == 10


@pytest.mark.parametrize(
    "message",
    [
        encode(Kind.DTMF, b"5"),
        encode(0x42),
        encode(Kind.ERROR),
        encode(Kind.SLIN),
        encode(Kind.SLIN, b"ab"),
    ],
    ids=["digits", "unknown", "errors", "empty audio", "tiny audio"],
)
@pytest.mark.parametrize("batch", [False, True])
def test_a_flood_of_messages_with_hardly_any_audio_is_cut_off(message: bytes, batch: bool):
    # Fault held off: one read of them took 0.3 to 0.4 s and flooded the publisher with events.
    connection = greeted()
    connection.receive_data(message * 60_000)
    ask = connection.next_batch if batch else connection.next_event
    for _ in range(MAX_OTHERS):
        assert ask() is not NEED_DATA
    with pytest.raises(RemoteProtocolError, match="too many messages with hardly any"):
        ask()


def test_audio_pays_for_what_comes_between_however_long_the_stream_is():
    beside = FRAME + encode(Kind.DTMF, b"5") + encode(0x42, b"later version")
    assert len(fed(HELLO, *[beside * 10] * 500)) == 1 + 3 * 5000
    # An hour of audio is no licence for more than a moment's flood.
    connection = greeted()
    for _ in range(100):
        connection.receive_data(FRAME * 100)
        drain(connection, batch=True)
    connection.receive_data(encode(Kind.DTMF, b"5") * (MAX_OTHERS + 1))
    with pytest.raises(RemoteProtocolError, match="too many"):
        drain(connection)


def test_what_messages_cost_does_not_depend_on_how_audio_is_cut():
    beside = encode(Kind.SLIN, bytes(BYTES_PER_OTHER - 2)) + encode(Kind.DTMF, b"5")
    stream = HELLO + beside * (MAX_OTHERS * BYTES_PER_OTHER)
    pieces = [stream[at : at + 1000] for at in range(0, len(stream), 1000)]
    whole = told([stream], batch=True)
    assert "too many" in str(whole[-1])
    assert told(pieces, batch=False) == whole


def test_a_payload_that_no_length_can_tell_is_our_own_fault():
    with pytest.raises(LocalProtocolError, match="65536"):
        encode(Kind.SLIN, bytes(65536))


def test_a_silence_frame_is_20_ms_of_zeros():
    assert silence_frame() == b"\x10\x01\x40" + bytes(320)
    assert len(silence_frame(Kind.SLIN16)) == 643


def test_audio_is_shown_by_its_shape_only():
    assert repr(Audio(0x10, 8000, b"ab")) == "Audio(kind=0x10, bytes=2, frames=1)"
    assert Audio(0x10, 8000, b"ab") != 5
    assert audiosocket.frame_bytes(Kind.SLIN) == 320


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
def test_hostile_files_are_told_alike_in_any_pieces(path: Path):
    data = path.read_bytes()
    whole = told([data], batch=True)
    assert told([data[i : i + 1] for i in range(len(data))], batch=False) == whole
    assert len(whole) <= 4
