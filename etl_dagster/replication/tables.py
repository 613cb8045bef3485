"""State and schema of every table of a pipeline, kept in step with the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etl_dagster.model import Column, CopyTarget, Lsn, Route, TableId, TableSchema
from etl_dagster.replication.lifecycle import amend, move
from etl_dagster.replication.report import Reporter
from etl_dagster.store.base import Store, TableMapping, TableRecord, TableState

# States in which a copy runs, so that a table's changes go to a change log.
COPYING_STATES = frozenset({TableState.COPYING, TableState.COPIED})


class Tables:
    """The tables of one pipeline.

    ``records`` mirrors the store; every change goes through `move`, `amend` or `adopt` and is saved before it is seen.
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

    def add(self, table: TableId) -> None:
        """Begin the life of a table."""
        self._save(TableRecord(table=table))

    def move(self, table: TableId, to: TableState, **changes: Any) -> TableRecord:
        """Move a table to another state."""
        return self._save(move(self.records[table], to, **changes))

    def amend(self, table: TableId, **changes: Any) -> TableRecord:
        """Change a record within its state."""
        return self._save(amend(self.records[table], **changes))

    def recopy(self, table: TableId, reason: str, *, live: bool, hint: str = "") -> None:
        """Have a table copied afresh; ``live`` says whether its present destination table goes on being fed."""
        record = self.records[table]
        changes = {"reason": reason, "hint": hint, "live": live}
        if record.state is TableState.INIT:
            self.amend(table, **changes)
        else:
            self.move(table, TableState.INIT, **changes)

    def quarantine(self, table: TableId, reason: str, hint: str) -> None:
        """Take a table out; a second cause replaces the first one."""
        if self.records[table].state is TableState.QUARANTINED:
            self.amend(table, reason=reason, hint=hint)
        else:
            self.move(table, TableState.QUARANTINED, reason=reason, hint=hint)

    def adopt_requests(self) -> bool:
        """Take over what another process asked for by putting a record back to `TableState.INIT`.

        Returns:
            Whether there was anything.
        """
        adopted = False
        for table, stored in self._store.tables().items():
            known = self.records.get(table)
            if known and stored.state is TableState.INIT and known.state is not TableState.INIT:
                self.records[table] = stored
                self._reporter.table_changed(stored)
                adopted = True
        return adopted

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
        return CopyTarget(self.schemas[record.table], record.copy_id)

    def routes(self) -> dict[TableId, Route]:
        """Where changes of each table go; tables that are not followed now are left out."""
        routes = {}
        for record in self.records.values():
            log = self.copy_target(record) if record.state in COPYING_STATES else None
            if (record.live or log) and record.table in self.schemas:
                routes[record.table] = Route(live=record.live, log=log)
        return routes

    def stream_schemas(self, routed: Iterable[TableId]) -> Mapping[int, TableSchema]:
        """Schemas by relation OID, as the decoder of the stream needs them."""
        return {self.schemas[table].oid: self.schemas[table] for table in routed}

    def unfinished(self) -> Sequence[TableRecord]:
        """Tables that wait for a copy or are being copied."""
        return self.in_state(TableState.INIT, TableState.COPYING, TableState.COPIED)

    def _save(self, record: TableRecord) -> TableRecord:
        self._store.save_table(record)
        former = self.records.get(record.table)
        self.records[record.table] = record
        if former is None or (former.state, former.reason) != (record.state, record.reason):
            self._reporter.table_changed(record)
        return record


def difference(known: TableSchema, now: TableSchema) -> str:
    """What the catalogue says now that makes the rows copied by ``known`` untrue; empty when nothing does."""
    if known.oid != now.oid:
        return "it was dropped and created again in the source"
    if _left_publication(known.membership, now.membership):
        return "it was out of the publication for a while, and its changes then are lost"
    if known.row_filter != now.row_filter:
        return "the publication's row filter changed"
    if [_identity(column) for column in known.columns] != [_identity(column) for column in now.columns]:
        return "its columns or its key changed in the source"
    return ""


def _left_publication(known: tuple[int, ...], now: tuple[int, ...]) -> bool:
    """The first number is the publication's, the others those of entries that make the table its member.

    One entry that is still there has been there all along.
    """
    if not known or not now:
        return False
    return known[0] != now[0] or (known[1:] != now[1:] and not set(known[1:]) & set(now[1:]))


def _identity(column: Column) -> tuple[object, ...]:
    type_ = column.type
    return (column.attnum, column.name, type_.declared_oid, type_.oid, type_.typmod, column.key_ordinal)
