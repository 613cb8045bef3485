"""One micro-batch: gathered piece by piece, then brought in by one script, or by as few as BigQuery's limits allow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from etl_dagster.destinations.bigquery.ledger import COPY, Change, held_key, table_key
from etl_dagster.destinations.bigquery.live import Context, LiveTable
from etl_dagster.destinations.bigquery.logs import LogWriter
from etl_dagster.destinations.bigquery.stage import Heap, Stage
from etl_dagster.errors import DestinationError, ErrorKind, EtlError, ValueUnrepresentable
from etl_dagster.model import CopyTarget, EventBatch, Lsn, Route, TableEvents, TableId

# A transaction may change 100 tables, the state's own among them, and a table has up to two here.
_MOST_TABLES = 45
# A script may have a megabyte.
_MOST_SQL = 600_000
_DOING = "apply a batch"


@dataclass
class _Places:
    """Where the changes of one table go; None is where they do not."""

    live: LiveTable | None = None
    log: LogWriter | None = None
    target: CopyTarget | None = None
    held: LogWriter | None = None

    @property
    def writers(self) -> list[LiveTable | LogWriter]:
        return [each for each in (self.live, self.log, self.held) if each is not None]

    def heaps(self) -> list[Heap]:
        return [heap for writer in self.writers for heap in writer.heaps()]

    def change(self, position: Lsn) -> Change:
        change = Change()
        for writer in self.writers:
            change.add(writer.change(position))
        return change


@dataclass
class _Group:
    """Tables whose changes one script brings in."""

    changes: dict[TableId, Change] = field(default_factory=dict)
    size: int = 0

    def add(self, table: TableId, change: Change) -> None:
        self.changes[table] = change
        self.size += change.size


class BatchWriter:
    """Applies one batch; ``changes`` counts them by table."""

    def __init__(self, context: Context, stage: Stage, routes: Mapping[TableId, Route]) -> None:
        self._context = context
        self._stage = stage
        self._routes = routes
        self._places: dict[TableId, _Places] = {}
        self.changes = dict.fromkeys(routes, 0)

    def run(self, batch: EventBatch) -> None:
        """Read the batch, bring it in, and raise the watermarks of every table that it names."""
        for piece in batch:
            for events in piece:
                with _concerning(events.table.id):
                    self._take_in(events)
        for table, places in self._places.items():
            if places.live is not None:
                with _concerning(table):
                    places.live.end(batch.position)
        change = Change(positions=dict(self._watermarks(batch.position)))
        for group in self._groups(batch.position):
            self._commit(group, change)
            change = Change()
        if change.positions:
            self._context.ledger.commit(change, doing=_DOING)

    def _take_in(self, events: TableEvents) -> None:
        table = events.table.id
        if table not in self._places:
            self._places[table] = self._find(table, self._routes[table])
        places = self._places[table]
        counts = [
            0 if places.live is None else places.live.apply(events),
            0
            if places.log is None or places.target is None
            else places.log.append_changes(events, places.target.table),
            0 if places.held is None or events.held is None else places.held.append_raw(events.held),
        ]
        self.changes[table] += max(counts)

    def _find(self, table: TableId, route: Route) -> _Places:
        ledger = self._context.ledger
        if route.held:
            return _Places(held=self._log(held_key(table), table))
        log = None if route.log is None else ledger.copy(route.log)
        # Changes for the log of a copy that is finished go to the live table, which the copy has become.
        finished = log is not None and log.finished_rows is not None
        places = _Places()
        if (route.live or finished) and table_key(table) in ledger.entries:
            places.live = LiveTable(self._context, self._stage, table, ledger.entries[table_key(table)].lsn)
        if route.log is not None and not finished:
            places.log, places.target = self._log((COPY, route.log.copy_id), table), route.log
        return places

    def _log(self, key: tuple[str, str], table: TableId) -> LogWriter:
        if key not in self._context.ledger.entries:
            raise DestinationError(f"{table} has no held log", hint=f"Re-sync {table}", table=str(table))
        return LogWriter(self._context.ledger, self._stage, key, table)

    def _watermarks(self, position: Lsn) -> Iterator[tuple[tuple[str, str], Lsn]]:
        """Entries whose watermarks are to be raised for tables to which nothing happened."""
        entries = self._context.ledger.entries
        for table, route in self._routes.items():
            if table in self._places:
                continue
            keys = [held_key(table)] if route.held else []
            if route.log is not None:
                keys.append((COPY, route.log.copy_id))
            if not route.held and (route.live or self._is_finished(route)):
                keys.append(table_key(table))
            for key in keys:
                if key in entries and entries[key].lsn < position:
                    yield key, position

    def _is_finished(self, route: Route) -> bool:
        return route.log is not None and self._context.ledger.copy(route.log).finished_rows is not None

    def _groups(self, position: Lsn) -> Iterator[_Group]:
        tables = list(self._places)
        for start in range(0, len(tables), _MOST_TABLES):
            chosen = tables[start : start + _MOST_TABLES]
            with _concerning_one(chosen):
                self._stage.place(self._heaps(chosen))
            group = _Group()
            for table in chosen:
                change = self._places[table].change(position)
                if group.changes and group.size + change.size > _MOST_SQL:
                    yield group
                    group = _Group()
                group.add(table, change)
            yield group

    def _heaps(self, tables: Iterable[TableId]) -> list[Heap]:
        return [heap for table in tables for heap in self._places[table].heaps()]

    def _commit(self, group: _Group, first: Change) -> None:
        """All tables of a group at once; one by one when something is wrong with one of them."""
        ledger, together = self._context.ledger, Change()
        for change in [first, *group.changes.values()]:
            together.add(change)
        only = next(iter(group.changes)) if len(group.changes) == 1 else None
        try:
            ledger.commit(together, doing=_DOING, table=only)
        except EtlError as error:
            if only is not None or error.table is not None or error.kind is ErrorKind.DESTINATION_UNAVAILABLE:
                raise
            if first.positions:
                ledger.commit(first, doing=_DOING)
            for table, change in group.changes.items():
                ledger.commit(change, doing=_DOING, table=table)


@contextmanager
def _concerning(table: TableId) -> Iterator[None]:
    """The default of a new column may be a value that cannot be held, which then concerns this table alone."""
    try:
        yield
    except ValueUnrepresentable as error:
        error.table = error.table or str(table)
        raise


@contextmanager
def _concerning_one(tables: list[TableId]) -> Iterator[None]:
    with _concerning(tables[0]):
        yield
