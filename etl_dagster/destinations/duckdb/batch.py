"""One micro-batch, applied within the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from etl_dagster.arrow.changes import beyond, same_columns, to_record_batch
from etl_dagster.destinations.alteration import concerning
from etl_dagster.destinations.duckdb.client import Client, Session, translated
from etl_dagster.destinations.duckdb.encoding import encode
from etl_dagster.destinations.duckdb.held import HeldLog, HeldLogs, HeldWriter
from etl_dagster.destinations.duckdb.ledger import CopyState, Ledger, log_name
from etl_dagster.destinations.duckdb.live import LiveTable
from etl_dagster.errors import DestinationError
from etl_dagster.model import CopyTarget, EventBatch, Lsn, Route, TableEvents, TableId


@dataclass(frozen=True, slots=True)
class _Log:
    """The change log of a running copy."""

    target: CopyTarget
    state: CopyState


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the changes of one table go; None is where they do not."""

    live: LiveTable | None
    log: _Log | None
    held: HeldWriter | None


class BatchWriter:
    """Applies the pieces of one batch; ``changes`` counts them by table."""

    def __init__(self, client: Client, session: Session, owner: str, routes: Mapping[TableId, Route]) -> None:
        self._client = client
        self._session = session
        self._ledger = Ledger(session)
        self._held = HeldLogs(session, owner)
        self._places = self._find_places(routes)
        self._touched: set[TableId] = set()
        self.changes = dict.fromkeys(routes, 0)

    def run(self, batch: EventBatch) -> None:
        """Apply the pieces, and raise the watermarks of every table that the batch names."""
        for piece in batch:
            for events in piece:
                with concerning(events.table.id):
                    self._apply(events)
        for table, places in self._places.items():
            if places.live is not None:
                with concerning(table), translated("merge changes", str(table)):
                    places.live.finish(batch.position)
        self._raise_watermarks(batch.position)

    def _find_places(self, routes: Mapping[TableId, Route]) -> dict[TableId, _Places]:
        watermarks = self._ledger.watermarks()
        held = self._held.all() if any(route.held for route in routes.values()) else {}
        found = {}
        for number, (table, route) in enumerate(routes.items()):
            if route.held:
                found[table] = _Places(None, None, HeldWriter(self._session, _held_log(held, table)))
                continue
            log = None if route.log is None else _Log(route.log, self._ledger.copy(route.log))
            # Changes for the log of a copy that is finished go to the live table, which the copy has become.
            finished = log is not None and log.state.finished_rows is not None
            live = None
            if (route.live or finished) and table in watermarks:
                live = LiveTable(self._session, self._ledger, watermarks[table], number)
            found[table] = _Places(live, None if finished else log, None)
        return found

    def _apply(self, events: TableEvents) -> None:
        table = events.table.id
        places = self._places_of(table)
        self._client.make_room(len(events.table.columns))
        with translated("apply changes", str(table)):
            counts = [
                0 if places.live is None else places.live.apply(events),
                0 if places.log is None else self._append_log(events, places.log),
                0 if places.held is None or events.held is None else places.held.append(events.held),
            ]
        self.changes[table] += max(counts)

    def _places_of(self, table: TableId) -> _Places:
        """Where its changes go, now that there are some; not to a live table that was dropped behind our back."""
        if table not in self._touched:
            self._touched.add(table)
            places = self._places[table]
            if places.live is not None and not self._ledger.has(table):
                self._places[table] = replace(places, live=None)
        return self._places[table]

    def _append_log(self, events: TableEvents, log: _Log) -> int:
        if events.truncated_at is not None and events.truncated_at >= log.state.lsn:
            self._ledger.truncate_copy(log.target.copy_id)
        changes = [part for part in beyond(events, log.state.lsn) if same_columns(part.table, log.target.table)]
        if changes:
            flat = pa.Table.from_batches([to_record_batch(part) for part in changes])
            with self._session.bound(etl_rows=encode(flat, flat.column_names)):
                self._session.run(f"INSERT INTO {log_name(log.target.copy_id)} BY NAME SELECT * FROM etl_rows")
        return sum(map(len, changes))

    def _raise_watermarks(self, position: Lsn) -> None:
        live = [table for table, places in self._places.items() if places.live is not None]
        copies = [places.log.target.copy_id for places in self._places.values() if places.log is not None]
        held = [table for table, places in self._places.items() if places.held is not None]
        self._ledger.raise_watermarks(live, copies, position)
        self._held.raise_watermarks(held, position)


def _held_log(held: Mapping[TableId, HeldLog], table: TableId) -> HeldLog:
    if table not in held:
        raise DestinationError(f"{table} has no held log", hint=f"Re-sync {table}", table=str(table))
    return held[table]
