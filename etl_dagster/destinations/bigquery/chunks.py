"""Chunks of a copy: each is one load job, whose id says which chunk it is, so that none is ever loaded twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pyarrow as pa

from etl_dagster.arrow.changes import lsn_number
from etl_dagster.arrow.fixed import array_of
from etl_dagster.destinations.base import ChunkRows
from etl_dagster.destinations.bigquery.encoding import encode
from etl_dagster.destinations.bigquery.layout import Field
from etl_dagster.destinations.bigquery.live import Context
from etl_dagster.destinations.bigquery.naming import bare
from etl_dagster.destinations.bigquery.parquet import ParquetFile
from etl_dagster.destinations.bigquery.staging import SNAPSHOT_LABEL, cdc_names, chunk_key
from etl_dagster.destinations.bigquery.state import COPY, SNAPSHOT, Change, Entry
from etl_dagster.destinations.bigquery.types import CDC_TYPES, NativeType, native_type, plain_type
from etl_dagster.errors import DestinationError, ValueUnrepresentable
from etl_dagster.model import LSN_COLUMN, TIMESTAMP_COLUMN, ChangeType, CopyTarget, Landing

_DOING = "stage a chunk"


class ChunkWriter:
    """Stages chunks of one copy; used by one thread."""

    def __init__(self, context: Context, target: CopyTarget) -> None:
        self._context = context
        self._target = target
        self._table = target.table
        self._copy = context.ledger.copy(target)

    def write(self, chunk: ChunkRows) -> int:
        """Stage one chunk, if it is not; returns its rows."""
        key, name = chunk_key(self._copy, chunk.chunk_id), str(self._table.id)
        staged = self._context.client.find_load(key, doing=_DOING, table=name)
        if staged is not None:
            return staged.rows
        if self._copy.finished_rows is not None:
            raise DestinationError(f"copy {self._target.copy_id} is finished", hint="Start the copy of the table again")
        rereads = chunk.reread and not self._target.slices
        labels = self._remember_snapshot(chunk) if self._table.landing is Landing.CHANGELOG else {}
        ledger = self._context.ledger
        file, fields = ParquetFile(), self._fields(rereads=rereads)
        rows = self._write(file, chunk, fields, rereads=rereads)
        if chunk.reread and self._target.slices:
            self._remember_reread(chunk, rows)
        if not rows:
            return 0
        with file as opened:
            return self._context.client.load(
                bare(ledger.reread(self._copy) if rereads else ledger.staging(self._copy)),
                opened,
                fields=[Field(name, type_.staged) for name, type_ in fields],
                job_key=key,
                create=rereads,
                doing=_DOING,
                table=name,
                labels=labels,
            )

    def _fields(self, *, rereads: bool) -> list[tuple[str, NativeType]]:
        """Columns of the staging area; rows that were read again have theirs by attnum."""
        types = [native_type(column, self._context.config) for column in self._table.columns]
        if rereads:
            names = [f"c{column.attnum}" for column in self._table.columns]
            return [*zip(names, types, strict=True), ("seen_lsn", plain_type(pa.int64()))]
        names = [column.name for column in self._table.columns] + cdc_names(self._table)
        types += [CDC_TYPES[name] for name in cdc_names(self._table)]
        return [(self._context.names.column(name), type_) for name, type_ in zip(names, types, strict=True)]

    def _write(
        self, file: ParquetFile, chunk: ChunkRows, fields: Sequence[tuple[str, NativeType]], *, rereads: bool
    ) -> int:
        rows = 0
        for batch in chunk.batches:
            rows += len(batch)
            added = [array_of(np.full(len(batch), int(chunk.seen_lsn)))] if rereads else self._cdc(chunk, len(batch))
            columns = zip([*batch.columns, *added], fields, strict=True)
            arrays = [self._encoded(values, name, type_) for values, (name, type_) in columns]
            file.append(pa.RecordBatch.from_arrays(arrays, names=[name for name, _ in fields]))
        return rows

    def _encoded(self, values: pa.Array, name: str, type_: NativeType) -> pa.Array:
        try:
            return encode(values, type_)
        except ValueUnrepresentable as error:
            error.table, error.column = str(self._table.id), error.column or name
            raise

    def _cdc(self, chunk: ChunkRows, size: int) -> list[pa.Array]:
        found = {
            LSN_COLUMN: pa.scalar(lsn_number(chunk.seen_lsn), pa.decimal128(38, 0)),
            TIMESTAMP_COLUMN: pa.scalar(chunk.taken_at, pa.timestamp("us", "UTC")),
        }
        copied = pa.scalar(ChangeType.COPY.value)
        nothing = pa.scalar(None, pa.list_(pa.string()))
        first, *rest = cdc_names(self._table)
        assert first not in found
        return [pa.repeat(copied, size), *(pa.repeat(found.get(name, nothing), size) for name in rest)]

    def _remember_snapshot(self, chunk: ChunkRows) -> dict[str, str]:
        """What the rows of a changelog were read by has to be known for as long as they are."""
        digest = sha256(chunk.snapshot.encode()).hexdigest()[:32]
        entry = Entry(chunk.seen_lsn, json.dumps([chunk.chunk_id, chunk.snapshot]))
        change = Change(state={(SNAPSHOT, f"{self._target.copy_id}/{digest}"): entry})
        self._context.ledger.commit(change, doing=_DOING, table=self._table.id)
        return {SNAPSHOT_LABEL: digest}

    def _remember_reread(self, chunk: ChunkRows, rows: int) -> None:
        """Rows of slices that were read again are staged among the others; also that there are none has to be known."""
        ledger, key = self._context.ledger, (COPY, self._target.copy_id)
        with ledger.alone():
            copy, entry = ledger.copy(self._target), ledger.entry(key)
            assert entry is not None
            known = copy.model_copy(update={"rereads": {**copy.rereads, chunk.chunk_id: rows}})
            change = Change(state={key: Entry(entry.lsn, known)})
            ledger.commit(change, doing=_DOING, table=self._table.id)
