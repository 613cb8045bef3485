"""Live tables whose columns follow the source."""

from __future__ import annotations

import pyarrow as pa
import pytest

from etl_dagster.arrow.changes import missing_value
from etl_dagster.destinations.base import Destination
from etl_dagster.model import Column, CopyTarget, Lsn, PgType, TableSchema, TypeKind
from etl_dagster.testing.change_script import (
    INT8,
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
    story,
    to_log,
)
from etl_dagster.testing.destination_contract.place import Place, Suite, chunk, content, copied

_INT4 = PgType(oid=23, name="integer")
# Type and text of a value that older rows have.
_MISSING: dict[str, tuple[PgType, str]] = {
    "int8": (INT8, "-9223372036854775808"),
    "text": (TEXT, 'it\'s "odd" \\ {x} % €'),
    "empty text": (TEXT, ""),
    "bool": (PgType(oid=16, name="boolean"), "t"),
    "numeric": (PgType(oid=1700, name="numeric(10,2)", typmod=((10 << 16) | 2) + 4), "-12345678.90"),
    "wide numeric": (PgType(oid=1700, name="numeric(60,5)", typmod=((60 << 16) | 5) + 4), "1" * 50 + ".00001"),
    "float8": (PgType(oid=701, name="double precision"), "1e-300"),
    "timestamptz": (PgType(oid=1184, name="timestamp with time zone"), "2024-05-06 07:08:09.123456+00"),
    "date": (PgType(oid=1082, name="date"), "1999-12-31"),
    "time": (PgType(oid=1083, name="time"), "23:59:59.999999"),
    "interval": (PgType(oid=1186, name="interval"), "1 year 2 mons 3 days 04:05:06"),
    "bytea": (PgType(oid=17, name="bytea"), "\\x00ff27"),
    "uuid": (PgType(oid=2950, name="uuid"), "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "jsonb": (PgType(oid=3802, name="jsonb"), '{"a": [1, "it\'s"]}'),
    "int4s": (PgType(oid=1007, name="integer[]", kind=TypeKind.ARRAY, element=_INT4), "{1,NULL,3}"),
    "texts": (PgType(oid=1009, name="text[]", kind=TypeKind.ARRAY, element=TEXT), '{"a,b","it\'s","\\"q\\"",NULL,""}'),
    "range": (PgType(oid=3904, name="int4range", kind=TypeKind.RANGE), "[1,5)"),
}


class ColumnContract(Suite):
    """Columns come, go and change their names, and no row takes harm."""

    @pytest.fixture(autouse=True)
    def copy_first(self, destination: Destination, table: TableSchema) -> None:
        copied(destination, table, [(1, "a", "A"), (2, "b", "B")])

    def test_an_added_column_is_null_in_older_rows(self, place: Place, table: TableSchema) -> None:
        wider = altered(table, add={"more": INT8})
        place.destination.write_events(make_batch(30, [[events(wider, Insert(20, (3, "c", "C", 7)))]]))
        destination = place.reopen()
        assert content(destination, wider) == [(1, "a", "A", None), (2, "b", "B", None), (3, "c", "C", 7)]
        destination.write_events(make_batch(40, [[events(wider, Update(30, (1, "x", UNCHANGED, 8)))]]))
        assert content(destination, wider)[0] == (1, "x", "A", 8)

    @pytest.mark.parametrize("name", sorted(_MISSING))
    def test_an_added_column_has_its_missing_value_in_older_rows(
        self, place: Place, table: TableSchema, name: str
    ) -> None:
        wider = altered(table, add={"more": _MISSING[name]})
        place.destination.write_events(make_batch(30, [[events(wider, Insert(20, (3, "c", "C", None)))]]))
        found = place.reopen().read_table(wider).read_all().sort_by("id").column("more").combine_chunks()
        value = missing_value(wider.columns[-1])
        assert _same(found.slice(0, 1), value)
        assert _same(found.slice(1, 1), value)
        assert found.slice(2, 1).null_count == 1

    def test_rows_of_before_the_column_have_its_missing_value_within_one_batch(
        self, destination: Destination, table: TableSchema
    ) -> None:
        wider = altered(table, add={"more": (TEXT, "m")})
        before: list[Op] = [Insert(20, (3, "c", "C")), Update(20, (1, "x", UNCHANGED))]
        after: list[Op] = [Update(21, (3, "cc", UNCHANGED, "set")), Insert(21, (4, "d", "D", None))]
        destination.write_events(make_batch(30, [[story((table, before), (wider, after))]]))
        assert content(destination, wider) == [
            (1, "x", "A", "m"),
            (2, "b", "B", "m"),
            (3, "cc", "C", "set"),
            (4, "d", "D", None),
        ]

    def test_a_schema_changes_between_the_pieces_of_a_batch(self, destination: Destination, table: TableSchema) -> None:
        wider = altered(table, add={"more": (TEXT, "m")})
        last = altered(wider, drop=["body"], rename={"name": "title"})
        pieces = [
            [events(table, Insert(20, (3, "c", "C")), Update(20, (9, "a", UNCHANGED), old=(1,)))],
            [events(wider, Update(21, (3, "cc", UNCHANGED, UNCHANGED)), Insert(21, (4, "d", "D", "x")))],
            [events(last, Update(22, (9, "aa", UNCHANGED)), Delete(22, (4,)), Insert(23, (5, "e", "y")))],
        ]
        destination.write_events(make_batch(30, pieces))
        assert content(destination, last) == [(2, "b", "m"), (3, "cc", "m"), (5, "e", "y"), (9, "aa", "m")]

    def test_a_renamed_column_keeps_its_values(self, destination: Destination, table: TableSchema) -> None:
        renamed = altered(table, rename={"body": "content", "id": "key"})
        ops: list[Op] = [Update(20, (1, "x", UNCHANGED)), Delete(20, (2,)), Insert(20, (3, "c", "C"))]
        destination.write_events(make_batch(30, [[events(renamed, *ops)]]))
        assert content(destination, renamed) == [(1, "x", "A"), (3, "c", "C")]

    def test_a_column_changes_the_case_of_its_name(self, destination: Destination, table: TableSchema) -> None:
        renamed = altered(table, rename={"body": "Body"})
        destination.write_events(make_batch(30, [[events(renamed, Update(20, (1, "x", UNCHANGED)))]]))
        assert content(destination, renamed) == [(1, "x", "A"), (2, "b", "B")]

    def test_columns_swap_their_names(self, place: Place, table: TableSchema) -> None:
        swapped = altered(table, rename={"name": "body", "body": "name"})
        place.destination.write_events(make_batch(30, [[events(swapped, Update(20, (1, "x", UNCHANGED)))]]))
        found = place.reopen().read_table(swapped).read_all().sort_by("id").to_pylist()
        assert [(row["body"], row["name"]) for row in found] == [("x", "A"), ("b", "B")]

    def test_a_new_column_takes_the_name_of_a_renamed_one(self, destination: Destination, table: TableSchema) -> None:
        changed = altered(table, rename={"body": "old_body"}, add={"body": (INT8, "5")})
        destination.write_events(make_batch(30, [[events(changed, Insert(20, (3, "c", "C", 6)))]]))
        assert content(destination, changed) == [(1, "a", "A", 5), (2, "b", "B", 5), (3, "c", "C", 6)]

    def test_a_dropped_column_is_kept_and_null_from_then_on(self, destination: Destination, table: TableSchema) -> None:
        narrower = altered(table, drop=["body"])
        destination.write_events(make_batch(30, [[events(narrower, Insert(20, (3, "c")), Update(20, (1, "x")))]]))
        assert content(destination, narrower) == [(1, "x"), (2, "b"), (3, "c")]
        assert content(destination, table) == [(1, "x", None), (2, "b", "B"), (3, "c", None)]

    def test_a_column_of_the_same_name_comes_after_one_was_dropped(
        self, destination: Destination, table: TableSchema
    ) -> None:
        narrower = altered(table, drop=["body"])
        again = altered(narrower, add={"body": (INT8, "5")})
        destination.write_events(make_batch(30, [[events(narrower, Insert(20, (3, "c")))]]))
        destination.write_events(make_batch(40, [[events(again, Insert(30, (4, "d", 6)))]]))
        assert content(destination, again) == [(1, "a", 5), (2, "b", 5), (3, "c", 5), (4, "d", 6)]
        thrice = altered(again, drop=["body"], add={"body": TEXT})
        destination.write_events(make_batch(50, [[events(thrice, Update(40, (1, "x", "X")))]]))
        assert content(destination, thrice) == [(1, "x", "X"), (2, "b", None), (3, "c", None), (4, "d", None)]

    def test_a_column_is_dropped_and_added_again_at_once(self, place: Place, table: TableSchema) -> None:
        again = altered(table, drop=["body"], add={"body": TEXT})
        place.destination.write_events(make_batch(30, [[events(again, Insert(20, (3, "c", "C")))]]))
        assert content(place.reopen(), again) == [(1, "a", None), (2, "b", None), (3, "c", "C")]

    def test_a_renamed_column_takes_the_name_of_a_dropped_one(
        self, destination: Destination, table: TableSchema
    ) -> None:
        changed = altered(table, drop=["body"], rename={"name": "body"})
        destination.write_events(make_batch(30, [[events(changed, Insert(20, (3, "c")))]]))
        assert content(destination, changed) == [(1, "a"), (2, "b"), (3, "c")]

    def test_many_changes_of_the_schema_mixed_with_rows(self, destination: Destination, table: TableSchema) -> None:
        first = altered(table, add={"x": (INT8, "1"), "y": TEXT})
        second = altered(first, drop=["name"], rename={"body": "name", "x": "body"})
        third = altered(second, drop=["y"], add={"x": (TEXT, "new")})
        whole = story(
            (table, [Update(20, (1, "aa", UNCHANGED)), Insert(20, (3, "c", "C"))]),
            (first, [Insert(20, (4, "d", "D", 4, "Y")), Update(20, (8, "bb", UNCHANGED, 2, "Z"), old=(2,))]),
            (second, [Update(21, (3, UNCHANGED, 33, "YY")), Delete(21, (4,))]),
            (third, [Insert(22, (5, "E", 55, "fifth")), Update(22, (8, UNCHANGED, 22, UNCHANGED))]),
        )
        destination.write_events(make_batch(30, [[whole]]))
        assert content(destination, third) == [
            (1, "A", 1, "new"),
            (3, "C", 33, "new"),
            (5, "E", 55, "fifth"),
            (8, "B", 22, "new"),
        ]

    def test_a_truncate_and_a_new_schema_come_together(self, destination: Destination, table: TableSchema) -> None:
        wider = altered(table, add={"more": (TEXT, "m")})
        piece = [events(wider, Insert(20, (3, "c", "C", "x")), truncated_at=20)]
        destination.write_events(make_batch(30, [piece]))
        assert content(destination, wider) == [(3, "c", "C", "x")]

    def test_a_schema_that_comes_without_changes_is_followed(self, place: Place, table: TableSchema) -> None:
        wider = altered(table, rename={"body": "content"}, add={"more": (TEXT, "m")})
        place.destination.write_events(make_batch(30, [[events(wider)]]))
        assert content(place.reopen(), wider) == [(1, "a", "A", "m"), (2, "b", "B", "m")]

    def test_a_replayed_batch_never_undoes_newer_columns(self, destination: Destination, table: TableSchema) -> None:
        wider = altered(table, add={"body2": (TEXT, "m")})
        last = altered(wider, drop=["body"], rename={"body2": "body"})
        first = [[events(table, Insert(20, (3, "c", "C")))], [events(wider, Insert(21, (4, "d", "D", "x")))]]
        batches = [(30, first), (35, [[events(wider)]]), (50, [[events(last, Insert(40, (5, "e", "y")))]])]
        for position, pieces in batches:
            destination.write_events(make_batch(position, pieces))
        before = destination.read_table(last).read_all().sort_by("id")
        for position, pieces in batches:
            destination.write_events(make_batch(position, pieces))
            assert destination.read_table(last).read_all().sort_by("id").equals(before)
        assert destination.positions() == {table.id: 50}

    def test_a_batch_half_of_which_is_covered_follows_only_the_rest(
        self, destination: Destination, table: TableSchema
    ) -> None:
        last = altered(table, drop=["body"], add={"body": (TEXT, "m")})
        destination.write_events(make_batch(30, [[events(last, Insert(25, (3, "c", "C")))]]))
        pieces = [[events(table, Insert(20, (9, "no", "NO")))], [events(last, Insert(30, (4, "d", "D")))]]
        destination.write_events(make_batch(40, pieces))
        assert content(destination, last) == [(1, "a", "m"), (2, "b", "m"), (3, "c", "C"), (4, "d", "D")]

    def test_an_older_schema_undoes_nothing(self, destination: Destination, table: TableSchema) -> None:
        last = altered(table, drop=["body"], rename={"name": "title"}, add={"body": (TEXT, "m")})
        destination.write_events(make_batch(30, [[events(last, Insert(25, (3, "c", "C")))]]))
        pieces = [
            [events(table)],
            [events(table, Insert(31, (4, "d", "gone")), Update(31, (3, "cc", UNCHANGED)))],
            [events(last, Update(32, (3, UNCHANGED, "CC")))],
        ]
        destination.write_events(make_batch(40, pieces))
        assert content(destination, last) == [(1, "a", "m"), (2, "b", "m"), (3, "cc", "CC"), (4, "d", "m")]

    def test_other_tables_keep_their_columns(self, destination: Destination, table: TableSchema) -> None:
        other = make_table("customers")
        copied(destination, other, [(1, "o", "O")], copy_id="c1")
        wider = altered(table, add={"more": TEXT})
        destination.write_events(make_batch(30, [[events(wider), events(other, Insert(20, (2, "p", "P")))]]))
        assert content(destination, other) == [(1, "o", "O"), (2, "p", "P")]

    def test_the_log_of_a_copy_leaves_out_changes_of_other_schemas(
        self, destination: Destination, table: TableSchema
    ) -> None:
        target = CopyTarget(table, "c2")
        destination.truncate_table(target)
        destination.write_table_rows(target, chunk(table, "1", [(1, "a", "A")]))
        wider = altered(table, add={"more": TEXT})
        whole = story((table, [Insert(20, (3, "c", "C"))]), (wider, [Insert(21, (4, "d", "D", "x"))]))
        destination.write_events(make_batch(30, [[whole]], to_log(target, live=True)))
        assert content(destination, wider)[-1] == (4, "d", "D", "x")
        assert destination.finish_copy(target, Lsn(30)).rows == 2
        assert content(destination, table) == [(1, "a", "A"), (3, "c", "C")]

    def test_a_new_copy_brings_its_own_columns(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(make_batch(30, [[events(altered(table, add={"more": TEXT}))]]))
        columns = (*table.columns[:1], Column(attnum=9, name="name", type=INT8))
        other = table.model_copy(update={"columns": columns, "natts": 9})
        copied(destination, other, [(1, 5)], copy_id="c2", at=40)
        destination.write_events(make_batch(50, [[events(other, Insert(45, (2, 6)))]]))
        assert content(destination, other) == [(1, 5), (2, 6)]


def _same(found: pa.Array, expected: pa.Array) -> bool:
    return bool(found.type == expected.type and found.equals(expected))
