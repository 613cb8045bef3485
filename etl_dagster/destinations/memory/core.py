"""The contract in its simplest correct form: one change after the other, no cleverness.

It is the executable specification that other destinations are compared with, and serves tests of the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field

import pyarrow as pa

from etl_dagster.arrow.changes import lsn_number
from etl_dagster.arrow.types import arrow_schema
from etl_dagster.destinations.admission import copy_not_begun, require_column_names, require_mergeable
from etl_dagster.destinations.base import Capabilities, ChunkRows, CopyResult, Destination, WriteResult
from etl_dagster.destinations.memory.config import MemoryConfig
from etl_dagster.destinations.memory.rows import Change, Key, Row, cells_of, changes_of, key_of, to_table
from etl_dagster.destinations.registry import DestinationPlugin
from etl_dagster.errors import DestinationError, TableError
from etl_dagster.model import (
    ZERO_LSN,
    ChangeKind,
    ChangeType,
    CopyTarget,
    EventBatch,
    Lsn,
    TableEvents,
    TableId,
    TableSchema,
)


@dataclass
class _Live:
    watermark: Lsn = ZERO_LSN
    rows: dict[Key, Row] = field(default_factory=dict)

    def __copy__(self) -> _Live:
        return _Live(self.watermark, dict(self.rows))


@dataclass
class _Chunk:
    seen_lsn: Lsn
    reread: bool
    rows: list[tuple[Key, Row]]


@dataclass
class _Copy:
    table: TableId
    watermark: Lsn = ZERO_LSN
    truncated: bool = False
    log: list[Change] = field(default_factory=list)
    chunks: dict[str, _Chunk] = field(default_factory=dict)
    finished_rows: int | None = None

    def __copy__(self) -> _Copy:
        return _Copy(self.table, self.watermark, self.truncated, list(self.log), self.chunks, self.finished_rows)


class MemoryDestination(Destination):
    """Tables as dicts from key to row."""

    capabilities = Capabilities(concurrent_copies=4, atomic_batches=True, survives_process=False)

    def __init__(self, config: MemoryConfig | None = None) -> None:
        self.config = config or MemoryConfig()
        self._live: dict[TableId, _Live] = {}
        self._copies: dict[str, _Copy] = {}
        self._owners: dict[TableId, str] = {}
        self._owner = ""
        self._lock = threading.RLock()

    def startup(self, owner: str = "") -> None:
        self._owner = owner

    def positions(self) -> Mapping[TableId, Lsn]:
        return {table: live.watermark for table, live in self._live.items() if self._is_ours(table)}

    def copies(self) -> Mapping[str, Lsn]:
        running = {name: each for name, each in self._copies.items() if each.finished_rows is None}
        return {name: each.watermark for name, each in running.items() if self._is_ours(each.table)}

    def _is_ours(self, table: TableId) -> bool:
        return self._owners.get(table, self._owner) == self._owner

    def truncate_table(self, target: TableSchema | CopyTarget) -> None:
        table = target.table if isinstance(target, CopyTarget) else target
        require_mergeable(table)
        require_column_names(table)
        if not self._is_ours(table.id):
            raise TableError(
                f"{table.id} cannot be mirrored: the pipeline {self._owners[table.id]} replicates into it",
                hint="Give one of the pipelines another destination",
                table=str(table.id),
            )
        with self._lock:
            self._owners[table.id] = self._owner
            if isinstance(target, CopyTarget):
                self._begin_copy(target)
            else:
                self._live.setdefault(target.id, _Live()).rows.clear()

    def _begin_copy(self, target: CopyTarget) -> None:
        if target.copy_id not in self._copies:
            self._forget_copies(target.table.id)
            self._copies[target.copy_id] = _Copy(target.table.id)

    def _forget_copies(self, table: TableId) -> None:
        self._copies = {name: each for name, each in self._copies.items() if each.table != table}

    def write_table_rows(self, target: CopyTarget, chunk: ChunkRows) -> int:
        copy_ = self._copy(target)
        if chunk.chunk_id not in copy_.chunks:
            rows = _staged_rows(target.table, chunk)
            with self._lock:
                copy_.chunks[chunk.chunk_id] = _Chunk(chunk.seen_lsn, chunk.reread, rows)
        return len(copy_.chunks[chunk.chunk_id].rows)

    def write_events(self, batch: EventBatch) -> WriteResult:
        with self._lock:
            attempt = _Attempt(self._live, self._copies, batch)
            result = attempt.run()
            self._live, self._copies = attempt.live, attempt.copies
            return result

    def finish_copy(self, target: CopyTarget, position: Lsn) -> CopyResult:
        with self._lock:
            copy_ = self._copy(target)
            if copy_.finished_rows is None:
                merged, undecided = _merge_copy(copy_)
                if undecided:
                    return CopyResult(rows=None, undecided=_key_table(target.table, undecided))
                self._live[target.table.id] = _Live(position, merged)
                copy_.finished_rows = len(merged)
                copy_.log.clear()
            return CopyResult(rows=copy_.finished_rows)

    def drop_table(self, table: TableId) -> None:
        with self._lock:
            self._live.pop(table, None)
            self._owners.pop(table, None)
            self._forget_copies(table)

    def row_count(self, table: TableId) -> int | None:
        live = self._live.get(table)
        return None if live is None else len(live.rows)

    def read_table(self, table: TableSchema) -> pa.RecordBatchReader:
        if table.id not in self._live:
            raise DestinationError(f"{table.id} does not exist", hint="Copy the table first", table=str(table.id))
        return to_table(table, list(self._live[table.id].rows.values())).to_reader()

    def _copy(self, target: CopyTarget) -> _Copy:
        return find_copy(self._copies, target)


def find_copy(copies: Mapping[str, _Copy], target: CopyTarget) -> _Copy:
    found = copies.get(target.copy_id)
    if found is None or found.table != target.table.id:
        raise copy_not_begun(target)
    return found


class _Attempt:
    """One batch, applied to copies of what it touches."""

    def __init__(self, live: Mapping[TableId, _Live], copies: Mapping[str, _Copy], batch: EventBatch) -> None:
        self._batch = batch
        logs = {route.log.copy_id for route in batch.routes.values() if route.log}
        self.live = {table: copy(each) if table in batch.routes else each for table, each in live.items()}
        self.copies = {name: copy(each) if name in logs else each for name, each in copies.items()}
        self._changes = dict.fromkeys(batch.routes, 0)

    def run(self) -> WriteResult:
        for piece in self._batch:
            for events in piece:
                self._apply(events)
        position = self._batch.position
        for table in self._batch.routes:
            for place in self._places(table):
                place.watermark = max(place.watermark, position)
        return WriteResult(position=position, changes=self._changes)

    def _places(self, table: TableId) -> list[_Live | _Copy]:
        """Where the changes of a table go; those for the log of a finished copy go to the table it has become."""
        route = self._batch.routes[table]
        log = find_copy(self.copies, route.log) if route.log else None
        finished = log is not None and log.finished_rows is not None
        places: list[_Live | _Copy] = []
        if (route.live or finished) and table in self.live:
            places.append(self.live[table])
        if log is not None and not finished:
            places.append(log)
        return places

    def _apply(self, events: TableEvents) -> None:
        table = events.table.id
        require_mergeable(events.table)
        counts = [_apply_to(place, events) for place in self._places(table)]
        self._changes[table] += max(counts, default=0)


def _apply_to(place: _Live | _Copy, events: TableEvents) -> int:
    if events.truncated_at is not None and events.truncated_at >= place.watermark:
        _truncate(place)
    changes = [change for part in events.changes for change in changes_of(part) if change.lsn >= place.watermark]
    if isinstance(place, _Copy):
        place.log.extend(changes)
    else:
        for change in changes:
            _apply_change(place.rows, change, events.table.id)
    return len(changes)


def _truncate(place: _Live | _Copy) -> None:
    if isinstance(place, _Copy):
        place.truncated = True
        place.log.clear()
    else:
        place.rows.clear()


def _apply_change(rows: dict[Key, Row], change: Change, table: TableId) -> None:
    before = rows.pop(change.old_key, None)
    if change.kind is ChangeKind.DELETE:
        return
    row = change.row if before is None else change.row.filled_from(before)
    if not row.complete:
        raise missing_row(table)
    rows[change.key] = row


def missing_row(table: TableId) -> TableError:
    """An update left a value out, and the live table does not hold the row."""
    return TableError(
        f"{table} lacks a row at the destination whose unchanged TOAST value is needed",
        hint="The destination was altered by someone else; copy the table again",
        table=str(table),
    )


def _staged_rows(table: TableSchema, chunk: ChunkRows) -> list[tuple[Key, Row]]:
    lsn, stamp = lsn_number(chunk.seen_lsn), int(chunk.taken_at.timestamp() * 1_000_000)
    cells = [cells for batch in chunk.batches for cells in cells_of(batch)]
    keys = [key_of([each[index] for index in table.key_indexes]) for each in cells]
    return [(key, Row(each, ChangeType.COPY, lsn, stamp)) for key, each in zip(keys, cells, strict=True)]


@dataclass
class _Pending:
    """A row as the log leaves it; ``origin`` is the commit that moved it onto its key, 0 if it always stood there."""

    row: Row
    origin: int


def _merge_copy(copy_: _Copy) -> tuple[dict[Key, Row], list[Row]]:
    """The rows of the finished copy, and those (incomplete) that cannot be decided."""
    pending, touched = _replay(copy_.log)
    chunks = [] if copy_.truncated else list(copy_.chunks.values())
    staged = {key: row for chunk in chunks if not chunk.reread for key, row in chunk.rows}
    result = {key: row for key, row in staged.items() if key not in touched}
    rereads = sorted((chunk for chunk in chunks if chunk.reread), key=lambda chunk: chunk.seen_lsn, reverse=True)
    undecided = []
    for key, each in pending.items():
        row = _complete(key, each, staged, rereads)
        if row.complete:
            result[key] = row
        else:
            undecided.append(row)
    return result, undecided


def _replay(log: Iterable[Change]) -> tuple[dict[Key, _Pending], set[Key]]:
    rows: dict[Key, _Pending] = {}
    touched: set[Key] = set()
    for change in log:
        touched |= {change.key, change.old_key}
        before = rows.pop(change.old_key, None)
        if change.kind is ChangeKind.DELETE:
            continue
        row, origin = change.row, 0
        if before is not None:
            row, origin = row.filled_from(before.row), before.origin
        rows[change.key] = _Pending(row, change.lsn if change.key != change.old_key else origin)
    return rows, touched


def _complete(key: Key, pending: _Pending, staged: Mapping[Key, Row], rereads: Iterable[_Chunk]) -> Row:
    if pending.row.complete:
        return pending.row
    if pending.origin == 0 and key in staged:
        return pending.row.filled_from(staged[key])
    for chunk in rereads:
        # A snapshot that saw the row arrive at this key saw this row there, with the values it still has.
        if chunk.seen_lsn > pending.origin and (found := dict(chunk.rows).get(key)):
            return pending.row.filled_from(found)
    return pending.row


def _key_table(table: TableSchema, rows: Iterable[Row]) -> pa.Table:
    schema = arrow_schema(table)
    keys = [schema.field(index) for index in table.key_indexes]
    found = list(rows)
    arrays = [pa.concat_arrays([row.cells[index] for row in found]) for index in table.key_indexes]
    return pa.Table.from_arrays(arrays, schema=pa.schema(keys))


PLUGIN = DestinationPlugin(config=MemoryConfig, factory=MemoryDestination)
