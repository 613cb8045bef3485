"""The contract in its simplest correct form: one change after the other, no cleverness.

It is the executable specification that other destinations are compared with, and serves tests of the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace

import pyarrow as pa

from etl_dagster.arrow.changes import select_raw
from etl_dagster.arrow.types import arrow_schema
from etl_dagster.destinations.admission import require_column_names, require_mergeable, table_not_live
from etl_dagster.destinations.base import Capabilities, ChunkRows, CopyResult, Destination, WriteResult
from etl_dagster.destinations.memory.config import MemoryConfig
from etl_dagster.destinations.memory.copies import Copy, find_copy, forget_copies, merge_copy, stage
from etl_dagster.destinations.memory.rows import Row, to_table
from etl_dagster.destinations.memory.slices import merge_slices, staged_rows
from etl_dagster.destinations.memory.tables import LiveTable
from etl_dagster.destinations.registry import DestinationPlugin
from etl_dagster.errors import DestinationError, TableError
from etl_dagster.model import (
    ZERO_LSN,
    CopyTarget,
    EventBatch,
    Lsn,
    RawChanges,
    TableEvents,
    TableId,
    TableSchema,
)


@dataclass
class _HeldLog:
    watermark: Lsn = ZERO_LSN
    parts: list[RawChanges] = field(default_factory=list)

    def __copy__(self) -> _HeldLog:
        return replace(self, parts=list(self.parts))

    def apply(self, events: TableEvents) -> int:
        """Append what the watermark does not cover; returns the number of messages."""
        if events.held is None:
            return 0
        new = select_raw(events.held, events.held.lsn >= self.watermark)
        self.parts.append(new)
        return len(new)


# Where changes go.
_Place = LiveTable | Copy | _HeldLog
_Held = dict[tuple[str, TableId], _HeldLog]


class MemoryDestination(Destination):
    """Tables as dicts from key to row."""

    capabilities = Capabilities(concurrent_copies=4, atomic_batches=True, survives_process=False)

    def __init__(self, config: MemoryConfig | None = None) -> None:
        self.config = config or MemoryConfig()
        self._live: dict[TableId, LiveTable] = {}
        self._copies: dict[str, Copy] = {}
        self._held: _Held = {}
        self._owners: dict[TableId, str] = {}
        self._owner = ""
        self._lock = threading.RLock()

    def startup(self, owner: str = "") -> None:
        self._owner = owner

    def positions(self) -> Mapping[TableId, Lsn]:
        return {table: live.watermark for table, live in self._live.items() if self._is_ours(table)}

    def copies(self) -> Mapping[str, Lsn]:
        running = {name: each for name, each in self._copies.items() if each.finished_rows is None}
        return {name: each.watermark for name, each in running.items() if self._is_ours(each.table.id)}

    def _is_ours(self, table: TableId) -> bool:
        return self._owners.get(table, self._owner) == self._owner

    def truncate_table(self, target: TableSchema | CopyTarget) -> None:
        table = target.table if isinstance(target, CopyTarget) else target
        self._require_admissible(table)
        with self._lock:
            self._owners[table.id] = self._owner
            if isinstance(target, CopyTarget):
                self._begin_copy(target)
            else:
                self._live.setdefault(table.id, LiveTable(table)).rows.clear()

    def _require_admissible(self, table: TableSchema) -> None:
        require_mergeable(table)
        require_column_names(table)
        if not self._is_ours(table.id):
            raise TableError(
                f"{table.id} cannot be mirrored: the pipeline {self._owners[table.id]} replicates into it",
                hint="Give one of the pipelines another destination",
                table=str(table.id),
            )

    def _begin_copy(self, target: CopyTarget) -> None:
        if target.copy_id not in self._copies:
            self._copies = forget_copies(self._copies, target.table.id)
            self._copies[target.copy_id] = Copy(target.table)
            self.release_table(target.table.id)

    def write_table_rows(self, target: CopyTarget, chunk: ChunkRows) -> int:
        copy_ = find_copy(self._copies, target)
        if chunk.chunk_id not in copy_.chunks:
            staged = stage(target.table, chunk)
            with self._lock:
                copy_.chunks[chunk.chunk_id] = staged
        return len(copy_.chunks[chunk.chunk_id].rows)

    def write_events(self, batch: EventBatch) -> WriteResult:
        with self._lock:
            attempt = _Attempt(self._live, self._copies, self._held, self._owner, batch)
            result = attempt.run()
            self._live, self._copies, self._held = attempt.live, attempt.copies, attempt.held
            return result

    def finish_copy(self, target: CopyTarget, position: Lsn) -> CopyResult:
        with self._lock:
            copy_ = find_copy(self._copies, target)
            if target.slices:
                return self._finish_slices(copy_, target, position)
            if copy_.finished_rows is None:
                merged, undecided = merge_copy(copy_, self._live.get(target.table.id), position)
                if undecided:
                    return CopyResult(rows=None, undecided=_key_table(target.table, undecided))
                self._live[target.table.id] = LiveTable(target.table, position, merged)
                copy_.finished_rows = len(merged)
                copy_.log.clear()
            return CopyResult(rows=copy_.finished_rows)

    def _finish_slices(self, copy_: Copy, target: CopyTarget, position: Lsn) -> CopyResult:
        if copy_.finished_rows is None:
            if target.table.id not in self._live:
                raise table_not_live(target.table.id)
            live = copy(self._live[target.table.id])
            undecided = merge_slices(copy_, target, live, position)
            if undecided:
                return CopyResult(rows=None, undecided=_key_table(target.table, undecided))
            self._live[target.table.id] = live
            copy_.finished_rows = staged_rows(copy_)
        return CopyResult(rows=copy_.finished_rows)

    def hold_table(self, table: TableSchema) -> None:
        with self._lock:
            self._held.setdefault((self._owner, table.id), _HeldLog())

    def holds(self) -> Mapping[TableId, Lsn]:
        return {table: log.watermark for (owner, table), log in self._held.items() if owner == self._owner}

    def read_held(self, table: TableSchema) -> Iterator[RawChanges]:
        log = self._held.get((self._owner, table.id), _HeldLog())
        return iter([part for part in log.parts if len(part)])

    def release_table(self, table: TableId) -> None:
        with self._lock:
            self._held.pop((self._owner, table), None)

    def drop_table(self, table: TableId) -> None:
        with self._lock:
            self._live.pop(table, None)
            self._owners.pop(table, None)
            self._copies = forget_copies(self._copies, table)
            self.release_table(table)

    def row_count(self, table: TableId) -> int | None:
        live = self._live.get(table)
        return None if live is None else len(live.rows)

    def read_table(self, table: TableSchema) -> pa.RecordBatchReader:
        if table.id not in self._live:
            raise DestinationError(f"{table.id} does not exist", hint="Copy the table first", table=str(table.id))
        return to_table(table, list(self._live[table.id].rows.values())).to_reader()


class _Attempt:
    """One batch, applied to copies of what it touches."""

    def __init__(
        self,
        live: Mapping[TableId, LiveTable],
        copies: Mapping[str, Copy],
        held: Mapping[tuple[str, TableId], _HeldLog],
        owner: str,
        batch: EventBatch,
    ) -> None:
        self._batch = batch
        self._owner = owner
        self._before = live
        logs = {route.log.copy_id for route in batch.routes.values() if route.log}
        self.live = {table: copy(each) if table in batch.routes else each for table, each in live.items()}
        self.copies = {name: copy(each) if name in logs else each for name, each in copies.items()}
        self.held = {key: copy(each) if key[1] in batch.routes else each for key, each in held.items()}
        self._changes = dict.fromkeys(batch.routes, 0)

    def run(self) -> WriteResult:
        for piece in self._batch:
            for events in piece:
                self._apply(events)
        position = self._batch.position
        for table in self._batch.routes:
            self._leave_what_is_newer(table, position)
            for place in self._places(table):
                place.watermark = max(place.watermark, position)
        return WriteResult(position=position, changes=self._changes)

    def _leave_what_is_newer(self, table: TableId, position: Lsn) -> None:
        """A batch that came before has no effect, on columns neither."""
        if table in self._before and self._before[table].watermark >= position:
            self.live[table] = copy(self._before[table])

    def _apply(self, events: TableEvents) -> None:
        table = events.table.id
        counts = [place.apply(events) for place in self._places(table)]
        self._changes[table] += max(counts, default=0)

    def _places(self, table: TableId) -> list[_Place]:
        """Where the changes of a table go; those for the log of a finished copy go to the table it has become."""
        route = self._batch.routes[table]
        if route.held:
            return [self._held_log(table)]
        log = find_copy(self.copies, route.log) if route.log else None
        finished = log is not None and log.finished_rows is not None
        places: list[_Place] = []
        if (route.live or finished) and table in self.live:
            places.append(self.live[table])
        if log is not None and not finished:
            places.append(log)
        return places

    def _held_log(self, table: TableId) -> _HeldLog:
        log = self.held.get((self._owner, table))
        if log is None:
            raise DestinationError(
                f"Nothing was begun to hold the changes of {table}", hint="Copy the table again", table=str(table)
            )
        return log


def _key_table(table: TableSchema, rows: Iterable[Row]) -> pa.Table:
    schema = arrow_schema(table)
    found = list(rows)
    arrays = [pa.concat_arrays([row.cells[column.attnum] for row in found]) for column in table.key]
    return pa.Table.from_arrays(arrays, schema=pa.schema([schema.field(index) for index in table.key_indexes]))


PLUGIN = DestinationPlugin(config=MemoryConfig, factory=MemoryDestination)
