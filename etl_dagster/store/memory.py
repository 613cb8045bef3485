"""A store that lasts as long as its object: for tests and for looking around."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from threading import Lock

from etl_dagster.model import Lsn, RangePlan, TableId, TableSchema
from etl_dagster.store.base import (
    HISTORY_LENGTH,
    ChunkRecord,
    Request,
    SchemaVersion,
    SlotRecord,
    Store,
    TableMapping,
    TableRecord,
)
from etl_dagster.store.records import finished


class MemoryStore(Store):
    """The contract in dictionaries. What was saved is still there after `close` and `open`."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._slot: SlotRecord | None = None
        self._records: dict[TableId, list[TableRecord]] = {}
        self._chunks: dict[str, dict[str, ChunkRecord]] = {}
        self._copies: defaultdict[TableId, set[str]] = defaultdict(set)
        self._requests: dict[str, Request] = {}
        self._range_plans: dict[TableId, RangePlan] = {}
        self._mappings: dict[TableId, TableMapping] = {}
        self._versions: dict[TableId, list[SchemaVersion]] = {}

    def slot(self) -> SlotRecord | None:
        return self._slot

    def save_slot(self, record: SlotRecord | None) -> None:
        self._slot = record

    def tables(self) -> dict[TableId, TableRecord]:
        with self._lock:
            return {table: records[-1] for table, records in self._records.items()}

    def save_table(self, record: TableRecord) -> None:
        with self._lock:
            records = self._records.setdefault(record.table, [])
            if records[-1:] != [record]:
                records.append(record)
                del records[:-HISTORY_LENGTH]
            for copy_id in self._copies[record.table] - {record.copy_id}:
                self._copies[record.table].remove(copy_id)
                del self._chunks[copy_id]

    def history(self, table: TableId) -> Sequence[TableRecord]:
        with self._lock:
            return tuple(self._records.get(table, ()))

    def chunks(self, copy_id: str) -> Sequence[ChunkRecord]:
        with self._lock:
            return tuple(self._chunks.get(copy_id, {}).values())

    def add_chunks(self, table: TableId, copy_id: str, chunks: Sequence[ChunkRecord]) -> None:
        with self._lock:
            self._copies[table].add(copy_id)
            ledger = self._chunks.setdefault(copy_id, {})
            for chunk in chunks:
                ledger.setdefault(chunk.chunk_id, chunk)

    def finish_chunk(self, copy_id: str, chunk: ChunkRecord) -> None:
        with self._lock:
            ledger = self._chunks.get(copy_id, {})
            ledger[chunk.chunk_id] = finished(ledger.get(chunk.chunk_id), chunk, copy_id)

    def requests(self) -> Sequence[Request]:
        with self._lock:
            return tuple(self._requests.values())

    def add_request(self, request: Request) -> None:
        with self._lock:
            self._requests.setdefault(request.request_id, request)

    def remove_requests(self, request_ids: Sequence[str]) -> None:
        with self._lock:
            for request_id in request_ids:
                self._requests.pop(request_id, None)

    def range_plan(self, table: TableId) -> RangePlan | None:
        return self._range_plans.get(table)

    def save_range_plan(self, table: TableId, plan: RangePlan) -> None:
        self._range_plans[table] = plan

    def mapping(self, table: TableId) -> TableMapping | None:
        return self._mappings.get(table)

    def save_mapping(self, mapping: TableMapping) -> None:
        self._mappings[mapping.table] = mapping

    def schema(self, table: TableId) -> SchemaVersion | None:
        return self.schemas().get(table)

    def schemas(self) -> dict[TableId, SchemaVersion]:
        with self._lock:
            return {table: versions[-1] for table, versions in self._versions.items()}

    def save_schema(self, schema: TableSchema, lsn: Lsn) -> SchemaVersion:
        with self._lock:
            versions = self._versions.setdefault(schema.id, [])
            if not versions or versions[-1].schema_ != schema:
                versions.append(SchemaVersion(version=len(versions) + 1, lsn=lsn, schema=schema))
            return versions[-1]

    def versions(self, table: TableId) -> Sequence[SchemaVersion]:
        with self._lock:
            return tuple(self._versions.get(table, ()))
