"""Batches applied to a live table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from etl_dagster.destinations.base import Destination
from etl_dagster.errors import EtlError, RowIncomplete
from etl_dagster.model import CDC_COLUMNS, Route, TableSchema
from etl_dagster.testing.change_script import (
    UNCHANGED,
    Delete,
    Insert,
    Op,
    Update,
    events,
    failing_batch,
    make_batch,
    make_table,
)
from etl_dagster.testing.destination_contract.place import TAKEN_AT, Place, Suite, content, copied, origin


class StreamContract(Suite):
    """Batches applied to a live table."""

    @pytest.fixture(autouse=True)
    def copy_first(self, destination: Destination, table: TableSchema) -> None:
        copied(destination, table, [(1, "a", "A"), (2, "b", "B"), (3, "c", "C")])

    def test_inserts_updates_and_deletes_reach_the_table(self, destination: Destination, table: TableSchema) -> None:
        piece = [events(table, Insert(20, (4, "d", "D")), Update(20, (1, "x", "X")), Delete(21, (2,)))]
        result = destination.write_events(make_batch(30, [piece]))
        assert content(destination, table) == [(1, "x", "X"), (3, "c", "C"), (4, "d", "D")]
        assert result.position == 30
        assert result.changes == {table.id: 3}

    def test_rows_say_where_they_come_from(self, destination: Destination, table: TableSchema) -> None:
        ops: list[Op] = [Insert(0x20, (4, "d", "D")), Update(0x20, (1, "x", "X"))]
        destination.write_events(make_batch(0x30, [[events(table, *ops)]]))
        assert origin(destination, table) == {
            1: ("update", (0x20 << 32) + 1),
            2: ("copy", 0xA << 32),
            3: ("copy", 0xA << 32),
            4: ("insert", (0x20 << 32) + 0),
        }
        stamps = destination.read_table(table).read_all().column(CDC_COLUMNS[2]).to_pylist()
        assert sorted(stamps) == sorted([TAKEN_AT, TAKEN_AT, *[datetime.fromtimestamp(0x20, UTC)] * 2])

    def test_a_key_change_moves_the_row(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(make_batch(30, [[events(table, Update(20, (9, "a", "A"), old=(1,)))]]))
        assert content(destination, table) == [(2, "b", "B"), (3, "c", "C"), (9, "a", "A")]

    def test_a_row_moves_onto_a_key_deleted_in_the_same_batch(
        self, destination: Destination, table: TableSchema
    ) -> None:
        ops: list[Op] = [Delete(20, (2,)), Update(20, (2, "a", "A"), old=(1,))]
        destination.write_events(make_batch(30, [[events(table, *ops)]]))
        assert content(destination, table) == [(2, "a", "A"), (3, "c", "C")]

    def test_delete_and_reinsert_in_one_batch_leaves_the_new_row(
        self, destination: Destination, table: TableSchema
    ) -> None:
        ops: list[Op] = [Delete(20, (1,)), Insert(20, (1, "again", "new"))]
        destination.write_events(make_batch(30, [[events(table, *ops)]]))
        assert content(destination, table)[0] == (1, "again", "new")

    def test_insert_update_delete_in_one_batch_leaves_nothing(
        self, destination: Destination, table: TableSchema
    ) -> None:
        ops: list[Op] = [Insert(20, (7, "n", "N")), Update(20, (7, "m", "M")), Delete(21, (7,))]
        destination.write_events(make_batch(30, [[events(table, *ops)]]))
        assert len(content(destination, table)) == 3

    def test_two_rows_swap_their_keys_through_a_third(self, destination: Destination, table: TableSchema) -> None:
        ops: list[Op] = [
            Update(20, (99, "a", UNCHANGED), old=(1,)),
            Update(20, (1, "b", UNCHANGED), old=(2,)),
            Update(20, (2, "a", UNCHANGED), old=(99,)),
        ]
        destination.write_events(make_batch(30, [[events(table, *ops)]]))
        assert content(destination, table) == [(1, "b", "B"), (2, "a", "A"), (3, "c", "C")]

    def test_an_unchanged_value_stays(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(make_batch(30, [[events(table, Update(20, (1, "x", UNCHANGED)))]]))
        assert content(destination, table)[0] == (1, "x", "A")

    def test_an_unchanged_value_stays_through_several_updates(
        self, destination: Destination, table: TableSchema
    ) -> None:
        ops: list[Op] = [Update(20, (1, "x", UNCHANGED)), Update(21, (1, "y", UNCHANGED)), Update(22, (2, "z", "Z"))]
        more = [Update(23, (2, "zz", UNCHANGED)), Update(24, (1, UNCHANGED, "new"))]
        destination.write_events(make_batch(30, [[events(table, *ops)], [events(table, *more)]]))
        assert content(destination, table)[:2] == [(1, "y", "new"), (2, "zz", "Z")]

    def test_an_unchanged_value_follows_the_row_through_key_changes(
        self, destination: Destination, table: TableSchema
    ) -> None:
        ops: list[Op] = [
            Update(20, (8, "x", UNCHANGED), old=(1,)),
            Update(21, (9, UNCHANGED, UNCHANGED), old=(8,)),
            Insert(22, (1, "new", "NEW")),
            Update(23, (1, "newer", UNCHANGED)),
        ]
        destination.write_events(make_batch(30, [[events(table, *ops)]]))
        assert content(destination, table)[0] == (1, "newer", "NEW")
        assert (9, "x", "A") in content(destination, table)

    def test_an_unchanged_value_of_a_row_that_is_not_there_is_refused(
        self, destination: Destination, table: TableSchema
    ) -> None:
        with pytest.raises(RowIncomplete) as caught:
            destination.write_events(make_batch(30, [[events(table, Update(20, (77, "x", UNCHANGED)))]]))
        assert caught.value.table == str(table.id)
        assert destination.positions() == {table.id: 10}

    @pytest.mark.parametrize(
        "parts",
        [
            [[Insert(20, (1, "x", UNCHANGED))]],
            [[Delete(20, (1,)), Insert(21, (1, "x", UNCHANGED))]],
            [[Delete(20, (1,))], [Insert(21, (1, "x", UNCHANGED))]],
            [[Insert(20, (7, "old", "OLD")), Delete(20, (7,)), Insert(21, (7, "x", UNCHANGED))]],
            [[Insert(20, (7, "old", "OLD"))], [Delete(20, (7,)), Insert(21, (7, "x", UNCHANGED))]],
            [[Update(20, (9, "a", UNCHANGED), old=(1,)), Insert(21, (1, "x", UNCHANGED))]],
            [[Update(20, (9, "a", UNCHANGED), old=(1,))], [Insert(21, (1, "x", UNCHANGED))]],
            [[Delete(20, (1,)), Insert(21, (1, "x", UNCHANGED)), Update(22, (8, "x", UNCHANGED), old=(1,))]],
        ],
        ids=[
            "it stands there",
            "deleted",
            "deleted in another piece",
            "inserted and deleted",
            "inserted in another piece",
            "left",
            "left in another piece",
            "moves on",
        ],
    )
    def test_a_new_row_never_takes_a_value_from_the_row_that_had_its_key(
        self, destination: Destination, table: TableSchema, parts: Sequence[Sequence[Op]]
    ) -> None:
        before = content(destination, table)
        with pytest.raises(RowIncomplete) as caught:
            destination.write_events(make_batch(30, [[events(table, *ops)] for ops in parts]))
        assert caught.value.table == str(table.id)
        assert content(destination, table) == before
        assert destination.positions() == {table.id: 10}

    def test_a_new_row_may_lack_a_value_that_does_not_last(self, destination: Destination, table: TableSchema) -> None:
        ops: list[Op] = [
            Delete(20, (1,)),
            Insert(21, (1, "x", UNCHANGED)),
            Update(22, (1, "x", "X")),
            Insert(23, (7, "gone", UNCHANGED)),
            Delete(24, (7,)),
        ]
        more: list[Op] = [Update(25, (1, "y", UNCHANGED))]
        destination.write_events(make_batch(30, [[events(table, *ops)], [events(table, *more)]]))
        assert content(destination, table) == [(1, "y", "X"), (2, "b", "B"), (3, "c", "C")]

    def test_a_truncate_empties_the_table_before_what_follows(
        self, destination: Destination, table: TableSchema
    ) -> None:
        piece = [events(table, Insert(20, (5, "e", "E")), truncated_at=20)]
        destination.write_events(make_batch(30, [[events(table, Delete(19, (1,)))], piece]))
        assert content(destination, table) == [(5, "e", "E")]

    def test_a_replayed_batch_changes_nothing(self, destination: Destination, table: TableSchema) -> None:
        pieces = [[events(table, Insert(20, (4, "d", "D")), Delete(20, (1,)), truncated_at=19)]]
        destination.write_events(make_batch(30, pieces))
        destination.write_events(make_batch(40, [[events(table, Update(30, (4, "later", "L")))]]))
        before = destination.read_table(table).read_all()
        result = destination.write_events(make_batch(30, pieces))
        assert destination.read_table(table).read_all().equals(before)
        assert result.changes == {table.id: 0}
        assert destination.positions() == {table.id: 40}

    def test_the_part_of_a_batch_that_the_watermark_covers_is_dropped(
        self, destination: Destination, table: TableSchema
    ) -> None:
        first, second = Insert(20, (4, "d", "D")), Update(30, (4, "e", "E"))
        destination.write_events(make_batch(30, [[events(table, first)]]))
        result = destination.write_events(make_batch(40, [[events(table, first, second)]]))
        assert result.changes == {table.id: 1}
        assert (4, "e", "E") in content(destination, table)

    def test_a_commit_right_at_the_watermark_is_new(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(make_batch(20, [[events(table, Insert(15, (4, "d", "D")))]]))
        destination.write_events(make_batch(30, [[events(table, Insert(20, (5, "e", "E")))]]))
        assert content(destination, table)[-2:] == [(4, "d", "D"), (5, "e", "E")]

    def test_a_batch_whose_source_fails_changes_nothing(self, place: Place, table: TableSchema) -> None:
        pieces = [[events(table, Delete(20, (1,)))], [events(table, truncated_at=21)]]
        before = content(place.destination, table)
        with pytest.raises(RuntimeError, match="source"):
            place.destination.write_events(failing_batch(30, pieces, lambda: RuntimeError("source gone")))
        destination = place.reopen()
        assert content(destination, table) == before
        assert destination.positions() == {table.id: 10}
        destination.write_events(make_batch(30, pieces))
        assert content(destination, table) == []

    def test_an_empty_batch_raises_watermarks_only(self, destination: Destination, table: TableSchema) -> None:
        before = content(destination, table)
        destination.write_events(make_batch(50, [], {table: Route()}))
        assert destination.positions() == {table.id: 50}
        destination.write_events(make_batch(40, [], {table: Route()}))
        assert destination.positions() == {table.id: 50}
        assert content(destination, table) == before

    def test_a_batch_spans_several_tables(self, destination: Destination, table: TableSchema) -> None:
        other = make_table("customers", schema="crm")
        copied(destination, other, [(1, "o", "O")], copy_id="c1")
        piece = [events(table, Delete(20, (1,))), events(other, Insert(20, (2, "p", "P")))]
        result = destination.write_events(make_batch(30, [piece]))
        assert result.changes == {table.id: 1, other.id: 1}
        assert content(destination, other) == [(1, "o", "O"), (2, "p", "P")]
        assert destination.positions() == {table.id: 30, other.id: 30}

    def test_everything_is_there_after_reopening(self, place: Place, table: TableSchema) -> None:
        place.destination.write_events(make_batch(30, [[events(table, Delete(20, (1,)))]]))
        destination = place.reopen()
        assert content(destination, table) == [(2, "b", "B"), (3, "c", "C")]
        assert destination.positions() == {table.id: 30}

    def test_truncate_table_empties_a_live_table_and_keeps_its_watermark(
        self, destination: Destination, table: TableSchema
    ) -> None:
        destination.truncate_table(table)
        destination.truncate_table(table)
        assert content(destination, table) == []
        assert destination.positions() == {table.id: 10}

    def test_drop_table_removes_it(self, destination: Destination, table: TableSchema) -> None:
        destination.drop_table(table.id)
        destination.drop_table(table.id)
        assert destination.positions() == {}
        with pytest.raises(EtlError):
            destination.read_table(table).read_all()

    def test_changes_of_a_table_that_is_not_there_are_left_out(
        self, destination: Destination, table: TableSchema
    ) -> None:
        destination.drop_table(table.id)
        result = destination.write_events(make_batch(30, [[events(table, Insert(20, (1, "a", "A")))]]))
        assert result.changes == {table.id: 0}
        assert destination.positions() == {}
