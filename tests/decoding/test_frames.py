"""Frame boundaries in a COPY stream: exact for any content, split anywhere."""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_dagster.errors import InternalError, ProtocolError
from etl_dagster.pgwire import CopyOutStream, Fields, Frames, frames_from_messages, padded, split_copy_rows

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
READY = b"Z\0\0\0\x05I"


def message(tag: bytes, body: bytes) -> bytes:
    return tag + struct.pack(">i", len(body) + 4) + body


def row(*values: bytes | None) -> bytes:
    fields = (b"\xff\xff\xff\xff" if value is None else struct.pack(">i", len(value)) + value for value in values)
    return struct.pack(">h", len(values)) + b"".join(fields)


def copy_out(rows: list[bytes], columns: int, notices: int = 0) -> bytes:
    """What a server sends: the header in front of the first tuple, the trailer in a message of its own."""
    bodies = [*rows, b"\xff\xff"]
    bodies[0] = HEADER + bodies[0]
    data = [message(b"d", body) for body in bodies]
    if notices:
        data = [part for one in data for part in (one, message(b"N", b"SNOTICE\0Md\0\0"), message(b"S", b"a\0b\0"))]
    head = message(b"H", struct.pack(">bh", 1, columns) + bytes(2 * columns))
    return head + b"".join(data) + message(b"c", b"") + message(b"C", b"COPY 1\0") + READY


def read(stream: CopyOutStream, raw: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(cuts), len(raw)]
    found = []
    for start, end in pairwise(bounds):
        frames = stream.feed(raw[start:end])
        found += [frames.data[a:b].tobytes() for a, b in zip(frames.starts, frames.ends, strict=True)]
    return found


# Values made of pieces that look like heads of frames, whole frames, and parts of them.
def lookalikes(columns: int) -> st.SearchStrategy[bytes]:
    false_head = st.integers(0, 60).map(lambda size: b"d" + struct.pack(">ih", size, columns))
    frame = st.binary(max_size=8).map(lambda value: message(b"d", row(*[value] * columns)))
    return st.lists(st.one_of(false_head, frame, st.binary(max_size=12), st.just(b"d\0"), st.just(b"d"))).map(b"".join)


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, list[bytes], bytes, list[int]]:
    columns = draw(st.integers(1, 3))
    value = st.one_of(st.none(), lookalikes(columns))
    rows = [row(*values) for values in draw(st.lists(st.tuples(*[value] * columns), max_size=12))]
    raw = copy_out(rows, columns, notices=draw(st.integers(0, 1)))
    return columns, rows, raw, draw(st.lists(st.integers(0, len(raw)), max_size=8))


@given(streams())
def test_frames_are_those_of_the_plain_loop_for_any_content_and_any_split(
    case: tuple[int, list[bytes], bytes, list[int]],
) -> None:
    columns, rows, raw, cuts = case
    stream = CopyOutStream()
    assert read(stream, raw, cuts) == rows
    assert stream.done
    assert stream.transaction_status == "I"
    assert stream.error is None
    for one in rows:
        frame = frames_from_messages([one])
        assert len(split_copy_rows(frame, columns)) == columns


def test_frames_survive_being_fed_byte_by_byte() -> None:
    rows = [row(b"d\0\0\0\x10\0\x01" * 3), row(None), row(b"")]
    raw = copy_out(rows, 1)
    assert read(CopyOutStream(), raw, list(range(len(raw)))) == rows


def test_a_tuple_beyond_sixteen_megabytes_is_read() -> None:
    rows = [row(b"a"), row(b"d\0\0\0\x0c\0\x01" * 2_600_000), row(b"b")]
    raw = copy_out(rows, 1)
    assert read(CopyOutStream(), raw, list(range(0, len(raw), 1 << 20))) == rows


def test_many_rows_cross_the_search_blocks() -> None:
    rows = [row(b"x" * (number % 97), b"d\0\0\0" * (number % 5)) for number in range(20_000)]
    raw = copy_out(rows, 2)
    assert read(CopyOutStream(), raw, [777_777]) == rows


def test_an_empty_copy_has_no_frames() -> None:
    stream = CopyOutStream()
    assert read(stream, copy_out([], 4), []) == []
    assert stream.done


def test_the_callers_buffer_may_be_used_again() -> None:
    raw = copy_out([row(b"abc")], 1)
    stream, buffer, found = CopyOutStream(), bytearray(1), []
    for byte in raw:
        buffer[0] = byte
        frames = stream.feed(memoryview(buffer))
        found += [frames.data[a:b].tobytes() for a, b in zip(frames.starts, frames.ends, strict=True)]
    assert found == [row(b"abc")]


def test_a_refusal_of_the_server_is_told_with_its_fields() -> None:
    stream = CopyOutStream()
    stream.feed(message(b"E", b"SERROR\0C42P01\0Mno such table\0\0") + b"Z\0\0\0\x05E")
    assert stream.error == {"S": "ERROR", "C": "42P01", "M": "no such table"}
    assert stream.done
    assert stream.transaction_status == "E"


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (message(b"T", b"\0\0"), "'T' has no place"),
        (b"d\0\0\0\x01", "too small"),
        (message(b"H", b"\0\0\x01"), "not in binary"),
        (message(b"H", b"\x01"), "cut off"),
        (message(b"H", b"\x01\0\x01\0\x01") + message(b"d", b"PGCOPY\n\xff\r\r\0" + bytes(8)), "damaged"),
    ],
)
def test_what_is_no_copy_is_a_protocol_error(raw: bytes, match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        CopyOutStream().feed(raw)


def test_messages_of_a_client_library_become_frames() -> None:
    rows = [row(b"a", None), row(b"", b"bc")]
    frames = frames_from_messages([HEADER + rows[0], rows[1], b"\xff\xff"])
    assert [frames.data[a:b].tobytes() for a, b in zip(frames.starts, frames.ends, strict=True)] == rows
    assert len(frames_from_messages([])) == 0
    assert len(frames_from_messages([HEADER + b"\xff\xff"])) == 0
    assert [values(fields) for fields in split_copy_rows(frames, 2)] == [[b"a", b""], [None, b"bc"]]


def values(fields: Fields) -> list[bytes | None]:
    pairs = zip(fields.starts, fields.lengths, strict=True)
    return [None if length < 0 else fields.data[start : start + length].tobytes() for start, length in pairs]


def test_rows_cut_off_anywhere_are_protocol_errors_with_the_place() -> None:
    whole = row(b"abc", None, b"d" * 9)
    data = padded(whole, whole)
    for length in range(len(whole)):
        starts = np.array([0, len(whole)], np.int64)
        ends = np.array([len(whole), len(whole) + length], np.int64)
        with pytest.raises(ProtocolError) as caught:
            split_copy_rows(Frames(data, starts, ends), 3)
        assert len(whole) <= caught.value.offset <= len(whole) + length + 4


@pytest.mark.parametrize(
    "bad", [row(b"a"), row(b"a", b"b", b"c"), row(b"a", b"b") + b"x", b"\0\x02\xff\xff\xff\xfe" + row()]
)
def test_rows_of_another_shape_are_protocol_errors(bad: bytes) -> None:
    with pytest.raises(ProtocolError):
        split_copy_rows(frames_from_messages([row(b"a", b"b"), bad]), 2)


def test_a_buffer_without_padding_is_refused() -> None:
    with pytest.raises(InternalError, match="padding"):
        Frames(np.zeros(8, np.uint8), np.array([0], np.int64), np.array([8], np.int64))
