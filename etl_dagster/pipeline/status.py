"""Where a pipeline and its tables stand, as its store and its source tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etl_dagster.model import Landing, Lsn, Slice, TableId, TableSchema
from etl_dagster.model.slices import TEXT_TYPES
from etl_dagster.postgres import Difference, PostgresSource
from etl_dagster.replication import told
from etl_dagster.replication.report import told_slices
from etl_dagster.store.base import ChunkRecord, Request, Store, TableRecord, TableState


@dataclass(frozen=True, slots=True)
class Pending:
    """Whether a pipeline has something to do.

    Attributes:
        reason: Why, or why not, for people.
        current: Flushed end of the source's WAL when it was asked.
        tables_to_copy: Tables that wait for a copy, or whose copy is unfinished, or that are to be resumed.
        changes: The stream holds changes, or so much WAL that it should be passed over.
        tables: The tables that the pipeline replicates, or keeps the changes of.
    """

    work: bool
    reason: str
    current: Lsn
    tables_to_copy: tuple[TableId, ...] = ()
    changes: bool = False
    tables: tuple[TableId, ...] = ()


@dataclass(frozen=True, slots=True)
class TableStatus:
    """Where one table stands.

    Attributes:
        rows: Rows that its last copy, whole or of slices, brought.
        lag_bytes: WAL between what the destination has and the source's end; None when the table is not followed.
        lag_seconds: Age of what the destination has; 0 when it has everything, None when unknown.
        chunks_done: Chunks of the running copy that are staged.
        chunks_total: Chunks of the running copy; 0 when there is none.
        landing: How its changes land; None while nothing is known of the table.
        replaced: Values that the policy replaced since the last copy began, by column.
        held: Quarantined, with its changes kept, so that it can be resumed.
        asked: What is asked for and not taken up yet.
        waits_for: Transactions at the source that its copy waits for, which have written to it.
        slices: Names of the slices that its copy is of; none: of the whole table.
        rows_done: Rows that its running copy has staged.
        rows_total: Rows that it is expected to bring.
        bytes_done: Heap bytes of what it has staged.
        bytes_total: Heap bytes of all of it.
    """

    table: TableId
    state: TableState
    rows: int | None
    reason: str
    hint: str
    lag_bytes: int | None
    lag_seconds: float | None
    chunks_done: int
    chunks_total: int
    landing: Landing | None = None
    replaced: Mapping[str, int] = field(default_factory=dict)
    held: bool = False
    asked: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    rows_done: int = 0
    rows_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0


@dataclass(frozen=True, slots=True)
class Comparison(Difference):
    """How a table differs from its source.

    Attributes:
        replaced: Values that the policy replaced, by column; their rows count as different.
    """

    replaced: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """Where a pipeline stands.

    Attributes:
        position: Everything committed before it is at the destination; None before the first run.
        retained_bytes: WAL that the slot keeps back at the source; None without a slot.
        slot_active_pid: Backend that reads the slot right now.
        usage: What the destination has billed so far, by name with the unit at its end; empty where it does not bill.
    """

    name: str
    slot: str
    current: Lsn
    position: Lsn | None
    lag_bytes: int | None
    lag_seconds: float | None
    retained_bytes: int | None
    slot_active_pid: int | None
    tables: list[TableStatus] = field(default_factory=list)
    usage: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; positions in the notation of Postgres."""
        tables = [
            {**{name: getattr(table, name) for name in TableStatus.__slots__}, "table": str(table.table)}
            for table in self.tables
        ]
        plain = {name: getattr(self, name) for name in PipelineStatus.__slots__}
        position = None if self.position is None else str(self.position)
        return plain | {"current": str(self.current), "position": position, "tables": tables}


def table_statuses(
    store: Store, source: PostgresSource, lag_bytes: int | None, lag_seconds: float | None
) -> list[TableStatus]:
    """Where each table stands, given how far the pipeline is behind."""
    schemas = {table: version.schema_ for table, version in store.schemas().items()}
    records = store.tables()
    asked: defaultdict[TableId, list[str]] = defaultdict(list)
    for request in store.requests():
        asked[request.table].append(_words(request))
    chunks = {table: store.chunks(record.copy_id) for table, record in records.items() if record.copy_id}
    waiting = [
        schemas[table]
        for table, record in records.items()
        if record.state is TableState.COPYING and not chunks.get(table)
    ]
    waits = _barriers(source, waiting)
    return [
        _table_status(
            record,
            schemas.get(table),
            chunks.get(table, ()),
            asked=tuple(asked.get(table, ())),
            waits_for=waits.get(table, ()),
            lag=(lag_bytes, lag_seconds) if record.live and not record.held else (None, None),
        )
        for table, record in sorted(records.items())
    ]


def _barriers(source: PostgresSource, copying: Sequence[TableSchema]) -> Mapping[TableId, tuple[str, ...]]:
    """Who has written to tables whose copies have not begun to read."""
    found: defaultdict[TableId, tuple[str, ...]] = defaultdict(tuple)
    for writer in source.writers(copying) if copying else ():
        found[writer.table] += (told(writer),)
    return found


def _table_status(
    record: TableRecord,
    schema: TableSchema | None,
    chunks: Sequence[ChunkRecord],
    *,
    asked: tuple[str, ...],
    waits_for: tuple[str, ...],
    lag: tuple[int | None, float | None],
) -> TableStatus:
    return TableStatus(
        table=record.table,
        state=record.state,
        rows=record.rows,
        reason=record.reason,
        hint=record.hint,
        lag_bytes=lag[0],
        lag_seconds=lag[1],
        chunks_done=sum(chunk.done for chunk in chunks),
        chunks_total=len(chunks),
        landing=None if schema is None else schema.landing,
        replaced=record.replaced,
        held=record.held,
        asked=asked,
        waits_for=waits_for,
        slices=_shown(record.slices),
        rows_done=sum(chunk.rows or 0 for chunk in chunks),
        rows_total=sum(chunk.estimated_rows if chunk.rows is None else chunk.rows for chunk in chunks),
        bytes_done=sum(chunk.estimated_bytes for chunk in chunks if chunk.done),
        bytes_total=sum(chunk.estimated_bytes for chunk in chunks),
    )


def _words(request: Request) -> str:
    return told_slices([each.name for each in request.slices]).strip(" ()") or str(request.kind)


def _shown(slices: Sequence[Slice]) -> tuple[str, ...]:
    """Names, but of ranges of text only how many, since their bounds are values of rows."""
    names = [each.name for each in slices]
    if any(each.type_oid in TEXT_TYPES for each in slices):
        return (told_slices(names).strip(" ()"),)
    return tuple(names)
