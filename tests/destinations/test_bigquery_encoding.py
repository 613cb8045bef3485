"""Text forms of values on their way to BigQuery and back; PostgreSQL says what jsonb looks like."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl_dagster.arrow.printing import bytes_of_hex, hex_digits, json_strings, uuid_texts, uuids_of_texts
from etl_dagster.destinations.bigquery.encoding import decode, encode
from etl_dagster.destinations.bigquery.inline import inline_rows, inline_source
from etl_dagster.destinations.bigquery.parquet import ROW_GROUP_ROWS, ParquetFile
from etl_dagster.destinations.bigquery.types import CDC_TYPES, plain_type
from etl_dagster.errors import InternalError
from etl_dagster.testing.server import PostgresServer
from tests.decoding.support import connect

LIST = CDC_TYPES["_UNCHANGED"]
JSON = plain_type(pa.json_())
_LONGEST_NS = (2**63 - 1) // 1000 * 1000


def json_array(texts: list[str | None]) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


def test_intervals_are_written_in_the_canonical_form_and_read_back() -> None:
    parts = [
        ((14, 3, 4_005_006_000), "1-2 3 0:0:4.005006"),
        ((-14, 3, -4_000), "-1-2 3 -0:0:0.000004"),
        ((-1, -1, 3 * 3600 * 10**9 + 61 * 10**9), "-0-1 -1 3:1:1.000000"),
        ((0, 0, 0), "0-0 0 0:0:0.000000"),
        ((2**31 - 1, 2**31 - 1, _LONGEST_NS), "178956970-7 2147483647 2562047:47:16.854775"),
        ((-(2**31), -(2**31), -_LONGEST_NS), "-178956970-8 -2147483648 -2562047:47:16.854775"),
        ((0, 0, 25 * 3600 * 10**9), "0-0 0 25:0:0.000000"),
    ]
    values = pa.array([*(value for value, _ in parts), None], pa.month_day_nano_interval())
    native = plain_type(values.type)
    assert encode(values, native).to_pylist() == [*(text for _, text in parts), None]
    assert encode(values.slice(2), native).to_pylist() == [*(text for _, text in parts[2:]), None]
    assert decode(encode(values, native), values.type, native).equals(values)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array([[1, None], [], None], pa.list_(pa.int64())), ["[1,null]", "[]", None]),
        (pa.array([[2**63 - 1, -(2**63)]], pa.list_(pa.int64())), ["[9223372036854775807,-9223372036854775808]"]),
        (pa.array([[True, False, None]], pa.list_(pa.bool_())), ["[true,false,null]"]),
        (
            pa.array([[0.5, -0.0, 1e300, float("nan"), float("inf"), float("-inf"), None]], pa.list_(pa.float64())),
            ['[0.5,-0.0,1e+300,"NaN","Infinity","-Infinity",null]'],
        ),
        (pa.array([[0.1, 3.4028235e38, 1e-45]], pa.list_(pa.float32())), ["[0.1,3.4028235e+38,1e-45]"]),
        (
            pa.array([["", 'a"b\\c', "x,y]", "null", "NULL", None, "\n\t\x01\x7f€🚲"]], pa.list_(pa.string())),
            ['["","a\\"b\\\\c","x,y]","null","NULL",null,"\\u000a\\u0009\\u0001\x7f€🚲"]'],
        ),
        (pa.array([[b"\0\xff", b"", None]], pa.list_(pa.binary())), ['["00ff","",null]']),
        (pa.array([[Decimal("1.50"), Decimal("0.00"), None]], pa.list_(pa.decimal128(5, 2))), ['["1.50","0.00",null]']),
        (
            pa.array([[Decimal("1E-30"), Decimal(10) ** 45]], pa.list_(pa.decimal256(76, 30))),
            [f'["0.{"0" * 29}1","1{"0" * 45}.{"0" * 30}"]'],
        ),
        (pa.array([[(14, 3, 4000)]], pa.list_(pa.month_day_nano_interval())), ['["1-2 3 0:0:0.000004"]']),
    ],
    ids=lambda each: str(each.type.value_type) if isinstance(each, pa.Array) else "",
)
def test_lists_are_arrays_of_json_and_come_back(values: pa.Array, texts: list[str | None]) -> None:
    found = encode(values, LIST)
    assert found.to_pylist() == texts
    back = decode(found, values.type, LIST)
    assert repr(back.to_pylist()) == repr(values.to_pylist())  # in which NaN is itself, and 0 is not -0
    spaced = pa.array([None if text is None else json.dumps(json.loads(text)) for text in texts])
    if not pa.types.is_floating(values.type.value_type):
        assert decode(spaced, values.type, LIST).equals(values)


def test_lists_of_text_that_are_longer_than_a_block_of_the_reader() -> None:
    values = pa.array([["x" * 3_000_000, None], None, [], ["y"]], pa.list_(pa.string()))
    assert decode(encode(values, LIST), values.type, LIST).equals(values)
    assert decode(encode(values.slice(1, 0), LIST), values.type, LIST).to_pylist() == []


def test_random_lists_come_back_whatever_they_hold() -> None:
    draw = random.Random(3)
    alphabet = 'ab",[]{}\\:\n\t\x1f\x7f€🚲 null'
    texts = ["".join(draw.choices(alphabet, k=draw.randint(0, 9))) for _ in range(500)]
    lists = [None if draw.random() < 0.1 else draw.choices([*texts, None], k=draw.randint(0, 5)) for _ in range(500)]
    values = pa.array(lists, pa.list_(pa.string()))
    assert decode(encode(values, LIST), values.type, LIST).equals(values)
    numbers = [
        None if each is None else [None if e is None else draw.uniform(-1, 1) ** 9 for e in each] for each in lists
    ]
    for type_ in (pa.float32(), pa.float64()):
        floats = pa.array(numbers, pa.list_(type_))
        assert decode(encode(floats, LIST), floats.type, LIST).equals(floats)


@pytest.mark.parametrize(
    "text",
    [
        '{"b": 1, "a": [1, null, true, false], "aa": {"z": {}, "y": []}, "": ""}',
        '{"é": 1, "zz": 2, "z": 3, "€": 4, "abc": 5}',
        '["\\u0001\\b\\f\\n\\r\\t\\"\\\\/", "\\u20ac", "\\ud83d\\udeb2", "\x7f"]',
        "[1e5, 1E-7, -1.5e300, 0.1, -0.25, 123456789012345, 18446744073709551615]",
        '"1e5"',
        "null",
        "1.5",
        '{"a": "1e5", "b": 1e2}',
    ],
)
def test_json_comes_back_as_postgresql_prints_jsonb(pg_server: PostgresServer, text: str) -> None:
    with connect(pg_server.dsn) as connection:
        [(printed,)] = connection.execute("select (%s::jsonb)::text", [text]).fetchall()
    # BigQuery drops whitespace, orders keys as text, and holds as a double what 64 bits cannot.
    held = json.loads(printed, parse_int=lambda digits: int(digits) if len(digits) <= 20 else float(digits))
    theirs = json.dumps(held, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    found = decode(pa.array([theirs, None, theirs]), pa.json_(), JSON)
    assert found.storage.to_pylist() == [printed, None, printed]


def test_json_that_lands_as_text_is_not_touched() -> None:
    odd = json_array(['{"b" :1,\n"a":2, "a":3}', None])
    native = plain_type(pa.string())
    assert decode(encode(odd, native), pa.json_(), native).equals(odd)


def test_slices_and_chunks_and_nothing_at_all_are_encoded() -> None:
    uuids = pa.array([bytes([i]) * 16 for i in range(5)] + [None], pa.uuid())
    native = plain_type(uuids.type)
    texts = [str(value) if value is not None else None for value in uuids.to_pylist()]
    assert encode(uuids.slice(2), native).to_pylist() == texts[2:]
    chunked = pa.chunked_array([uuids.slice(0, 2), uuids.slice(2)])
    assert encode(chunked, native).to_pylist() == texts
    assert encode(pa.chunked_array([], pa.uuid()), native).type == pa.string()
    assert decode(encode(chunked, native), pa.uuid(), native).equals(uuids)
    kinds = pa.array(["copy", "insert", "copy"]).dictionary_encode()
    assert encode(kinds, plain_type(pa.string())).to_pylist() == ["copy", "insert", "copy"]


def test_a_buffer_longer_than_its_values_is_read_as_far_as_they_reach() -> None:
    # As decoding leaves it: nothing but NULL, in eight bytes where a value takes sixteen.
    type_ = pa.month_day_nano_interval()
    none = pa.Array.from_buffers(type_, 0, [None, pa.py_buffer(bytes(8))])
    assert encode(none, plain_type(type_)).to_pylist() == []
    one = pa.Array.from_buffers(type_, 1, [None, pa.py_buffer(bytes(24))])
    assert encode(one, plain_type(type_)).to_pylist() == ["0-0 0 0:0:0.000000"]


def test_uuids_and_bytes_by_their_digits() -> None:
    values = pa.array([b"\0" * 16, b"\xff" * 16, bytes(range(16)), None], pa.binary(16))
    texts = uuid_texts(values)
    assert texts.to_pylist()[2] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert uuids_of_texts(texts).equals(values)
    assert uuids_of_texts(pa.array(["ABCDEF00-0000-0000-0000-000000000000"])).to_pylist()[0][:3] == b"\xab\xcd\xef"
    with pytest.raises(ValueError, match="uuid"):
        uuids_of_texts(pa.array(["00010203-0405-0607-0809-0a0b0c0d0e0"]))
    some = pa.array([b"", b"\0\x7f\xff", None, b"ab"], pa.binary())
    assert hex_digits(some.slice(1)).to_pylist() == ["007fff", None, "6162"]
    assert bytes_of_hex(hex_digits(some)).equals(some)


def test_strings_of_json_are_read_back_by_any_parser() -> None:
    texts = ["", 'a"b', "\\", "\\n", "".join(map(chr, range(1, 0x120))), "🚲", "\u2028"]
    found = json_strings(pa.array([None, *texts]).slice(1))
    assert [json.loads(each) for each in found.to_pylist()] == texts


def test_rows_travel_as_strings_and_nulls() -> None:
    table = pa.table(
        {
            "i": pa.array([1, None], pa.int64()),
            "f": pa.array([-0.0, float("inf")]),
            "b": pa.array([True, None]),
            "s": pa.array(['a"\\\n', ""]),
            "x": pa.array([b"\0\xff", b""]),
            "d": pa.array([-719_162, None], pa.int32()).view(pa.date32()),
            "t": pa.array([86_399_999_999, 0]).view(pa.time64("us")),
            "m": pa.array([253_402_300_799_999_999, -1]).view(pa.timestamp("us", "UTC")),
            "n": pa.array([Decimal("0.000000001"), Decimal("-12345678901234567890.000000000")], pa.decimal128(38, 9)),
        }
    )
    rows = [
        ["1", "-0", "true", 'a"\\\n', "00ff", "-719162", "86399999999", "253402300799999999", "0.000000001"],
        [None, "inf", None, "", "", None, "0", "-1", "-12345678901234567890.000000000"],
    ]
    assert json.loads(inline_rows(table)) == rows
    assert json.loads(inline_rows(pa.concat_tables([table, table.slice(0, 0), table]))) == rows * 2
    assert inline_rows(table.slice(0, 0)) == "[]"


def test_a_column_that_cannot_travel_within_a_query_is_not_made_to() -> None:
    assert inline_source("p", [("a`b", plain_type(pa.int64()))]) == (
        "(SELECT CAST(v[OFFSET(0)] AS INT64) AS `a\\`b` FROM "
        "(SELECT JSON_VALUE_ARRAY(r) AS v FROM UNNEST(JSON_QUERY_ARRAY(@p)) AS r))"
    )
    with pytest.raises(InternalError):
        inline_source("p", [("n", plain_type(pa.decimal128(38, 38)))])


def test_a_file_holds_what_was_appended_in_groups_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    part = pa.table({"i": pa.array(range(ROW_GROUP_ROWS // 4)), "s": pa.array(["x"] * (ROW_GROUP_ROWS // 4))})
    file = ParquetFile()
    for _ in range(9):
        file.append(part)
    file.append(part.slice(0, 1).combine_chunks().to_batches()[0])
    size = file.finish()
    with file as content:
        found = pq.ParquetFile(content)
        assert found.metadata.num_rows == 9 * len(part) + 1
        groups = [found.metadata.row_group(i).num_rows for i in range(found.num_row_groups)]
        assert max(groups) <= ROW_GROUP_ROWS
        assert len(groups) == 3
        assert found.read().equals(pa.concat_tables([part] * 9 + [part.slice(0, 1)]))
        assert content.seek(0, os.SEEK_END) == size
        assert list(tmp_path.iterdir()) == []  # a killed process leaves nothing
    assert content.closed


def test_encoding_needs_none_of_googles_libraries() -> None:
    names = ("types", "encoding", "inline", "parquet", "naming")
    modules = "; ".join(f"import etl_dagster.destinations.bigquery.{name}" for name in names)
    check = f"import sys; {modules}; print([name for name in sys.modules if name.startswith('google')])"
    found = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
