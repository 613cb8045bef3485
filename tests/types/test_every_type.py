"""Every type of pg_type, as a column: copied and streamed rows are alike, and the destination has what the source has.

PostgreSQL is the oracle: types are those that it lists, values those that it makes, and it judges what came back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
from pydantic import SecretStr

from etl_dagster.arrow import arrow_type
from etl_dagster.config import PipelineConfig
from etl_dagster.model import ChangeKind, Column, TableId, TableSchema
from etl_dagster.pipeline import Pipeline
from etl_dagster.postgres import PostgresConfig, PostgresSource, PublicationConfig, SlotConfig, SourceConfig
from etl_dagster.postgres.text import to_text
from tests.types.conftest import Everything
from tests.types.values import INSIDE_OF_INDEXES
from tests.types.walk import Filled, execute

INVALID_TABLE_DEFINITION = "42P16"


def test_every_type_has_values_or_is_refused_by_the_server(everything: Everything) -> None:
    walk = everything.walk

    assert not walk.unknown(), "give them values, or say why they have none"

    declared = {name for table in everything.tables for name in table.types}
    left_out = [type_ for type_ in walk.types.values() if type_.name not in declared]
    assert {walk.refusal(type_) for type_ in left_out} == {INVALID_TABLE_DEFINITION}
    without = {t.typname for t in walk.types.values() if not walk.is_pseudo(t.oid) and not walk.values(t.oid)}
    assert without <= INSIDE_OF_INDEXES | {"no_labels", "xml"}


def test_copied_and_streamed_values_are_alike(everything: Everything) -> None:
    for tables in (everything.sent, everything.tables):
        with publishing(everything, tables) as source:
            check_alike(everything, source, tables)


def check_alike(everything: Everything, source: PostgresSource, filled_tables: list[Filled]) -> None:
    """Write rows, read them both ways, and compare the Arrow values."""
    start = source.create_slot()
    for filled in filled_tables:
        write(everything, filled, every=1)
    source.flush_wal()
    tables = source.tables()
    streamed = read_stream(source, tables, start)
    for filled in filled_tables:
        table = tables[TableId("public", filled.name)]
        copied = read_copy(source, table)
        assert copied.num_rows == filled.rows
        assert differing(table, copied, streamed[table.id]) == {}


def test_the_destination_equals_the_source(everything: Everything, tmp_path: Path) -> None:
    for filled in everything.tables:
        execute(everything.walk.connection, f"truncate {filled.name}")
        execute(everything.walk.connection, f"insert into {filled.name} select * from {filled.name}_source")
    pipeline = Pipeline(config_of(everything.dsn, tmp_path))
    try:
        sync(pipeline)
        check_equal(pipeline, everything)
        for filled in everything.tables:
            execute(everything.walk.connection, f"update {filled.name} set id = -id - 1 where id % 3 = 0")
            write(everything, filled, every=3)
            execute(everything.walk.connection, f"delete from {filled.name} where id < -4")
        sync(pipeline)
        check_equal(pipeline, everything)
    finally:
        pipeline.close()


@contextmanager
def publishing(everything: Everything, tables: list[Filled]) -> Iterator[PostgresSource]:
    """A source that publishes the tables, emptied, with a slot of its own."""
    name = f"types_{uuid4().hex[:12]}"
    for filled in tables:
        execute(everything.walk.connection, f"truncate {filled.name}")
    config = SourceConfig(
        connection=PostgresConfig(dsn=SecretStr(everything.dsn)),
        publication=PublicationConfig(name=name, tables=tuple(f"public.{filled.name}" for filled in tables)),
        slot=SlotConfig(name=name),
    )
    with closing(PostgresSource(config)) as source:
        source.prepare_publication()
        yield source
        source.drop_slot()


def write(everything: Everything, filled: Filled, *, every: int) -> None:
    """Insert rows; those with odd numbers first empty, so that an update brings their values."""
    connection = everything.walk.connection
    chosen = f"id % {every} = 0"
    names = ", ".join(f"c{n}" for n in range(len(filled.types)))
    execute(
        connection,
        f"insert into {filled.name} select * from {filled.name}_source where {chosen} and id % 2 = 0;"
        f"insert into {filled.name}(id) select id from {filled.name}_source where {chosen} and id % 2 = 1;"
        f"update {filled.name} t set ({names}) = (select {names} from {filled.name}_source s where s.id = t.id)"
        f" where {chosen} and id % 2 = 1",
    )


def read_copy(source: PostgresSource, table: TableSchema) -> pa.Table:
    """The rows of a copy by their id."""
    batches: list[pa.RecordBatch] = []
    for plan in source.plan_chunks(table, 1 << 30):
        with source.read_chunk(table, plan) as reader:
            batches += reader
    return by_id(pa.Table.from_batches(batches))


def read_stream(source: PostgresSource, tables: dict[TableId, TableSchema], start: int) -> dict[TableId, pa.Table]:
    """The last state of every row by its id."""
    found: dict[TableId, list[pa.RecordBatch]] = {}
    window = source.window({table.oid: table for table in tables.values()}, source.current_position(), 2**31 - 1)
    for piece in window:
        for events in piece:
            for part in events.changes:
                assert not part.unchanged
                last = (part.kind != ChangeKind.DELETE) & ~insert_of_nothing(part.kind, part.rows)
                found.setdefault(part.table.id, []).append(part.rows.filter(pa.array(last)))
    assert window.position > start
    return {table: by_id(pa.Table.from_batches(batches)) for table, batches in found.items()}


def insert_of_nothing(kinds: np.ndarray, rows: pa.RecordBatch) -> np.ndarray:
    """Rows that `write` fills later."""
    odd = rows.column("id").to_numpy() % 2 == 1
    found: np.ndarray = odd & (kinds == ChangeKind.INSERT)
    return found


def by_id(table: pa.Table) -> pa.Table:
    """Sorted, each column in one piece."""
    order = np.argsort(table.column("id").to_numpy())
    return table.combine_chunks().take(pa.array(order)).combine_chunks()


def differing(table: TableSchema, left: pa.Table, right: pa.Table) -> dict[str, tuple[object, object]]:
    """Columns that differ, by their type, with the first value of either side."""
    found: dict[str, tuple[object, object]] = {}
    for column in table.columns:
        one, other = (text_of(side, column) for side in (left, right))
        if one != other:
            pair = next(((a, b) for a, b in zip(one, other, strict=False) if a != b), (len(one), len(other)))
            found[column.type.name] = pair
    return found


def text_of(table: pa.Table, column: Column) -> list[str | None]:
    """The values as text that tells all of them apart."""
    array = table.column(column.name).combine_chunks()
    assert array.type == arrow_type(column.type)
    texts: list[str | None] = to_text(array).to_pylist()
    return texts


def config_of(dsn: str, folder: Path) -> PipelineConfig:
    """A pipeline of these tables into DuckDB."""
    name = f"types_{uuid4().hex[:12]}"
    return PipelineConfig.model_validate(
        {
            "name": "types",
            "source": {
                "connection": {"dsn": dsn},
                "publication": {"name": name, "tables": ["public.*sent_*"], "exclude": ["public.*_source"]},
                "slot": {"name": name},
            },
            "destination": {"type": "duckdb", "path": str(folder / "warehouse.duckdb")},
            "store": {"type": "sqlite", "path": str(folder / "state.sqlite")},
        }
    )


def sync(pipeline: Pipeline) -> None:
    """Copy and catch up."""
    with pipeline.replicator() as replicator:
        replicator.sync()


def check_equal(pipeline: Pipeline, everything: Everything) -> None:
    """All tables are live and hold what the source holds."""
    reasons = {str(table.table): table.reason for table in pipeline.status().tables if table.state != "ready"}
    assert not reasons
    differences = pipeline.compare()
    assert len(differences) == len(everything.tables)
    assert {table: found for table, found in differences.items() if not found.equal} == {}
