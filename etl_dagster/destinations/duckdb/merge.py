"""One set-based merge of compacted changes into a table.

Deleting every key that changed and inserting the rows that stand is several times faster in DuckDB than MERGE INTO
(0.5 s against 3.3 s for 500 k changes in a table of 2 M rows), since DuckDB's updates are in place and keep versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from etl_dagster.arrow.changes import cdc_columns
from etl_dagster.arrow.compaction import Compacted, Unresolved
from etl_dagster.destinations.duckdb.client import Session
from etl_dagster.destinations.duckdb.encoding import encode, quoted
from etl_dagster.model import CDC_COLUMNS, TableSchema

_FILLED = "temp.etl_filled"
_CDC = ("change_type", "lsn", "timestamp")


@dataclass(frozen=True, slots=True)
class Donors:
    """SQL for where unresolved values come from.

    A query over the view ``etl_open`` (key columns ``k…``, source key columns ``s…``, ``origin`` and the row number
    ``r``) that gives at most one row for each ``r``, with a column ``v<i>`` for every unresolved column ``i``.
    """

    sql: str


def merge(session: Session, target: str, changes: Compacted) -> None:
    """Apply changes that have no unresolved values."""
    _delete_keys(session, target, changes)
    _insert(session, target, changes.table, _rows(changes))


def merge_with_donors(session: Session, target: str, changes: Compacted, donors: Donors) -> pa.Table | None:
    """Apply changes after filling unresolved values; returns the rows' numbers that found no donor, if any, and stops.

    The numbers are positions within ``changes.upserts``.
    """
    open_ = changes.unresolved
    assert open_ is not None
    rows = _rows(changes)
    positions = pa.array(open_.rows)
    session.run(f"DROP TABLE IF EXISTS {_FILLED}")
    with session.bound(etl_open=_open_view(changes, open_, rows.take(positions))):
        session.run(f"CREATE TEMP TABLE etl_filled AS {_fill(changes.table, open_, donors)}")
        if session.rows(f"SELECT count(*) FROM {_FILLED}")[0][0] < len(open_.rows):
            return _without_donor(session)
    _delete_keys(session, target, changes)
    resolved = np.ones(len(rows), np.bool_)
    resolved[open_.rows] = False
    _insert(session, target, changes.table, rows.filter(pa.array(resolved)))
    session.run(f"INSERT INTO {target} ({_target_columns(changes.table)}) SELECT * EXCLUDE (r) FROM {_FILLED}")
    session.run(f"DROP TABLE {_FILLED}")
    return None


def key_match(left: str, left_names: Sequence[str], right: str, right_names: Sequence[str]) -> str:
    """SQL condition that the keys of two relations are equal."""
    pairs = zip(left_names, right_names, strict=True)
    return " AND ".join(f"{left}.{quoted(one)} = {right}.{quoted(other)}" for one, other in pairs)


def key_names(table: TableSchema) -> list[str]:
    """Names of the key columns in a live or staging table."""
    return [column.name for column in table.key]


def bound_key_names(table: TableSchema, prefix: str = "k") -> list[str]:
    """Names of the key columns in Arrow data bound to a query."""
    return [f"{prefix}{i}" for i in range(len(table.key))]


def _rows(changes: Compacted) -> pa.Table:
    """The upserts with their CDC columns, by position."""
    names = [f"c{i}" for i in range(len(changes.table.columns))]
    rows = encode(changes.upserts, names)
    cdc = cdc_columns(changes.kind, changes.lsn, changes.ordinal, changes.timestamp)
    for name, column in zip(_CDC, cdc, strict=True):
        rows = rows.append_column(name, column)
    return rows


def _delete_keys(session: Session, target: str, changes: Compacted) -> None:
    table = changes.table
    names = bound_key_names(table)
    standing = changes.upserts.select(list(table.key_indexes))
    keys = pa.concat_tables([encode(standing, names), encode(changes.deletes, names)])
    with session.bound(etl_keys=keys):
        condition = key_match("t", key_names(table), "k", names)
        session.run(f"DELETE FROM {target} AS t USING etl_keys AS k WHERE {condition}")


def _insert(session: Session, target: str, table: TableSchema, rows: pa.Table) -> None:
    if len(rows):
        with session.bound(etl_rows=rows):
            session.run(f"INSERT INTO {target} ({_target_columns(table)}) SELECT * FROM etl_rows")


def _target_columns(table: TableSchema) -> str:
    return ", ".join(quoted(name) for name in [*(column.name for column in table.columns), *CDC_COLUMNS])


def _open_view(changes: Compacted, open_: Unresolved, rows: pa.Table) -> pa.Table:
    table = changes.table
    view = rows.append_column("r", pa.array(open_.rows)).append_column("origin", pa.array(open_.origin_lsn))
    for column, mask in open_.columns.items():
        view = view.append_column(f"m{column}", pa.array(mask))
    source = encode(open_.source_keys, bound_key_names(table, "s"))
    for name, values in zip(source.column_names, source.columns, strict=True):
        view = view.append_column(name, values)
    for name, index in zip(bound_key_names(table), table.key_indexes, strict=True):
        view = view.append_column(name, rows.column(index))
    return view


def _fill(table: TableSchema, open_: Unresolved, donors: Donors) -> str:
    columns = [
        f"CASE WHEN u.m{i} THEN d.v{i} ELSE u.c{i} END AS c{i}" if i in open_.columns else f"u.c{i}"
        for i in range(len(table.columns))
    ]
    chosen = ", ".join([*columns, *(f"u.{quoted(name)}" for name in _CDC)])
    return f"SELECT {chosen}, u.r FROM etl_open AS u JOIN ({donors.sql}) AS d ON d.r = u.r"


def _without_donor(session: Session) -> pa.Table:
    sql = f"SELECT r FROM etl_open WHERE r NOT IN (SELECT r FROM {_FILLED}) ORDER BY r"
    return session.reader(sql).read_all()
