"""What is DuckDB's own when columns follow the source: defaults of every type, one transaction, files of kills."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from etl_dagster.arrow.changes import missing_value, select_raw
from etl_dagster.destinations.duckdb import DuckDbConfig, DuckDbDestination
from etl_dagster.errors import TableError
from etl_dagster.model import (
    Column,
    CopyTarget,
    EventBatch,
    Landing,
    Lsn,
    PgType,
    RawChanges,
    Route,
    TableEvents,
    TableSchema,
)
from etl_dagster.testing.change_script import (
    INT8,
    TEXT,
    UNCHANGED,
    Delete,
    Insert,
    Update,
    change_set,
    events,
    make_batch,
    make_table,
)
from etl_dagster.testing.destination_contract import content, copied
from etl_dagster.testing.typed_rows import same_rows, typed_table

INT4 = PgType(oid=23, name="integer")

# By type: what `pg_attribute.attmissingval` may hold of it, as the server prints it.
MISSING = {
    "id": "7",
    "bool": "t",
    "int2": "-32768",
    "int4": "2147483647",
    "int8": "-9223372036854775808",
    "oid": "4294967295",
    "float4": "-Infinity",
    "float8": "0.1",
    "money": "-9999999999.99",
    "deep": "0.0000000001",
    "wide": "1" * 60 + ".0000000001",
    "numeric": "NaN",
    "text": 'it\'s "quoted"\n\\ {NULL} 🚲',
    "bytea": "\\x00ff27",
    "date": "0044-03-15 BC",
    "time": "24:00:00",
    "timestamp": "infinity",
    "timestamptz": "2024-05-06 07:08:09.123456+00",
    "interval": "-1 years -2 mons +3 days -04:05:06.7",
    "uuid": "00112233-4455-6677-8899-aabbccddeeff",
    "jsonb": '{"a": [1, null, "\'"]}',
    "range": "[1,2)",
    "int4s": "{1,NULL,-3}",
    "texts": '{"",NULL,"NULL","a,b","it\'s","\\"[x]\\""," spaced ","back\\\\slash"}',
    "bools": "{}",
    "uuids": "{00112233-4455-6677-8899-aabbccddeeff}",
    "jsonbs": '{"{\\"a\\": \\"it\'s\\"}",null,NULL}',
    "wides": "{" + "1" * 60 + ".0000000001}",
    "stamps": '{"2024-05-06 07:08:09+00",-infinity}',
    "dates": "{infinity,2024-05-06}",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "it.duckdb"


@pytest.fixture
def destination(path: Path) -> Iterator[DuckDbDestination]:
    destination = DuckDbDestination(DuckDbConfig(path=str(path)))
    destination.startup()
    yield destination
    destination.shutdown()


@pytest.fixture
def after_kill(path: Path, tmp_path: Path) -> Iterator[Callable[[], DuckDbDestination]]:
    """Opens what a process that ended at this instant would leave behind."""
    opened: list[DuckDbDestination] = []

    def open_image() -> DuckDbDestination:
        image = tmp_path / f"image{len(opened)}.duckdb"
        for suffix in ("", ".wal"):
            if (original := Path(f"{path}{suffix}")).exists():
                shutil.copy(original, f"{image}{suffix}")
        opened.append(DuckDbDestination(DuckDbConfig(path=str(image))))
        opened[-1].startup()
        return opened[-1]

    yield open_image
    for each in opened:
        each.shutdown()


def altered(table: TableSchema, *columns: Column) -> TableSchema:
    """The table with these columns, by name or new."""
    return TableSchema(
        id=table.id, oid=table.oid, columns=columns, natts=max(each.attnum for each in columns), landing=table.landing
    )


def added(attnum: int, name: str, type_: PgType = INT4, missing: str | None = None) -> Column:
    return Column(attnum=attnum, name=name, type=type_, missing=missing)


def renamed(column: Column, name: str) -> Column:
    return column.model_copy(update={"name": name})


def with_number(table: TableSchema, missing: str | None = "7") -> TableSchema:
    return altered(table, *table.columns, added(4, "number", missing=missing))


@pytest.mark.parametrize("landing", [Landing.MIRROR, Landing.SOFT_DELETE])
def test_old_rows_get_the_default_of_every_type_also_after_a_kill(
    destination: DuckDbDestination, after_kill: Callable[[], DuckDbDestination], path: Path, landing: Landing
) -> None:
    table = typed_table().model_copy(update={"landing": landing})
    narrow = altered(table, table.columns[0])
    copied(destination, narrow, [(i,) for i in range(3000)])
    wide = altered(
        table,
        table.columns[0],
        *(each.model_copy(update={"missing": MISSING[each.name]}) for each in table.columns[1:]),
    )
    destination.write_events(make_batch(30, [[events(narrow, Delete(20, (1,)))], [events(wide)]]))
    names = [each.name for each in wide.columns[1:]]
    size = 2999 if landing is Landing.MIRROR else 3000
    expected = pa.table([pa.concat_arrays([missing_value(each)] * size) for each in wide.columns[1:]], names=names)
    for place in (destination, after_kill()):
        assert same_rows(place.read_table(wide).read_all().select(names), expected, "int8")
    destination.shutdown()
    with duckdb.connect(str(path)) as other:
        sql = "SELECT count(*) FROM duckdb_columns() WHERE table_name = 'every type' AND column_default IS NOT NULL"
        assert other.execute(sql).fetchall() == [(0,)]


def test_names_are_swapped_and_passed_on_in_one_batch_with_data(
    destination: DuckDbDestination, after_kill: Callable[[], DuckDbDestination]
) -> None:
    table = make_table()
    key, name, body = table.columns
    copied(destination, table, [(1, "n1", "b1"), (2, "n2", "b2"), (3, "n3", "b3")])
    swapped = altered(table, key, renamed(name, "body"), renamed(body, "name"))
    passed_on = altered(
        table, renamed(key, "ID"), renamed(name, "name"), renamed(body, "third"), added(4, "body", TEXT, "def")
    )
    pieces = [
        [events(table, Update(20, (1, "N1", UNCHANGED)), Insert(20, (4, "n4", "b4")))],
        [events(swapped, Update(21, (2, UNCHANGED, "B2")))],
        [events(passed_on, Update(22, (3, "N3", UNCHANGED, "own")), Update(23, (1, UNCHANGED, "B1", UNCHANGED)))],
    ]
    destination.write_events(make_batch(30, pieces))
    for place in (destination, after_kill()):
        assert content(place, passed_on) == [
            (1, "N1", "B1", "def"),
            (2, "n2", "B2", "def"),
            (3, "N3", "b3", "own"),
            (4, "n4", "b4", "def"),
        ]


def test_a_new_column_takes_the_name_of_one_that_is_gone(destination: DuckDbDestination, path: Path) -> None:
    table = make_table()
    key, name, _ = table.columns
    copied(destination, table, [(1, "n1", "b1")])
    dropped = altered(table, key, name)
    again = altered(table, key, name, added(4, "Body", INT4, "5"))
    third = altered(table, key, renamed(name, "body"), added(5, "name", INT4))
    destination.write_events(make_batch(30, [[events(dropped, Insert(20, (2, "n2")))], [events(again)]]))
    destination.write_events(make_batch(40, [[events(third, Insert(30, (3, "n3", 6)))]]))
    assert content(destination, third) == [(1, "n1", None), (2, "n2", None), (3, "n3", 6)]
    destination.shutdown()
    with duckdb.connect(str(path)) as other:
        kept = other.execute("SELECT id, body_dropped, Body_dropped_2 FROM shop.orders ORDER BY id").fetchall()
    assert kept == [(1, "b1", 5), (2, None, 5), (3, None, None)]


def test_columns_that_come_without_changes_may_come_at_the_watermark(destination: DuckDbDestination) -> None:
    table = make_table()
    copied(destination, table, [(1, "n1", "b1")])
    wide = with_number(table)
    destination.write_events(make_batch(9, [[events(wide)]]))
    assert content(destination, table) == [(1, "n1", "b1")]
    with pytest.raises(TableError):
        destination.read_table(wide)
    for _ in range(2):
        destination.write_events(make_batch(10, [[events(wide)]]))
        assert content(destination, wide) == [(1, "n1", "b1", 7)]


def test_a_kill_before_the_commit_leaves_old_columns_and_old_data(
    destination: DuckDbDestination, after_kill: Callable[[], DuckDbDestination]
) -> None:
    table = make_table()
    rows = [(i, "n", "b") for i in range(3)]
    copied(destination, table, rows)
    wide = with_number(table)

    def check() -> None:
        image = after_kill()
        assert content(image, table) == rows
        assert image.positions() == {table.id: 10}
        with pytest.raises(TableError):
            image.read_table(wide)

    def pieces() -> Iterator[Sequence[TableEvents]]:
        for piece in [[events(wide)], [events(wide, Delete(20, (1,)))], [events(wide, truncated_at=21)]]:
            check()
            yield piece

    checks = iter([check])

    def position() -> Lsn:
        next(checks, lambda: None)()  # it is asked for once more after the commit
        return Lsn(30)

    destination.write_events(EventBatch(pieces(), position, {table.id: Route()}))
    assert next(checks, None) is None
    for place in (destination, after_kill()):
        assert content(place, wide) == []
        assert place.positions() == {table.id: 30}


def test_a_batch_that_fails_after_its_columns_were_altered_changes_nothing(destination: DuckDbDestination) -> None:
    table = make_table()
    copied(destination, table, [(1, "n1", "b1")])
    wide = with_number(table)
    pieces = [[events(wide, Update(20, (1, "x", UNCHANGED, 1)))], [events(wide, Update(21, (9, "x", UNCHANGED, 1)))]]
    with pytest.raises(TableError, match="left out a large value"):
        destination.write_events(make_batch(30, pieces))
    assert content(destination, table) == [(1, "n1", "b1")]
    destination.write_events(make_batch(30, [[events(wide, Update(20, (1, "x", UNCHANGED, 1)))]]))
    assert content(destination, wide) == [(1, "x", "b1", 1)]


def test_a_file_of_an_older_version_is_taken_as_it_is(destination: DuckDbDestination, path: Path) -> None:
    table = make_table()
    copied(destination, table, [(1, "n1", "b1")])
    target = copy_begun(destination, make_table("other"))
    destination.shutdown()
    with duckdb.connect(str(path)) as other:
        other.execute("DROP TABLE _etl.schemas; DROP TABLE _etl.held")
        other.execute("ALTER TABLE _etl.chunks DROP COLUMN snapshot; ALTER TABLE _etl.copies DROP COLUMN merged")
        other.execute("ALTER TABLE _etl.log_c9 DROP COLUMN xid")
    destination.startup()
    wide = with_number(table)
    destination.write_events(make_batch(30, [[events(wide, Insert(20, (2, "n2", "b2", 1)))]]))
    assert content(destination, wide) == [(1, "n1", "b1", 7), (2, "n2", "b2", 1)]
    piece = [events(target.table, Insert(20, (5, "n5", "b5")))]
    destination.write_events(make_batch(30, [piece], {target.table: Route(live=False, log=target)}))
    destination.finish_copy(target, Lsn(30))
    assert content(destination, target.table) == [(5, "n5", "b5")]


def test_a_column_of_another_type_is_the_tables_fault(destination: DuckDbDestination) -> None:
    table = make_table()
    key, name, body = table.columns
    copied(destination, table, [(1, "n1", "b1")])
    retyped = altered(table, key, name, body.model_copy(update={"type": INT8}))
    with pytest.raises(TableError, match="body") as caught:
        destination.write_events(make_batch(30, [[events(retyped, Insert(20, (2, "n2", 5)))]]))
    assert caught.value.table == str(table.id)
    assert content(destination, table) == [(1, "n1", "b1")]


def test_an_index_of_someone_else_that_forbids_a_rename_is_the_tables_fault(
    destination: DuckDbDestination, path: Path
) -> None:
    table = make_table()
    key, name, body = table.columns
    copied(destination, table, [(1, "n1", "b1")])
    destination.shutdown()
    with duckdb.connect(str(path)) as other:
        other.execute("CREATE INDEX mine ON shop.orders (name)")
    destination.startup()
    with pytest.raises(TableError, match="index") as caught:
        destination.write_events(make_batch(30, [[events(altered(table, key, name, renamed(body, "text")))]]))
    assert caught.value.table == str(table.id)


def test_a_changelog_gets_columns_between_its_rows(
    destination: DuckDbDestination, after_kill: Callable[[], DuckDbDestination]
) -> None:
    table = make_table().model_copy(update={"landing": Landing.CHANGELOG})
    copied(destination, table, [(1, "n1", "b1")])
    wide = with_number(table)
    key, name, body, number = wide.columns
    swapped = altered(wide, key, renamed(name, "body"), renamed(body, "name"), number)
    pieces = [
        [events(table, Insert(20, (2, "n2", "b2")))],
        [events(wide, Insert(21, (3, "n3", "b3", 3)))],
        [events(swapped, Update(22, (1, "N1", UNCHANGED, 1)), Delete(23, (2,)))],
    ]
    destination.write_events(make_batch(30, pieces))
    for place in (destination, after_kill()):
        found = place.read_table(swapped).read_all().sort_by("_LSN").to_pylist()
        assert [tuple(row[column.name] for column in swapped.columns) for row in found] == [
            (1, "n1", "b1", None),
            (2, "n2", "b2", None),
            (3, "n3", "b3", 3),
            (1, "N1", None, 1),
            (2, None, None, None),
        ]
        assert [row["_UNCHANGED"] for row in found] == [None, None, None, ["name"], None]


def test_a_truncate_of_kept_rows_and_new_columns_go_into_one_batch(
    destination: DuckDbDestination, after_kill: Callable[[], DuckDbDestination]
) -> None:
    table = make_table().model_copy(update={"landing": Landing.SOFT_DELETE})
    copied(destination, table, [(1, "n1", "b1"), (2, "n2", "b2")])
    wide = with_number(table)
    pieces = [
        [events(table, Insert(20, (3, "n3", "b3")), Delete(20, (2,)))],
        [events(wide, Insert(22, (1, "again", "b", 1)), truncated_at=21)],
        [events(wide, Insert(24, (4, "n4", "b4", 4)), Delete(25, (4,)), truncated_at=23)],
    ]
    destination.write_events(make_batch(30, pieces))
    for place in (destination, after_kill()):
        found = place.read_table(wide).read_all().sort_by("id").to_pylist()
        assert [(*list(row.values())[:5], int(row["_LSN"]) >> 32) for row in found] == [
            (1, "again", "b", 1, "delete", 23),
            (2, "n2", "b2", 7, "delete", 20),
            (3, "n3", "b3", 7, "delete", 21),
            (4, "n4", "b4", 4, "delete", 25),
        ]


def test_messages_keep_their_order_also_within_one_change(
    destination: DuckDbDestination, after_kill: Callable[[], DuckDbDestination]
) -> None:
    table = make_table()
    destination.hold_table(table)
    size = 5000
    for start in (0, size):
        lsn = np.full(size, 20 + start, np.uint64)
        ordinal = np.arange(size) // 2
        messages = pa.array([f"{start + i}".encode() for i in range(size)], pa.binary())
        raw = RawChanges(lsn, ordinal, ordinal, np.zeros(size, np.uint32), messages, pa.nulls(size, pa.binary()))
        halves = [[TableEvents(table, held=select_raw(raw, half))] for half in (ordinal < 999, ordinal >= 999)]
        destination.write_events(make_batch(21 + start, halves, {table: Route(held=True)}))
    for place in (destination, after_kill()):
        found = [message for part in place.read_held(table) for message in part.message.to_pylist()]
        assert found == [f"{i}".encode() for i in range(2 * size)]


def test_large_pieces_under_several_schemas_are_merged_once(destination: DuckDbDestination) -> None:
    table = make_table()
    copied(destination, table, [(i, "old", "OLD") for i in range(10)])
    long = "x" * 1_000_000
    wide = with_number(table)
    first = events(table, *(Update(20, (i, "first", long)) for i in range(20)))
    mixed = TableEvents(
        wide,
        (
            change_set(table, [Update(30, (1, "second", UNCHANGED))]),
            change_set(wide, [Update(31, (2, "third", UNCHANGED, UNCHANGED)), Insert(31, (20, "new", "N", 1))]),
        ),
    )
    destination.write_events(make_batch(40, [[first], [mixed]]))
    found = content(destination, wide)
    assert [row[1] for row in found].count("first") == 18
    assert [(row[0], row[1], len(str(row[2])), row[3]) for row in found if row[1] != "first"] == [
        (1, "second", len(long), 7),
        (2, "third", len(long), 7),
        (20, "new", 1, 1),
    ]


def copy_begun(destination: DuckDbDestination, table: TableSchema) -> CopyTarget:
    target = CopyTarget(table, "c9")
    destination.truncate_table(target)
    return target
