"""Tables that keep every change."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from etl_dagster.arrow.types import arrow_schema
from etl_dagster.destinations.base import ChunkRows, Destination
from etl_dagster.errors import TableError
from etl_dagster.model import CDC_COLUMNS, UNCHANGED_COLUMN, CopyTarget, Landing, Lsn, TableSchema
from etl_dagster.testing.change_script import (
    INT8,
    TEXT,
    UNCHANGED,
    Delete,
    Insert,
    Op,
    Truncate,
    Update,
    altered,
    change_set,
    events,
    make_batch,
    make_table,
    rows_batch,
    story,
    to_log,
)
from etl_dagster.testing.destination_contract.place import (
    TAKEN_AT,
    Place,
    Suite,
    copied,
    landed,
    origin,
    present,
)
from etl_dagster.testing.typed_rows import same_rows, typed_rows, typed_table


def _staged(destination: Destination, target: CopyTarget, rows: list[tuple[object, ...]], snapshot: str) -> None:
    """The one chunk of a copy, read by this snapshot."""
    batches = [rows_batch(target.table, rows)]
    destination.write_table_rows(target, ChunkRows("1", Lsn(1), TAKEN_AT, batches, snapshot=snapshot))


class ChangelogContract(Suite):
    """Every change is a row, once and in order."""

    @pytest.fixture
    def table(self) -> TableSchema:
        return make_table(landing=Landing.CHANGELOG)

    @pytest.fixture
    def keyless(self) -> TableSchema:
        return make_table("events", key=(), landing=Landing.CHANGELOG)

    @pytest.fixture(autouse=True)
    def copy_first(self, destination: Destination, table: TableSchema) -> None:
        copied(destination, table, [(1, "a", "A"), (2, "b", "B")])

    def test_every_change_is_a_row(self, place: Place, table: TableSchema) -> None:
        ops: list[Op] = [
            Insert(20, (3, "c", "C")),
            Update(20, (3, "cc", UNCHANGED)),
            Update(21, (1, UNCHANGED, UNCHANGED)),
            Delete(21, (3,)),
            Insert(22, (3, "again", None)),
        ]
        result = place.destination.write_events(make_batch(30, [[events(table, *ops[:2])], [events(table, *ops[2:])]]))
        assert result.changes == {table.id: 5}
        destination = place.reopen()
        assert landed(destination, table) == [
            ("copy", 10, 1, "a", "A", None),
            ("copy", 10, 2, "b", "B", None),
            ("insert", 20, 3, "c", "C", None),
            ("update", 20, 3, "cc", None, ("body",)),
            ("update", 21, 1, None, None, ("name", "body")),
            ("delete", 21, 3, None, None, None),
            ("insert", 22, 3, "again", None, None),
        ]
        assert present(destination, table) == [(1, "a", "A"), (2, "b", "B"), (3, "again", None)]

    def test_the_columns_are_the_sources_then_four_more(self, destination: Destination, table: TableSchema) -> None:
        found = destination.read_table(table).read_all()
        assert found.column_names == ["id", "name", "body", *CDC_COLUMNS, UNCHANGED_COLUMN]
        assert set(found.column(CDC_COLUMNS[2]).to_pylist()) == {TAKEN_AT}
        assert origin(destination, table)[1] == ("copy", 10 << 32)

    def test_a_row_that_moves_is_a_delete_and_an_update(self, destination: Destination, table: TableSchema) -> None:
        ops: list[Op] = [Update(20, (9, "x", UNCHANGED), old=(1,)), Update(20, (1, "y", "Y"), old=(2,))]
        destination.write_events(make_batch(30, [[events(table, *ops)]]))
        assert landed(destination, table)[2:] == [
            ("delete", 20, 1, None, None, None),
            ("update", 20, 9, "x", None, ("body",)),
            ("delete", 20, 2, None, None, None),
            ("update", 20, 1, "y", "Y", None),
        ]
        assert present(destination, table) == [(1, "y", "Y"), (9, "x", "A")]

    def test_a_truncate_is_a_row(self, destination: Destination, table: TableSchema) -> None:
        ops: list[Op] = [Insert(20, (3, "c", "C")), Truncate(20), Insert(21, (1, "new", "N"))]
        destination.write_events(make_batch(30, [[events(table, *ops)]]))
        assert landed(destination, table)[2:] == [
            ("insert", 20, 3, "c", "C", None),
            ("truncate", 20, None, None, None, None),
            ("insert", 21, 1, "new", "N", None),
        ]
        assert present(destination, table) == [(1, "new", "N")]

    def test_a_delete_has_whatever_the_source_sent(self, destination: Destination, table: TableSchema) -> None:
        rows = rows_batch(table, [(1, "a", "A")])
        changes = replace(change_set(table, [Delete(20, (1,))]), rows=rows)
        destination.write_events(make_batch(30, [[replace(events(table), changes=(changes,))]]))
        assert landed(destination, table)[2:] == [("delete", 20, 1, "a", "A", None)]

    def test_an_unchanged_value_of_a_row_that_is_not_there_is_no_error(
        self, destination: Destination, table: TableSchema
    ) -> None:
        destination.write_events(make_batch(30, [[events(table, Update(20, (77, "x", UNCHANGED)))]]))
        assert landed(destination, table)[2:] == [("update", 20, 77, "x", None, ("body",))]

    def test_a_replayed_batch_is_appended_once(self, place: Place, table: TableSchema) -> None:
        ops: list[Op] = [Insert(20, (3, "c", "C")), Update(20, (4, "c", UNCHANGED), old=(3,)), Truncate(21)]
        place.destination.write_events(make_batch(30, [[events(table, *ops)]]))
        before = landed(place.destination, table)
        destination = place.reopen()
        assert destination.write_events(make_batch(30, [[events(table, *ops)]])).changes == {table.id: 0}
        more: list[Op] = [*ops, Insert(30, (5, "e", "E"))]
        assert destination.write_events(make_batch(40, [[events(table, *more)]])).changes == {table.id: 1}
        assert landed(destination, table) == [*before, ("insert", 30, 5, "e", "E", None)]

    def test_columns_follow_the_source(self, destination: Destination, table: TableSchema) -> None:
        wider = altered(table, rename={"name": "title"}, add={"more": (TEXT, "m")})
        last = altered(wider, drop=["body"])
        whole = story(
            (table, [Update(20, (1, UNCHANGED, "AA"))]), (wider, [Insert(21, (3, "c", "C", "x")), Delete(21, (2,))])
        )
        destination.write_events(make_batch(30, [[whole]]))
        destination.write_events(make_batch(40, [[events(last, Update(30, (3, "cc", UNCHANGED)))]]))
        assert landed(destination, last) == [
            ("copy", 10, 1, "a", None, None),
            ("copy", 10, 2, "b", None, None),
            ("update", 20, 1, None, None, ("title",)),
            ("insert", 21, 3, "c", "x", None),
            ("delete", 21, 2, None, None, None),
            ("update", 30, 3, "cc", None, ("more",)),
        ]

    def test_a_table_without_key_keeps_whole_rows(self, place: Place, keyless: TableSchema) -> None:
        one, other = (1, "a", "A"), (1, "b", None)
        copied(place.destination, keyless, [one, one, other], copy_id="c5")
        ops: list[Op] = [
            Insert(20, one),
            Delete(21, one),
            Update(22, (1, "z", "Z"), old=one),
            Delete(22, other),
            Update(23, (1, "y", "Y"), old=(1, "z", "Z")),
        ]
        place.destination.write_events(make_batch(30, [[events(keyless, *ops)]], None))
        destination = place.reopen()
        assert landed(destination, keyless)[3:] == [
            ("insert", 20, *one, None),
            ("delete", 21, *one, None),
            ("delete", 22, *one, None),
            ("update", 22, 1, "z", "Z", None),
            ("delete", 22, *other, None),
            ("delete", 23, 1, "z", "Z", None),
            ("update", 23, 1, "y", "Y", None),
        ]
        assert present(destination, keyless) == [one, (1, "y", "Y")]

    def test_a_copy_appends_what_its_snapshot_did_not_see(self, place: Place) -> None:
        table = make_table("copied", landing=Landing.CHANGELOG)
        target = CopyTarget(table, "c5")
        place.destination.truncate_table(target)
        # The id of a transaction is its LSN here: 20 and 24 were seen, 22 was running, 25 had not begun.
        ops: list[Op] = [
            Insert(20, (1, "a", "A")),
            Update(22, (7, "b", UNCHANGED), old=(2,)),
            Insert(24, (3, "c", "C")),
            Update(25, (1, "x", UNCHANGED)),
        ]
        place.destination.write_events(make_batch(24, [[events(table, *ops[:2])]], to_log(target)))
        _staged(place.destination, target, [(1, "a", "A"), (2, "b", "B"), (3, "c", "C")], "22:25:22")
        place.destination.write_events(make_batch(24, [[events(table, *ops[:2])]], to_log(target)))
        place.destination.write_events(make_batch(30, [[events(table, *ops[2:])]], to_log(target)))
        destination = place.reopen()
        assert destination.finish_copy(target, Lsn(30)).rows == 6
        assert destination.finish_copy(target, Lsn(30)).rows == 6
        assert landed(destination, table) == [
            ("copy", 1, 1, "a", "A", None),
            ("copy", 1, 2, "b", "B", None),
            ("copy", 1, 3, "c", "C", None),
            ("delete", 22, 2, None, None, None),
            ("update", 22, 7, "b", None, ("body",)),
            ("update", 25, 1, "x", None, ("body",)),
        ]
        assert present(destination, table) == [(1, "x", "A"), (3, "c", "C"), (7, "b", "B")]

    def test_a_copy_without_key_appends_what_its_snapshot_did_not_see(
        self, destination: Destination, keyless: TableSchema
    ) -> None:
        target = CopyTarget(keyless, "c5")
        destination.truncate_table(target)
        ops: list[Op] = [
            Insert(20, (1, "a", "A")),
            Truncate(22),
            Insert(24, (1, "a", "A")),
            Update(24, (2, "b", None), old=(1, "a", "A")),
        ]
        destination.write_events(make_batch(30, [[events(keyless, *ops)]], to_log(target)))
        _staged(destination, target, [(1, "a", "A"), (1, "a", "A")], "22:22:")
        assert destination.finish_copy(target, Lsn(30)).rows == 6
        assert landed(destination, keyless)[2:] == [
            ("truncate", 22, None, None, None, None),
            ("insert", 24, 1, "a", "A", None),
            ("delete", 24, 1, "a", "A", None),
            ("update", 24, 2, "b", None, None),
        ]
        assert present(destination, keyless) == [(2, "b", None)]

    def test_ids_of_transactions_wrap_around(self, destination: Destination, keyless: TableSchema) -> None:
        target = CopyTarget(keyless, "c5")
        destination.truncate_table(target)
        ops: list[Op] = [Insert(20, (1, "a", "A")), Insert(21, (2, "b", "B")), Insert(22, (3, "c", "C"))]
        changes = change_set(keyless, ops)
        assert changes.xid is not None
        changes.xid[:] = [2**32 - 2, 2**32 - 1, 4]
        piece = [replace(events(keyless), changes=(changes,))]
        destination.write_events(make_batch(30, [piece], to_log(target)))
        epoch = 5 << 32
        _staged(destination, target, [], f"{epoch - 1}:{epoch + 4}:{epoch - 1}")
        assert destination.finish_copy(target, Lsn(30)).rows == 2
        assert present(destination, keyless) == [(2, "b", "B"), (3, "c", "C")]

    def test_copying_again_starts_the_changelog_anew(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(make_batch(30, [[events(table, Delete(20, (1,)))]]))
        copied(destination, table, [(2, "b", "B")], copy_id="c2", at=40)
        assert landed(destination, table) == [("copy", 40, 2, "b", "B", None)]

    def test_truncate_table_empties_it(self, destination: Destination, table: TableSchema) -> None:
        destination.truncate_table(table)
        assert landed(destination, table) == []

    def test_a_column_named_like_one_of_the_four_is_refused(self, destination: Destination) -> None:
        columns = {"id": INT8, UNCHANGED_COLUMN: TEXT}
        with pytest.raises(TableError):
            destination.truncate_table(CopyTarget(make_table("t", columns=columns, landing=Landing.CHANGELOG), "c1"))
        destination.truncate_table(CopyTarget(make_table("t", columns=columns), "c1"))

    @pytest.mark.parametrize("key", [("id",), ()])
    def test_every_type_passes_through(self, place: Place, key: tuple[str, ...]) -> None:
        table = typed_table().model_copy(update={"landing": Landing.CHANGELOG})
        if not key:
            columns = tuple(column.model_copy(update={"key_ordinal": None}) for column in table.columns)
            table = table.model_copy(update={"columns": columns})
        rows, target = typed_rows(place.destination.capabilities.limits), CopyTarget(table, "c7")
        empty = [(i, *[None] * (len(table.columns) - 1)) for i in range(rows.num_rows)]
        place.destination.truncate_table(target)
        _staged(place.destination, target, [], "10:10:")
        logged, direct = rows.slice(0, 2), rows.slice(2)
        for part, at in ((logged, 20), (direct, 40)):
            changes = replace(change_set(table, [Insert(at, row) for row in empty[:2]]), rows=part)
            batch = make_batch(at + 10, [[replace(events(table), changes=(changes,))]], to_log(target))
            place.destination.write_events(batch)
            place.destination.finish_copy(target, Lsn(30))
        destination = place.reopen()
        found = destination.read_table(table).read_all()
        assert found.schema.types[:-4] == arrow_schema(table).types
        assert same_rows(found.select(rows.column_names), _table(rows), "id")


def _table(rows: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([rows])
