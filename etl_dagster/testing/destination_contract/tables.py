"""Names, keys and types."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from etl_dagster.arrow.types import arrow_schema
from etl_dagster.destinations.base import ChunkRows, Destination
from etl_dagster.errors import TableError
from etl_dagster.model import CopyTarget, Landing, Lsn, TableSchema
from etl_dagster.testing.change_script import (
    INT8,
    TEXT,
    UNCHANGED,
    Delete,
    Insert,
    Op,
    Update,
    change_set,
    events,
    make_batch,
    make_table,
    to_log,
)
from etl_dagster.testing.destination_contract.place import TAKEN_AT, Place, Suite, content, copied
from etl_dagster.testing.typed_rows import KEY_VALUES, key_values, same_rows, typed_rows, typed_table


class TableContract(Suite):
    """Names, keys and types."""

    def test_odd_names_are_kept(self, destination: Destination) -> None:
        columns = {'i"d': INT8, "select": TEXT, "Größe %s": TEXT, "c0": TEXT, "kind": TEXT, "lsn": TEXT}
        table = make_table('my "odd".table; --', schema="Some Schéma", columns=columns, key=['i"d'])
        copied(destination, table, [(1, "a", "b", "c", "d", "e")])
        ops: list[Op] = [Update(20, (1, UNCHANGED, "x", UNCHANGED, "y", "z")), Insert(20, (2, "f", "g", "h", "i", "j"))]
        destination.write_events(make_batch(30, [[events(table, *ops)]]))
        assert content(destination, table) == [(1, "a", "x", "c", "y", "z"), (2, "f", "g", "h", "i", "j")]
        assert destination.positions() == {table.id: 30}

    def test_a_column_named_like_a_cdc_column_is_refused(self, destination: Destination) -> None:
        table = make_table(columns={"id": INT8, "_LSN": TEXT})
        with pytest.raises(TableError):
            destination.truncate_table(CopyTarget(table, "c1"))

    def test_a_table_belongs_to_the_pipeline_that_copied_it_first(self, destination: Destination) -> None:
        table, other = make_table("t"), make_table("u")
        destination.startup("one")
        copied(destination, table, [(1, "a", "A")])
        destination.startup("two")
        assert destination.positions() == {}
        with pytest.raises(TableError, match="one"):
            destination.truncate_table(CopyTarget(table, "c9"))
        copied(destination, other, [(2, "b", "B")], copy_id="c8")
        assert set(destination.positions()) == {other.id}
        destination.startup("one")
        assert set(destination.positions()) == {table.id}
        destination.drop_table(table.id)
        destination.startup("two")
        copied(destination, table, [(3, "c", "C")], copy_id="c7")

    @pytest.mark.parametrize("landing", [Landing.MIRROR, Landing.SOFT_DELETE])
    def test_a_table_without_key_is_refused_with_what_to_do(self, destination: Destination, landing: Landing) -> None:
        with pytest.raises(TableError) as caught:
            destination.truncate_table(CopyTarget(make_table(key=(), landing=landing), "c1"))
        assert "REPLICA IDENTITY USING INDEX" in caught.value.hint
        assert "landing: changelog" in caught.value.hint
        destination.truncate_table(CopyTarget(make_table(key=(), landing=Landing.CHANGELOG), "c1"))

    def test_keys_of_several_columns(self, destination: Destination) -> None:
        table = make_table(columns={"body": TEXT, "b": TEXT, "a": INT8}, key=["a", "b"])
        copied(destination, table, [("A", "x", 1), ("B", "y", 1), ("C", "x", 2)])
        ops: list[Op] = [
            Update(20, (UNCHANGED, "z", 1), old=(1, "y")),
            Delete(20, (2, "x")),
            Insert(21, ("D", "", 2)),
            Update(22, ("AA", "x", 1)),
        ]
        destination.write_events(make_batch(30, [[events(table, *ops)]]))
        assert content(destination, table) == [("AA", "x", 1), ("B", "z", 1), ("D", "", 2)]

    @pytest.mark.parametrize("type_name", sorted(KEY_VALUES))
    def test_keys_of_any_type(self, destination: Destination, type_name: str) -> None:
        type_, values = KEY_VALUES[type_name][0], key_values(type_name, destination.capabilities.limits)
        table = make_table(columns={"id": type_, "body": TEXT})
        first, second, third = (values.slice(i, 1) for i in range(3))
        target = CopyTarget(table, "c1")
        destination.truncate_table(target)
        staged = [_keyed(table, first, "A"), _keyed(table, second, "B")]
        destination.write_table_rows(target, ChunkRows("1", Lsn(1), TAKEN_AT, staged))
        destination.finish_copy(target, Lsn(10))
        ops: list[Op] = [Update(20, (None, UNCHANGED), old=(None,)), Delete(20, (None,)), Insert(21, (None, "new"))]
        changes = replace(
            change_set(table, ops),
            rows=_keyed(table, pa.concat_arrays([third, second, second]), None, None, "new"),
            old_keys=pa.record_batch([pa.concat_arrays([first, first, first])], names=["id"]),
        )
        destination.write_events(make_batch(30, [[replace(events(table), changes=(changes,))]]))
        found = destination.read_table(table).read_all().select(["id", "body"])
        expected = _keyed(table, pa.concat_arrays([third, second]), "A", "new")
        assert same_rows(found, pa.Table.from_batches([expected]), "body")

    def test_every_type_comes_back_as_it_went(self, place: Place) -> None:
        table, rows = typed_table(), typed_rows(place.destination.capabilities.limits)
        target = CopyTarget(table, "c1")
        place.destination.truncate_table(target)
        batch = ChunkRows("1", Lsn(1), TAKEN_AT, [rows.slice(0, 2), rows.slice(2)])
        place.destination.write_table_rows(target, batch)
        place.destination.finish_copy(target, Lsn(10))
        destination = place.reopen()
        found = destination.read_table(table).read_all()
        assert found.schema.types[:-3] == arrow_schema(table).types
        assert same_rows(found.select(rows.column_names), pa.Table.from_batches([rows]), "id")

    def test_every_type_passes_through_the_change_log(self, destination: Destination) -> None:
        table, rows = typed_table(), typed_rows(destination.capabilities.limits)
        empty = [(i, *[None] * (len(table.columns) - 1)) for i in range(rows.num_rows)]
        changes = replace(change_set(table, [Insert(20, row) for row in empty]), rows=rows)
        target = CopyTarget(table, "c1")
        destination.truncate_table(target)
        piece = [replace(events(table), changes=(changes,))]
        destination.write_events(make_batch(30, [piece], to_log(target)))
        destination.finish_copy(target, Lsn(30))
        found = destination.read_table(table).read_all()
        assert same_rows(found.select(rows.column_names), pa.Table.from_batches([rows]), "id")


def _keyed(table: TableSchema, keys: pa.Array, *bodies: str | None) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([keys, pa.array(bodies, pa.string())], schema=arrow_schema(table))
