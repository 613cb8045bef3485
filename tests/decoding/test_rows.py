"""Rows taken apart: the fields are those of the plain loop, whichever columns happen to have one width."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl_dagster.errors import ProtocolError
from etl_dagster.pgwire import Fields, frames_from_messages, split_copy_rows
from tests.decoding.test_frames import row

Row = tuple[bytes | None, ...]


@st.composite
def rows_of_like_widths(draw: st.DrawFn) -> list[Row]:
    """Mostly of one width per column, now and then NULL, shorter or longer."""
    usual = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 12, 16, 300]), min_size=1, max_size=6))
    odd = draw(st.sampled_from([0.0, 0.1, 0.5]))

    def value(width: int) -> st.SearchStrategy[bytes | None]:
        plain = st.integers(0, 255).map(lambda byte: bytes([byte]) * width)
        return st.floats(0, 1).flatmap(
            lambda chance: st.one_of(st.none(), st.binary(max_size=20)) if chance < odd else plain
        )

    return draw(st.lists(st.tuples(*map(value, usual)), min_size=1, max_size=9))


def values(fields: Fields) -> list[bytes | None]:
    whole = fields.data.tobytes()
    pairs = zip(fields.starts.tolist(), fields.lengths.tolist(), strict=True)
    return [whole[start : start + length] if length >= 0 else None for start, length in pairs]


@given(rows_of_like_widths())
def test_fields_are_those_of_the_plain_loop(rows: list[Row]) -> None:
    found = split_copy_rows(frames_from_messages([row(*one) for one in rows]), len(rows[0]))

    assert [values(fields) for fields in found] == [list(column) for column in zip(*rows, strict=True)]


@given(rows_of_like_widths())
def test_words_are_the_same_however_they_are_read(rows: list[Row]) -> None:
    for fields in split_copy_rows(frames_from_messages([row(*one) for one in rows]), len(rows[0])):
        for width, offset in ((1, 0), (2, 0), (4, 0), (8, 0), (8, 8)):
            long_enough = fields.lengths >= offset + width
            if not long_enough.all():
                continue
            expected = [int.from_bytes(value[offset : offset + width], "big") for value in values(fields) if value]
            assert fields.words(f"u{width}", offset).tolist() == expected


@given(rows_of_like_widths(), st.integers(0), st.integers(0, 255))
@example([(b"12345678", b"1234")], 5, 200)
@example([(b"12345678", b"1234")] * 3, 5, 9)
def test_a_damaged_byte_never_leads_out_of_its_row(rows: list[Row], place: int, byte: int) -> None:
    messages = [bytearray(row(*one)) for one in rows]
    damaged = messages[place % len(messages)]
    damaged[place // len(messages) % len(damaged)] = byte
    frames = frames_from_messages([bytes(one) for one in messages])
    expected = [plain_loop(bytes(one), len(rows[0])) for one in messages]
    if None in expected:
        with pytest.raises(ProtocolError):
            split_copy_rows(frames, len(rows[0]))
    else:
        found = [values(fields) for fields in split_copy_rows(frames, len(rows[0]))]
        assert list(zip(*found, strict=True)) == [tuple(one) for one in expected if one is not None]


def plain_loop(message: bytes, columns: int) -> Sequence[bytes | None] | None:
    """The fields of one row; None when it is damaged."""
    if len(message) < 2 or struct.unpack_from(">h", message)[0] != columns:
        return None
    at, found = 2, list[bytes | None]()
    for _ in range(columns):
        if at + 4 > len(message):
            return None
        (length,) = struct.unpack_from(">i", message, at)
        at += 4
        if length < -1 or at + max(length, 0) > len(message):
            return None
        found.append(None if length < 0 else message[at : at + length])
        at += max(length, 0)
    return found if at == len(message) else None


def test_rows_of_numbers_alone_are_read_at_once() -> None:
    fields = split_copy_rows(frames_from_messages([row(bytes([i]) * 8, bytes([i]) * 4) for i in range(9)]), 2)

    assert all(each.together is not None for each in fields)
    assert fields[1].words(np.int32).tolist() == [i * 0x01010101 for i in range(9)]
