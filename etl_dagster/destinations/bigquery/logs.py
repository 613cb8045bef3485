"""Change logs and held logs: rows that nobody but us reads, as blobs of Arrow data in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from etl_dagster.arrow.changes import beyond, from_record_batch, same_columns, select_raw, to_record_batch
from etl_dagster.arrow.fixed import array_of
from etl_dagster.destinations.bigquery.client import Client
from etl_dagster.destinations.bigquery.layout import Field
from etl_dagster.destinations.bigquery.ledger import Ledger
from etl_dagster.destinations.bigquery.stage import Heap, Stage
from etl_dagster.destinations.bigquery.state import Change, CopyBody, Entry, Key, LogBody
from etl_dagster.destinations.bigquery.types import plain_type
from etl_dagster.model import ChangeSet, Lsn, RawChanges, TableEvents, TableId, TableSchema

FIELDS = (Field("seq", "INT64"), Field("body", "BYTES"))
# Small enough for answers of 10 MB, however well it compresses.
_BLOB_BYTES = 2 * 1024 * 1024
# All that is sorted is sorted by one of BigQuery's workers.
_BLOBS_AT_ONCE = 64
_TYPES = (("seq", plain_type(pa.int64())), ("body", plain_type(pa.binary())))
_RAW = ("lsn", "ordinal", "timestamp", "xid", "message", "text")


def creation(ref: str) -> str:
    """The statement that makes an empty log."""
    columns = ", ".join(f"{each.name} {each.type}" for each in FIELDS)
    return f"CREATE TABLE IF NOT EXISTS {ref} ({columns}) CLUSTER BY seq"


class LogWriter:
    """Appends what one batch brings to one log.

    Args:
        key: Of the log's entry in the state; ``entry`` is what it says now.
    """

    def __init__(self, ledger: Ledger, stage: Stage, key: Key, entry: Entry, table: TableId) -> None:
        assert isinstance(entry.body, CopyBody | LogBody)
        self._key = key
        self._lsn = entry.lsn
        self._body = entry.body
        self._ref = ledger.log(entry.body)
        self._stage = stage
        self._table = table
        self._heap: Heap | None = None
        self._truncated = self._partial = False

    def append_changes(self, events: TableEvents, table: TableSchema) -> int:
        """Add the changes of the copy's schema that the watermark does not cover; returns how many."""
        if events.truncated_at is not None and events.truncated_at >= self._lsn:
            self._heap, self._truncated, self._partial = None, True, False
        changes = [part for part in beyond(events, self._lsn) if same_columns(part.table, table)]
        for part in changes:
            self._partial = self._partial or bool(part.unchanged)
            self._append(to_record_batch(part))
        return sum(map(len, changes))

    def append_raw(self, raw: RawChanges) -> int:
        """Add the messages that the watermark does not cover; returns how many."""
        new = select_raw(raw, raw.lsn >= int(self._lsn))
        numbers = [array_of(values) for values in (new.lsn, new.ordinal, new.timestamp, new.xid)]
        self._append(pa.RecordBatch.from_arrays([*numbers, new.message, new.text], names=_RAW))
        return len(new)

    def _append(self, rows: pa.RecordBatch) -> None:
        if not len(rows):
            return
        if self._heap is None:
            self._heap = self._stage.heap(_TYPES, str(self._table))
        blobs = list(_blobs(rows))
        start = (0 if self._truncated else self._body.pieces) + self._heap.rows
        self._heap.add([array_of(np.arange(start, start + len(blobs))), pa.array(blobs, pa.binary())])

    def heaps(self) -> list[Heap]:
        """What has to be placed before `change`."""
        return [] if self._heap is None else [self._heap]

    def change(self, position: Lsn) -> Change:
        """What a script has to do, once the heap is placed."""
        change = Change()
        pieces = 0 if self._truncated else self._body.pieces
        update: dict[str, object] = {}
        if self._truncated:
            change.statements.append(f"TRUNCATE TABLE {self._ref}")
            update |= {"truncated": True, "partial": False}
        if self._partial:
            update["partial"] = True
        if self._heap is not None:
            change.statements.append(f"INSERT INTO {self._ref} (seq, body) SELECT seq, body FROM {self._heap.source}")
            change.parameters |= self._heap.parameters
            change.afterwards += [self._heap.leftover] if self._heap.leftover else []
            pieces += self._heap.rows
        body = self._body.model_copy(update={**update, "pieces": pieces})
        change.state[self._key] = Entry(max(self._lsn, position), body)
        return change


def read_changes(client: Client, ref: str, table: TableSchema, pieces: int) -> Iterator[ChangeSet]:
    """The changes of a log of so many blobs, in order."""
    for rows in _read(client, ref, table.id, pieces):
        yield from_record_batch(table, rows)


def read_raw(client: Client, ref: str, table: TableId, pieces: int) -> Iterator[RawChanges]:
    """The messages of a log of so many blobs, in order."""
    for rows in _read(client, ref, table, pieces):
        lsn, ordinal, timestamp, xid = (rows.column(i).to_numpy() for i in range(4))
        yield RawChanges(lsn, ordinal, timestamp, xid, rows.column(4), rows.column(5))


def _read(client: Client, ref: str, table: TableId, pieces: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, pieces, _BLOBS_AT_ONCE):
        where = f"WHERE seq BETWEEN {start} AND {start + _BLOBS_AT_ONCE - 1} ORDER BY seq"
        for batch in client.read(f"SELECT body AS c0 FROM {ref} {where}", doing="read a log", table=str(table)):
            for blob in batch.column(0):
                with pa.ipc.open_stream(pa.py_buffer(blob.as_py())) as reader:
                    yield from reader


def _blobs(rows: pa.RecordBatch) -> Iterator[bytes]:
    """Runs of rows as Arrow streams."""
    size = max(1, len(rows) * _BLOB_BYTES // max(rows.nbytes, 1))
    for start in range(0, len(rows), size):
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, rows.schema, options=options) as writer:
            writer.write_batch(rows.slice(start, size))
        yield sink.getvalue().to_pybytes()
