"""Types of extensions that are known by their name.

PostGIS is not among what the test servers bring along. Base types of its names stand in for its types: they are made of
the functions of ``bytea``, so they prove the way that bytes take, and not what PostGIS puts into them. Its text, plain
hex digits, is given here by hand.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from pydantic import SecretStr

from etl_dagster.arrow import arrow_type, decode_column, has_binary_decoder
from etl_dagster.arrow.types import EXTENSION_TYPES
from etl_dagster.model import PgType, TableId, TypeKind
from etl_dagster.pgwire import Fields, padded
from etl_dagster.postgres import PostgresConfig, PostgresSource, PublicationConfig, SlotConfig, SourceConfig
from tests.types.test_every_type import by_id, differing, read_copy, read_stream
from tests.types.walk import execute

# Points (1 2) and (-71 42), the second with SRID 4326, as PostGIS sends and prints them.
POINT = "0101000000000000000000F03F0000000000000040"
PLACE = "0101000020E61000000000000000C051C00000000000004540"
STAND_IN = """
create type {name};
create function {name}_in(cstring) returns {name} language internal immutable strict as 'byteain';
create function {name}_out({name}) returns cstring language internal immutable strict as 'byteaout';
create function {name}_recv(internal) returns {name} language internal immutable strict as 'bytearecv';
create function {name}_send({name}) returns bytea language internal immutable strict as 'byteasend';
create type {name} (input = {name}_in, output = {name}_out, receive = {name}_recv, send = {name}_send,
                    typmod_in = varchartypmodin, typmod_out = varchartypmodout, storage = extended, delimiter = ':');
"""


@pytest.mark.parametrize("name", ["geometry", "geography"])
def test_a_type_of_that_name_arrives_as_the_bytes_that_it_sends(database: str, name: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        execute(connection, STAND_IN.format(name=name))
        execute(connection, f"create schema gis; create domain gis.{name} as inet; create domain shape as {name}")
        execute(
            connection,
            f"""create table t (id int primary key, a {name}, b {name}(9), many {name}[], d gis.{name}, s shape);
                create table hard (id int primary key, a aclitem[])""",
        )
        config = SourceConfig(
            connection=PostgresConfig(dsn=SecretStr(database)),
            publication=PublicationConfig(name="p", tables=("public.*",)),
            slot=SlotConfig(name=f"slot_{connection.info.backend_pid}"),
        )
        with closing(PostgresSource(config)) as source:
            source.prepare_publication()
            start = source.create_slot()
            execute(
                connection,
                rf"""insert into t values (0, '\x{POINT}', '\x{PLACE}', '{{"\\x{POINT}":NULL:"\\x"}}', '::1', '\x{POINT}'),
                                          (2, null, '\x', null, null, null)""",
            )
            tables = source.tables()
            table = tables[TableId("public", "t")]
            source.flush_wal()
            ways = [by_id(read_copy(source, table)), by_id(read_stream(source, tables, start)[table.id])]
            execute(connection, "insert into hard values (1, array[null]::aclitem[])")  # cannot be sent in binary
            source.flush_wal()
            ways.append(by_id(read_stream(source, tables, start)[table.id]))
            source.drop_slot()

    point, place = bytes.fromhex(POINT), bytes.fromhex(PLACE)
    assert ways[0].column("a").to_pylist() == [point, None]
    assert ways[0].column("b").to_pylist() == [place, b""]
    assert ways[0].column("many").to_pylist() == [[point, None, b""], None]
    assert ways[0].column("d").to_pylist() == ["::1", None], "a domain of that name is what it stands for"
    assert ways[0].column("s").to_pylist() == [f"\\x{POINT.lower()}", None], "under another name nobody knows it"
    assert [differing(table, ways[0], other) for other in ways[1:]] == [{}, {}]


def test_the_hex_digits_that_postgis_prints_are_the_bytes_that_it_sends() -> None:
    text = f"{POINT}{PLACE}".encode()
    fields = Fields(padded(text), np.array([0, len(POINT), 0]), np.array([len(POINT), len(PLACE), -1], np.int32))
    type_ = PgType(oid=99_999, name="public.geometry(Point,4326)")
    expected = [bytes.fromhex(POINT), bytes.fromhex(PLACE), None]
    assert decode_column(type_, fields, text=True).to_pylist() == expected

    text = f"{{{POINT}:NULL:{PLACE}}}".encode()
    fields = Fields(padded(text), np.array([0]), np.array([len(text)], np.int32))
    array = PgType(oid=99_998, name="geometry[]", kind=TypeKind.ARRAY, element=type_)
    assert decode_column(array, fields, text=True).to_pylist() == [[expected[0], None, expected[1]]]


@pytest.mark.parametrize("name", EXTENSION_TYPES)
def test_only_the_types_own_name_says_what_it_is(name: str) -> None:
    for known in (name, f"extensions.{name}", f'"odd (""x"".y)".{name}', f"{name}(5)", f"gis.{name}(PointZ,4326)"):
        assert arrow_type(PgType(oid=99_999, name=known)) == EXTENSION_TYPES[name].arrow
    for unknown in (f"my{name}", f"{name}s", f'"{name} "', f'public."x.{name}"', f"{name}.other", "hstore", "vector"):
        assert not has_binary_decoder(PgType(oid=99_999, name=unknown))
    assert not has_binary_decoder(PgType(oid=99_999, name=name, declared_oid=88_888)), "a domain"
    assert not has_binary_decoder(PgType(oid=99_999, name=name, kind=TypeKind.COMPOSITE))
    assert arrow_type(PgType(oid=99_999, name="ltree")) == pa.utf8()
