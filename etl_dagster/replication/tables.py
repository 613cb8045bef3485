"""State and schema of every table of a pipeline, kept in step with the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from etl_dagster.model import CopyTarget, Lsn, Route, Slice, TableId, TableSchema
from etl_dagster.replication.lifecycle import amend, move
from etl_dagster.replication.report import Reporter
from etl_dagster.store.base import Store, TableMapping, TableRecord, TableState

# States in which a copy runs, so that a table's changes go to a change log.
COPYING_STATES = frozenset({TableState.COPYING, TableState.COPIED})


class Tables:
    """The tables of one pipeline.

    ``records`` mirrors the store; every change goes through `move` or `amend` and is saved before it is seen.
    """

    def __init__(self, store: Store, reporter: Reporter) -> None:
        self._store = store
        self._reporter = reporter
        self.records: dict[TableId, TableRecord] = store.tables()
        self.schemas: dict[TableId, TableSchema] = {
            table: version.schema_ for table, version in store.schemas().items() if table in self.records
        }

    def in_state(self, *states: TableState) -> list[TableRecord]:
        """Records in any of the states."""
        return [record for record in self.records.values() if record.state in states]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is saved inside is one commit, and forgotten if that fails.

        No copy may be dropped meanwhile, since that waits for threads.
        """
        records, schemas = dict(self.records), dict(self.schemas)
        try:
            with self._store.together():
                yield
        except BaseException:
            self.records, self.schemas = records, schemas
            raise

    def add(self, table: TableId) -> None:
        """Begin the life of a table."""
        self._save(TableRecord(table=table))

    def move(self, table: TableId, to: TableState, **changes: Any) -> TableRecord:
        """Move a table to another state."""
        return self._save(move(self.records[table], to, **changes))

    def amend(self, table: TableId, **changes: Any) -> TableRecord:
        """Change a record within its state."""
        return self._save(amend(self.records[table], **changes))

    def recopy(
        self, table: TableId, reason: str, *, live: bool, hint: str = "", slices: Sequence[Slice] | None = None
    ) -> None:
        """Have a table copied afresh.

        Args:
            live: Its present destination table goes on being fed.
            slices: Copy these only; empty: all of it; None: what was to be copied before, all of it unless it is live.
        """
        record = self.records[table]
        wanted = record.slices if slices is None else slices
        changes = {"reason": reason, "hint": hint, "live": live, "slices": tuple(wanted) if live else ()}
        if record.state is TableState.INIT:
            self.amend(table, **changes)
        else:
            self.move(table, TableState.INIT, **changes)

    def finish_copy(self, table: TableId, rows: int | None) -> None:
        """A copy of the table, whole or of slices, has become part of what is live."""
        counts = {"slice_rows": rows} if self.records[table].slices else {"rows": rows, "slice_rows": None}
        self.move(table, TableState.READY, **counts)

    def quarantine(self, table: TableId, reason: str, hint: str, *, hold: bool) -> None:
        """Take a table out; a second cause replaces the first one.

        Args:
            hold: Its changes are kept from here on, so that what it has can be gone on with.
        """
        record = self.records[table]
        if record.state is TableState.QUARANTINED:
            self.amend(table, reason=reason, hint=hint, resume=False)
            return
        kept = {name: getattr(record, name) for name in ("copy_id", "copy_start", "copy_end", "live", "slices")}
        self.move(table, TableState.QUARANTINED, reason=reason, hint=hint, **({**kept, "held": True} if hold else {}))

    def resume(self, table: TableId) -> TableRecord:
        """Put a table whose changes were held back to where it was taken out."""
        record = self.records[table]
        if record.copy_id is None:
            return self.move(table, TableState.READY)
        to = TableState.COPYING if record.copy_end is None else TableState.COPIED
        return self.move(table, to, live=record.live)

    def give_up_held(self, table: TableId) -> None:
        """What was kept for a quarantined table is of no use any more: only a fresh copy brings it back."""
        none: dict[str, Any] = {"copy_id": None, "copy_start": None, "copy_end": None, "slices": ()}
        hint = f"Its changes meanwhile are gone: mend the cause, then re-sync {table}"
        self.amend(table, hint=hint, **none, live=False, held=False, resume=False)

    def save_schema(self, schema: TableSchema, lsn: Lsn) -> None:
        """Use this schema from here on."""
        if self.schemas.get(schema.id) != schema:
            self._store.save_schema(schema, lsn)
            self.schemas[schema.id] = schema
        if self._store.mapping(schema.id) is None:
            self._store.save_mapping(TableMapping(table=schema.id, destination_table=str(schema.id)))

    def copy_target(self, record: TableRecord) -> CopyTarget:
        """The staging area of the running copy of a table."""
        assert record.copy_id is not None
        return CopyTarget(self.schemas[record.table], record.copy_id, record.slices)

    def routes(self) -> dict[TableId, Route]:
        """Where changes of each table go; tables that are not followed now are left out."""
        routes = {}
        for record in self.records.values():
            log = self.copy_target(record) if record.state in COPYING_STATES else None
            if record.table not in self.schemas:
                continue
            if record.held:
                routes[record.table] = Route(live=False, held=True)
            elif record.live or log:
                routes[record.table] = Route(live=record.live, log=log)
        return routes

    def count_replaced(self, table: TableId, replaced: Mapping[str, int]) -> None:
        """Add to the values that the policy replaced."""
        if any(replaced.values()):
            total = Counter(self.records[table].replaced)
            total.update(replaced)
            self.amend(table, replaced=dict(total))

    def stream_schemas(self, routed: Iterable[TableId]) -> Mapping[int, TableSchema]:
        """Schemas by relation OID, as the decoder of the stream needs them."""
        return {self.schemas[table].oid: self.schemas[table] for table in routed}

    def unfinished(self) -> Sequence[TableRecord]:
        """Tables that wait for a copy, are being copied, or are to be resumed."""
        return [*self.in_state(TableState.INIT, TableState.COPYING, TableState.COPIED), *self.to_resume()]

    def to_resume(self) -> Sequence[TableRecord]:
        """Quarantined tables that are asked for to go on."""
        return [record for record in self.in_state(TableState.QUARANTINED) if record.resume]

    def _save(self, record: TableRecord) -> TableRecord:
        self._store.save_table(record)
        former = self.records.get(record.table)
        self.records[record.table] = record
        if former is None or (former.state, former.reason) != (record.state, record.reason):
            self._reporter.table_changed(record)
        return record
