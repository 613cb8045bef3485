"""Source databases in other encodings than UTF-8, and the one type whose text is bytes of no encoding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pyarrow as pa
import pytest
from pydantic import SecretStr

from etl_dagster.config import PipelineConfig
from etl_dagster.model import TableId, TableSchema
from etl_dagster.pipeline import Pipeline
from etl_dagster.postgres import PostgresConfig, PostgresSource, PublicationConfig, SlotConfig, SourceConfig
from etl_dagster.postgres.text import to_text
from etl_dagster.store.base import TableState
from etl_dagster.testing.server import PostgresServer
from tests.conftest import ExternalServer, fresh_database
from tests.types.test_every_type import by_id, differing, read_copy, read_stream
from tests.types.walk import execute

Server = PostgresServer | ExternalServer
ENCODINGS = {
    "LATIN1": ["é", "ÿ£¬", "Ärger über nichts"],
    "WIN1252": ["€ 5", "naïve “quoted” ™", "Œuvre"],
    "KOI8R": ["Привет", "Ёлка", "Ъ"],
    "EUC_JP": ["日本語", "カタカナ", "表示"],
    "SQL_ASCII": ["plain", "~", "as UTF-8: é"],
}


class Source(NamedTuple):
    """A database of some encoding, with a publication of all tables and a slot."""

    connection: psycopg.Connection[Any]
    source: PostgresSource
    start: int


@contextmanager
def source_of(server: Server, encoding: str, made: str) -> Iterator[Source]:
    """Make tables, and then publish them."""
    options = {name: f"template template0 locale 'C' encoding '{name}'" for name in [*ENCODINGS, "UTF8"]}
    with (
        fresh_database(server, options[encoding]) as dsn,  # type: ignore[arg-type]  # not from outside
        psycopg.connect(dsn, autocommit=True, client_encoding="UTF8") as connection,
    ):
        execute(connection, made)
        config = SourceConfig(
            connection=PostgresConfig(dsn=SecretStr(dsn)),
            publication=PublicationConfig(name="p", tables=("public.*",)),
            slot=SlotConfig(name=f"slot_{connection.info.backend_pid}"),
        )
        with closing(PostgresSource(config)) as source:
            source.prepare_publication()
            yield Source(connection, source, source.create_slot())
            source.drop_slot()


def read_all(opened: Source, name: str) -> tuple[TableSchema, list[pa.Table]]:
    """The table as it is copied, streamed in binary, and streamed in text."""
    opened.source.flush_wal()
    tables = opened.source.tables()
    table = tables[TableId("public", name)]
    found = [read_copy(opened.source, table), read_stream(opened.source, tables, opened.start)[table.id]]
    execute(opened.connection, "insert into hard values (1, array[null]::aclitem[])")  # cannot be sent in binary
    opened.source.flush_wal()
    found.append(read_stream(opened.source, tables, opened.start)[table.id])
    return table, [by_id(rows) for rows in found]


HARD = "create table hard (id int primary key, a aclitem[])"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_of_other_encodings_arrives_as_unicode(pg_server: Server, encoding: str) -> None:
    one, two, three = ENCODINGS[encoding]
    made = f"""
        create type label as enum ('{one}', '{two}', '{three}');
        create type word_pair as (a text, b label);
        create table "t {one}" (id int primary key, "{one}" text, v varchar(40), c char(40), n name, l label, j json,
                                b jsonb, a text[], la label[], r word_pair, k text);
        {HARD}
    """
    with source_of(pg_server, encoding, made) as opened:
        for number, word in enumerate((one, two, three)):
            json = f'{{"{word}": ["{word}", 1]}}'
            row = [2 * number, word, word, word, word, word, json, json, [word, None], [word], (word, word), word]
            marks = ", ".join(["%s"] * 9 + ["%s::label[]", "%s", "%s"])
            opened.connection.execute(f'insert into "t {one}" values ({marks})', row)  # type: ignore[arg-type]
        table, ways = read_all(opened, f"t {one}")

        assert table.columns[1].name == one
        for rows in ways:
            for column in table.columns[1:]:
                name = column.name.replace('"', '""')
                printed = execute_texts(opened, f'select concat("{name}") from "t {one}" order by id')
                array = rows.column(column.name).combine_chunks()
                assert (array.to_pylist() if pa.types.is_list(array.type) else to_text(array).to_pylist()) == (
                    [[word, None] for word in ENCODINGS[encoding]]
                    if column.name == "a"
                    else [[word] for word in ENCODINGS[encoding]]
                    if column.name == "la"
                    else printed
                )
        assert [differing(table, ways[0], other) for other in ways[1:]] == [{}, {}]


def execute_texts(opened: Source, query: str) -> list[str]:
    return [text for (text,) in opened.connection.execute(query)]  # type: ignore[arg-type]


def test_a_single_byte_looks_the_same_on_every_way_and_version(pg_server: Server) -> None:
    codes = range(256)
    with source_of(pg_server, "UTF8", f'create table t (id int primary key, v "char"); {HARD}') as opened:
        execute(
            opened.connection,
            """insert into t select 2 * i, (i - 256 * (i / 128))::"char" from generate_series(0, 255) i""",
        )
        expected = ["", *map(chr, range(1, 128)), *(f"\\{code:03o}" for code in codes[128:])]
        table, ways = read_all(opened, "t")
        for rows in ways:
            assert rows.column("v").to_pylist() == expected
        if opened.connection.info.server_version >= 160000:
            assert execute_texts(opened, "select concat(v) from t order by id") == expected
        assert [differing(table, ways[0], other) for other in ways[1:]] == [{}, {}]


def test_text_of_no_encoding_takes_out_its_table_alone(pg_server: Server, tmp_path: Path) -> None:
    """A database of encoding SQL_ASCII holds any bytes."""
    made = "create table good (id int primary key, v text); create table bad (id int primary key, v text); " + HARD
    with source_of(pg_server, "SQL_ASCII", made) as opened:
        config = {
            "name": "test",
            "source": {
                "connection": {"dsn": opened.source.config.connection.dsn},
                "publication": {"name": "p", "create": False},
                "slot": {"name": f"own_{opened.connection.info.backend_pid}"},
            },
            "destination": {"type": "duckdb", "path": str(tmp_path / "test.duckdb")},
            "store": {"type": "sqlite", "path": str(tmp_path / "test.sqlite")},
        }
        with closing(Pipeline(PipelineConfig.model_validate(config))) as pipeline:
            execute(opened.connection, "insert into good values (1, 'é'); insert into bad values (1, 'é')")
            with pipeline.replicator() as replicator:
                replicator.sync()
            execute(opened.connection, "insert into good values (2, 'later'); insert into bad values (42, e'\\xff')")
            with pipeline.replicator() as replicator:
                replicator.sync()
            states = {record.table.name: record for record in pipeline.status().tables}
            assert states["good"].state is TableState.READY
            assert states["bad"].state is TableState.QUARANTINED
            assert "(row with id = 42)" in states["bad"].reason
            choices = {"public.bad": {"values": "clamp"}}
            lenient = PipelineConfig.model_validate({**config, "tables": choices})
        with closing(Pipeline(lenient)) as pipeline:
            pipeline.request_resync(TableId("public", "bad"))
            with pipeline.replicator() as replicator:
                replicator.sync()
            assert [record.replaced for record in pipeline.status().tables if record.replaced] == [{"v": 1}]
            assert pipeline.compare()[TableId("public", "good")].equal
            drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name like 'own_%'"
            execute(opened.connection, drop)
