"""One micro-batch: gathered piece by piece, then brought in by few scripts, several of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from etl_dagster.destinations.bigquery.live import Context, LiveTable
from etl_dagster.destinations.bigquery.logs import LogWriter
from etl_dagster.destinations.bigquery.stage import Heap, Stage
from etl_dagster.destinations.bigquery.state import COPY, Change, Key, held_key, table_key
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
        lanes = self._lanes(batch.position)
        if lanes:
            with ThreadPoolExecutor(len(lanes)) as threads:
                list(threads.map(lambda lane: lane.run(batch.position), lanes))

    def _lanes(self, position: Lsn) -> list[_Lane]:
        """What there is to do, by lane."""
        lanes: dict[int, _Lane] = {}
        for table, places in self._places.items():
            self._lane(lanes, table).tables[table] = places
        for table, key in self._watermarks(position):
            self._lane(lanes, table).positions[key] = position
        return list(lanes.values())

    def _lane(self, lanes: dict[int, _Lane], table: TableId) -> _Lane:
        number = self._context.ledger.lane(table)
        return lanes.setdefault(number, _Lane(self._context, self._stage, number))

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
        if (route.live or finished) and (entry := ledger.entry(table_key(table))) is not None:
            places.live = LiveTable(self._context, self._stage, table, entry.lsn)
        if route.log is not None and not finished:
            places.log, places.target = self._log((COPY, route.log.copy_id), table), route.log
        return places

    def _log(self, key: Key, table: TableId) -> LogWriter:
        entry = self._context.ledger.entry(key)
        if entry is None:
            raise DestinationError(f"{table} has no held log", hint=f"Re-sync {table}", table=str(table))
        return LogWriter(self._context.ledger, self._stage, key, entry, table)

    def _watermarks(self, position: Lsn) -> Iterator[tuple[TableId, Key]]:
        """Entries whose watermarks are to be raised for tables to which nothing happened."""
        ledger = self._context.ledger
        for table, route in self._routes.items():
            if table in self._places:
                continue
            keys = [held_key(table)] if route.held else []
            if route.log is not None:
                keys.append((COPY, route.log.copy_id))
            if not route.held and (route.live or self._is_finished(route)):
                keys.append(table_key(table))
            for key in keys:
                entry = ledger.entry(key)
                if entry is not None and entry.lsn < position:
                    yield table, key

    def _is_finished(self, route: Route) -> bool:
        return route.log is not None and self._context.ledger.copy(route.log).finished_rows is not None


class _Lane:
    """What a batch brings to the tables of one lane, in as few scripts as BigQuery's limits allow.

    Attributes:
        positions: Watermarks of tables to which nothing happened.
    """

    def __init__(self, context: Context, stage: Stage, number: int) -> None:
        self._context = context
        self._stage = stage
        self._number = number
        self.tables: dict[TableId, _Places] = {}
        self.positions: dict[Key, Lsn] = {}

    def run(self, position: Lsn) -> None:
        """Bring it in."""
        idle = Change(positions=self.positions)
        for group in self._groups(position):
            self._commit(group, idle)
            idle = Change()
        if idle.positions:
            self._context.ledger.commit_lane(self._number, idle, doing=_DOING)

    def _groups(self, position: Lsn) -> Iterator[dict[TableId, Change]]:
        """Changes that go together."""
        tables = list(self.tables)
        for start in range(0, len(tables), _MOST_TABLES):
            chosen = tables[start : start + _MOST_TABLES]
            self._stage.place(heap for table in chosen for heap in self.tables[table].heaps())
            group: dict[TableId, Change] = {}
            for table in chosen:
                change = self.tables[table].change(position)
                if group and sum(each.size for each in group.values()) + change.size > _MOST_SQL:
                    yield group
                    group = {}
                group[table] = change
            yield group

    def _commit(self, group: Mapping[TableId, Change], idle: Change) -> None:
        """All tables of a group at once; one by one when something is wrong with one of them."""
        ledger, together = self._context.ledger, Change()
        for change in [idle, *group.values()]:
            together.add(change)
        only = next(iter(group)) if len(group) == 1 else None
        try:
            ledger.commit_lane(self._number, together, doing=_DOING, table=only)
        except EtlError as error:
            if only is not None or error.table is not None or error.kind is ErrorKind.DESTINATION_UNAVAILABLE:
                raise
            if idle.positions:
                ledger.commit_lane(self._number, idle, doing=_DOING)
            for table, change in group.items():
                ledger.commit(change, doing=_DOING, table=table)


@contextmanager
def _concerning(table: TableId) -> Iterator[None]:
    """The default of a new column may be a value that cannot be held, which then concerns this table alone."""
    try:
        yield
    except ValueUnrepresentable as error:
        error.table = error.table or str(table)
        raise
