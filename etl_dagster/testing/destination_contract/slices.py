"""Slices of a live table that are copied again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, tzinfo
from itertools import pairwise
from uuid import UUID

import pyarrow as pa
import pytest

from etl_dagster.arrow.types import arrow_schema
from etl_dagster.destinations.base import CopyResult, Destination
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import DestinationError, TableError
from etl_dagster.model import (
    CopyTarget,
    Landing,
    Lsn,
    PgType,
    Route,
    Slice,
    TableEvents,
    TableSchema,
    TypeKind,
    ValuePolicy,
)
from etl_dagster.testing.change_script import (
    INT8,
    TEXT,
    UNCHANGED,
    Delete,
    Insert,
    Op,
    Update,
    Values,
    altered,
    change_set,
    events,
    make_batch,
    make_table,
    rows_batch,
    to_log,
)
from etl_dagster.testing.destination_contract.place import (
    TAKEN_AT,
    Place,
    Suite,
    chunk,
    content,
    copied,
    landed,
    present,
)
from etl_dagster.testing.replay import KEYS, History, lsn_of
from etl_dagster.testing.typed_rows import KEY_VALUES, key_values, same_rows, typed_rows, typed_table

Source = Iterable[Values]


def part(
    table: TableSchema, lower: object = None, upper: object = None, *, column: str = "id", nulls: bool | None = None
) -> Slice:
    """A slice; one without a lower bound has the NULLs, unless it says otherwise."""
    cut = next(each for each in table.columns if each.name == column)
    return Slice(
        name=f"{lower}",
        attnum=cut.attnum,
        type_oid=cut.type.oid,
        lower=None if lower is None else str(lower),
        upper=None if upper is None else str(upper),
        nulls=lower is None if nulls is None else nulls,
    )


def begun(place: Destination, table: TableSchema, *slices: Slice, copy_id: str = "s1") -> CopyTarget:
    """A copy of slices that has begun."""
    target = CopyTarget(table, copy_id, slices)
    place.truncate_table(target)
    return target


def logged(place: Destination, target: CopyTarget, *ops: Op, upto: int = 30, truncated_at: int | None = None) -> None:
    """Changes that come while slices are copied."""
    piece = [events(target.table, *ops, truncated_at=truncated_at)]
    place.write_events(make_batch(upto, [piece], to_log(target, live=True)))


def finished(place: Destination, target: CopyTarget, source: Source = (), *, at: int = 30) -> CopyResult:
    """Finish a copy, reading again what it asks for among the rows of the source."""
    result = place.finish_copy(target, Lsn(at))
    if result.undecided is not None:
        wanted = {tuple(key.values()) for key in result.undecided.to_pylist()}
        rows = [row for row in source if tuple(row[i] for i in target.table.key_indexes) in wanted]
        place.write_table_rows(target, chunk(target.table, "reread", rows, seen=at, reread=True))
        result = place.finish_copy(target, Lsn(at))
    assert result.undecided is None
    return result


def recopied(
    place: Destination, table: TableSchema, rows: Sequence[Values], *slices: Slice, source: Source = ()
) -> int:
    """Copy slices while nothing changes; ``rows`` are theirs, ``source`` the others that the source has."""
    target = begun(place, table, *slices)
    place.write_table_rows(target, chunk(table, "1", rows, seen=20))
    found = finished(place, target, source).rows
    assert found is not None
    return found


def _days(*days: date) -> list[tuple[str, object]]:
    return [(f"{day:%Y-%m-%d}", day) for day in days]


def _moments(zone: tzinfo | None) -> list[tuple[str, object]]:
    suffix = "" if zone is None else "+00"
    texts = ["1969-12-31 23:59:59.999999", "1970-01-01 00:00:00", "2024-02-29 12:00:00", "2024-02-29 12:00:00.000001"]
    return [(text + suffix, datetime.fromisoformat(text).replace(tzinfo=zone)) for text in texts]


# OID, then values in ascending order: the text of each, and the value.
_ASCENDING: dict[str, tuple[int, list[tuple[str, object]]]] = {
    "smallint": (21, [(str(i), i) for i in (-(2**15), -1, 0, 7, 10, 2**15 - 1)]),
    "integer": (23, [(str(i), i) for i in (-(2**31), -1, 0, 7, 10, 2**31 - 1)]),
    "bigint": (20, [(str(i), i) for i in (-(2**63), -1, 0, 7, 10, 2**63 - 1)]),
    "uuid": (2950, [(str(UUID(int=i)), UUID(int=i).bytes) for i in (0, 1, 2**127 - 1, 2**127, 2**128 - 1)]),
    "text": (25, [(text, text) for text in ("", " ", "'", "10", "9", "Z", "a", "a ", "ab", "é", "€", "🚲")]),
    "varchar": (1043, [(text, text) for text in ("", "A", "B", "a", "á")]),
    "date": (1082, _days(date(1, 1, 1), date(1969, 12, 31), date(1970, 1, 1), date(2024, 2, 29))),
    "timestamp": (1114, _moments(None)),
    "timestamptz": (1184, _moments(UTC)),
}
# A bound within the values of `typed_rows`, and the rows of the slice below it, which is the first one.
_MIDDLES = {
    "int2": ("0", {2, 4}),
    "int4": ("0", {2, 4}),
    "int8": ("0", {2, 4}),
    "uuid": ("f0000000-0000-0000-0000-000000000000", {1, 3, 4}),
    "text": ("Z", {1, 3, 4}),
    "date": ("2024-01-01", {2, 3, 4}),
    "timestamp": ("2024-01-01 00:00:00", {2, 3, 4}),
    "timestamptz": ("2024-01-01 00:00:00+00", {2, 3, 4}),
}
_ROWS = [(id_, f"n{id_}", f"b{id_}") for id_ in (1, 9, 10, 15, 19, 20, 30)]
_IN_TENS = [row for row in _ROWS if 10 <= row[0] < 20]


class SliceContract(Suite):
    """The slices end up as the source has them, and the rest of the table stays."""

    @pytest.fixture(autouse=True)
    def copy_first(self, destination: Destination, table: TableSchema) -> None:
        copied(destination, table, _ROWS)

    @pytest.fixture
    def by_number(self, destination: Destination) -> TableSchema:
        """A table whose slices are not those of its key."""
        table = make_table("numbers", columns={"id": INT8, "n": INT8, "body": TEXT})
        copied(destination, table, [(1, 5, "a"), (2, 15, "b"), (3, 18, "c"), (4, 25, "d"), (5, None, "e")], copy_id="n")
        return table

    def test_rows_that_the_source_lacks_are_read_again_then_removed(
        self, destination: Destination, table: TableSchema
    ) -> None:
        target = begun(destination, table, part(table, 10, 20))
        assert destination.write_table_rows(target, chunk(table, "1", [(15, "n15", "b15")], seen=20)) == 1
        before = content(destination, table)
        undecided = destination.finish_copy(target, Lsn(30)).undecided
        assert undecided is not None
        assert undecided.schema.types == [pa.int64()]
        assert sorted(undecided.column(0).to_pylist()) == [10, 19]
        assert content(destination, table) == before
        destination.write_table_rows(target, chunk(table, "r", [(19, "n19", "again")], seen=30, reread=True))
        assert destination.finish_copy(target, Lsn(30)) == CopyResult(rows=1)
        assert content(destination, table) == sorted(
            [*(row for row in _ROWS if row not in _IN_TENS), (15, "n15", "b15"), (19, "n19", "again")], key=repr
        )

    def test_rows_that_drifted_are_corrected(self, place: Place, table: TableSchema) -> None:
        rows = [(10, "n10", None), (15, "n15", "b15"), (16, "lost", ""), (19, "", "b19")]
        assert recopied(place.destination, table, rows, part(table, 10, 20)) == 4
        others = [row for row in _ROWS if row not in _IN_TENS]
        assert content(place.reopen(), table) == sorted([*others, *rows], key=repr)

    def test_what_was_not_asked_for_stays(self, destination: Destination, table: TableSchema) -> None:
        other = make_table("others")
        copied(destination, other, _ROWS, copy_id="o")
        recopied(destination, table, [], part(table, 10, 20))
        assert content(destination, table) == sorted((row for row in _ROWS if row not in _IN_TENS), key=repr)
        assert content(destination, other) == sorted(_ROWS, key=repr)

    def test_the_watermark_stays(self, destination: Destination, table: TableSchema) -> None:
        target = begun(destination, table, part(table, 10, 20))
        logged(destination, target, Insert(20, (11, "n", "b")), upto=25)
        destination.write_table_rows(target, chunk(table, "1", _IN_TENS, seen=20))
        assert destination.copies() == {"s1": 25}
        finished(destination, target, at=40)
        assert destination.positions() == {table.id: 25}
        assert destination.copies() == {}
        destination.write_events(make_batch(50, [[events(table, Insert(25, (12, "n", "b")))]]))
        assert (12, "n", "b") in content(destination, table)

    def test_an_empty_slice(self, destination: Destination, table: TableSchema) -> None:
        assert recopied(destination, table, [], part(table, 100, 200)) == 0
        assert content(destination, table) == sorted(_ROWS, key=repr)

    def test_a_slice_that_only_the_source_has(self, destination: Destination, table: TableSchema) -> None:
        assert recopied(destination, table, [(150, "n", "b")], part(table, 100, 200)) == 1
        assert content(destination, table) == sorted([*_ROWS, (150, "n", "b")], key=repr)

    def test_a_row_that_stands_in_another_slice_at_the_source_is_corrected(
        self, destination: Destination, by_number: TableSchema
    ) -> None:
        # Row 2 stands at 25 and row 1 at 15 at the source.
        rows = [(1, 15, "A"), (3, 18, "c")]
        assert recopied(destination, by_number, rows, part(by_number, 10, 20, column="n"), source=[(2, 25, "B")]) == 2
        assert content(destination, by_number) == [
            (1, 15, "A"),
            (2, 25, "B"),
            (3, 18, "c"),
            (4, 25, "d"),
            (5, None, "e"),
        ]

    def test_rows_that_move_between_slices_meanwhile(self, destination: Destination, by_number: TableSchema) -> None:
        target = begun(destination, by_number, part(by_number, 10, 20, column="n"))
        # Staged before they left, or came.
        stale = [(2, 15, "b"), (3, 18, "c"), (6, 11, "f")]
        destination.write_table_rows(target, chunk(by_number, "1", stale, seen=15))
        ops: list[Op] = [Update(20, (2, 25, UNCHANGED)), Update(21, (4, 15, "D")), Insert(22, (7, 12, "g"))]
        logged(destination, target, *ops, Update(23, (7, 35, "G")))
        assert finished(destination, target).rows == 3
        assert content(destination, by_number) == [
            (1, 5, "a"),
            (2, 25, "b"),
            (3, 18, "c"),
            (4, 15, "D"),
            (5, None, "e"),
            (6, 11, "f"),
            (7, 35, "G"),
        ]

    def test_what_changes_meanwhile_has_the_last_word(self, destination: Destination, table: TableSchema) -> None:
        target = begun(destination, table, part(table, 10, 20))
        logged(destination, target, Insert(20, (11, "new", "N")), Delete(21, (10,)), upto=22)
        rows = [(10, "n10", "b10"), (15, "n15", "b15"), (16, "back", "B"), (17, "gone", "G")]
        destination.write_table_rows(target, chunk(table, "1", rows, seen=15))
        logged(destination, target, Update(22, (19, "u", "U")), Delete(23, (17,)), Insert(24, (18, "i", "I")))
        assert finished(destination, target).rows == 4
        assert content(destination, table) == sorted(
            [
                *(row for row in _ROWS if row not in _IN_TENS),
                (11, "new", "N"),
                (15, "n15", "b15"),
                (16, "back", "B"),
                (18, "i", "I"),
                (19, "u", "U"),
            ],
            key=repr,
        )

    def test_keys_that_change_meanwhile(self, destination: Destination, table: TableSchema) -> None:
        target = begun(destination, table, part(table, 10, 20))
        destination.write_table_rows(target, chunk(table, "1", _IN_TENS, seen=15))
        moves = [((40, "out", "O"), (10,)), ((11, "in", "I"), (30,)), ((16, "within", "W"), (15,))]
        logged(destination, target, *(Update(20, row, old=old) for row, old in moves))
        assert finished(destination, target).rows == 3
        assert content(destination, table) == sorted(
            [(1, "n1", "b1"), (9, "n9", "b9"), (19, "n19", "b19"), (20, "n20", "b20"), *(row for row, _ in moves)],
            key=repr,
        )

    def test_a_key_that_was_read_again_and_changes_then(self, destination: Destination, table: TableSchema) -> None:
        target = begun(destination, table, part(table, 10, 20))
        assert destination.finish_copy(target, Lsn(30)).undecided is not None
        logged(
            destination, target, Update(30, (10, "later", "L")), Delete(31, (15,)), Insert(32, (12, "i", "I")), upto=40
        )
        again = [(10, "n10", "read"), (15, "n15", "read"), (19, "n19", "read")]
        destination.write_table_rows(target, chunk(table, "r", again, seen=30, reread=True))
        assert destination.finish_copy(target, Lsn(40)).rows == 0
        found = [row for row in content(destination, table) if row not in _ROWS]
        assert found == [(10, "later", "L"), (12, "i", "I"), (19, "n19", "read")]

    def test_keys_that_were_read_again_more_than_once(self, place: Place, table: TableSchema) -> None:
        target = begun(place.destination, table, part(table, 10, 20))
        assert place.destination.finish_copy(target, Lsn(30)).undecided is not None
        for seen, text in ((30, "first"), (35, "second")):
            again = [(10, "n10", text), (19, "n19", text)]
            place.destination.write_table_rows(target, chunk(table, f"r{seen}", again, seen=seen, reread=True))
        assert place.reopen().finish_copy(target, Lsn(40)).rows == 0
        found = [row for row in content(place.destination, table) if row not in _ROWS]
        assert found == [(10, "n10", "second"), (19, "n19", "second")]

    @pytest.mark.parametrize("when", ["before", "between", "after"])
    def test_a_truncate_while_slices_are_copied(self, destination: Destination, table: TableSchema, when: str) -> None:
        target = begun(destination, table, part(table, 10, 20))
        if when == "before":
            logged(destination, target, Insert(20, (12, "new", "N")), truncated_at=20)
        destination.write_table_rows(target, chunk(table, "1", _IN_TENS[1:], seen=15))
        if when == "between":
            assert destination.finish_copy(target, Lsn(20)).undecided is not None
            logged(destination, target, Insert(20, (12, "new", "N")), truncated_at=20)
        destination.write_table_rows(target, chunk(table, "r", _IN_TENS[:1], seen=15, reread=True))
        if when == "after":
            logged(destination, target, Insert(20, (12, "new", "N")), truncated_at=20)
        logged(destination, target, Insert(30, (13, "more", "M")), upto=40)
        assert destination.finish_copy(target, Lsn(40)) == CopyResult(rows=0)
        assert content(destination, table) == [(12, "new", "N"), (13, "more", "M")]

    def test_several_slices_at_once(self, destination: Destination, table: TableSchema) -> None:
        slices = [part(table, 19, 20), part(table, 10, 16), part(table, 30), part(table, 9, 10), part(table, 16, 17)]
        rows = [(9, "new", "N"), (30, "new", "N"), (99, "new", "N")]
        assert recopied(destination, table, rows, *slices) == 3
        assert content(destination, table) == sorted([(1, "n1", "b1"), (20, "n20", "b20"), *rows], key=repr)

    def test_a_great_many_slices_at_once(self, destination: Destination, table: TableSchema) -> None:
        # All even numbers but two, and what comes before and after.
        slices = [part(table, i, i + 1) for i in range(0, 1000, 2) if i not in {20, 30}]
        slices += [part(table, upper=0), part(table, 1001)]
        rows = [(-5, "", ""), (500, "n", "b"), (5000, "n", "b")]
        random.Random(1).shuffle(slices)
        assert recopied(destination, table, rows, *slices) == 3
        kept = [row for row in _ROWS if row[0] != 10]
        assert content(destination, table) == sorted([*kept, *rows], key=repr)

    def test_ends_that_are_open_and_rows_without_a_value(
        self, destination: Destination, by_number: TableSchema
    ) -> None:
        first = part(by_number, upper=15, column="n")
        assert recopied(destination, by_number, [(7, None, "N"), (8, -5, "F")], first) == 2
        assert content(destination, by_number) == [
            (2, 15, "b"),
            (3, 18, "c"),
            (4, 25, "d"),
            (7, None, "N"),
            (8, -5, "F"),
        ]
        target = begun(destination, by_number, part(by_number, 18, column="n"), copy_id="s2")
        destination.write_table_rows(target, chunk(by_number, "1", [(4, 2**62, "D")], seen=20))
        finished(destination, target)
        assert content(destination, by_number) == [(2, 15, "b"), (4, 2**62, "D"), (7, None, "N"), (8, -5, "F")]
        whole = begun(destination, by_number, part(by_number, column="n"), copy_id="s3")
        finished(destination, whole, [(7, 7, "seven")])
        assert content(destination, by_number) == [(7, 7, "seven")]
        assert recopied(destination, by_number, [], part(by_number, column="n", nulls=False)) == 0
        assert content(destination, by_number) == []

    @pytest.mark.parametrize("type_", _ASCENDING)
    def test_values_are_ordered_as_at_the_source(self, destination: Destination, type_: str) -> None:
        oid, values = _ASCENDING[type_]
        table = make_table("ordered", columns={"id": INT8, "v": PgType(oid=oid, name=type_)})
        rows = [(i, value) for i, (_, value) in enumerate(values)]
        copied(destination, table, [*rows, (99, None)], copy_id="o")
        texts = [text for text, _ in values]
        for nth, (lower, upper) in enumerate(zip(texts, [*texts[1:], None], strict=True)):
            target = begun(destination, table, part(table, lower, upper, column="v"), copy_id=f"s{nth}")
            undecided = destination.finish_copy(target, Lsn(30)).undecided
            assert undecided is not None
            assert undecided.to_pydict() == {"id": [nth]}
        finished(destination, begun(destination, table, part(table, upper=texts[2], column="v"), copy_id="last"))
        left = destination.read_table(table).read_all().column("id").to_pylist()
        assert sorted(left) == list(range(2, len(values)))

    @pytest.mark.parametrize("column", ["int2", "int4", "int8", "uuid", "text", "date", "timestamp", "timestamptz"])
    def test_extreme_values_lie_in_a_slice(self, destination: Destination, column: str) -> None:
        table, rows = typed_table(), typed_rows(destination.capabilities.limits)
        copied_batch(destination, table, rows)
        bound, below = _MIDDLES[column]
        finished(destination, begun(destination, table, part(table, upper=bound, column=column)))
        found = destination.read_table(table).read_all().column("id").to_pylist()
        assert sorted(found) == [id_ for id_ in (1, 2, 3, 4) if id_ not in below]

    @pytest.mark.parametrize("type_", ["date", "timestamp", "timestamptz"])
    def test_moments_that_land_as_text(self, destination: Destination, type_: str) -> None:
        table = make_table("texts", columns={"id": INT8, "v": PgType(oid=_ASCENDING[type_][0], name=type_)})
        columns = (table.columns[0], table.columns[1].model_copy(update={"values": ValuePolicy.TEXT}))
        table = table.model_copy(update={"columns": columns})
        rows = [(i, text) for i, (text, _) in enumerate(_ASCENDING[type_][1])]
        copied(destination, table, [*rows, (9, None)], copy_id="o")
        slices = [part(table, rows[1][1], rows[3][1], column="v")]
        assert recopied(destination, table, [rows[1]], *slices) == 1
        assert [row[0] for row in content(destination, table)] == [0, 1, 3, 9]

    def test_every_type_is_corrected(self, destination: Destination) -> None:
        table, rows = typed_table(), typed_rows(destination.capabilities.limits)
        # Row 2 gets the values of row 1 and so on: everything is wrong.
        ids, others = rows.columns[:1], rows.take(pa.array([3, 0, 1, 2])).columns[1:]
        copied_batch(destination, table, pa.RecordBatch.from_arrays([*ids, *others], schema=rows.schema))
        for nth, lower in enumerate((1, 3, 3)):
            target = begun(destination, table, part(table, lower, lower + 2), copy_id=f"s{nth}")
            staged = replace(chunk(table, "1", [], seen=20), batches=[rows.slice(lower - 1, 2)])
            destination.write_table_rows(target, staged)
            assert finished(destination, target).rows == 2
        found = destination.read_table(table).read_all().select(rows.schema.names)
        assert same_rows(found, pa.Table.from_batches([rows]), "id")

    @pytest.mark.parametrize(
        ("type_", "wrong", "right"),
        [
            (PgType(oid=701, name="float8"), 0.0, -0.0),
            (PgType(oid=700, name="float4"), -0.0, 0.0),
            (PgType(oid=1186, name="interval"), (1, 0, 0), (0, 30, 0)),
            (PgType(oid=1186, name="interval"), (0, 1, 0), (0, 0, 86_400 * 10**9)),
            (PgType(oid=3802, name="jsonb"), '{"a": 1}', '{"a": 1.0}'),
            (
                PgType(oid=1022, name="float8[]", kind=TypeKind.ARRAY, element=PgType(oid=701, name="float8")),
                [0.0],
                [-0.0],
            ),
            (TEXT, "a", "a "),
            (TEXT, "", None),
        ],
    )
    def test_values_that_pass_for_equal_are_corrected(
        self, destination: Destination, type_: PgType, wrong: object, right: object
    ) -> None:
        table = make_table("alike", columns={"id": INT8, "v": type_})
        copied(destination, table, [(1, wrong)], copy_id="o")
        recopied(destination, table, [(1, right)], part(table))
        found = destination.read_table(table).read_all().select(["id", "v"])
        assert same_rows(found, pa.Table.from_batches([rows_batch(table, [(1, right)])]), "id")
        assert repr(found.column("v").to_pylist()) == repr(rows_batch(table, [(1, right)]).column(1).to_pylist())

    @pytest.mark.parametrize("key", KEY_VALUES)
    def test_keys_of_every_type(self, destination: Destination, key: str) -> None:
        type_, values = KEY_VALUES[key][0], key_values(key, destination.capabilities.limits)
        table = make_table("keys", columns={"n": INT8, "k": type_}, key=("k",))
        rows = pa.RecordBatch.from_arrays([pa.array([1, 1, 1]), values], schema=arrow_schema(table))
        copied_batch(destination, table, rows)
        target = begun(destination, table, part(table, 1, 2, column="n"))
        staged = pa.RecordBatch.from_arrays([pa.array([1]), values.slice(0, 1)], schema=rows.schema)
        destination.write_table_rows(target, replace(chunk(table, "1", [], seen=20), batches=[staged]))
        updated = pa.RecordBatch.from_arrays([pa.array([2]), values.slice(1, 1)], schema=rows.schema)
        change = replace(change_set(table, [Update(20, (2, None))]), rows=updated)
        piece = [TableEvents(table, (change,))]
        destination.write_events(make_batch(30, [piece], to_log(target, live=True)))
        undecided = destination.finish_copy(target, Lsn(30)).undecided
        assert undecided is not None
        assert undecided.column(0).combine_chunks().equals(values.slice(2, 1).cast(undecided.schema.field(0).type))
        destination.write_table_rows(target, chunk(table, "r", [], seen=30, reread=True))
        assert destination.finish_copy(target, Lsn(30)).rows == 1
        found = destination.read_table(table).read_all().select(["n", "k"])
        assert same_rows(found, pa.Table.from_batches([staged, updated]), "n")

    def test_a_key_of_several_columns(self, destination: Destination) -> None:
        table = make_table("pairs", columns={"b": INT8, "v": TEXT, "a": TEXT}, key=("a", "b"))
        rows = [(i, "v", a) for i in (1, 2, 3) for a in ("x", "y")]
        copied(destination, table, rows, copy_id="o")
        target = begun(destination, table, part(table, 2, column="b"))
        destination.write_table_rows(target, chunk(table, "1", [(2, "V", "x"), (3, "V", "y")], seen=20))
        logged(destination, target, Update(20, (9, "u", "x"), old=("x", 3)))
        undecided = destination.finish_copy(target, Lsn(30)).undecided
        assert undecided is not None
        assert undecided.to_pydict() == {"a": ["y"], "b": [2]}
        finished(destination, target, [(2, "again", "y")])
        assert content(destination, table) == [
            (1, "v", "x"),
            (1, "v", "y"),
            (2, "V", "x"),
            (2, "again", "y"),
            (3, "V", "y"),
            (9, "u", "x"),
        ]

    def test_columns_of_unusual_names(self, destination: Destination) -> None:
        names = ["row", "rowid", "k0", "l", "s", 'a "quoted" one', "deleted", "same", "c1", "select"]
        table = make_table('a "table"', schema="a.schema", columns=dict.fromkeys(names, INT8), key=("rowid", "k0"))
        rows = [tuple(range(i, i + len(names))) for i in range(0, 50, 10)]
        copied(destination, table, rows, copy_id="o")
        target = begun(destination, table, part(table, 10, 40, column="row"))
        destination.write_table_rows(target, chunk(table, "1", [(*rows[1][:-1], 0)], seen=20))
        logged(destination, target, Delete(20, rows[2][1:3]))
        finished(destination, target, rows[3:4])
        assert content(destination, table) == sorted([rows[0], (*rows[1][:-1], 0), rows[3], rows[4]], key=repr)

    def test_columns_that_the_live_table_lacks(self, place: Place, table: TableSchema) -> None:
        wider = altered(table, rename={"name": "title"}, add={"more": (TEXT, "m")})
        rows = [(10, "n10", "b10", "m"), (15, "n15", "b15", "x")]
        assert recopied(place.destination, wider, rows, part(wider, 10, 20)) == 2
        others = [(*row, "m") for row in _ROWS if row not in _IN_TENS]
        assert content(place.reopen(), wider) == sorted([*others, *rows], key=repr)
        place.destination.write_events(make_batch(50, [[events(wider, Insert(40, (99, "t", "b", "c")))]]))
        assert (99, "t", "b", "c") in content(place.destination, wider)

    def test_columns_that_only_the_live_table_has(self, destination: Destination, table: TableSchema) -> None:
        target = begun(destination, table, part(table, 10, 20))
        rows = [(10, "n10", "B"), (15, "n15", "b15"), (17, "n", "b")]
        destination.write_table_rows(target, chunk(table, "1", rows, seen=15))
        newer = altered(table, drop=["name"], rename={"body": "name"}, add={"more": (TEXT, "m")})
        destination.write_events(make_batch(30, [[events(newer)]], to_log(target, live=True)))
        assert finished(destination, target).rows == 3
        kept = [(id_, body) for id_, _, body in _ROWS if not 10 <= id_ < 20]
        expected = [*kept, (10, "B"), (15, "b15"), (17, "b")]
        assert content(destination, newer) == sorted(((*row, "m") for row in expected), key=repr)

    def test_whoever_reads_meanwhile_sees_the_rows_before_or_after(
        self, destination: Destination, table: TableSchema
    ) -> None:
        reader = destination.read_table(table)
        recopied(destination, table, [(10, "n10", "new")], part(table, 10, 20))
        found = reader.read_all().select(["id", "name", "body"])
        rows = sorted(zip(*(column.to_pylist() for column in found.columns), strict=True), key=repr)
        assert rows in (sorted(_ROWS, key=repr), content(destination, table))

    @pytest.mark.parametrize("reread", [False, True])
    def test_killed_between_any_two_calls(self, place: Place, table: TableSchema, reread: bool) -> None:
        target, route = CopyTarget(table, "s1", (part(table, 10, 20),)), {table: Route(log=CopyTarget(table, "s1"))}
        ops: list[Op] = [Update(20, (19, "u", UNCHANGED)), Insert(21, (12, "i", "I"))]
        again = [(10, "n10", "again")] if reread else []
        calls: list[Callable[[Destination], object]] = [
            lambda to: to.truncate_table(target),
            lambda to: to.write_events(make_batch(30, [[events(table, *ops)]], route)),
            lambda to: to.write_table_rows(target, chunk(table, "1", [(16, "new", "N")], seen=15)),
            lambda to: to.finish_copy(target, Lsn(30)),
            lambda to: to.write_table_rows(target, chunk(table, "r", again, seen=30, reread=True)),
            lambda to: to.finish_copy(target, Lsn(30)),
        ]
        for call in calls:
            first = call(place.destination)
            second = call(place.reopen())
            assert same_result(first, second)
        place.reopen().write_events(make_batch(40, [[events(table, Delete(30, (16,)))]], route))
        assert place.destination.finish_copy(target, Lsn(40)).rows == 1
        expected = [(12, "i", "I"), (19, "u", "b19"), *again]
        others = [row for row in _ROWS if row not in _IN_TENS]
        assert content(place.destination, table) == sorted([*others, *expected], key=repr)
        assert place.destination.positions() == {table.id: 40}

    def test_one_copy_after_the_other(self, destination: Destination, table: TableSchema) -> None:
        for nth, lower in enumerate((10, 20, 10)):
            target = begun(destination, table, part(table, lower, lower + 10), copy_id=f"s{nth}")
            rows = [(lower + i, "n", str(nth)) for i in range(3)]
            destination.write_table_rows(target, chunk(table, "1", rows, seen=20))
            assert finished(destination, target).rows == 3
        copied(destination, table, [(1, "a", "A"), (15, "b", "B")], copy_id="whole", at=50)
        assert recopied(destination, table, [(15, "b", "C")], part(table, 10, 20)) == 1
        assert content(destination, table) == [(1, "a", "A"), (15, "b", "C")]

    @pytest.mark.parametrize("key", [("id",), ()])
    def test_slices_of_a_changelog_are_refused(self, destination: Destination, key: tuple[str, ...]) -> None:
        table = make_table("log", key=key, landing=Landing.CHANGELOG)
        copied(destination, table, _ROWS, copy_id="l")
        target = CopyTarget(table, "s1", (part(table, 10, 20),))
        with pytest.raises(TableError):
            recopied(destination, table, [], *target.slices)
        # How changes land was settled when the table was copied.
        mirrored = table.model_copy(update={"landing": Landing.MIRROR})
        if key:
            with pytest.raises(TableError):
                recopied(destination, mirrored, [], *target.slices)
        assert len(landed(destination, table)) == len(_ROWS)

    def test_slices_of_a_table_that_does_not_exist_are_refused(self, destination: Destination) -> None:
        table = make_table("new")
        with pytest.raises(DestinationError):
            recopied(destination, table, _ROWS, part(table))
        assert table.id not in destination.positions()

    @pytest.mark.parametrize("landing", [Landing.MIRROR, Landing.SOFT_DELETE])
    @pytest.mark.parametrize("seed", range(10))
    def test_a_table_that_drifted_ends_as_at_the_source(self, place: Place, seed: int, landing: Landing) -> None:
        reference = MemoryDestination()
        run, same = Recopy(seed, landing), Recopy(seed, landing)
        end = run.into(place.destination, place.reopen)
        assert same.into(reference, lambda: reference) == end
        table = run.history.table
        assert deleted_ones(place.destination, table) == deleted_ones(reference, table)
        found = present(place.destination, table)
        assert found == present(reference, table)
        source = run.history.rows_after(end)
        assert [row for row in source if run.lies_within(row) and row not in found] == []
        assert [row for row in found if run.lies_within(row) and row not in source] == []


class SliceSoftDeleteContract(Suite):
    """Rows that the source lost stay in the slices, marked."""

    @pytest.fixture
    def table(self) -> TableSchema:
        return make_table(landing=Landing.SOFT_DELETE)

    @pytest.fixture(autouse=True)
    def copy_first(self, destination: Destination, table: TableSchema) -> None:
        copied(destination, table, [(10, "a", "A"), (11, "b", "B"), (12, "c", "C"), (20, "z", "Z")])

    def test_rows_that_the_source_lacks_are_marked(self, place: Place, table: TableSchema) -> None:
        place.destination.write_events(make_batch(20, [[events(table, Delete(15, (11,)))]]))
        target = begun(place.destination, table, part(table, 10, 20))
        undecided = place.destination.finish_copy(target, Lsn(30)).undecided
        assert undecided is not None
        assert sorted(undecided.column(0).to_pylist()) == [10, 12]
        again = [(12, "c", "read")]
        place.destination.write_table_rows(target, chunk(table, "r", again, seen=30, reread=True))
        assert place.reopen().finish_copy(target, Lsn(40)).rows == 0
        assert landed(place.destination, table) == [
            ("copy", 10, 20, "z", "Z"),
            ("copy", 30, 12, "c", "read"),
            ("delete", 15, 11, "b", "B"),
            ("delete", 40, 10, "a", "A"),
        ]
        stamps = place.destination.read_table(table).read_all().column("_TIMESTAMP").to_pylist()
        assert stamps.count(TAKEN_AT) == 3

    def test_a_row_that_is_back_replaces_its_deleted_one(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(make_batch(20, [[events(table, Delete(15, (10,)), Delete(15, (20,)))]]))
        # One of them just as it was, one from outside of the slice.
        target = begun(destination, table, part(table, 10, 20))
        destination.write_table_rows(target, chunk(table, "1", [(10, "a", "A"), (11, "b", "B")], seen=20))
        assert finished(destination, target).rows == 2
        assert present(destination, table) == [(10, "a", "A"), (11, "b", "B")]
        assert deleted_ones(destination, table) == [("delete", 15, 20, "z", "Z"), ("delete", 30, 12, "c", "C")]

    def test_deletes_and_moves_meanwhile_keep_their_rows(self, destination: Destination, table: TableSchema) -> None:
        target = begun(destination, table, part(table, 10, 20))
        rows = [(10, "a", "staged"), (11, "b", "staged"), (12, "c", "staged")]
        destination.write_table_rows(target, chunk(table, "1", rows, seen=15))
        logged(destination, target, Delete(20, (10,)), Update(21, (30, "b", UNCHANGED), old=(11,)))
        assert finished(destination, target).rows == 3
        assert landed(destination, table) == [
            ("copy", 10, 20, "z", "Z"),
            ("copy", 15, 12, "c", "staged"),
            ("delete", 20, 10, "a", "A"),
            ("delete", 21, 11, "b", "B"),
            ("update", 21, 30, "b", "B"),
        ]

    def test_a_truncate_while_slices_are_copied(self, destination: Destination, table: TableSchema) -> None:
        target = begun(destination, table, part(table, 10, 20))
        destination.write_table_rows(target, chunk(table, "1", [(10, "a", "A")], seen=15))
        logged(destination, target, Insert(20, (11, "new", "N")), truncated_at=20)
        assert destination.finish_copy(target, Lsn(30)) == CopyResult(rows=0)
        assert landed(destination, table) == [
            ("delete", 20, 10, "a", "A"),
            ("delete", 20, 12, "c", "C"),
            ("delete", 20, 20, "z", "Z"),
            ("insert", 20, 11, "new", "N"),
        ]


class Recopy:
    """A random history during which some slices of a table that has drifted are copied again."""

    def __init__(self, seed: int, landing: Landing) -> None:
        self.history = whole_rows(History.random(seed + 6000, transactions=80, landing=landing))
        self.history.table = make_table("drifted", landing=landing)
        self._rng = random.Random(seed)
        self.slices, self.lies_within = self._choose()

    def _choose(self) -> tuple[list[Slice], Callable[[Values], bool]]:
        """Slices of the key, or of the name, which changes with every update."""
        table = self.history.table
        if self._rng.random() < 0.5:
            low, high = sorted(self._rng.sample(range(-1, max(KEYS) + 2), 2))
            cuts = [low, (low + high) // 2, high]
            slices = [part(table, *cut) for cut in pairwise(cuts) if cut[0] < cut[1]]
            return slices, lambda row: low <= int(str(row[0])) < high
        low_name, high_name = (f"n{digit}" for digit in sorted(self._rng.sample(range(1, 10), 2)))
        slices = [part(table, upper=low_name, column="name"), part(table, high_name, column="name")]
        return slices, lambda row: not low_name <= str(row[1]) < high_name

    def into(self, destination: Destination, reopen: Callable[[], Destination]) -> int:
        """Play it; returns the last transaction."""
        history, rng = self.history, self._rng
        start = rng.randrange(10, 30)
        rows = self._drifted(history.rows_after(start - 1))
        copied(destination, history.table, rows, copy_id="d", at=lsn_of(start))
        target = begun(destination, history.table, *self.slices)
        route = Route(log=target)
        seen = [start + rng.randrange(15) for _ in range(2)]
        done = start + rng.randrange(5)
        destination.write_events(history.batch(start, done, route=route))
        for number, after in enumerate(seen):
            rows = [row for row in history.rows_after(after) if self.lies_within(row) and row[0] % 2 == number]
            destination.write_table_rows(target, chunk(history.table, str(number), rows, seen=lsn_of(after + 1)))
        done, before = max(done + 1, *seen), done
        destination.write_events(history.batch(before + 1, done, route=route, pieces=3))
        return self._finish(target, route, done, reopen)

    def _drifted(self, rows: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
        known = {row[0] for row in rows}
        found = [row for row in rows if self._rng.random() < 0.7]
        found = [(key, self._name() if self._rng.random() < 0.4 else name, body) for key, name, body in found]
        return found + [(key, self._name(), "extra") for key in KEYS if key not in known and self._rng.random() < 0.5]

    def _name(self) -> str:
        return f"n{self._rng.randrange(10**9)}"

    def _finish(self, target: CopyTarget, route: Route, done: int, reopen: Callable[[], Destination]) -> int:
        destination = reopen()
        result = destination.finish_copy(target, Lsn(lsn_of(done + 1)))
        if result.undecided is None:
            return done
        seen = done + self._rng.randrange(8)
        keys = set(result.undecided.column(0).to_pylist())
        again = [row for row in self.history.rows_after(seen) if row[0] in keys]
        read = chunk(self.history.table, "again", again, seen=lsn_of(seen + 1), reread=True)
        destination.write_table_rows(target, read)
        if seen > done:
            destination.write_events(self.history.batch(done + 1, seen, route=route, pieces=2))
        assert reopen().finish_copy(target, Lsn(lsn_of(seen + 1))).undecided is None
        return seen


def whole_rows(history: History) -> History:
    """The history with nothing left out, so that rows which the destination lacks can be updated there."""
    bodies: dict[object, object] = {key: body for key, _, body in history.rows_after(-1)}
    for number, ops in enumerate(history.transactions):
        if number in history.truncates:
            bodies.clear()
        history.transactions[number] = [_whole(op, bodies) for op in ops]
    return history


def _whole(op: Op, bodies: dict[object, object]) -> Op:
    if isinstance(op, Delete):
        del bodies[op.key[0]]
    if not isinstance(op, Insert | Update):
        return op
    key, name, body = op.row
    if isinstance(op, Update):
        before = bodies.pop(key if op.old is None else op.old[0])
        body = before if body is UNCHANGED else body
    bodies[key] = body
    return replace(op, row=(key, name, body))


def copied_batch(place: Destination, table: TableSchema, rows: pa.RecordBatch) -> None:
    """Copy rows that are there as Arrow data."""
    target = CopyTarget(table, "batch")
    place.truncate_table(target)
    place.write_table_rows(target, replace(chunk(table, "1", [], seen=10), batches=[rows]))
    place.finish_copy(target, Lsn(10))


def deleted_ones(place: Destination, table: TableSchema) -> list[tuple[object, ...]]:
    """What `landed` says of the deleted rows."""
    return [row for row in landed(place, table) if row[0] == "delete"]


def same_result(one: object, other: object) -> bool:
    """Whether two calls came to the same."""
    if not isinstance(one, CopyResult) or not isinstance(other, CopyResult):
        return True
    keys = [None if each.undecided is None else each.undecided.sort_by("id").to_pylist() for each in (one, other)]
    return one.rows == other.rows and keys[0] == keys[1]
