"""A place for data, and how the suites fill and read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest

from etl_dagster.arrow.landing import present_rows
from etl_dagster.destinations.base import ChunkRows, Destination
from etl_dagster.model import (
    CDC_COLUMNS,
    CHANGE_TYPE_COLUMN,
    LSN_COLUMN,
    UNCHANGED_COLUMN,
    ChangeType,
    CopyTarget,
    Landing,
    Lsn,
    TableSchema,
)
from etl_dagster.testing.change_script import Values, make_table, rows_batch

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
    """One chunk of a copy, whose snapshot saw the transactions that committed before ``seen``."""
    batches = [rows_batch(table, rows)] if rows else []
    return ChunkRows(chunk_id, Lsn(seen), TAKEN_AT, batches, reread, snapshot=f"{seen}:{seen}:")


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


def landed(place: Destination, table: TableSchema) -> list[tuple[object, ...]]:
    """Change type, commit LSN and columns of each row of the live table, and in a changelog what was unchanged.

    In commit order; the delete of a row that moved stands before its update.
    """
    found = place.read_table(table).read_all()
    names = [CHANGE_TYPE_COLUMN, LSN_COLUMN, *(column.name for column in table.columns)]
    if table.landing is Landing.CHANGELOG:
        names.append(UNCHANGED_COLUMN)
    rows = sorted(zip(*(found.column(name).to_pylist() for name in names), strict=True), key=_place)
    return [(row[0], int(row[1]) >> 32, *map(_plain, row[2:])) for row in rows]


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _place(row: tuple[object, ...]) -> tuple[object, ...]:
    return row[0] != ChangeType.COPY, row[1], row[0] != ChangeType.DELETE, repr(row)


def present(place: Destination, table: TableSchema) -> list[tuple[object, ...]]:
    """The rows of the live table that stand at the source, sorted."""
    found = present_rows(table, place.read_table(table)).read_all()
    return sorted(zip(*(column.to_pylist() for column in found.columns), strict=True), key=repr)


class Suite:
    """What all suites have."""

    @pytest.fixture
    def destination(self, place: Place) -> Destination:
        return place.destination

    @pytest.fixture
    def table(self) -> TableSchema:
        return make_table()
