"""Slices that are copied again into a BigQuery table: what is read of it, and what a crash in between leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from etl_dagster.destinations.bigquery import BigQueryDestination
from etl_dagster.destinations.bigquery.slices import Ranges
from etl_dagster.errors import EtlError
from etl_dagster.model import Lsn, PgType, Slice, TableSchema, TypeKind
from etl_dagster.testing.change_script import INT8, TEXT, Delete, Update, Values, altered, make_table
from etl_dagster.testing.destination_contract import Place, chunk, content, copied
from etl_dagster.testing.destination_contract.slices import begun, finished, logged, part, recopied
from tests.bigquery.fixtures import Dataset
from tests.bigquery.proxy import Answer, FaultProxy

JSONB = PgType(oid=3802, name="jsonb")
TEXTS = PgType(oid=1009, name="text[]", kind=TypeKind.ARRAY, element=TEXT)
TIMESTAMPTZ = PgType(oid=1184, name="timestamptz")
_ROWS: list[Values] = [(i, f"n{i}", "b") for i in range(100)]
_OTHERS = [row for row in _ROWS if not 10 <= int(str(row[0])) < 20]


@pytest.fixture
def place(bigquery_dataset: Dataset, bigquery_proxy: FaultProxy) -> Iterator[Place]:
    config = bigquery_dataset.through(bigquery_proxy).config(retry_seconds=1)
    place = Place(lambda: BigQueryDestination(config))
    yield place
    place.close()


@pytest.fixture
def table(place: Place) -> TableSchema:
    table = make_table()
    copied(place.destination, table, _ROWS)
    return table


def by_hand(dataset: Dataset, sql: str) -> None:
    """Run SQL as somebody else would."""
    with dataset.client() as client:
        client.query(sql).result()


def statements(proxy: FaultProxy, start: int, *, naming: str) -> list[str]:
    """Statements of the scripts that came after so many calls, if they name this."""
    scripts = [call.body.decode(errors="replace") for call in proxy.calls[start:] if call.job == "query"]
    return [statement for script in scripts for statement in script.split(";\\n") if naming in statement]


def _cut(type_: PgType, *bounds: tuple[str | None, str | None], nulls: bool = False) -> Ranges:
    table = make_table(columns={"id": INT8, "v": type_})
    return Ranges([part(table, *each, column="v", nulls=nulls) for each in bounds], table.columns[1])


# -- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "lower", "upper", "condition"),
    [
        (PgType(oid=23, name="integer"), "-5", "10", "v >= -5 AND v < 10"),
        (PgType(oid=1082, name="date"), "2024-01-01", None, 'v >= DATE "2024-01-01"'),
        (PgType(oid=1114, name="timestamp"), None, "2024-01-01 00:00:00", 'v < DATETIME "2024-01-01 00:00:00"'),
        (TIMESTAMPTZ, "2024-01-01 00:00:00+00", None, 'v >= TIMESTAMP "2024-01-01 00:00:00+00"'),
        (TEXT, 'a "b" \\', "é\n", r'v >= "a \"b\" \\" AND v < "é\n"'),
        (PgType(oid=2950, name="uuid"), "A" * 32, None, f'v >= "{"-".join("a" * n for n in (8, 4, 4, 4, 12))}"'),
        (INT8, None, None, "v IS NOT NULL"),
    ],
)
def test_bounds_are_literals_of_the_column_s_type(
    type_: PgType, lower: str | None, upper: str | None, condition: str
) -> None:
    assert _cut(type_, (lower, upper)).test("v") == f"(({condition}))"


def test_slices_side_by_side_are_one_range() -> None:
    ranges = _cut(INT8, ("20", "30"), ("10", "20"), ("40", None), nulls=True)
    assert ranges.test("v") == "((v >= 10 AND v < 30) OR (v >= 40) OR v IS NULL)"
    assert ranges.parameters == {}


def test_thousands_of_ranges_are_looked_up_among_few_literals() -> None:
    ranges = _cut(INT8, *((str(i), str(i + 1)) for i in range(0, 10_000, 2)))
    condition = ranges.test("v")
    assert len(condition) < 5000
    assert condition.startswith("((((v >= 0 AND v < 199) OR (v >= 200 AND v < 399) OR ")
    assert ranges.parameters == {"etl_bounds": [str(i) for i in range(10_000)]}


def test_long_bounds_are_no_literals() -> None:
    ranges = _cut(TEXT, ("a", "x" * 10_000))
    assert ranges.test("v") == '((((v >= "a")) AND MOD(RANGE_BUCKET(v, @etl_bounds), 2) = 1))'


def test_only_the_slices_are_read(
    place: Place, table: TableSchema, bigquery_dataset: Dataset, bigquery_proxy: FaultProxy
) -> None:
    by_hand(bigquery_dataset, "UPDATE shop_orders SET body = 'wrong' WHERE id = 15")
    start = len(bigquery_proxy.calls)
    assert recopied(place.destination, table, _ROWS[10:20], part(table, 10, 20)) == 10
    reads = statements(bigquery_proxy, start, naming="shop_orders` AS l")
    assert len(reads) == 2  # what is lost, and the removal
    assert [read for read in reads if "l.`id` >= 10 AND l.`id` < 20" not in read] == []
    assert content(place.destination, table) == sorted(_ROWS, key=repr)


def test_rows_of_other_slices_are_removed_where_they_are(
    place: Place, bigquery_dataset: Dataset, bigquery_proxy: FaultProxy
) -> None:
    table = make_table("numbers", columns={"id": INT8, "n": INT8})
    copied(place.destination, table, [(i, i * 10) for i in range(20)])
    start = len(bigquery_proxy.calls)
    rows: list[tuple[int, int]] = [(2, 25), (3, 29), (150, 25), (7, 28), (8, 27)]
    assert recopied(place.destination, table, rows, part(table, 20, 30, column="n")) == 5
    removals = statements(bigquery_proxy, start, naming="DELETE FROM")
    assert "l.`n` BETWEEN 30 AND 80" in next(each for each in removals if "BETWEEN" in each)
    expected = {i: i * 10 for i in range(20)} | dict(rows)
    assert content(place.destination, table) == sorted(expected.items(), key=repr)


# -- rows that nobody should have made --------------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["'b'", "'other'"])
def test_a_row_that_stands_twice_stands_once_afterwards(
    place: Place, table: TableSchema, bigquery_dataset: Dataset, again: str
) -> None:
    twice = f"SELECT * REPLACE ({again} AS body) FROM shop_orders WHERE id = 15"
    by_hand(bigquery_dataset, f"INSERT INTO shop_orders {twice}")
    assert recopied(place.destination, table, _ROWS[10:20], part(table, 10, 20)) == 10
    assert content(place.destination, table) == sorted(_ROWS, key=repr)


def test_a_row_that_stands_in_two_slices_stands_in_its_own_afterwards(
    place: Place, table: TableSchema, bigquery_dataset: Dataset
) -> None:
    by_hand(bigquery_dataset, "INSERT INTO shop_orders SELECT * REPLACE ('zzz' AS name) FROM shop_orders WHERE id = 15")
    slice_ = part(table, "z", column="name")
    assert recopied(place.destination, table, [], slice_, source=[_ROWS[15]]) == 0
    assert content(place.destination, table) == sorted(_ROWS, key=repr)


# -- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [[], [(11, "n", "again")]])
def test_killed_after_rows_were_read_again(place: Place, table: TableSchema, again: list[Values]) -> None:
    target = begun(place.destination, table, part(table, 10, 20))
    place.destination.write_table_rows(target, chunk(table, "1", _ROWS[12:20], seen=20))
    assert place.destination.finish_copy(target, Lsn(30)).undecided is not None
    place.destination.write_table_rows(target, chunk(table, "r", again, seen=30, reread=True))
    assert place.reopen().finish_copy(target, Lsn(30)).rows == 8
    assert content(place.reopen(), table) == sorted([*_OTHERS, *_ROWS[12:20], *again], key=repr)
    assert place.destination.finish_copy(target, Lsn(30)).rows == 8


def test_killed_before_rows_that_were_read_again_are_there(
    place: Place, table: TableSchema, bigquery_proxy: FaultProxy
) -> None:
    target = begun(place.destination, table, part(table, 10, 20))
    place.destination.write_table_rows(target, chunk(table, "1", _ROWS[12:20], seen=20))
    assert place.destination.finish_copy(target, Lsn(30)).undecided is not None
    bigquery_proxy.fault(Answer("accessDenied"), job="load")
    with pytest.raises(EtlError):
        place.destination.write_table_rows(target, chunk(table, "r", _ROWS[10:12], seen=30, reread=True))
    undecided = place.reopen().finish_copy(target, Lsn(30)).undecided
    assert undecided is not None
    assert sorted(undecided.column(0).to_pylist()) == [10, 11]
    place.destination.write_table_rows(target, chunk(table, "r2", _ROWS[10:11], seen=30, reread=True))
    assert place.destination.finish_copy(target, Lsn(30)).rows == 8
    assert content(place.destination, table) == sorted([*_OTHERS, _ROWS[10], *_ROWS[12:20]], key=repr)


# -- shapes -----------------------------------------------------------------------------------------------------------


def test_thousands_of_windows_of_time(place: Place) -> None:
    table = make_table("events", columns={"id": INT8, "at": TIMESTAMPTZ})
    noon = datetime(2024, 1, 1, 12, tzinfo=UTC)
    rows = [(i, noon + timedelta(hours=i)) for i in range(0, 5000, 500)]
    copied(place.destination, table, [*rows, (-1, noon + timedelta(hours=1, minutes=30)), (-2, None)])
    # Every second hour, and what comes before.
    hours = [noon + timedelta(hours=i) for i in range(0, 5000, 2)]
    slices: list[Slice] = [part(table, upper=f"{hours[0]:%F %T}+00", column="at")]
    slices += [part(table, f"{hour:%F %T}+00", f"{hour + timedelta(hours=1):%F %T}+00", column="at") for hour in hours]
    assert recopied(place.destination, table, rows[:3], *slices) == 3
    assert [row[0] for row in content(place.destination, table)] == [-1, 0, 1000, 500]


@pytest.mark.parametrize("arrays", ["json", "repeated"])
def test_json_and_arrays_under_a_column_s_new_name(bigquery_dataset: Dataset, arrays: str) -> None:
    place = Place(lambda: BigQueryDestination(bigquery_dataset.config(arrays=arrays)))
    table = make_table("documents", columns={"id": INT8, "j": JSONB, "a": TEXTS, "n": INT8})
    rows: list[Values] = [(i, f'{{"n": {i}}}', [f"t{i}", "'"], i) for i in range(5)]
    copied(place.destination, table, rows)
    renamed = altered(table, rename={"j": "document", "n": "number"}, add={"more": (JSONB, '{"m": 1}')})
    again: list[Values] = [(2, '{"n": [2, null]}', [], 2, None), (3, None, ["x"], 3, '"m"')]
    assert recopied(place.destination, renamed, again, part(renamed, 2, 4, column="number")) == 2
    kept: list[Values] = [(*row, '{"m":1}') for row in rows if row[0] not in (2, 3)]
    found = [tuple(_squeezed(value) for value in row) for row in content(place.reopen(), renamed)]
    assert found == sorted((tuple(map(_squeezed, row)) for row in [*kept, *again]), key=repr)
    place.close()


def _squeezed(value: object) -> object:
    return value.replace(" ", "") if isinstance(value, str) else value


def test_keys_of_the_log_that_are_too_many_for_a_query(bigquery_dataset: Dataset) -> None:
    place = Place(lambda: BigQueryDestination(bigquery_dataset.config(inline_bytes=0)))
    table = make_table()
    copied(place.destination, table, _ROWS)
    target = begun(place.destination, table, part(table, 10, 20))
    place.destination.write_table_rows(target, chunk(table, "1", _ROWS[10:20], seen=15))
    logged(place.destination, target, Delete(20, (10,)), Update(21, (50, "moved", "m"), old=(11,)))
    assert finished(place.destination, target).rows == 10
    expected = [row for row in _ROWS if row[0] not in (10, 11, 50)]
    assert content(place.destination, table) == sorted([*expected, (50, "moved", "m")], key=repr)
    with bigquery_dataset.client() as client:
        left = [each.table_id for each in client.list_tables(bigquery_dataset.name)]
    assert [name for name in left if "stage" in name or "copy" in name or "log" in name] == []
    place.close()
