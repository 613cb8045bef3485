"""Live tables: columns that follow the source, and changes applied one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from etl_dagster.arrow.changes import lsn_number, missing_value
from etl_dagster.destinations.memory.rows import Change, Key, Row, changes_of
from etl_dagster.errors import RowIncomplete
from etl_dagster.model import ZERO_LSN, ChangeKind, ChangeType, Column, Landing, Lsn, TableEvents, TableSchema


@dataclass
class LiveTable:
    """One table as readers see it.

    Attributes:
        table: The newest schema.
        known: Attnums of all columns, also of those that the source has dropped.
        rows: By key; those of a changelog by a number.
    """

    table: TableSchema
    watermark: Lsn = ZERO_LSN
    rows: dict[Key, Row] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.known = self.known | {column.attnum for column in self.table.columns}

    def __copy__(self) -> LiveTable:
        return replace(self, rows=dict(self.rows))

    def apply(self, events: TableEvents) -> int:
        """Apply what the watermark does not cover; returns the number of changes."""
        truncates = events.truncated_at is not None and events.truncated_at >= self.watermark
        parts = [
            (part.table, [each for each in changes_of(part) if each.lsn >= self.watermark]) for part in events.changes
        ]
        count = sum(len(changes) for _, changes in parts)
        if count or truncates or not events.changes:
            self.follow(events.table)
        if truncates:
            self._truncate(events)
        touched = set()
        for read_by, changes in parts:
            for change in changes:
                self._apply_change(replace(change, row=self.adapted(change.row, read_by)))
                touched.add(change.key)
        # A value that is not known may be written over, or its row deleted, by a later change.
        if not all(self.rows[key].complete for key in touched & self.rows.keys()):
            raise RowIncomplete(str(self.table.id))
        return count

    def follow(self, table: TableSchema) -> None:
        """Take over the columns of the source, told apart by attnum."""
        if table.natts < self.table.natts:
            return  # the stream repeats what it said before
        for column in table.columns:
            if column.attnum not in self.known and self.table.landing is not Landing.CHANGELOG:
                self._fill(column)
        self.known |= {column.attnum for column in table.columns}
        # How changes land was settled when the table was copied.
        self.table = table.model_copy(update={"landing": self.table.landing})

    def _fill(self, column: Column) -> None:
        for key, row in self.rows.items():
            self.rows[key] = row.with_cells({**row.cells, column.attnum: missing_value(column)})

    def adapted(self, row: Row, read_by: TableSchema) -> Row:
        """The row with values for the columns that are newer than it, and without those that are gone."""
        older = {column.attnum for column in read_by.columns}
        cells = {
            column.attnum: row.cells[column.attnum] if column.attnum in older else missing_value(column)
            for column in self.table.columns
            if column.attnum in older or self.table.landing is not Landing.CHANGELOG
        }
        numbers = {column.name: column.attnum for column in read_by.columns}
        names = {column.attnum: column.name for column in self.table.columns}
        unchanged = tuple(names[numbers[name]] for name in row.unchanged if numbers[name] in names)
        return replace(row, cells=cells, unchanged=unchanged)

    def _truncate(self, events: TableEvents) -> None:
        if self.table.landing is Landing.SOFT_DELETE:
            at = lsn_number(events.truncated_at or ZERO_LSN)
            self.rows = {key: deleted(row, at, events.truncated_time) for key, row in self.rows.items()}
        else:
            self.rows.clear()

    def _apply_change(self, change: Change) -> None:
        if self.table.landing is Landing.CHANGELOG:
            for row in changelog_rows(change):
                self.rows[len(self.rows),] = row
            return
        before = self.rows.pop(change.old_key, None)
        if change.left is not None and self.table.landing is Landing.SOFT_DELETE:
            self.rows[change.old_key] = tombstone(change.left, before, self.table).known()
        if change.kind is ChangeKind.DELETE:
            return
        row = change.row
        if before is not None and change.continues(before):
            row = row.filled_from(before)
        self.rows[change.key] = row


def deleted(row: Row, lsn: int, timestamp: int | None = None) -> Row:
    """The row as deleted, perhaps at a time that is not known; one that was deleted before stays as it is."""
    if row.deleted:
        return row
    known = row.timestamp if timestamp is None else timestamp
    return replace(row, change_type=ChangeType.DELETE, lsn=lsn, timestamp=known)


def tombstone(left: Row, before: Row | None, table: TableSchema) -> Row:
    """What stays of a row that left its key: the values that it had."""
    columns = [column.attnum for column in table.columns]
    had = dict.fromkeys(columns) if before is None else before.cells
    return left.with_cells({attnum: had[attnum] for attnum in columns if attnum in had} | left.cells)


def changelog_rows(change: Change) -> list[Row]:
    """The rows that a changelog has for a change: two for one that moved its row."""
    moved = change.kind is ChangeKind.UPDATE and change.left is not None
    rows = [change.left, change.row] if moved else [change.row]
    return [row.known() for row in rows if row is not None]
