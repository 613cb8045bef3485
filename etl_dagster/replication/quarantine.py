"""Tables that cannot go on are taken out, with their changes kept, and brought back when asked for."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from time import monotonic

from etl_dagster.destinations.base import Destination
from etl_dagster.errors import EtlError
from etl_dagster.model import EventBatch, Lsn, Route, TableId, TableSchema
from etl_dagster.pgoutput import StreamDecoder
from etl_dagster.replication.difference import difference
from etl_dagster.replication.policy import Action, action_for
from etl_dagster.replication.refresh import Catalogue
from etl_dagster.replication.report import BatchReport, Reporter
from etl_dagster.replication.stream import pieces
from etl_dagster.replication.tables import COPYING_STATES, Tables
from etl_dagster.store.base import TableRecord, TableState

_HELD = Route(live=False, held=True)


class Quarantine:
    """Takes tables out and brings them back; both at a position that the stream has been applied up to."""

    def __init__(
        self,
        destination: Destination,
        tables: Tables,
        catalogue: Catalogue,
        reporter: Reporter,
        piece_bytes: int,
        spent: Counter[str],
    ) -> None:
        self._destination = destination
        self._tables = tables
        self._catalogue = catalogue
        self._reporter = reporter
        self._piece_bytes = piece_bytes
        self._spent = spent

    def take_out(self, table: TableId, error: EtlError, position: Lsn) -> None:
        """Quarantine a table; where it has something to go on with, its changes are held from here on."""
        record = self._tables.records[table]
        hold = record.live or record.state in COPYING_STATES
        if hold and record.state is not TableState.QUARANTINED:
            self._destination.hold_table(self._tables.schemas[table])
            self._destination.write_events(EventBatch(iter(()), lambda: position, {table: _HELD}))
        self._tables.quarantine(table, error.message, _next_step(table, error, held=hold), hold=hold)

    def bring_back(self, record: TableRecord, position: Lsn) -> None:
        """Apply what was held for a table, under today's choices, and let it go on; or leave it, with the new cause."""
        known = self._tables.schemas[record.table]
        schema = self._catalogue.chosen(known)
        if change := difference(known, schema):
            self._tables.recopy(record.table, change, live=False)
            self._tables.save_schema(schema, position)
            return
        try:
            self._replay(record, schema, position)
        except EtlError as error:
            if action_for(error) is not Action.QUARANTINE:
                raise
            hint = _next_step(record.table, error, held=True)
            self._tables.quarantine(record.table, error.message, hint, hold=True)

    def _replay(self, record: TableRecord, schema: TableSchema, position: Lsn) -> None:
        table = record.table
        self._tables.save_schema(schema, position)
        log = None if record.copy_id is None else self._tables.copy_target(record)
        routes = {table: Route(live=record.live, log=log)}
        decoder = StreamDecoder({schema.oid: schema}, look=self._catalogue.look)
        events = (decoder.replay(raw) for raw in self._destination.read_held(schema))
        batch = EventBatch(pieces(events, routes, self._piece_bytes), lambda: position, routes)
        began = monotonic()
        result = self._destination.write_events(batch)
        self._spent.update(result.usage)
        self._reporter.batch_applied(
            BatchReport(
                start=position,
                position=position,
                changes={table: count for table, count in result.changes.items() if count},
                transactions=0,
                bytes=0,
                read_seconds=0.0,
                write_seconds=monotonic() - began,
                newest_commit=None,
                finished_at=datetime.now(UTC),
                replaced=decoder.replaced,
            )
        )
        for replaced in decoder.replaced.values():
            self._tables.count_replaced(table, replaced)
        if decoder.drifted:
            for reason in decoder.drifted.values():
                self._catalogue.drifted(table, reason)
            self._destination.release_table(table)
            return
        self._tables.resume(table)
        for evolved in decoder.evolved.values():
            self._catalogue.outdated_copy(table)
            self._catalogue.evolved(evolved, position)
        self._destination.release_table(table)


def _next_step(table: TableId, error: EtlError, *, held: bool) -> str:
    cure = (error.hint or "Mend the cause").rstrip(".")
    return f"{cure}; then resume {table}, or re-sync it" if held else f"{cure}; then re-sync {table}"
