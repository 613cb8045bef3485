"""One set-based merge of a table's changes per batch.

Deleting every key that changed and inserting the rows that stand is several times faster in DuckDB than MERGE INTO
(0.5 s against 3.3 s for 500 k changes in a table of 2 M rows), since DuckDB's updates are in place and keep versions.

A transaction must never delete a row that it has inserted itself: DuckDB then cannot take over the row groups that it
has written already, and the commit of 1 M rows takes 3.7 s of CPU instead of 0.04 s. So when a batch comes in several
pieces they are gathered in temporary tables, which spill to disk, and merged once. Their columns are named by attnum,
so that a later piece may come under a later schema.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from etl_dagster.arrow.changes import cdc_columns, lsn_number, missing_value
from etl_dagster.arrow.compaction import Compacted, Unresolved
from etl_dagster.arrow.fixed import array_of, mask_of
from etl_dagster.destinations.duckdb.client import Session
from etl_dagster.destinations.duckdb.encoding import encode, quoted
from etl_dagster.model import (
    CDC_COLUMNS,
    ChangeType,
    Column,
    Landing,
    Lsn,
    TableSchema,
)

_FILLED = "temp.etl_filled"
_PENDING = "temp.etl_pending"
_TOUCHED = "temp.etl_touched"
_CDC = ("change_type", "lsn", "timestamp")
# A piece up to this size waits in memory for another one; if none comes it is merged without a detour.
_HOLD_BYTES = 16 * 1024 * 1024
# Table, then its columns for change type, LSN and timestamp.
_MARK = 'UPDATE {0} SET "{1}" = ?, "{2}" = ?, "{3}" = make_timestamptz(?) WHERE "{1}" <> ?'


class Merge:
    """Changes of one table on their way into a live or staging table, within the caller's transaction.

    Args:
        target: SQL name of the table to merge into.
        number: Tells the merges of one transaction apart.
        extra_donors: More SQL like that of `_target_donors`, for values that the target does not hold; rows of
            higher ``age`` win.
        own_key: Take unchanged values from the target's row under the row's own key, and only if the row has always
            stood there, instead of under the key it had before.
    """

    def __init__(
        self,
        session: Session,
        table: TableSchema,
        target: str,
        *,
        number: int = 0,
        own_key: bool = False,
        extra_donors: Callable[[Unresolved], str] | None = None,
    ) -> None:
        self._session = session
        self._table = table
        self._target = target
        self._own_key = own_key
        self._extra_donors = extra_donors
        self._pending, self._touched = f"{_PENDING}{number}", f"{_TOUCHED}{number}"
        self._held: Compacted | None = None
        self._pieces = 0
        self._truncated = False
        self._marked_at: tuple[Lsn, int] | None = None

    def follow(self, table: TableSchema) -> None:
        """Go on under a later schema, whose columns the target has by now."""
        self._gather_held()
        before = {column.attnum for column in self._table.columns}
        added = [column for column in table.columns if column.attnum not in before]
        if self._pieces and added:
            with self._session.bound(etl_rows=missing_values(added)):
                query = f"SELECT * FROM {self._pending} CROSS JOIN etl_rows"
                self._session.run(f"CREATE OR REPLACE TEMP TABLE {self._pending.removeprefix('temp.')} AS {query}")
        self._table = table

    def truncate(self, at: Lsn, time: int) -> None:
        """Forget what came before, in the target too, or mark it as deleted then (microseconds since 1970)."""
        if self._table.landing is Landing.SOFT_DELETE:
            self._mark(at, time)
            return
        self._held = None
        if self._pieces:
            self._session.run(f"TRUNCATE {self._pending}")
            self._session.run(f"TRUNCATE {self._touched}")
        self._truncated = True

    def add(self, changes: Compacted) -> pa.Table | None:
        """Add the next piece.

        Returns:
            The keys of rows with unresolved values that are nowhere to be found; then nothing more may be done but to
            roll back. Of fresh rows they are looked for among the extra donors alone.
        """
        self._gather_held()
        if changes.unresolved is not None:
            return self._fill(changes, changes.unresolved)
        if not self._pieces and changes.upserts.nbytes <= _HOLD_BYTES:
            self._held = changes
        else:
            self._gather(changes, _rows(changes))
        return None

    def finish(self) -> None:
        """Bring the changes into the target."""
        if self._truncated:
            self._session.run(f"TRUNCATE {self._target}")
        if self._marked_at is not None:
            self._session.run(_MARK.format(self._target, *CDC_COLUMNS), _mark_values(*self._marked_at))
        if self._held is not None:
            self._merge_held(self._held)
        elif self._pieces:
            self._merge_gathered()

    def _mark(self, at: Lsn, time: int) -> None:
        self._gather_held()
        if self._pieces:
            self._session.run(_MARK.format(self._pending, *_CDC), _mark_values(at, time))
        if self._marked_at is None:
            self._marked_at = at, time

    def _merge_held(self, changes: Compacted) -> None:
        with self._session.bound(etl_keys=_keys(changes), etl_rows=_rows(changes)):
            self._delete("etl_keys")
            if len(changes.upserts):
                self._session.run(f"INSERT INTO {self._target} ({self._columns}) SELECT * FROM etl_rows")

    def _merge_gathered(self) -> None:
        names = bound_key_names(self._table)
        keys = ", ".join(names)
        self._delete(f"(SELECT DISTINCT {keys} FROM {self._touched})")
        last = f"SELECT {keys}, max(piece) AS piece FROM {self._touched} GROUP BY {keys}"
        positions = list(map(value_name, self._table.key))
        chosen = ", ".join([*map(value_name, self._table.columns), *_CDC])
        self._session.run(
            f"INSERT INTO {self._target} ({self._columns}) SELECT {chosen} FROM {self._pending} AS p"
            f" SEMI JOIN ({last}) AS l ON l.piece = p.piece AND {key_match('p', positions, 'l', names)}"
        )
        self._session.run(f"DROP TABLE {self._pending}")
        self._session.run(f"DROP TABLE {self._touched}")

    def _delete(self, keys: str) -> None:
        condition = key_match("t", key_names(self._table), "k", bound_key_names(self._table))
        if not self._truncated:
            self._session.run(f"DELETE FROM {self._target} AS t USING {keys} AS k WHERE {condition}")

    @property
    def _columns(self) -> str:
        return ", ".join(quoted(name) for name in [*(column.name for column in self._table.columns), *CDC_COLUMNS])

    def _gather_held(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._gather(held, _rows(held))

    def _gather(self, changes: Compacted, rows: pa.Table) -> None:
        self._write("etl_rows", rows, self._pending)
        self._write("etl_keys", _keys(changes), self._touched)
        self._pieces += 1

    def _write(self, name: str, data: pa.Table, into: str) -> None:
        query = f"SELECT *, {self._pieces}::INTEGER AS piece FROM {name}"
        with self._session.bound(**{name: data}):
            if self._pieces:
                self._session.run(f"INSERT INTO {into} BY NAME {query}")
            else:
                self._session.run(f"CREATE OR REPLACE TEMP TABLE {into.removeprefix('temp.')} AS {query}")

    def _fill(self, changes: Compacted, open_: Unresolved) -> pa.Table | None:
        rows = _rows(changes)
        self._session.run(f"DROP TABLE IF EXISTS {_FILLED}")
        with self._session.bound(etl_open=_open_view(changes, open_, rows.take(array_of(open_.rows)))):
            self._session.run(f"CREATE TEMP TABLE etl_filled AS {_filled(self._table, open_, self._donors(open_))}")
            if self._session.rows(f"SELECT count(*) FROM {_FILLED}")[0][0] < len(open_.rows):
                return _without_donor(self._session, changes)
        resolved = np.ones(len(rows), np.bool_)
        resolved[open_.rows] = False
        self._gather(changes, rows.filter(mask_of(resolved)))
        query = f"SELECT * EXCLUDE (r), {self._pieces - 1} AS piece FROM {_FILLED}"
        self._session.run(f"INSERT INTO {self._pending} BY NAME {query}")
        self._session.run(f"DROP TABLE {_FILLED}")
        return None

    def _donors(self, open_: Unresolved) -> str:
        """SQL for at most one row for each open row ``r``, with its unresolved values ``v…``."""
        queries = [] if self._truncated else [self._target_donors(open_)]
        if self._pieces:
            queries.append(self._gathered_donors(open_))
        if self._extra_donors is not None:
            queries.append(self._extra_donors(open_))
        nothing = ", ".join(f"u.c{i} AS v{i}" for i in open_.columns)
        found = " UNION ALL ".join(queries) or f"SELECT u.r, 0 AS age, {nothing} FROM etl_open AS u WHERE false"
        return f"SELECT DISTINCT ON (r) * FROM ({found}) ORDER BY r, age DESC"

    def _target_donors(self, open_: Unresolved) -> str:
        values = ", ".join(f"t.{quoted(self._table.columns[i].name)} AS v{i}" for i in open_.columns)
        own = bound_key_names(self._table, "k" if self._own_key else "s")
        condition = key_match("t", key_names(self._table), "u", own)
        settled = " AND u.origin = 0" if self._own_key else ""
        return (
            f"SELECT u.r, -1 AS age, {values} FROM etl_open AS u JOIN {self._target} AS t ON {condition}"
            f" WHERE NOT u.fresh{settled}"
        )

    def _gathered_donors(self, open_: Unresolved) -> str:
        values = ", ".join(f"p.{value_name(self._table.columns[i])} AS v{i}" for i in open_.columns)
        positions = list(map(value_name, self._table.key))
        condition = key_match("p", positions, "u", bound_key_names(self._table, "s"))
        return (
            f"SELECT u.r, p.piece AS age, {values} FROM etl_open AS u JOIN {self._pending} AS p ON {condition}"
            " WHERE NOT u.fresh"
        )


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


def value_name(column: Column) -> str:
    """What a column is called in data on its way."""
    return f"c{column.attnum}"


def missing_values(columns: Sequence[Column]) -> pa.Table:
    """One row of what rows have in columns that are newer than they are."""
    names = list(map(value_name, columns))
    return encode(pa.table([missing_value(column) for column in columns], names=names), names)


def _mark_values(at: Lsn, time: int) -> list[object]:
    return [ChangeType.DELETE.value, lsn_number(at), time, ChangeType.DELETE.value]


def _rows(changes: Compacted) -> pa.Table:
    """The upserts with their CDC columns."""
    names = list(map(value_name, changes.table.columns))
    rows = encode(changes.upserts, names)
    cdc = cdc_columns(changes.kind, changes.lsn, changes.ordinal, changes.timestamp)
    for name, column in zip(_CDC, cdc, strict=True):
        rows = rows.append_column(name, column)
    return rows


def _keys(changes: Compacted) -> pa.Table:
    """Every key that the changes touch."""
    names = bound_key_names(changes.table)
    standing = changes.upserts.select(list(changes.table.key_indexes))
    return pa.concat_tables([encode(standing, names), encode(changes.deletes, names)])


def _open_view(changes: Compacted, open_: Unresolved, rows: pa.Table) -> pa.Table:
    table = changes.table
    view = rows.append_column("r", array_of(open_.rows)).append_column("origin", array_of(open_.origin_lsn))
    view = view.append_column("optional", mask_of(open_.optional)).append_column("fresh", mask_of(open_.fresh))
    for column, mask in open_.columns.items():
        view = view.append_column(f"m{column}", mask_of(mask))
    source = encode(open_.source_keys, bound_key_names(table, "s"))
    for name, values in zip(source.column_names, source.columns, strict=True):
        view = view.append_column(name, values)
    for name, index in zip(bound_key_names(table), table.key_indexes, strict=True):
        view = view.append_column(name, rows.column(index))
    return view


def _filled(table: TableSchema, open_: Unresolved, donors: str) -> str:
    names = list(map(value_name, table.columns))
    columns = [
        f"CASE WHEN u.m{i} THEN d.v{i} ELSE u.{name} END AS {name}" if i in open_.columns else f"u.{name}"
        for i, name in enumerate(names)
    ]
    chosen = ", ".join([*columns, *(f"u.{quoted(name)}" for name in _CDC)])
    joined = f"etl_open AS u LEFT JOIN ({donors}) AS d ON d.r = u.r WHERE d.r IS NOT NULL OR u.optional"
    return f"SELECT {chosen}, u.r FROM {joined}"


def _without_donor(session: Session, changes: Compacted) -> pa.Table:
    rows = session.rows(f"SELECT r FROM etl_open WHERE r NOT IN (SELECT r FROM {_FILLED}) ORDER BY r")
    keys = changes.upserts.select(list(changes.table.key_indexes))
    return keys.take(pa.array([row[0] for row in rows], pa.int64()))
