"""The behaviour that every destination owes; authors of destinations run it against theirs.

Provide the fixture ``place`` in a test module and subclass the classes of this one::

    @pytest.fixture
    def place(tmp_path: Path) -> Iterator[Place]:
        place = Place(lambda: MyDestination(MyConfig(path=tmp_path / "x")))
        yield place
        place.close()

    class TestStream(StreamContract): ...
    class TestCopy(CopyContract): ...
    class TestTables(TableContract): ...
    class TestHistory(HistoryContract): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from etl_dagster.arrow.types import arrow_schema
from etl_dagster.destinations.base import ChunkRows, Destination
from etl_dagster.errors import DestinationError, EtlError, TableError
from etl_dagster.model import CDC_COLUMNS, CopyTarget, Lsn, Route, TableSchema
from etl_dagster.testing.change_script import (
    INT8,
    TEXT,
    UNCHANGED,
    Delete,
    Insert,
    Op,
    Update,
    Values,
    change_set,
    events,
    failing_batch,
    make_batch,
    make_table,
    rows_batch,
    to_log,
)
from etl_dagster.testing.replay import History
from etl_dagster.testing.typed_rows import KEY_VALUES, same_rows, typed_rows, typed_table

TAKEN_AT = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


class Place:
    """One place for data, and the destination that is open on it."""

    def __init__(self, create: Callable[[], Destination]) -> None:
        self._create = create
        self.destination = create()
        self.destination.startup()

    def reopen(self) -> Destination:
        """End the destination and begin a new one on the same data, if data outlives it."""
        if self.destination.capabilities.survives_process:
            self.destination.shutdown()
            self.destination = self._create()
            self.destination.startup()
        return self.destination

    def close(self) -> None:
        self.destination.shutdown()


def chunk(
    table: TableSchema, chunk_id: str, rows: Sequence[Values], *, seen: int = 1, reread: bool = False
) -> ChunkRows:
    """One chunk of a copy."""
    return ChunkRows(chunk_id, Lsn(seen), TAKEN_AT, [rows_batch(table, rows)] if rows else [], reread)


def copied(
    place: Destination, table: TableSchema, rows: Sequence[Values], *, copy_id: str = "c0", at: int = 10
) -> None:
    """Copy a table that does not change meanwhile."""
    target = CopyTarget(table, copy_id)
    place.truncate_table(target)
    place.write_table_rows(target, chunk(table, "1", rows, seen=at))
    assert place.finish_copy(target, Lsn(at)).rows == len(rows)


def content(place: Destination, table: TableSchema) -> list[tuple[object, ...]]:
    """The live table's rows without CDC columns, sorted."""
    names = [column.name for column in table.columns]
    found = place.read_table(table).read_all().select(names)
    return sorted(zip(*(column.to_pylist() for column in found.columns), strict=True), key=repr)


def origin(place: Destination, table: TableSchema) -> dict[object, tuple[str, int]]:
    """Change type and LSN of each row by its first column."""
    found = place.read_table(table).read_all()
    columns = [found.column(0), *(found.column(name) for name in CDC_COLUMNS[:2])]
    return {key: (kind, lsn) for key, kind, lsn in zip(*(column.to_pylist() for column in columns), strict=True)}


class _Suite:
    @pytest.fixture
    def destination(self, place: Place) -> Destination:
        return place.destination

    @pytest.fixture
    def table(self) -> TableSchema:
        return make_table()


class StreamContract(_Suite):
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
        with pytest.raises(TableError) as caught:
            destination.write_events(make_batch(30, [[events(table, Update(20, (77, "x", UNCHANGED)))]]))
        assert caught.value.table == str(table.id)
        assert destination.positions() == {table.id: 10}

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


class CopyContract(_Suite):
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


class TableContract(_Suite):
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

    def test_a_table_without_key_is_refused(self, destination: Destination) -> None:
        with pytest.raises(TableError):
            destination.truncate_table(CopyTarget(make_table(key=()), "c1"))

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
        type_, values = KEY_VALUES[type_name]
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
        table, rows = typed_table(), typed_rows()
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
        table, rows = typed_table(), typed_rows()
        empty = [(i, *[None] * (len(table.columns) - 1)) for i in range(rows.num_rows)]
        changes = replace(change_set(table, [Insert(20, row) for row in empty]), rows=rows)
        target = CopyTarget(table, "c1")
        destination.truncate_table(target)
        piece = [replace(events(table), changes=(changes,))]
        destination.write_events(make_batch(30, [piece], to_log(target)))
        destination.finish_copy(target, Lsn(30))
        found = destination.read_table(table).read_all()
        assert same_rows(found.select(rows.column_names), pa.Table.from_batches([rows]), "id")


class HistoryContract(_Suite):
    """Random histories of a table, against what a source would hold."""

    @pytest.mark.parametrize("seed", range(12))
    def test_a_streamed_history_ends_as_at_the_source(self, destination: Destination, seed: int) -> None:
        history = History.random(seed, transactions=60)
        copied(destination, history.table, history.rows_after(-1), at=0)
        for first, last in history.cuts(seed, upto=60):
            destination.write_events(history.batch(first, last, pieces=1 + seed % 3))
            assert content(destination, history.table) == history.sorted_rows(last)

    @pytest.mark.parametrize("seed", range(12))
    def test_a_copy_during_a_history_ends_as_at_the_source(self, place: Place, seed: int) -> None:
        history = History.random(seed + 1000, transactions=80)
        end = history.copy_into(place.destination, seed, place.reopen)
        assert content(place.destination, history.table) == history.sorted_rows(end)
        place.destination.write_events(history.batch(end + 1, 79))
        assert content(place.destination, history.table) == history.sorted_rows(79)


def _keyed(table: TableSchema, keys: pa.Array, *bodies: str | None) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([keys, pa.array(bodies, pa.string())], schema=arrow_schema(table))
