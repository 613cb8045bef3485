"""One batch on its way into one live table, whose columns follow the source's."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from etl_dagster.arrow.changelog import changelog_rows
from etl_dagster.arrow.changes import adapt, beyond
from etl_dagster.arrow.compaction import compact
from etl_dagster.destinations.admission import fold_ascii
from etl_dagster.destinations.alteration import alteration
from etl_dagster.destinations.duckdb.client import Session
from etl_dagster.destinations.duckdb.columns import alter, by_names
from etl_dagster.destinations.duckdb.encoding import encode, quoted
from etl_dagster.destinations.duckdb.ledger import Ledger, live_name
from etl_dagster.destinations.duckdb.merge import Merge
from etl_dagster.errors import RowIncomplete
from etl_dagster.model import ChangeSet, Landing, Lsn, TableEvents, TableSchema


class LiveTable:
    """Applies the pieces of one batch to one live table, within the caller's transaction.

    Args:
        number: Tells the live tables of one transaction apart.
    """

    def __init__(self, session: Session, ledger: Ledger, watermark: Lsn, number: int) -> None:
        self._session = session
        self._ledger = ledger
        self._watermark = watermark
        self._number = number
        self._known: TableSchema | None = None
        self._announced: TableSchema | None = None
        self._merge: Merge | None = None

    def apply(self, events: TableEvents) -> int:
        """Apply what the watermark does not cover; returns the number of changes."""
        changes = beyond(events, self._watermark)
        truncated = events.truncated_at is not None and events.truncated_at >= self._watermark
        if not events.changes and events.truncated_at is None:
            self._announced = events.table
        if not (changes or truncated):
            return 0
        self._announced = None
        table = self.follow(events.table)
        if truncated and events.truncated_at is not None:
            self._merging(table).truncate(events.truncated_at, events.truncated_time)
        if changes:
            self._add(table, [adapt(part, table) for part in changes])
        return sum(map(len, changes))

    def finish(self, position: Lsn) -> None:
        """Bring the changes into the table, which the batch takes to this position."""
        # Columns that came without changes, maybe right at the watermark; a batch from before it tells of older ones.
        if self._announced is not None and self._watermark <= position:
            self.follow(self._announced)
        if self._merge is not None:
            self._merge.finish()

    def follow(self, table: TableSchema) -> TableSchema:
        """Give the live table the columns of a later schema; returns the schema that it has then."""
        if self._known is table:
            return table
        known = self._known or self._ledger.schema(table.id)
        if known == table:
            self._known = table
            return table
        existing = self._ledger.columns(*table.id)
        known = known or by_names(table, existing)
        if table.natts < known.natts:
            return known  # the stream repeats what it said before the columns were changed
        if table.landing is not known.landing:
            table = table.model_copy(update={"landing": known.landing})
        alter(self._session, table, alteration(known, table, existing, fold_ascii))
        self._ledger.set_schema(table)
        self._known = table
        if self._merge is not None:
            self._merge.follow(table)
        return table

    def _merging(self, table: TableSchema) -> Merge:
        if self._merge is None:
            self._merge = Merge(self._session, table, live_name(table.id), number=self._number)
        return self._merge

    def _add(self, table: TableSchema, changes: Sequence[ChangeSet]) -> None:
        if table.landing is Landing.CHANGELOG:
            append_changelog(self._session, live_name(table.id), changes)
            return
        if self._merging(table).add(compact(changes, tombstones=table.landing is Landing.SOFT_DELETE)) is not None:
            raise RowIncomplete(str(table.id))


def append_changelog(session: Session, target: str, changes: Sequence[ChangeSet]) -> None:
    """Append changes of one schema to the table of this SQL name."""
    rows = pa.Table.from_batches([changelog_rows(part) for part in changes])
    columns = ", ".join(map(quoted, rows.column_names))
    positions = [f"c{i}" for i in range(rows.num_columns)]
    with session.bound(etl_rows=encode(rows, positions)):
        session.run(f"INSERT INTO {target} ({columns}) SELECT * FROM etl_rows")
