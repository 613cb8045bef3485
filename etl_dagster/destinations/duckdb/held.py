"""Held logs: the messages of quarantined tables, raw, one table for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from etl_dagster.arrow.changes import select_raw
from etl_dagster.arrow.fixed import array_of
from etl_dagster.destinations.duckdb.client import Session
from etl_dagster.destinations.duckdb.encoding import quoted
from etl_dagster.model import Lsn, RawChanges, TableId

# A log may be larger than DuckDB can sort, so it is read part by part: runs of as many messages as fit into a piece.
_RUN = 128
_PIECE_BYTES = 16 * 1024 * 1024
_COLUMNS = "lsn, ordinal, timestamp, xid, message, text"
_WHERE = "WHERE pipeline = ? AND schema_name = ? AND table_name = ?"


@dataclass(frozen=True, slots=True)
class HeldLog:
    """One row of ``_etl.held``; ``name`` is its SQL name."""

    table: TableId
    lsn: Lsn
    name: str


class HeldLogs:
    """The held logs of one pipeline, through one session and within the caller's transaction.

    A table may be held that belongs to another pipeline, which can be the very reason to hold it.
    """

    def __init__(self, session: Session, owner: str) -> None:
        self._session = session
        self._owner = owner

    def all(self) -> Mapping[TableId, HeldLog]:
        # No parameters: DuckDB would import pandas for them, also where nothing is held.
        sql = "SELECT pipeline, schema_name, table_name, lsn, log FROM _etl.held"
        found = [
            HeldLog(TableId(schema, name), Lsn(lsn), quoted("_etl", log))
            for pipeline, schema, name, lsn, log in self._session.rows(sql)
            if pipeline == self._owner
        ]
        return {each.table: each for each in found}

    def begin(self, table: TableId) -> None:
        """Create an empty one, unless there is one."""
        if table in self.all():
            return
        log = f"held_{self._next_number()}"
        columns = "lsn UBIGINT, ordinal BIGINT, timestamp BIGINT, xid UINTEGER, message BLOB, text BLOB, place BIGINT"
        self._session.run(f"CREATE TABLE {quoted('_etl', log)} ({columns})")
        values = [table.schema, table.name, self._owner, 0, log]
        self._session.run("INSERT INTO _etl.held VALUES (?, ?, ?, ?, ?)", values)

    def _next_number(self) -> int:
        return int(self._session.rows("SELECT coalesce(max(log[6:]::BIGINT), 0) + 1 FROM _etl.held")[0][0])

    def release(self, table: TableId) -> None:
        """Remove the one of a table, if there is one."""
        if (found := self.all().get(table)) is not None:
            self._session.run(f"DROP TABLE IF EXISTS {found.name}")
            self._session.run(f"DELETE FROM _etl.held {_WHERE}", [self._owner, table.schema, table.name])

    def raise_watermarks(self, tables: list[TableId], lsn: Lsn) -> None:
        for table in tables:
            values = [int(lsn), self._owner, table.schema, table.name, int(lsn)]
            self._session.run(f"UPDATE _etl.held SET lsn = ? {_WHERE} AND lsn < ?", values)


class HeldWriter:
    """Appends the messages of one batch to a held log."""

    def __init__(self, session: Session, log: HeldLog) -> None:
        self._session = session
        self._log = log
        self._next: int | None = None

    def append(self, raw: RawChanges) -> int:
        """Add the messages that the watermark does not cover; returns how many."""
        new = select_raw(raw, raw.lsn >= int(self._log.lsn))
        if self._next is None:
            self._next = self._size()
        with self._session.bound(etl_rows=_table(new, self._next)):
            self._session.run(f"INSERT INTO {self._log.name} SELECT * FROM etl_rows")
        self._next += len(new)
        return len(new)

    def _size(self) -> int:
        return int(self._session.rows(f"SELECT coalesce(max(place) + 1, 0) FROM {self._log.name}")[0][0])


def read(session: Session, log: HeldLog) -> Iterator[RawChanges]:
    """What a held log has, in the order in which it came."""
    for first, end in _parts(session, log):
        where = f"WHERE place >= {first} AND place < {end} ORDER BY place"
        yield _raw(session.reader(f"SELECT {_COLUMNS} FROM {log.name} {where}"))


def _parts(session: Session, log: HeldLog) -> list[tuple[int, int]]:
    """First and end of the places to read at once."""
    size = "sum(octet_length(message) + coalesce(octet_length(text), 0))"
    sql = f"SELECT place // {_RUN} AS run, {size} FROM {log.name} GROUP BY run ORDER BY run"
    parts: list[tuple[int, int]] = []
    room = 0
    for run, size_of_run in session.rows(sql):
        if room >= size_of_run:
            parts[-1] = (parts[-1][0], (run + 1) * _RUN)
        else:
            parts.append((run * _RUN, (run + 1) * _RUN))
            room = _PIECE_BYTES
        room -= size_of_run
    return parts


def _table(raw: RawChanges, place: int) -> pa.Table:
    numbers = [array_of(values) for values in (raw.lsn, raw.ordinal, raw.timestamp, raw.xid)]
    places = array_of(np.arange(place, place + len(raw)))
    return pa.table([*numbers, raw.message, raw.text, places], names=[*_COLUMNS.split(", "), "place"])


def _raw(found: pa.RecordBatchReader) -> RawChanges:
    batch = found.read_all().combine_chunks().to_batches()[0]
    lsn, ordinal, timestamp, xid = (batch.column(i).to_numpy() for i in range(4))
    return RawChanges(lsn, ordinal, timestamp, xid, batch.column(4), batch.column(5))
