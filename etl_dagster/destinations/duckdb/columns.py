"""The columns of a live table follow those of the source; see ``docs/decisions/schema-changes-in-duckdb.md``.

Within a transaction, columns can be altered only as long as no row of the table was deleted.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from etl_dagster.arrow.changes import missing_value
from etl_dagster.arrow.types import column_type
from etl_dagster.destinations.alteration import Alteration, not_followable
from etl_dagster.destinations.duckdb.client import Session
from etl_dagster.destinations.duckdb.encoding import duckdb_type, encode, quoted
from etl_dagster.destinations.duckdb.ledger import live_name
from etl_dagster.model import Column, Landing, TableSchema


def by_names(table: TableSchema, existing: Sequence[str]) -> TableSchema:
    """The schema of a live table of which no more is known than the names of its columns."""
    columns = tuple(each for each in table.columns if each.name in existing)
    return TableSchema(id=table.id, oid=table.oid, columns=columns)


def alter(session: Session, table: TableSchema, steps: Alteration) -> None:
    """Carry an alteration of the live table out; of its rows none may have been touched before."""
    name = live_name(table.id)
    # Names may be swapped, or change in nothing but their case.
    between = [f"_etl_{i}" for i in range(len(steps.renames))]
    for (old, _), middle in zip(steps.renames, between, strict=True):
        session.run(f"ALTER TABLE {name} RENAME COLUMN {quoted(old)} TO {quoted(middle)}")
    for (_, new), middle in zip(steps.renames, between, strict=True):
        session.run(f"ALTER TABLE {name} RENAME COLUMN {quoted(middle)} TO {quoted(new)}")
    for column in steps.added:
        _add(session, table, column)


def _add(session: Session, table: TableSchema, column: Column) -> None:
    name, type_ = live_name(table.id), duckdb_type(column_type(column))
    value = None if table.landing is Landing.CHANGELOG else missing_value(column)
    if value is None or value.null_count:
        session.run(f"ALTER TABLE {name} ADD COLUMN {quoted(column.name)} {type_}")
        return
    # Every row gets the value without being touched; then the default goes.
    literal, added = _literal(session, value, type_), quoted(column.name)
    if literal is None:
        raise not_followable(table, f"cannot get the default of column {column.name!r}")
    first = "VARCHAR" if _is_list(type_) else type_
    session.run(f"ALTER TABLE {name} ADD COLUMN {added} {first} DEFAULT {literal}")
    session.run(f"ALTER TABLE {name} ALTER COLUMN {added} DROP DEFAULT")
    # A list as default makes DuckDB give up the database: lists are added as their text, then read. Any expression but
    # the column itself, even a cast, might be one that it cannot read from its WAL after a kill.
    for step in ["VARCHAR[]", type_] if _is_list(type_) else []:
        session.run(f"ALTER TABLE {name} ALTER COLUMN {added} SET DATA TYPE {step} USING {added}")


def _literal(session: Session, array: pa.Array, type_: str) -> str | None:
    """The one value of an array as a text that DuckDB reads as exactly this value; None when there is no such text."""
    value = encode(pa.table([array], names=["v"]), ["v"])
    middle = "::VARCHAR[]" if _is_list(type_) else ""
    text = f"v{middle}::VARCHAR"
    with session.bound(etl_rows=value):
        sql = f"SELECT {text}, TRY_CAST({text}{middle} AS {type_}) IS NOT DISTINCT FROM v FROM etl_rows"
        found, exact = session.rows(sql)[0]
    return "'" + str(found).replace("'", "''") + "'" if exact else None


def _is_list(type_: str) -> bool:
    return type_.endswith("[]")
