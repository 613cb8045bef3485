"""How the columns of a live table get from one schema to a later one, by names as the source has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from etl_dagster.arrow.landing import landed_schema
from etl_dagster.arrow.types import column_type
from etl_dagster.destinations.admission import require_column_names
from etl_dagster.errors import TableError, ValueUnrepresentable
from etl_dagster.model import Column, TableId, TableSchema

_Fold = Callable[[str], str]
_COPY_AGAIN = "Copy the table again"


@dataclass(frozen=True, slots=True)
class Alteration:
    """What makes the columns of one schema those of a later one: first all renames at once, then the new columns."""

    renames: Sequence[tuple[str, str]]
    added: Sequence[Column]


def alteration(known: TableSchema, table: TableSchema, existing: Sequence[str], fold: _Fold) -> Alteration:
    """How a live table gets the columns of a later schema.

    Args:
        existing: Names of all its columns, also those that the source has no longer.
        fold: A name as the destination compares it.

    Raises:
        TableError: It cannot, since a column has another type.
    """
    _require_followable(known, table, fold)
    before = {column.attnum: column.name for column in known.columns}
    kept = [(before[column.attnum], column.name) for column in table.columns if column.attnum in before]
    renames = [(old, new) for old, new in kept if old != new]
    added = [column for column in table.columns if column.attnum not in before]
    ours = {*(old for old, _ in kept), *landed_schema(known).names[len(known.columns) :]}
    foreign = [name for name in existing if name not in ours]
    return Alteration([*renames, *_giving_way(foreign, existing, table, fold)], added)


@contextmanager
def concerning(table: TableId) -> Iterator[None]:
    """The default of a new column may be a value that cannot be held, which then concerns this table alone."""
    try:
        yield
    except ValueUnrepresentable as error:
        error.table = error.table or str(table)
        raise


def not_followable(table: TableSchema, how: str) -> TableError:
    """The error of a live table that cannot get the columns of the source."""
    return TableError(f"{table.id} at the destination {how}", hint=_COPY_AGAIN, table=str(table.id))


def _require_followable(known: TableSchema, table: TableSchema, fold: _Fold) -> None:
    require_column_names(table, fold=fold)
    before = {column.attnum: column_type(column) for column in known.columns}
    for column in table.columns:
        if before.get(column.attnum, column_type(column)) != column_type(column):
            raise not_followable(table, f"has another type of column {column.name!r}")


def _giving_way(
    foreign: Sequence[str], existing: Sequence[str], table: TableSchema, fold: _Fold
) -> list[tuple[str, str]]:
    """New names for columns that the source has no longer, where it calls another column so."""
    wanted = {fold(column.name) for column in table.columns}
    taken = wanted | {fold(name) for name in existing}
    found = []
    for name in foreign:
        if fold(name) in wanted:
            free = next(each for i in count(1) if fold(each := _former(name, i)) not in taken)
            taken.add(fold(free))
            found.append((name, free))
    return found


def _former(name: str, nth: int) -> str:
    return f"{name}_dropped" if nth == 1 else f"{name}_dropped_{nth}"
