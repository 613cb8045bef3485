"""Every type: what the decoder makes of the server's binary form is what the server prints."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from etl_dagster.arrow import TYPES, arrow_schema, arrow_type, decode_column, has_binary_decoder
from etl_dagster.errors import InternalError, ProtocolError, ValueUnrepresentable
from etl_dagster.model import PgType, TypeKind
from etl_dagster.pgwire import Fields, frames_from_messages, padded
from etl_dagster.testing.server import PostgresServer
from tests.decoding.support import (
    Connection,
    connect,
    copy_messages,
    decoded,
    execute,
    fields_of,
    fill,
    oracle,
    pg_type,
    table_schema,
)

ROWS = 500
SEED = random.Random(20_260_101)


@pytest.fixture
def connection(pg_server: PostgresServer) -> Iterator[Connection]:
    """One transaction that is rolled back: much cheaper than a database for each of so many tests."""
    with connect(pg_server.dsn) as opened:
        execute(opened, "begin; set local timezone = 'UTC'; set local extra_float_digits = 3")
        yield opened
        execute(opened, "rollback")


def integers(bits: int) -> list[str | None]:
    edges = [0, 1, -1, 2 ** (bits - 1) - 1, -(2 ** (bits - 1))]
    return [str(value) for value in [*edges, *(SEED.randint(edges[4], edges[3]) for _ in range(ROWS))]]


def numbers(precision: int, scale: int) -> list[str | None]:
    """Numbers of every length that fits, zeros and both extremes among them."""
    most = 10**precision - 1
    values = [0, 1, -1, most, -most, 10**precision // 2]
    values += [SEED.randint(-1, 1) * SEED.randrange(10 ** SEED.randint(1, precision)) for _ in range(ROWS)]
    return [f"{value}e{-scale}" for value in values]


def texts() -> list[str | None]:
    alphabet = "aZ0 \t\n\\\"'dé漢😀\x01"
    found: list[str | None] = ["", "d", "x" * 5000]
    return found + ["".join(SEED.choices(alphabet, k=SEED.randrange(40))) for _ in range(ROWS)]


def moments(low: str, high: str) -> list[str | None]:
    years = (low, high, "1970-01-01", "1969-12-31", "2000-01-01", "0044-03-15 BC", "infinity", "-infinity")
    return [*years, *(f"{SEED.randint(1, 9999):04d}-{SEED.randint(1, 12):02d}-28" for _ in range(ROWS))]


def clocks() -> list[str | None]:
    return ["00:00", "24:00", *(f"{SEED.randrange(24):02d}:30:{SEED.random() * 60:09.6f}" for _ in range(ROWS))]


def floats(name: str) -> list[str | None]:
    values = [struct.unpack(name, SEED.randbytes(struct.calcsize(name)))[0] for _ in range(ROWS)]
    return ["0", "-0", "NaN", "Infinity", "-Infinity", *(str(value) for value in values if math.isfinite(value))]


def with_nulls(literals: list[str | None]) -> list[str | None]:
    return [None if number % 7 == 3 else literal for number, literal in enumerate(literals)]


def microseconds(interval: str) -> str:
    return f"round(extract(epoch from {interval}) * 1000000)::bigint"


def days(value: Any) -> str:
    return {2**31 - 1: "infinity", -(2**31) + 1: "-infinity"}.get(value, str(value))


def micros(value: Any) -> str:
    return {2**63 - 1: "infinity", -(2**63) + 1: "-infinity"}.get(value, str(value))


FINITE_DATE = "case when isfinite(v) then (v - date '1970-01-01')::text else v::text end"
FINITE_TIMESTAMP = f"case when isfinite(v) then ({microseconds('v')})::text else v::text end"
MONTHS = "extract(year from v) * 12 + extract(month from v)"
WHOLE = f"make_interval(months => ({MONTHS})::int, days => extract(day from v)::int)"
PARTS = f"({MONTHS})::int, extract(day from v)::int, {microseconds(f'v - {WHOLE}')}"
INTERVAL = f"case when v is not null then format('%s %s %s', {PARTS}) end"

# Precision and scale: what fits a machine word, 128 bits and 256 bits, and the edges between.
DECIMALS = [(12, 2), (1, 0), (4, 4), (15, 3), (16, 1), (18, 0), (18, 2), (19, 1), (18, 18), (19, 4), (20, 5), (38, 0)]
DECIMALS += [(38, 10), (38, 38), (38, 37), (37, 2), (39, 7), (76, 30), (76, 76), (76, 1)]

# declared type, Arrow type, values, what the server says of v, and how we say the same.
CASES: list[tuple[str, pa.DataType, list[str | None], str, Callable[[pa.Scalar], Any]]] = [
    ("bool", pa.bool_(), ["t", "f"] * 20, "v", lambda x: str(x.as_py()).lower()),
    ("int2", pa.int16(), integers(16), "v", str),
    ("int4", pa.int32(), integers(32), "v", str),
    ("int8", pa.int64(), integers(64), "v", str),
    ("oid", pa.uint32(), ["0", "4294967295", "16384"], "v", str),
    ("text", pa.utf8(), texts(), "v", str),
    ("varchar(6000)", pa.utf8(), texts(), "v", str),
    ("char(8)", pa.utf8(), ["", "a", "漢字", "12345678"], "v::text || repeat(' ', 8 - length(v::text))", str),
    ("name", pa.utf8(), ["pg_class", ""], "v", str),
    ('"char"', pa.utf8(), ["a", "", "\\377", "\\001"], "v", str),
    ("bytea", pa.binary(), ["\\x", "\\x00ff64", "\\x" + "64" * 300], "encode(v, 'hex')", lambda x: x.as_py().hex()),
    ("date", pa.date32(), moments("4713-01-01 BC", "5874897-12-31"), FINITE_DATE, lambda x: days(x.value)),
    ("time", pa.time64("us"), clocks(), microseconds("v"), lambda x: str(x.value)),
    (
        "timestamp",
        pa.timestamp("us"),
        moments("4713-01-01 BC", "294246-12-31"),
        FINITE_TIMESTAMP,
        lambda x: micros(x.value),
    ),
    (
        "timestamptz",
        pa.timestamp("us", "UTC"),
        moments("4713-01-01 BC", "294246-12-31"),
        FINITE_TIMESTAMP,
        lambda x: micros(x.value),
    ),
    (
        "interval",
        pa.month_day_nano_interval(),
        ["0", "1 year -3 days 04:05:06.789", "-1 mon", "-00:00:00.000001", "178000000 years", "2000000 hours"],
        INTERVAL,
        lambda x: f"{x.as_py()[0]} {x.as_py()[1]} {x.as_py()[2] // 1000}",
    ),
    (
        "uuid",
        pa.uuid(),
        ["00000000-0000-0000-0000-000000000000", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"],
        "v",
        lambda x: str(x.as_py()),
    ),
    ("json", pa.json_(), ['{"a" :  1, "a": "é"}', "null", "[]"], "v", lambda x: x.value.as_py()),
    ("jsonb", pa.json_(), ['{"b": [1, 2.50], "a": "é"}', "null", '""'], "v", lambda x: x.value.as_py()),
    ("numeric", pa.utf8(), [*numbers(30, 8), *numbers(9, 2), *numbers(9, 0), *numbers(18, 18)], "v", str),
    ("numeric(40)", pa.decimal256(40, 0), numbers(40, 0), "v", lambda x: f"{x.as_py():f}"),
    ("numeric(80,2)", pa.utf8(), numbers(80, 2), "v", str),
    *(
        (
            f"numeric({p},{s})",
            (pa.decimal128 if p <= 38 else pa.decimal256)(p, s),
            numbers(p, s),
            "v",
            lambda x: f"{x.as_py():f}",
        )
        for p, s in DECIMALS
    ),
]


ODD_SCALES: list[tuple[str, pa.DataType, list[str | None], str, Callable[[pa.Scalar], Any]]] = [
    ("numeric(3,-2)", pa.decimal128(5, 0), ["12345", "99900", "-100", "0"], "v", lambda x: f"{x.as_py():f}"),
    ("numeric(2,5)", pa.decimal128(5, 5), ["0.00099", "-0.00001", "0"], "v", lambda x: f"{x.as_py():f}"),
]


@pytest.mark.parametrize(
    ("declared", "arrow", "literals", "expression", "say"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.since(15)) for case in ODD_SCALES)],
    ids=[case[0] for case in [*CASES, *ODD_SCALES]],
)
def test_values_are_what_the_server_prints(
    connection: Connection,
    declared: str,
    arrow: pa.DataType,
    literals: list[str | None],
    expression: str,
    say: Callable[[pa.Scalar], Any],
) -> None:
    for values in (literals, with_nulls(literals)):
        type_ = fill(connection, declared, values)
        array = decoded(connection, type_)
        assert array.type == arrow
        said = [say(value) if value.is_valid else None for value in array]
        assert said == oracle(connection, expression)


@pytest.mark.parametrize(("declared", "code"), [("float4", "<f"), ("float8", "<d")])
def test_floats_keep_every_bit(connection: Connection, declared: str, code: str) -> None:
    type_ = fill(connection, declared, with_nulls(floats(code)))
    ours = decoded(connection, type_).to_pylist()
    for value, text in zip(ours, oracle(connection, "v"), strict=True):
        if text is None or value is None:
            assert text is value
        else:
            assert struct.pack(code, value) == struct.pack(code, float(text))


def test_unconstrained_numeric_is_the_servers_text(connection: Connection) -> None:
    literals: list[str | None] = [
        "NaN",
        "Infinity",
        "-Infinity",
        "1.10",
        "-0.000",
        "1e-30",
        "1e-7",
        "1e40",
        "0.1e-1000",
    ]
    literals += [
        f"{SEED.choice(['', '-'])}{SEED.getrandbits(SEED.randint(1, 200))}e{SEED.randint(-60, 60)}" for _ in range(ROWS)
    ]
    type_ = fill(connection, "numeric", with_nulls(literals))
    assert decoded(connection, type_).to_pylist() == oracle(connection, "v")


def test_enums_and_domains_and_citext_like_their_base(connection: Connection) -> None:
    execute(connection, "create type mood as enum ('sad', 'très gai')")
    execute(connection, "create domain price as numeric(10,2) check (value >= 0); create domain cheap as price")
    for declared, literals, arrow in (
        ("mood", ["sad", "très gai", None], pa.utf8()),
        ("cheap", ["1.5", "99999999.99", None], pa.decimal128(10, 2)),
    ):
        type_ = fill(connection, declared, list(literals))
        array = decoded(connection, type_)
        assert array.type == arrow
        assert [None if x is None else str(x) for x in array.to_pylist()] == oracle(connection, "v")


ARRAYS = [
    ("int4[]", ["{}", "{1}", "{1,NULL,3}", "{-5,6,7,8}"]),
    ("int8[]", ["{1,2,3}", "{4}", "{}"]),
    ("text[]", ["{}", '{a,"",NULL,"é"}', '{"NULL"}']),
    ("numeric(10,2)[]", ["{1.25,NULL}", "{99999999.99}"]),
    ("numeric[]", ["{1.250,NaN}", "{}"]),
    ("bool[]", ["{t,f,NULL}"]),
    ("jsonb[]", ['{"{\\"a\\": 1}"}']),
    ("mood[]", ["{sad,gai}", "{}"]),
    ("price[]", ["{1.50,2}"]),
    ("int4s", ["{1,2}"]),
]


@pytest.mark.parametrize(("declared", "literals"), ARRAYS, ids=[case[0] for case in ARRAYS])
def test_arrays_have_the_servers_elements(connection: Connection, declared: str, literals: list[str | None]) -> None:
    execute(connection, "create type mood as enum ('sad', 'gai'); create domain price as numeric(10,2)")
    execute(connection, "create domain int4s as int4[]")
    type_ = fill(connection, declared, [*literals, None, *literals])
    assert has_binary_decoder(type_)
    array = decoded(connection, type_)
    elements = [text and json.loads(text) for text in oracle(connection, "to_json(v::text[])")]
    assert [None if row is None else [_element_text(x) for x in row] for row in array.to_pylist()] == elements


def _element_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)


def test_an_array_of_a_moment_keeps_infinity(connection: Connection) -> None:
    array = decoded(connection, fill(connection, "timestamptz[]", ["{infinity,-infinity,1970-01-01 00:00Z}"]))
    assert array.values.cast(pa.int64()).to_pylist() == [2**63 - 1, -(2**63) + 1, 0]


UNREPRESENTABLE = [
    ("numeric(10,2)", ["NaN", "1", "NaN"], "2 value.*NaN"),
    ("int4[]", ["{{1,2},{3,4}}", "{1}"], "1 value.*multi-dimensional"),
    ("int4[]", ["[0:1]={1,2}"], "1 value.*count from 1"),
    ("timestamp", ["294276-12-31", "infinity"], "1 value.*too far"),
    pytest.param("interval", ["infinity"], "infinite", marks=pytest.mark.since(17)),
    pytest.param("interval", ["2562047788 hours"], "292 years", marks=pytest.mark.since(15)),
    ("numeric(40,2)[]", ["{NaN}"], "NaN"),
]


@pytest.mark.parametrize(("declared", "literals", "message"), UNREPRESENTABLE)
def test_what_arrow_cannot_hold_is_named_not_changed(
    connection: Connection, declared: str, literals: list[str | None], message: str
) -> None:
    type_ = fill(connection, declared, literals)
    with pytest.raises(ValueUnrepresentable, match=message) as caught:
        decoded(connection, type_)
    assert "'v'" in caught.value.message
    assert all(literal not in caught.value.message for literal in literals if literal and len(literal) > 8)


def test_text_that_is_not_utf8_is_refused() -> None:
    fields = Fields(padded(b"ab\xff"), np.array([0], np.int64), np.array([3], np.int32))
    with pytest.raises(ValueUnrepresentable, match="UTF-8"):
        decode_column(PgType(oid=25, name="text"), fields, column="note")


def test_other_types_arrive_as_the_servers_text(connection: Connection) -> None:
    cases = {"inet": "10.0.0.1", "int4range": "[1,5)", "point": "(1,2)", "tsvector": "'a' 'b'", "timetz": "12:00:00+02"}
    execute(connection, "create type pair as (a int, b text)")
    for declared, literal in (cases | {"pair": "(1,x)", "inet[]": "{10.0.0.1}", "int2vector": "1 2"}).items():
        type_ = fill(connection, declared, [literal, None])
        assert not has_binary_decoder(type_)
        assert arrow_type(type_) == pa.utf8()
        fields = fields_of(connection, "select v::text from v order by i")
        assert decode_column(type_, fields, text=True).to_pylist() == oracle(connection, "v")
        with pytest.raises(InternalError, match="fetch it as text"):
            decode_column(type_, fields)


def test_citext_is_read_in_binary_and_a_stranger_of_the_kind_is_not() -> None:
    assert has_binary_decoder(PgType(oid=99_999, name="citext"))
    assert has_binary_decoder(PgType(oid=99_999, name="extensions.citext"))
    assert not has_binary_decoder(PgType(oid=99_999, name="citext", kind=TypeKind.COMPOSITE))
    assert not has_binary_decoder(PgType(oid=99_999, name="hstore"))


# Base types of the server that come as text, each on purpose; a new one in a future server makes the test fail.
# fmt: off
AS_TEXT = {
    "aclitem", "bit", "box", "cid", "cidr", "circle", "gtsvector", "inet", "int2vector", "jsonpath", "line", "lseg",
    "macaddr", "macaddr8", "money", "oidvector", "path", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary",
    "pg_dependencies", "pg_lsn", "pg_mcv_list", "pg_ndistinct", "pg_node_tree", "pg_snapshot", "point", "polygon",
    "refcursor", "regclass", "regcollation", "regconfig", "regdatabase", "regdictionary", "regnamespace", "regoper",
    "regoperator", "regproc", "regprocedure", "regrole", "regtype", "tid", "timetz", "tsquery", "tsvector",
    "txid_snapshot", "varbit", "xid", "xid8", "xml",
}
# fmt: on


def test_every_base_type_of_the_catalogue_is_in_the_table_or_known_as_text(connection: Connection) -> None:
    rows = execute(
        connection,
        """select oid::int, typname from pg_type where typtype = 'b' and typnamespace = 'pg_catalog'::regnamespace
           and typcategory <> 'A' or oid in (22, 30)""",
    )
    for oid, name in rows:
        type_ = pg_type(connection, oid)
        assert has_binary_decoder(type_) == (oid in TYPES)
        assert oid in TYPES or name in AS_TEXT, name
        assert oid not in TYPES or TYPES[oid].name == name


def test_values_cut_off_anywhere_are_protocol_errors(connection: Connection) -> None:
    for declared, literal in (
        ("numeric(30,5)", "12345678901234.5"),
        ("int4[]", "{1,2,3}"),
        ("text[]", "{a,bcd,NULL}"),
    ):
        type_ = fill(connection, declared, [literal])
        whole = fields_of(connection, "select v from v")
        for length in range(int(whole.lengths[0])):
            cut = Fields(whole.data, whole.starts, np.array([length], np.int32))
            with pytest.raises(ProtocolError):
                decode_column(type_, cut)
    for oid, facts in TYPES.items():
        if pa.types.is_primitive(arrow_type(PgType(oid=oid, name=facts.name))):
            odd = Fields(padded(bytes(40)), np.array([0], np.int64), np.array([3], np.int32))
            with pytest.raises(ProtocolError, match="have 3"):
                decode_column(PgType(oid=oid, name=facts.name), odd)


def test_text_that_is_no_value_is_a_protocol_error_and_not_shown() -> None:
    fields = Fields(padded(b"hush!"), np.array([0], np.int64), np.array([5], np.int32))
    arrays = [_array_of(PgType(oid=23, name="int4")), _array_of(PgType(oid=1700, name="numeric", typmod=(5 << 16) + 4))]
    strict = [20, 21, 23, 26, 700, 701, 17, 1082, 1083, 1114, 1184, 2950]
    for kind in [*(PgType(oid=oid, name=TYPES[oid].name) for oid in strict), *arrays]:
        with pytest.raises(ProtocolError, match=r"Text of column 'secret'") as caught:
            decode_column(kind, fields, text=True, column="secret")
        assert "hush" not in str(caught.value)
        assert caught.value.__suppress_context__


def test_no_rows_and_only_nulls_decode_for_every_type() -> None:
    for oid, facts in TYPES.items():
        for kind in (PgType(oid=oid, name=facts.name), _array_of(PgType(oid=oid, name=facts.name))):
            nothing = Fields(padded(), np.empty(0, np.int64), np.empty(0, np.int32))
            assert decode_column(kind, nothing).type == arrow_type(kind)
            nulls = Fields(padded(b""), np.zeros(9, np.int64), np.full(9, -1, np.int32))
            array = decode_column(kind, nulls)
            array.validate(full=True)
            assert array.to_pylist() == [None] * 9


def _array_of(element: PgType) -> PgType:
    return PgType(oid=1, name=f"{element.name}[]", kind=TypeKind.ARRAY, element=element)


def test_the_schema_of_a_table_is_nullable_and_names_the_declared_types(connection: Connection) -> None:
    execute(connection, "create table shop (id int primary key, price numeric(10,2) not null, place point)")
    schema = arrow_schema(table_schema(connection, "shop"))
    assert schema.types == [pa.int32(), pa.decimal128(10, 2), pa.utf8()]
    assert all(field.nullable for field in schema)
    declared = [(field.metadata or {})[b"pg.type"] for field in schema]
    assert declared == [b"integer", b"numeric(10,2)", b"point"]


def test_decimals_fit_their_precision_exactly(connection: Connection) -> None:
    wide = fill(connection, "numeric(14,4)", ["1234567890.1234", "0.00004", "1"])
    narrow = wide.model_copy(update={"typmod": ((6 << 16) | 2) + 4})
    with pytest.raises(ValueUnrepresentable, match=r"1 value.*outside numeric"):
        decoded(connection, narrow)
    assert decoded(connection, wide).to_pylist()[0] == Decimal("1234567890.1234")


def test_a_header_with_damage_is_refused(connection: Connection) -> None:
    messages = copy_messages(connection, "select 1")
    for length in range(2, 19):
        with pytest.raises(ProtocolError):
            frames_from_messages([messages[0][:length]])
