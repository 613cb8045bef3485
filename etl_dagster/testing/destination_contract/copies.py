"""Copies of tables that change meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from etl_dagster.destinations.base import ChunkRows, Destination
from etl_dagster.errors import DestinationError
from etl_dagster.model import CDC_COLUMNS, CopyTarget, Lsn, TableSchema
from etl_dagster.testing.change_script import (
    UNCHANGED,
    Delete,
    Insert,
    Op,
    Update,
    events,
    make_batch,
    rows_batch,
    to_log,
)
from etl_dagster.testing.destination_contract.place import TAKEN_AT, Place, Suite, chunk, content, copied, origin


class CopyContract(Suite):
    """Copies of tables that change meanwhile."""

    @pytest.fixture
    def target(self, destination: Destination, table: TableSchema) -> CopyTarget:
        target = CopyTarget(table, "c1")
        destination.truncate_table(target)
        return target

    def test_a_copy_of_no_rows_makes_an_empty_table(self, destination: Destination, target: CopyTarget) -> None:
        destination.write_table_rows(target, chunk(target.table, "1", []))
        assert destination.finish_copy(target, Lsn(10)).rows == 0
        found = destination.read_table(target.table).read_all()
        assert found.num_rows == 0
        assert found.column_names == ["id", "name", "body", *CDC_COLUMNS]
        assert destination.positions() == {target.table.id: 10}

    def test_a_copy_is_invisible_until_it_is_finished(self, destination: Destination, target: CopyTarget) -> None:
        destination.write_table_rows(target, chunk(target.table, "1", [(1, "a", "A")]))
        assert destination.positions() == {}

    def test_a_chunk_is_staged_once(self, place: Place, target: CopyTarget) -> None:
        rows = [(1, "a", "A"), (2, "b", "B")]
        assert place.destination.write_table_rows(target, chunk(target.table, "1", rows)) == 2
        destination = place.reopen()
        assert destination.write_table_rows(target, chunk(target.table, "1", rows)) == 2
        assert destination.finish_copy(target, Lsn(10)).rows == 2

    def test_a_chunk_whose_source_fails_is_not_staged(self, place: Place, target: CopyTarget) -> None:
        def rows() -> Iterator[pa.RecordBatch]:
            yield rows_batch(target.table, [(1, "a", "A")])
            raise RuntimeError("source gone")

        with pytest.raises(RuntimeError, match="source gone"):
            place.destination.write_table_rows(target, ChunkRows("1", Lsn(1), TAKEN_AT, rows()))
        destination = place.reopen()
        assert destination.write_table_rows(target, chunk(target.table, "1", [(1, "a", "A")])) == 1
        assert destination.finish_copy(target, Lsn(10)).rows == 1

    def test_beginning_again_keeps_what_is_staged(self, place: Place, target: CopyTarget) -> None:
        place.destination.write_table_rows(target, chunk(target.table, "1", [(1, "a", "A")]))
        destination = place.reopen()
        destination.truncate_table(target)
        assert destination.finish_copy(target, Lsn(10)).rows == 1

    def test_a_new_copy_discards_an_unfinished_one(self, destination: Destination, target: CopyTarget) -> None:
        destination.write_table_rows(target, chunk(target.table, "1", [(1, "a", "A")]))
        copied(destination, target.table, [(2, "b", "B")], copy_id="c2")
        assert content(destination, target.table) == [(2, "b", "B")]
        with pytest.raises(DestinationError):
            destination.write_table_rows(target, chunk(target.table, "2", []))

    def test_a_copy_that_was_not_begun_is_refused(self, destination: Destination, table: TableSchema) -> None:
        unknown = CopyTarget(table, "unknown")
        with pytest.raises(DestinationError):
            destination.write_table_rows(unknown, chunk(table, "1", []))
        with pytest.raises(DestinationError):
            destination.finish_copy(unknown, Lsn(10))
        with pytest.raises(DestinationError):
            destination.write_events(make_batch(10, [], to_log(unknown)))

    def test_finishing_again_changes_nothing(self, place: Place, target: CopyTarget) -> None:
        place.destination.write_table_rows(target, chunk(target.table, "1", [(1, "a", "A")]))
        place.destination.finish_copy(target, Lsn(10))
        destination = place.reopen()
        destination.write_events(make_batch(30, [[events(target.table, Delete(20, (1,)))]]))
        assert destination.finish_copy(target, Lsn(10)).rows == 1
        assert content(destination, target.table) == []
        assert destination.positions() == {target.table.id: 30}

    def test_chunks_are_staged_by_several_threads_at_once(self, destination: Destination, target: CopyTarget) -> None:
        def stage(number: int) -> int:
            rows = [(number * 100 + i, "a", "A") for i in range(100)]
            return destination.write_table_rows(target, chunk(target.table, str(number), rows))

        with ThreadPoolExecutor(destination.capabilities.concurrent_copies) as threads:
            assert list(threads.map(stage, range(8))) == [100] * 8
        assert destination.finish_copy(target, Lsn(10)).rows == 800

    def test_the_log_has_the_last_word(self, destination: Destination, target: CopyTarget) -> None:
        table = target.table
        destination.write_table_rows(target, chunk(table, "1", [(1, "a", "A"), (2, "b", "B"), (3, "c", "C")]))
        ops: list[Op] = [
            Insert(20, (4, "d", "D")),
            Update(20, (1, "x", "X")),
            Delete(21, (2,)),
            Update(22, (30, "c", "C"), old=(3,)),
        ]
        destination.write_events(make_batch(30, [[events(table, *ops)]], to_log(target)))
        assert destination.positions() == {}
        destination.write_table_rows(target, chunk(table, "2", [(4, "d", "D"), (10, "j", "J")]))
        assert destination.finish_copy(target, Lsn(30)).rows == 4
        assert content(destination, table) == [(1, "x", "X"), (10, "j", "J"), (30, "c", "C"), (4, "d", "D")]
        assert origin(destination, table)[1] == ("update", (0x14 << 32) + 1)

    def test_a_replayed_batch_is_logged_once(self, destination: Destination, target: CopyTarget) -> None:
        ops: list[Op] = [Update(20, (1, "x", "X")), Update(20, (2, "x", "X"), old=(1,))]
        for _ in range(2):
            destination.write_events(make_batch(30, [[events(target.table, *ops)]], to_log(target)))
        ops = [Update(30, (3, "x", "X"), old=(2,))]
        destination.write_events(make_batch(40, [[events(target.table, *ops)]], to_log(target)))
        destination.finish_copy(target, Lsn(40))
        assert content(destination, target.table) == [(3, "x", "X")]

    def test_a_row_that_two_chunks_saw_stands_once(self, destination: Destination, target: CopyTarget) -> None:
        destination.write_table_rows(target, chunk(target.table, "1", [(1, "a", "A")]))
        destination.write_events(
            make_batch(30, [[events(target.table, Update(20, (1, "x", UNCHANGED)))]], to_log(target))
        )
        destination.write_table_rows(target, chunk(target.table, "2", [(1, "x", "A")]))
        assert destination.finish_copy(target, Lsn(30)).rows == 1
        assert content(destination, target.table) == [(1, "x", "A")]

    def test_a_truncate_forgets_staged_rows_and_late_chunks(self, destination: Destination, target: CopyTarget) -> None:
        table = target.table
        destination.write_table_rows(target, chunk(table, "1", [(1, "a", "A")]))
        destination.write_events(make_batch(20, [[events(table, Insert(15, (2, "b", "B")))]], to_log(target)))
        piece = [events(table, Insert(20, (3, "c", "C")), truncated_at=20)]
        destination.write_events(make_batch(30, [piece], to_log(target)))
        destination.write_table_rows(target, chunk(table, "2", [(1, "a", "A"), (3, "c", "C")]))
        assert destination.finish_copy(target, Lsn(30)).rows == 1
        assert content(destination, table) == [(3, "c", "C")]

    def test_a_moved_row_with_an_unchanged_value_is_undecided_until_it_is_read_again(
        self, place: Place, target: CopyTarget
    ) -> None:
        table, destination = target.table, place.destination
        # Row 1 moved onto key 2, whose former row the chunk saw: its body must not pass for that of the moved row.
        destination.write_table_rows(target, chunk(table, "1", [(1, "a", "A"), (2, "b", "B")]))
        ops: list[Op] = [Delete(20, (2,)), Update(21, (2, "a", UNCHANGED), old=(1,))]
        destination.write_events(make_batch(30, [[events(table, *ops)]], to_log(target)))
        result = destination.finish_copy(target, Lsn(30))
        assert result.rows is None
        assert result.undecided is not None
        assert result.undecided.to_pydict() == {"id": [2]}
        destination = place.reopen()
        assert destination.positions() == {}
        stale = chunk(table, "r0", [(2, "b", "B")], seen=15, reread=True)
        destination.write_table_rows(target, stale)
        assert destination.finish_copy(target, Lsn(30)).undecided is not None
        destination.write_table_rows(target, chunk(table, "r1", [(2, "a", "A")], seen=35, reread=True))
        assert destination.finish_copy(target, Lsn(40)).rows == 1
        assert content(destination, table) == [(2, "a", "A")]

    @pytest.mark.parametrize("deleted", [False, True])
    def test_a_new_row_with_an_unchanged_value_is_undecided_until_it_is_read_again(
        self, destination: Destination, target: CopyTarget, deleted: bool
    ) -> None:
        table = target.table
        # The chunk saw another row under this key, and so did a read that began before the new one came.
        destination.write_table_rows(target, chunk(table, "1", [(1, "a", "A"), (2, "b", "B")]))
        ops: list[Op] = [Insert(21, (2, "x", UNCHANGED))]
        if deleted:
            ops = [Update(19, (2, "b", "BB")), Delete(20, (2,)), *ops, Update(22, (2, "y", UNCHANGED))]
        destination.write_events(make_batch(30, [[events(table, *ops)]], to_log(target)))
        undecided = destination.finish_copy(target, Lsn(30)).undecided
        assert undecided is not None
        assert undecided.to_pydict() == {"id": [2]}
        destination.write_table_rows(target, chunk(table, "r0", [(2, "b", "B")], seen=21, reread=True))
        assert destination.finish_copy(target, Lsn(30)).undecided is not None
        destination.write_table_rows(target, chunk(table, "r1", [(2, "x", "X")], seen=30, reread=True))
        assert destination.finish_copy(target, Lsn(30)).rows == 2
        assert content(destination, table) == [(1, "a", "A"), (2, "y" if deleted else "x", "X")]

    def test_a_row_that_no_chunk_saw_is_undecided(self, destination: Destination, target: CopyTarget) -> None:
        table = target.table
        ops: list[Op] = [Update(20, (1, "x", UNCHANGED)), Insert(20, (2, "b", "B"))]
        destination.write_events(make_batch(30, [[events(table, *ops)]], to_log(target)))
        undecided = destination.finish_copy(target, Lsn(30)).undecided
        assert undecided is not None
        assert undecided.schema.types == [pa.int64()]
        destination.write_table_rows(target, chunk(table, "r1", [(1, "x", "A")], seen=35, reread=True))
        destination.write_events(make_batch(50, [[events(table, Update(40, (1, "y", UNCHANGED)))]], to_log(target)))
        assert destination.finish_copy(target, Lsn(50)).rows == 2
        assert content(destination, table) == [(1, "y", "A"), (2, "b", "B")]

    def test_the_live_table_stays_current_while_it_is_copied_again(
        self, destination: Destination, table: TableSchema
    ) -> None:
        copied(destination, table, [(1, "a", "A"), (2, "drifted", "")], copy_id="c1")
        target = CopyTarget(table, "c2")
        destination.truncate_table(target)
        piece = [events(table, Update(20, (1, "x", UNCHANGED)))]
        destination.write_events(make_batch(30, [piece], to_log(target, live=True)))
        assert content(destination, table) == [(1, "x", "A"), (2, "drifted", "")]
        destination.write_table_rows(target, chunk(table, "1", [(1, "x", "A"), (3, "c", "C")]))
        assert destination.finish_copy(target, Lsn(30)).rows == 2
        assert content(destination, table) == [(1, "x", "A"), (3, "c", "C")]
        assert destination.positions() == {table.id: 30}

    def test_changes_for_the_log_of_a_finished_copy_reach_the_live_table(
        self, destination: Destination, target: CopyTarget
    ) -> None:
        destination.finish_copy(target, Lsn(10))
        ops: list[Op] = [Insert(20, (1, "a", "A"))]
        destination.write_events(make_batch(30, [[events(target.table, *ops)]], to_log(target)))
        assert content(destination, target.table) == [(1, "a", "A")]
        assert destination.positions() == {target.table.id: 30}

    def test_dropping_a_table_drops_its_copies(self, destination: Destination, target: CopyTarget) -> None:
        destination.drop_table(target.table.id)
        with pytest.raises(DestinationError):
            destination.finish_copy(target, Lsn(10))
