"""Slices that are copied again into a DuckDB table: what stays where it is, and rows that nobody should have made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from etl_dagster.destinations.duckdb import DuckDbConfig, DuckDbDestination
from etl_dagster.model import TableSchema
from etl_dagster.testing.change_script import make_table
from etl_dagster.testing.destination_contract import Place, content, copied
from etl_dagster.testing.destination_contract.slices import part, recopied


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "it.duckdb"


@pytest.fixture
def place(file: Path) -> Iterator[Place]:
    place = Place(lambda: DuckDbDestination(DuckDbConfig(path=str(file))))
    yield place
    place.close()


@pytest.fixture
def table(place: Place) -> TableSchema:
    table = make_table()
    copied(place.destination, table, [(i, "n", "b") for i in range(100)])
    return table


def by_hand(place: Place, file: Path, sql: str) -> list[tuple[object, ...]]:
    """Run SQL on the file as somebody else would."""
    place.destination.shutdown()
    with duckdb.connect(str(file)) as connection:
        found = connection.execute(sql).fetchall()
    place.reopen()
    return found


def test_rows_that_are_right_stay_where_they_are(place: Place, file: Path, table: TableSchema) -> None:
    in_their_order = "SELECT id, _CHANGE_TYPE, _LSN FROM shop.orders WHERE id <> 15"
    before = by_hand(place, file, in_their_order)
    rows = [(i, "n", "new" if i == 15 else "b") for i in range(10, 20)]
    assert recopied(place.destination, table, rows, part(table, 10, 20)) == 10
    assert by_hand(place, file, in_their_order) == before
    assert (15, "n", "new") in content(place.destination, table)


@pytest.mark.parametrize("again", ["'b'", "'other'"])
def test_a_row_that_stands_twice_stands_once_afterwards(
    place: Place, file: Path, table: TableSchema, again: str
) -> None:
    twice = f"SELECT * REPLACE ({again} AS body) FROM shop.orders WHERE id = 15"
    by_hand(place, file, f"INSERT INTO shop.orders {twice}")
    rows = [(i, "n", "b") for i in range(10, 20)]
    assert recopied(place.destination, table, rows, part(table, 10, 20)) == 10
    assert content(place.destination, table) == sorted(((i, "n", "b") for i in range(100)), key=repr)


def test_a_row_that_stands_in_two_slices_stands_in_its_own_afterwards(
    place: Place, file: Path, table: TableSchema
) -> None:
    by_hand(place, file, "INSERT INTO shop.orders SELECT * REPLACE ('zzz' AS name) FROM shop.orders WHERE id = 15")
    slice_ = part(table, "z", column="name")
    assert recopied(place.destination, table, [], slice_, source=[(15, "n", "b")]) == 0
    assert content(place.destination, table) == sorted(((i, "n", "b") for i in range(100)), key=repr)
