"""Random values of every family of types, over 200 000 in all: copy, binary stream and text stream agree, and the source too."""

from __future__ import annotations

import pytest

from etl_dagster.model import TableId, TableSchema, ValuePolicy
from etl_dagster.postgres import compare_table
from etl_dagster.postgres.text import to_text
from tests.types.conftest import Everything
from tests.types.test_every_type import by_id, differing, publishing, read_copy, read_stream
from tests.types.walk import Filled, execute

ROWS = 5_000
SEED = "2026"

# `h(i, salt)` is a random int8, evenly spread; `p(n, i, salt)` one from 0 to n - 1.
FUNCTIONS = f"""
create or replace function h(i int, salt text) returns int8 immutable return
    ('x' || substr(md5(i || salt || '{SEED}'), 1, 16))::bit(64)::int8;
create or replace function p(n int8, i int, salt text) returns int8 immutable return (h(i, salt) & 9223372036854775807) % n;
create or replace function f(i int, salt text, most int) returns float8 immutable return
    (h(i, salt) || 'e' || p(2 * most, i, salt || 'e') - most)::float8;
create or replace function s(i int, salt text) returns text immutable return
    translate(repeat(chr(1 + p(55000, i, salt || 'c')::int), p(20, i, salt || 'l')::int) || md5(salt || i), '0123', ' ,"\\');
"""
# fmt: off
COLUMNS = {
    "bool": "h(i, 'b') > 0",
    "int2": "(h(i, 'i2') >> 48)::int2", "int4": "(h(i, 'i4') >> 32)::int4", "int8": "h(i, 'i8') >> p(64, i, 's')::int",
    "oid": "p(4294967296, i, 'o')::oid",
    "float4": "f(i, 'f4', 18)::float4", "float8": "f(i, 'f8', 280)",
    "numeric": "(h(i, 'n') || 'e' || p(120, i, 'ne') - 60)::numeric",
    "numeric(5,2)": "(h(i, 'n5') % 100000) / 100.0",
    "numeric(18,9)": "(h(i, 'n18') % 1000000000000000000) / 1000000000.0",
    "numeric(38,20)": "(h(i, 'n38')::numeric * 9999999999999999999 + p(1000000000, i, 'l')) * 1e-21",
    "numeric(76,38)": "h(i, 'n1')::numeric * h(i, 'n2') * h(i, 'n3') * 1e-30 * (h(i, 'n4') % 1000)",
    "text": "s(i, 't')", "varchar(60)": "s(i, 'v')", "char(60)": "s(i, 'c')",
    '"char"': """chr(1 + p(127, i, 'ch')::int)::"char" """,
    "bytea": "substr(decode(md5(i::text) || md5(i || 'x'), 'hex'), 1, p(33, i, 'by')::int)",
    "uuid": "md5(i::text)::uuid",
    "date": "date '4700-01-01 BC' + p(2500000, i, 'd')::int",
    "time": "time '00:00' + p(86400000000, i, 't') * interval '1 us'",
    "timetz": "(time '00:00' + p(86400000000, i, 't') * interval '1 us') at time zone make_interval(mins => p(1800, i, 'z')::int - 900)",
    "timestamp": "timestamp '4700-01-01 BC' + p(400000000000, i, 'ts') * interval '1 s' + p(1000000, i, 'u') * interval '1 us'",
    "timestamptz": "timestamptz '1900-01-01Z' + p(9000000000000000, i, 'tz') * interval '1 us'",
    "interval": "make_interval(months => (h(i, 'm') >> 33)::int, days => (h(i, 'dd') >> 32)::int) + (h(i, 'x') % 9000000000000000) * interval '1 us'",
    "json": "json_build_object(s(i, 'k'), h(i, 'j'), 'x', json_build_array(s(i, 'j'), null, f(i, 'j', 280)))",
    "jsonb": "jsonb_build_object(s(i, 'k'), (h(i, 'j') || 'e' || p(60, i, 'je') - 30)::numeric, 'x', array[s(i, 'j'), null])",
    "money": "(h(i, 'mo') % 1000000000000000)::float8::numeric::money",
    "inet": "set_masklen('0.0.0.0'::inet + p(4294967296, i, 'in'), p(33, i, 'ma')::int)",
    "cidr": "network(set_masklen('::'::inet + p(9223372036854775807, i, 'c6'), p(129, i, 'm6')::int))",
    "macaddr8": "substr(md5(i::text), 1, 16)::macaddr8",
    "point": "point(f(i, 'x', 200), f(i, 'y', 200))", "circle": "circle(point(f(i, 'x', 20), 0), abs(f(i, 'r', 20)))",
    "varbit": "substring(h(i, 'vb')::bit(64)::varbit from 1 for p(65, i, 'vl')::int)",
    "pg_lsn": "'0/0'::pg_lsn + p(9223372036854775807, i, 'ls')", "tsvector": "to_tsvector('simple', s(i, 'ft'))",
    "mood": "(enum_range(null::mood))[1 + p(4, i, 'e')]", "price": "p(10000000000, i, 'p') / 100.0",
    "pair": "row(p(100, i, 'r'), s(i, 'r'), 1.5, 'sad', f(i, 'r', 20)::numeric, null, array[1, null], null)::pair",
    "int8range": "int8range(least(h(i, 'l'), h(i, 'u')), greatest(h(i, 'l'), h(i, 'u')))",
    "datemultirange": "datemultirange(daterange(date '2000-01-01', date '2000-01-02' + p(9999, i, 'dr')::int))",
    "int4[]": "array(select nullif(p(9, i, 'a' || k), 3)::int from generate_series(1, p(6, i, 'al')) k)",
    "text[]": "array(select nullif(s(i, 'a' || k), '') from generate_series(1, p(4, i, 'tl')) k)",
    "numeric[]": "array[f(i, 'q', 20)::numeric, null, 'NaN', p(99, i, 'q')]",
    "timestamptz[]": "array[timestamptz '2000-01-01Z' + h(i, 'ta') % 100000000000000 * interval '1 us', null, 'infinity']",
    "mood[]": "array[(enum_range(null::mood))[1 + p(4, i, 'ea')]]",
    "bytea[]": "array[decode(md5(i::text), 'hex'), null, '']", "uuid[]": "array[md5(i::text)::uuid]",
    "interval[]": "array[make_interval(days => p(99, i, 'ia')::int), null]", "bool[]": "array[h(i, 'ba') > 0, null]",
    "float8[]": "array[f(i, 'fa', 280), null, 'NaN', '-0']", "jsonb[]": "array[to_jsonb(s(i, 'ja')), null, 'null']",
}
# fmt: on


# Of every type that has values which cannot be held, about a tenth of which are such.
STRAINED = {
    "numeric(12,2)": "case when p(10, i, 'nan') > 0 then (h(i, 'n5') % 1000000000000) / 100.0 else 'NaN' end",
    "numeric(50,20)": "case when p(10, i, 'nbn') > 0 then h(i, 'n6') * 1e-20 else 'NaN' end",
    "numeric": "case p(20, i, 'in') when 0 then 'NaN' when 1 then '-Infinity' else h(i, 'n7') * 10.0 ^ (p(30, i, 'ex') - 20)::int end",
    "timestamp": "timestamp '294240-01-01' + p(7500, i, 'ts') * interval '1 day'",
    "timestamptz": "timestamptz '294276-12-31 23:59Z' - p(100000, i, 'tz') * interval '1 hour'",
    "interval": "make_interval(months => p(99, i, 'mi')::int) + (h(i, 'iv') >> p(40, i, 'is')::int) / 2 * interval '1 us'",
    "int4[]": "case p(10, i, 'ai') when 0 then '[0:1]={1,2}' when 1 then '{{1},{2}}' else array[p(99, i, 'a')::int, null] end::int4[]",
    "numeric[]": "array[h(i, 'na') / 1000.0, null, 'NaN', p(9, i, 'nb')]",
    "timestamptz[]": "array[timestamptz '294276-12-31 23:59Z' - p(100000, i, 'tt') * interval '1 hour', null]",
    "text[]": "case p(10, i, 'ti') when 0 then array[array['a,', s(i, 'tx')]] else array[s(i, 'ty'), null] end",
}
DECIMAL = (30, 6)


@pytest.mark.parametrize("policy", [ValuePolicy.NULL, ValuePolicy.CLAMP, ValuePolicy.TEXT])
def test_random_values_that_cannot_be_held_are_alike_on_every_way(everything: Everything, policy: ValuePolicy) -> None:
    connection = everything.walk.connection
    declared = ", ".join(f"c{n} {type_}" for n, type_ in enumerate(STRAINED))
    execute(connection, f"{FUNCTIONS}; drop table if exists strained, hard")
    execute(
        connection,
        f"create table strained(id int primary key, {declared}); create table hard(id int primary key, a aclitem[])",
    )
    rows = ROWS // 2

    with publishing(everything, [Filled(name, [], rows) for name in ("strained", "hard")]) as source:
        start = source.create_slot()
        values = ", ".join(STRAINED.values())
        execute(connection, f"insert into strained select 2 * i, {values} from generate_series(1, {rows}) i")
        source.flush_wal()
        schemas = {id_: under(policy, schema) for id_, schema in source.tables().items()}
        table = schemas[TableId("public", "strained")]
        ways = [read_copy(source, table), read_stream(source, schemas, start)[table.id]]
        execute(connection, "insert into hard values (1, array[null]::aclitem[])")  # which cannot be sent in binary
        source.flush_wal()
        ways.append(read_stream(source, schemas, start)[table.id])

    texts = [
        [to_text(way.column(column.name).combine_chunks()).to_pylist() for column in table.columns] for way in ways
    ]
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0][0]) == rows
    if policy is ValuePolicy.TEXT:
        printed = (f"select concat(c{n}) from strained order by id" for n in range(len(STRAINED)))
        assert texts[0][1:] == [[text for (text,) in connection.execute(query)] for query in printed]


def under(policy: ValuePolicy, table: TableSchema) -> TableSchema:
    """The table with its columns under a policy."""
    columns = (column.model_copy(update={"values": policy, "decimal": DECIMAL}) for column in table.columns)
    return table.model_copy(update={"columns": tuple(columns)})


def test_random_values_are_alike_on_every_way_and_equal_to_the_source(everything: Everything) -> None:
    connection = everything.walk.connection
    declared = ", ".join(f"c{n} {type_}" for n, type_ in enumerate(COLUMNS))
    values = ", ".join(
        f"case when p(13, i, 'null{n}') > 0 then {value} end" for n, value in enumerate(COLUMNS.values())
    )
    execute(connection, f"{FUNCTIONS}; drop table if exists random_values, hard")
    execute(
        connection,
        f"create table random_values(id int primary key, {declared}); create table hard(id int primary key, a aclitem[])",
    )
    tables = [Filled(name, [], ROWS) for name in ("random_values", "hard")]

    with publishing(everything, tables) as source:
        start = source.create_slot()
        execute(connection, f"insert into random_values select 2 * i, {values} from generate_series(1, {ROWS}) i")
        source.flush_wal()
        schemas = source.tables()
        table = schemas[TableId("public", "random_values")]
        copied = read_copy(source, table)
        in_binary = read_stream(source, schemas, start)[table.id]
        execute(connection, "insert into hard values (1, array[null]::aclitem[])")  # which cannot be sent in binary
        source.flush_wal()
        in_text = read_stream(source, schemas, start)[table.id]

    assert copied.num_rows == ROWS
    assert differing(table, copied, in_binary) == {}
    assert differing(table, copied, in_text) == {}
    assert compare_table(source.config.connection, table, by_id(in_text).to_batches()).equal
