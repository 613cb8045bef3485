"""Running copies: staged chunks and the change log, and what they come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from etl_dagster.arrow.changes import lsn_number, same_columns
from etl_dagster.arrow.snapshots import unseen
from etl_dagster.arrow.types import column_type
from etl_dagster.destinations.admission import copy_not_begun
from etl_dagster.destinations.base import ChunkRows
from etl_dagster.destinations.memory.rows import Change, Key, Row, by_attnum, cells_of, changes_of, key_of
from etl_dagster.destinations.memory.tables import LiveTable, changelog_rows, deleted, tombstone
from etl_dagster.model import (
    ZERO_LSN,
    ChangeKind,
    ChangeType,
    CopyTarget,
    Landing,
    Lsn,
    TableEvents,
    TableId,
    TableSchema,
)


@dataclass
class Chunk:
    """What one snapshot saw."""

    seen_lsn: Lsn
    snapshot: str
    reread: bool
    rows: list[tuple[Key, Row]]


@dataclass
class Copy:
    """One copy; ``finished_rows`` is set once it has become the live table."""

    table: TableSchema
    watermark: Lsn = ZERO_LSN
    truncated: bool = False
    log: list[Change] = field(default_factory=list)
    chunks: dict[str, Chunk] = field(default_factory=dict)
    finished_rows: int | None = None

    def __copy__(self) -> Copy:
        return replace(self, log=list(self.log))

    def in_order(self) -> list[Chunk]:
        """The chunks, the newest last."""
        return sorted(self.chunks.values(), key=lambda chunk: (chunk.reread, chunk.seen_lsn))

    def apply(self, events: TableEvents) -> int:
        """Log what the watermark does not cover; returns the number of changes."""
        if events.truncated_at is not None and events.truncated_at >= self.watermark:
            self.truncated = True
            self.log.clear()
        parts = [part for part in events.changes if same_columns(part.table, self.table)]
        changes = [change for part in parts for change in changes_of(part) if change.lsn >= self.watermark]
        self.log.extend(changes)
        return len(changes)


def find_copy(copies: Mapping[str, Copy], target: CopyTarget) -> Copy:
    found = copies.get(target.copy_id)
    if found is None or found.table.id != target.table.id:
        raise copy_not_begun(target)
    return found


def forget_copies(copies: Mapping[str, Copy], table: TableId) -> dict[str, Copy]:
    return {name: each for name, each in copies.items() if each.table.id != table}


def stage(table: TableSchema, chunk: ChunkRows) -> Chunk:
    lsn, stamp = lsn_number(chunk.seen_lsn), int(chunk.taken_at.timestamp() * 1_000_000)
    rows = []
    for batch in chunk.batches:
        for cells in cells_of(batch):
            key = key_of([cells[index] for index in table.key_indexes])
            rows.append((key, Row(by_attnum(table.columns, cells), ChangeType.COPY, lsn, stamp)))
    return Chunk(chunk.seen_lsn, chunk.snapshot, chunk.reread, rows)


def merge_copy(copy: Copy, former: LiveTable | None, position: Lsn) -> tuple[dict[Key, Row], list[Row]]:
    """The rows of the finished copy, and those (incomplete) that cannot be decided."""
    if copy.table.landing is Landing.CHANGELOG:
        return dict(_numbered(_logged_rows(copy))), []
    result, undecided = _last_states(copy)
    if copy.table.landing is Landing.SOFT_DELETE and former is not None:
        _carry_over(result, copy.table, former, position)
    return result, undecided


def _numbered(rows: Iterable[Row]) -> Iterable[tuple[Key, Row]]:
    return (((number,), row) for number, row in enumerate(rows))


def _logged_rows(copy: Copy) -> list[Row]:
    """The rows of the one chunk, then the changes that its snapshot did not see."""
    rows = [row for chunk in copy.chunks.values() for _, row in chunk.rows]
    for change in copy.log:
        if not any(_saw(chunk, change) for chunk in copy.chunks.values()):
            rows += changelog_rows(change)
    return rows


def _saw(chunk: Chunk, change: Change) -> bool:
    return not unseen(np.array([change.xid], np.uint32), chunk.snapshot)[0]


@dataclass
class _Pending:
    """A row as the log leaves it; ``origin`` is the commit that brought it to its key, 0 if it always stood there."""

    row: Row
    origin: int


def _last_states(copy: Copy) -> tuple[dict[Key, Row], list[Row]]:
    pending, touched = _replay(copy.log, copy.table)
    chunks = [] if copy.truncated else list(copy.chunks.values())
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


def _replay(log: Iterable[Change], table: TableSchema) -> tuple[dict[Key, _Pending], set[Key]]:
    rows: dict[Key, _Pending] = {}
    touched: set[Key] = set()
    for change in log:
        touched |= {change.key, change.old_key}
        before = rows.pop(change.old_key, None)
        if change.left is not None and table.landing is Landing.SOFT_DELETE:
            left = tombstone(change.left, before.row if before else None, table)
            rows[change.old_key] = _Pending(left, before.origin if before else 0)
        if change.kind is ChangeKind.DELETE:
            continue
        arrives = change.kind is ChangeKind.INSERT or change.key != change.old_key
        row, origin = change.row, 0
        if before is not None and change.continues(before.row):
            row, origin = row.filled_from(before.row), before.origin
        rows[change.key] = _Pending(row, change.lsn if arrives else origin)
    return rows, touched


def _complete(key: Key, pending: _Pending, staged: Mapping[Key, Row], rereads: Iterable[Chunk]) -> Row:
    if pending.row.complete:
        return pending.row
    if pending.origin == 0 and key in staged:
        return pending.row.filled_from(staged[key])
    if pending.row.deleted:
        return pending.row.known()
    for chunk in rereads:
        # A snapshot that saw the row arrive at this key saw this row there, with the values it still has.
        if chunk.seen_lsn > pending.origin and (found := dict(chunk.rows).get(key)):
            return pending.row.filled_from(found)
    return pending.row


def _carry_over(result: dict[Key, Row], table: TableSchema, former: LiveTable, position: Lsn) -> None:
    """Keep what is known of rows that are no more."""
    shared = _shared(table, former.table)
    if (
        former.table.oid != table.oid
        or former.table.landing is Landing.CHANGELOG
        or not all(column.attnum in shared for column in table.key)
    ):
        return
    for key, row in former.rows.items():
        new = result.get(key)
        # The same deletion at the live table and in the log: the live table knows more of the row.
        if new is None or (new.deleted and row.deleted and new.lsn == row.lsn):
            cells = {attnum: cell for attnum, cell in row.cells.items() if attnum in shared}
            result[key] = deleted(row.with_cells(cells), lsn_number(position))


def _shared(one: TableSchema, other: TableSchema) -> set[int]:
    """The columns that two schemas have in common."""
    types: dict[int, pa.DataType] = {column.attnum: column_type(column) for column in other.columns}
    return {column.attnum for column in one.columns if types.get(column.attnum) == column_type(column)}
