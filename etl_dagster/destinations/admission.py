"""Which tables a destination can take at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from string import ascii_lowercase, ascii_uppercase

from etl_dagster.errors import DestinationError, TableError
from etl_dagster.model import CDC_COLUMNS, UNCHANGED_COLUMN, Column, CopyTarget, Landing, Slice, TableId, TableSchema

_FOLD_ASCII = str.maketrans(ascii_uppercase, ascii_lowercase)


def fold_ascii(name: str) -> str:
    """A name as a destination compares it that ignores the case of ASCII letters."""
    return name.translate(_FOLD_ASCII)


def require_mergeable(table: TableSchema) -> None:
    """Raise `TableError` for a table that has no key to merge on and is not kept as a changelog."""
    if not table.key and table.landing is not Landing.CHANGELOG:
        raise TableError(
            f"{table.id} has no key, so that its changes cannot be merged",
            hint="Add a primary key, or choose a unique index with ALTER TABLE … REPLICA IDENTITY USING INDEX,"
            " or set `landing: changelog` for the table",
            table=str(table.id),
        )


def require_column_names(table: TableSchema, *, fold: Callable[[str], str] = str) -> None:
    """Raise `TableError` when column names collide with each other or with the CDC columns."""
    reserved = [*CDC_COLUMNS, UNCHANGED_COLUMN] if table.landing is Landing.CHANGELOG else CDC_COLUMNS
    names = [*(column.name for column in table.columns), *reserved]
    seen: set[str] = set()
    for name in names:
        folded = fold(name)
        if folded in seen:
            raise TableError(
                f"{table.id} has more than one column {name!r} at the destination",
                hint="Rename the column, or leave it out with a column list in the publication",
                table=str(table.id),
            )
        seen.add(folded)


def require_sliceable(table: TableSchema) -> None:
    """Raise `TableError` for a table of which no part can be copied by itself."""
    if table.landing is Landing.CHANGELOG or not table.key:
        why = "keeps every change" if table.landing is Landing.CHANGELOG else "has no key"
        raise TableError(
            f"Slices of {table.id} cannot be copied, since the table {why}",
            hint="Re-sync the whole table",
            table=str(table.id),
        )


def slice_column(table: TableSchema, slices: Sequence[Slice]) -> Column:
    """The column of a live table that slices are cut by."""
    wanted = {each.attnum for each in slices}
    found = [column for column in table.columns if {column.attnum} == wanted]
    if not found:
        raise TableError(
            f"{table.id} has no column at the destination that these slices could be found by",
            hint="Re-sync the whole table",
            table=str(table.id),
        )
    return found[0]


def table_not_live(table: TableId) -> DestinationError:
    """The error of a table of which a part is to be replaced, and which is not there."""
    return DestinationError(
        f"{table} does not exist at the destination, so that slices of it cannot be copied",
        hint="Re-sync the whole table",
        table=str(table),
    )


def copy_not_begun(target: CopyTarget) -> DestinationError:
    """The error of a copy that the destination does not know."""
    return DestinationError(
        f"copy {target.copy_id} of {target.table.id} was not begun",
        hint="Start the copy of the table again",
        table=str(target.table.id),
    )
