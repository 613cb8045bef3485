"""Tables that keep deleted rows."""

from __future__ import annotations

import pytest

from etl_dagster.arrow.changes import lsn_number
from etl_dagster.destinations.base import Destination
from etl_dagster.errors import RowIncomplete
from etl_dagster.model import CopyTarget, Landing, Lsn, TableSchema
from etl_dagster.testing.change_script import (
    TEXT,
    UNCHANGED,
    Delete,
    Insert,
    Op,
    Update,
    altered,
    events,
    make_batch,
    make_table,
    to_log,
)
from etl_dagster.testing.destination_contract.place import (
    Place,
    Suite,
    chunk,
    copied,
    landed,
    origin,
    present,
)


class SoftDeleteContract(Suite):
    """A deleted row stays as it was, marked."""

    @pytest.fixture
    def table(self) -> TableSchema:
        return make_table(landing=Landing.SOFT_DELETE)

    @pytest.fixture(autouse=True)
    def copy_first(self, destination: Destination, table: TableSchema) -> None:
        copied(destination, table, [(1, "a", "A"), (2, "b", "B")])

    def test_a_deleted_row_keeps_its_values(self, place: Place, table: TableSchema) -> None:
        place.destination.write_events(make_batch(30, [[events(table, Insert(20, (3, "c", "C")), Delete(21, (1,)))]]))
        destination = place.reopen()
        assert landed(destination, table) == [
            ("copy", 10, 2, "b", "B"),
            ("insert", 20, 3, "c", "C"),
            ("delete", 21, 1, "a", "A"),
        ]
        assert present(destination, table) == [(2, "b", "B"), (3, "c", "C")]

    def test_a_deleted_row_says_when_it_was_deleted(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(make_batch(30, [[events(table, Insert(20, (3, "c", "C")), Delete(20, (1,)))]]))
        assert origin(destination, table)[1] == ("delete", lsn_number(20, 1))
        row = destination.read_table(table).read_all().to_pylist()
        assert {each["id"]: each["_TIMESTAMP"].timestamp() for each in row}[1] == 20

    @pytest.mark.parametrize("batches", [1, 2, 4])
    def test_deletes_come_out_the_same_however_they_are_split(
        self, destination: Destination, table: TableSchema, batches: int
    ) -> None:
        ops: list[Op] = [
            Insert(20, (3, "c", "C")),
            Update(30, (3, "cc", UNCHANGED)),
            Update(40, (4, "d", UNCHANGED), old=(3,)),
            Delete(50, (4,)),
        ]
        size = len(ops) // batches
        for i in range(0, len(ops), size):
            part = ops[i : i + size]
            destination.write_events(make_batch(part[-1].lsn + 5, [[events(table, *part)]]))
        assert landed(destination, table)[2:] == [("delete", 40, 3, "cc", "C"), ("delete", 50, 4, "d", "C")]

    def test_the_pieces_of_a_batch_are_one_sequence(self, destination: Destination, table: TableSchema) -> None:
        pieces = [
            [events(table, Update(20, (1, "x", UNCHANGED)), Insert(20, (3, "c", "C")))],
            [events(table, Update(21, (5, "y", UNCHANGED), old=(1,)), Delete(21, (3,)))],
            [events(table, Delete(22, (5,)), Insert(22, (3, "again", "!")))],
        ]
        destination.write_events(make_batch(30, pieces))
        assert landed(destination, table) == [
            ("copy", 10, 2, "b", "B"),
            ("delete", 21, 1, "x", "A"),
            ("delete", 22, 5, "y", "A"),
            ("insert", 22, 3, "again", "!"),
        ]

    def test_a_row_inserted_again_replaces_the_deleted_one(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(make_batch(30, [[events(table, Delete(20, (1,)))]]))
        destination.write_events(make_batch(40, [[events(table, Insert(30, (1, "new", None)))]]))
        assert landed(destination, table) == [("copy", 10, 2, "b", "B"), ("insert", 30, 1, "new", None)]
        ops: list[Op] = [Delete(40, (2,)), Insert(40, (2, "new", "too")), Update(41, (2, "newer", UNCHANGED))]
        destination.write_events(make_batch(50, [[events(table, *ops)]]))
        assert landed(destination, table)[1] == ("update", 41, 2, "newer", "too")

    def test_a_row_that_moves_is_left_behind_as_deleted(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(make_batch(30, [[events(table, Update(20, (9, "x", UNCHANGED), old=(1,)))]]))
        assert landed(destination, table) == [
            ("copy", 10, 2, "b", "B"),
            ("delete", 20, 1, "a", "A"),
            ("update", 20, 9, "x", "A"),
        ]

    def test_a_row_moves_onto_the_key_of_a_deleted_one(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(make_batch(30, [[events(table, Delete(20, (2,)))]]))
        destination.write_events(make_batch(40, [[events(table, Update(30, (2, UNCHANGED, UNCHANGED), old=(1,)))]]))
        assert landed(destination, table) == [("delete", 30, 1, "a", "A"), ("update", 30, 2, "a", "A")]

    def test_rows_swap_their_keys(self, destination: Destination, table: TableSchema) -> None:
        ops: list[Op] = [
            Update(20, (99, "a", UNCHANGED), old=(1,)),
            Update(20, (1, "b", UNCHANGED), old=(2,)),
            Update(20, (2, "a", UNCHANGED), old=(99,)),
        ]
        destination.write_events(make_batch(30, [[events(table, *ops)]]))
        assert sorted(row[2:] for row in landed(destination, table)) == [(1, "b", "B"), (2, "a", "A"), (99, "a", "A")]
        assert origin(destination, table)[99] == ("delete", lsn_number(20, 2))

    def test_a_delete_of_a_row_that_is_not_there_leaves_its_key(
        self, destination: Destination, table: TableSchema
    ) -> None:
        destination.write_events(make_batch(30, [[events(table, Delete(20, (77,)))]]))
        assert ("delete", 20, 77, None, None) in landed(destination, table)

    def test_an_unchanged_value_of_a_row_that_is_not_there_is_refused(
        self, destination: Destination, table: TableSchema
    ) -> None:
        with pytest.raises(RowIncomplete):
            destination.write_events(make_batch(30, [[events(table, Update(20, (77, "x", UNCHANGED)))]]))

    @pytest.mark.parametrize("batches", [1, 2])
    def test_a_new_row_never_takes_a_value_from_the_deleted_one(
        self, destination: Destination, table: TableSchema, batches: int
    ) -> None:
        delete, insert = Delete(20, (1,)), Insert(30, (1, "x", UNCHANGED))
        if batches == 2:
            destination.write_events(make_batch(30, [[events(table, delete)]]))
        with pytest.raises(RowIncomplete):
            destination.write_events(make_batch(40, [[events(table, delete, insert)]]))
        with pytest.raises(RowIncomplete):
            destination.write_events(make_batch(40, [[events(table, delete)], [events(table, insert)]]))

    def test_of_a_new_row_that_is_deleted_what_it_brought_stays(
        self, destination: Destination, table: TableSchema
    ) -> None:
        ops: list[Op] = [Delete(20, (1,)), Insert(21, (1, "x", UNCHANGED)), Delete(22, (1,))]
        destination.write_events(make_batch(30, [[events(table, *ops)]]))
        assert landed(destination, table) == [("copy", 10, 2, "b", "B"), ("delete", 22, 1, "x", None)]

    def test_a_new_row_is_read_again_when_the_table_is_copied_again(
        self, destination: Destination, table: TableSchema
    ) -> None:
        destination.write_events(make_batch(30, [[events(table, Delete(20, (1,)))]]))
        target = CopyTarget(table, "c2")
        destination.truncate_table(target)
        destination.write_table_rows(target, chunk(table, "1", [(2, "b", "B")], seen=35))
        insert = Insert(40, (1, "x", UNCHANGED))
        destination.write_events(make_batch(50, [[events(table, insert)]], to_log(target)))
        undecided = destination.finish_copy(target, Lsn(50)).undecided
        assert undecided is not None
        assert undecided.to_pydict() == {"id": [1]}
        destination.write_table_rows(target, chunk(table, "r1", [(1, "x", "X")], seen=50, reread=True))
        assert destination.finish_copy(target, Lsn(50)).rows == 2
        assert landed(destination, table) == [("copy", 35, 2, "b", "B"), ("insert", 40, 1, "x", "X")]

    def test_a_truncate_marks_all_rows(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(make_batch(30, [[events(table, Delete(20, (1,)))]]))
        piece = [events(table, Insert(31, (2, "new", "N")), Insert(31, (3, "c", "C")), truncated_at=31)]
        destination.write_events(make_batch(40, [piece]))
        destination.write_events(make_batch(50, [[events(table, truncated_at=40)]]))
        destination.write_events(make_batch(60, [[events(table, Insert(50, (3, "back", "C")))]]))
        assert landed(destination, table) == [
            ("delete", 20, 1, "a", "A"),
            ("delete", 40, 2, "new", "N"),
            ("insert", 50, 3, "back", "C"),
        ]

    def test_a_truncate_marks_what_came_before_it_in_the_batch(
        self, destination: Destination, table: TableSchema
    ) -> None:
        pieces = [
            [events(table, Insert(20, (3, "c", "C")), Update(20, (1, "x", UNCHANGED)), Delete(20, (2,)))],
            [events(table, Insert(22, (4, "d", "D")), truncated_at=22)],
        ]
        destination.write_events(make_batch(30, pieces))
        assert landed(destination, table) == [
            ("delete", 20, 2, "b", "B"),
            ("delete", 22, 1, "x", "A"),
            ("delete", 22, 3, "c", "C"),
            ("insert", 22, 4, "d", "D"),
        ]

    def test_a_replayed_batch_changes_nothing(self, destination: Destination, table: TableSchema) -> None:
        pieces = [[events(table, Delete(20, (1,)), Insert(20, (3, "c", "C")), truncated_at=19)]]
        destination.write_events(make_batch(30, pieces))
        destination.write_events(make_batch(40, [[events(table, Insert(30, (1, "later", "L")))]]))
        before = landed(destination, table)
        destination.write_events(make_batch(30, pieces))
        assert landed(destination, table) == before

    def test_deleted_rows_follow_the_columns(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(make_batch(30, [[events(table, Delete(20, (1,)))]]))
        wider = altered(table, rename={"name": "title"}, add={"more": (TEXT, "m")})
        destination.write_events(make_batch(40, [[events(wider, Delete(30, (2,)))]]))
        assert landed(destination, wider) == [("delete", 20, 1, "a", "A", "m"), ("delete", 30, 2, "b", "B", "m")]

    def test_copying_again_keeps_what_was_deleted(self, place: Place, table: TableSchema) -> None:
        place.destination.write_events(make_batch(30, [[events(table, Delete(20, (1,)), Insert(21, (3, "c", "C")))]]))
        target = CopyTarget(table, "c2")
        place.destination.truncate_table(target)
        place.destination.write_table_rows(target, chunk(table, "1", [(2, "b", "B"), (4, "d", "D")], seen=50))
        assert place.destination.finish_copy(target, Lsn(50)).rows == 4
        assert landed(place.reopen(), table) == [
            ("copy", 50, 2, "b", "B"),
            ("copy", 50, 4, "d", "D"),
            ("delete", 20, 1, "a", "A"),
            ("delete", 50, 3, "c", "C"),
        ]

    def test_a_row_that_is_back_replaces_its_deleted_one_when_copied_again(
        self, destination: Destination, table: TableSchema
    ) -> None:
        destination.write_events(make_batch(30, [[events(table, Delete(20, (1,)), Delete(20, (2,)))]]))
        copied_rows = [(1, "back", "A")]
        target = CopyTarget(table, "c2")
        destination.truncate_table(target)
        destination.write_table_rows(target, chunk(table, "1", copied_rows, seen=50))
        assert destination.finish_copy(target, Lsn(50)).rows == 2
        assert landed(destination, table) == [("copy", 50, 1, "back", "A"), ("delete", 20, 2, "b", "B")]
        assert destination.finish_copy(target, Lsn(50)).rows == 2

    def test_copying_again_keeps_deleted_rows_in_the_columns_that_remain(
        self, destination: Destination, table: TableSchema
    ) -> None:
        changed = altered(table, drop=["body"], rename={"name": "title"}, add={"more": TEXT})
        target = CopyTarget(changed, "c2")
        destination.truncate_table(target)
        destination.write_table_rows(target, chunk(changed, "1", [(2, "b", "m")], seen=50))
        assert destination.finish_copy(target, Lsn(50)).rows == 2
        assert landed(destination, changed) == [("copy", 50, 2, "b", "m"), ("delete", 50, 1, "a", None)]

    def test_deletes_while_the_table_is_copied_again(self, destination: Destination, table: TableSchema) -> None:
        target = CopyTarget(table, "c2")
        destination.truncate_table(target)
        destination.write_table_rows(target, chunk(table, "1", [(1, "a", "A"), (3, "staged", "S")], seen=15))
        # The snapshot saw row 3 before the stream did, and not row 2, which only the live table still knows.
        ops: list[Op] = [Delete(20, (2,)), Insert(21, (3, "c", "C")), Delete(22, (3,)), Delete(23, (1,))]
        destination.write_events(make_batch(30, [[events(table, *ops)]], to_log(target, live=True)))
        assert destination.finish_copy(target, Lsn(30)).rows == 3
        assert landed(destination, table) == [
            ("delete", 20, 2, "b", "B"),
            ("delete", 22, 3, "c", "C"),
            ("delete", 23, 1, "a", "A"),
        ]

    def test_a_first_copy_keeps_rows_deleted_meanwhile(self, destination: Destination) -> None:
        table = make_table("first", landing=Landing.SOFT_DELETE)
        target = CopyTarget(table, "c5")
        destination.truncate_table(target)
        destination.write_table_rows(target, chunk(table, "1", [(1, "a", "A"), (2, "b", "B")], seen=15))
        ops: list[Op] = [
            Delete(20, (1,)),
            Delete(21, (7,)),
            Update(22, (8, "b", UNCHANGED), old=(2,)),
            Delete(23, (8,)),
        ]
        destination.write_events(make_batch(30, [[events(table, *ops)]], to_log(target)))
        assert destination.finish_copy(target, Lsn(30)).rows == 4
        assert landed(destination, table) == [
            ("delete", 20, 1, "a", "A"),
            ("delete", 21, 7, None, None),
            ("delete", 22, 2, "b", "B"),
            ("delete", 23, 8, "b", None),
        ]
