"""Slices as conditions: which rows of a table lie in them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from psycopg import sql

from etl_dagster.errors import TableError
from etl_dagster.model import Column, Slice, TableSchema
from etl_dagster.model.slices import RANGE_TYPES, TEXT_TYPES, TIME_TYPES
from etl_dagster.postgres.sessions import Connection

INTEGERS = (21, 23, 20)
UUID_OID = 2950
# Each row is compared with every slice in turn up to so many; beyond, a search among all bounds is cheaper.
_COMPARED_ONE_BY_ONE = 8
_TYPES = RANGE_TYPES | TIME_TYPES | dict.fromkeys(TEXT_TYPES, "text")

# Which fields tell the provider and its locale depends on the version. Provider b orders by code points whatever its
# locale, which in its only encoding, UTF-8, is the order of the bytes; libc does so for C and POSIX alone.
_BYTE_ORDER = """
SELECT CASE WHEN c.collprovider = 'd' THEN
           CASE d.row ->> 'datlocprovider' WHEN 'b' THEN true WHEN 'i' THEN false
                ELSE d.row ->> 'datcollate' IN ('C', 'POSIX') END
       ELSE c.collprovider = 'b' OR c.collprovider = 'c' AND c.collcollate IN ('C', 'POSIX') END
FROM pg_attribute a JOIN pg_collation c ON c.oid = a.attcollation
CROSS JOIN (SELECT to_jsonb(d) AS row FROM pg_database d WHERE datname = current_database()) d
WHERE a.attrelid = %s AND a.attnum = %s
"""
# A constraint that was added without a look at the rows that were there says nothing of those.
_NEVER_NULL = """
SELECT a.attnotnull AND NOT EXISTS (
    SELECT FROM pg_constraint c
    WHERE c.conrelid = a.attrelid AND c.contype = 'n' AND c.conkey = ARRAY[a.attnum] AND NOT c.convalidated
)
FROM pg_attribute a WHERE a.attrelid = %s AND a.attnum = %s
"""


class SliceColumn:
    """A column that slices are cut by, as it is compared."""

    def __init__(self, connection: Connection, table: TableSchema, column: Column) -> None:
        self.oid = column.type.oid
        self.value: sql.Composable = sql.Identifier("t", column.name)
        if self.oid in TEXT_TYPES:
            found = connection.execute(_BYTE_ORDER, [table.oid, column.attnum]).fetchone()
            # An index serves only comparisons of its own collation, so it is named only where it changes the order.
            if found is None or not found[0]:
                self.value = sql.SQL('{} COLLATE "C"').format(self.value)

    def literal(self, text: str) -> sql.Composable:
        """A value of the column's type."""
        return sql.SQL("{}::{}").format(sql.Literal(text), sql.Identifier(_TYPES[self.oid]))

    def within(self, part: Slice) -> sql.Composable:
        """The condition of one slice."""
        bounds = [
            sql.SQL("{} {} {}").format(self.value, sql.SQL(operator), self.literal(bound))
            for operator, bound in ((">=", part.lower), ("<", part.upper))
            if bound is not None
        ]
        if not bounds:
            return sql.SQL("true") if part.nulls else sql.SQL("{} IS NOT NULL").format(self.value)
        inside = sql.SQL(" AND ").join(bounds)
        return sql.SQL("({} OR {} IS NULL)").format(inside, self.value) if part.nulls else inside

    def within_any(self, parts: Sequence[Slice]) -> sql.Composable:
        """The condition of slices that `merge_slices` made."""
        if len(parts) <= _COMPARED_ONE_BY_ONE:
            return sql.SQL("({})").format(sql.SQL(" OR ").join(map(self.within, parts)))
        bounds = [bound for part in parts for bound in (part.lower, part.upper) if bound is not None]
        # Bounds open and close slices in turn, and a bucket is the number of bounds that lie at or below the value.
        inside = sql.SQL("width_bucket({}, ARRAY[{}]) % 2 = {}").format(
            self.value,
            sql.SQL(", ").join(map(self.literal, bounds)),
            sql.Literal(0 if parts[0].lower is None else 1),
        )
        if any(part.nulls for part in parts):
            return sql.SQL("({} OR {} IS NULL)").format(inside, self.value)
        return inside


def is_never_null(connection: Connection, table: TableSchema, attnum: int) -> bool:
    """Whether no row of the table lacks a value in the column now."""
    found = connection.execute(_NEVER_NULL, [table.oid, attnum]).fetchone()
    return found is not None and bool(found[0])


def slice_column(table: TableSchema, attnum: int) -> Column:
    """The column that a slice of the table is cut by.

    Raises:
        TableError: The table has no such column any more.
    """
    for column in table.columns:
        if column.attnum == attnum and column.type.oid in _TYPES:
            return column
    raise TableError(
        f"table {table.id} has no column any more that it could be cut by into these slices",
        hint="Choose another partition rule for the table, or ask for the slices that it has now",
        table=str(table.id),
    )


def condition(connection: Connection, table: TableSchema, slices: Sequence[Slice]) -> sql.Composable:
    """The condition of rows ``t`` that lie in any of these slices, of one table as `merge_slices` made them."""
    parts = [
        SliceColumn(connection, table, slice_column(table, attnum)).within_any(list(group))
        for attnum, group in groupby(slices, key=lambda part: part.attnum)
    ]
    return sql.SQL("({})").format(sql.SQL(" OR ").join(parts))
