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

# Messages may be large: what is read at once is bounded by few rows, then gathered up to a size.
_READ_ROWS = 2048
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
        sql = "SELECT schema_name, table_name, lsn, log FROM _etl.held WHERE pipeline = ?"
        found = [
            HeldLog(TableId(schema, name), Lsn(lsn), quoted("_etl", log))
            for schema, name, lsn, log in self._session.rows(sql, [self._owner])
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

    def append(self, log: HeldLog, raw: RawChanges, place: int) -> int:
        """Add the messages that its watermark does not cover; returns how many.

        Args:
            place: How many messages of the same batch came before, since those of one change may have one ordinal.
        """
        rows = _table(select_raw(raw, raw.lsn >= int(log.lsn)), place)
        with self._session.bound(etl_rows=rows):
            return self._session.run(f"INSERT INTO {log.name} SELECT * FROM etl_rows")

    def raise_watermarks(self, tables: list[TableId], lsn: Lsn) -> None:
        for table in tables:
            values = [int(lsn), self._owner, table.schema, table.name, int(lsn)]
            self._session.run(f"UPDATE _etl.held SET lsn = ? {_WHERE} AND lsn < ?", values)


def read(session: Session, log: HeldLog) -> Iterator[RawChanges]:
    """What a held log has, in the order of the stream."""
    found = session.reader(f"SELECT {_COLUMNS} FROM {log.name} ORDER BY lsn, ordinal, place", rows=_READ_ROWS)
    piece: list[pa.RecordBatch] = []
    for batch in found:
        piece.append(batch)
        if sum(part.nbytes for part in piece) >= _PIECE_BYTES:
            yield _raw(piece)
            piece = []
    if piece:
        yield _raw(piece)


def _table(raw: RawChanges, place: int) -> pa.Table:
    numbers = [array_of(values) for values in (raw.lsn, raw.ordinal, raw.timestamp, raw.xid)]
    places = array_of(np.arange(place, place + len(raw)))
    return pa.table([*numbers, raw.message, raw.text, places], names=[*_COLUMNS.split(", "), "place"])


def _raw(piece: list[pa.RecordBatch]) -> RawChanges:
    batch = pa.Table.from_batches(piece).combine_chunks().to_batches()[0]
    lsn, ordinal, timestamp, xid = (batch.column(i).to_numpy() for i in range(4))
    return RawChanges(lsn, ordinal, timestamp, xid, batch.column(4), batch.column(5))
