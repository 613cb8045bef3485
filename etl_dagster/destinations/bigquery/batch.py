"""One micro-batch: gathered piece by piece, then brought in by few scripts, several of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from etl_dagster.destinations.alteration import concerning
from etl_dagster.destinations.bigquery.live import Context, LiveTable
from etl_dagster.destinations.bigquery.logs import LogWriter
from etl_dagster.destinations.bigquery.stage import Heap, Stage
from etl_dagster.destinations.bigquery.state import COPY, Change, Entry, Key, held_key, table_key
from etl_dagster.errors import DestinationError, ErrorKind, EtlError
from etl_dagster.model import CopyTarget, EventBatch, Lsn, Route, TableEvents, TableId

# A transaction may change 100 tables, the state's own among them, and a table has up to two here.
_MOST_TABLES = 45
# A script may have a megabyte.
_MOST_SQL = 600_000
# A request may have 10 MB.
_MOST_BYTES = 8_000_000
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
class _Idle:
    """Tables that a batch does not concern.

    Attributes:
        wholly: All that is known of them rises with the batch.
        partly: Some of it does: these entries.
        others: Tables of which that is not to be said, also those that the batch does concern.
    """

    wholly: list[TableId] = field(default_factory=list)
    partly: dict[TableId, list[Key]] = field(default_factory=dict)
    others: list[TableId] = field(default_factory=list)


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
        for route in self._routes.values():
            if route.log is not None:
                self._context.ledger.copy(route.log)  # raises for one that was not begun
        for piece in batch:
            for events in piece:
                with concerning(events.table.id):
                    self._take_in(events)
        for table, places in self._places.items():
            if places.live is not None:
                with concerning(table):
                    places.live.end(batch.position)
        lanes = self._lanes(batch.position)
        if lanes:
            with ThreadPoolExecutor(len(lanes)) as threads:
                list(threads.map(lambda lane: lane.run(batch.position), lanes))
            self._context.ledger.raise_idle()

    def _lanes(self, position: Lsn) -> list[_Lane]:
        """What there is to do, by lane."""
        lanes: dict[int, _Lane] = {}
        for table, places in self._places.items():
            self._lane(lanes, table).tables[table] = places
        idle = self._idle_tables(position)
        for table, keys in idle.partly.items():
            self._lane(lanes, table).idle.positions |= dict.fromkeys(keys, position)
        if idle.wholly:
            lane = next(iter(lanes.values())) if lanes else self._lane(lanes, next(iter(idle.wholly)))
            lane.idle.add(self._context.ledger.idle_change(position, idle.others))
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

    def _idle_tables(self, position: Lsn) -> _Idle:
        """The tables to which nothing happened, where that raises a watermark."""
        ledger, found = self._context.ledger, _Idle()
        for table, known in ledger.keys().items():
            route = self._routes.get(table)
            routed = set() if route is None or table in self._places else self._routed(table, route)
            low = [key for key in known if key in routed and _below(ledger.entry(key), position)]
            if routed >= set(known):
                found.wholly += [table] if low else []
            else:
                found.others.append(table)
                found.partly |= {table: low} if low else {}
        return found

    def _routed(self, table: TableId, route: Route) -> set[Key]:
        """Keys of the entries whose watermarks rise with a batch."""
        if route.held:
            return {held_key(table)}
        keys = set() if route.log is None else {(COPY, route.log.copy_id)}
        return keys | ({table_key(table)} if route.live or self._is_finished(route) else set())

    def _is_finished(self, route: Route) -> bool:
        return route.log is not None and self._context.ledger.copy(route.log).finished_rows is not None


class _Lane:
    """What a batch brings to the tables of one lane, in as few scripts as BigQuery's limits allow.

    Attributes:
        idle: What is said of tables to which nothing happened.
    """

    def __init__(self, context: Context, stage: Stage, number: int) -> None:
        self._context = context
        self._stage = stage
        self._number = number
        self.tables: dict[TableId, _Places] = {}
        self.idle = Change()

    def run(self, position: Lsn) -> None:
        """Bring it in."""
        idle = self.idle
        for group in self._groups(position):
            self._commit(group, idle)
            idle = Change()
        if idle.positions or idle.state:
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
                if group and not self._fits(change, group):
                    yield group
                    group = {}
                group[table] = change
            yield group

    def _fits(self, change: Change, group: Mapping[TableId, Change]) -> bool:
        together = [self.idle, change, *group.values()]
        return (
            sum(each.sql_size for each in together) <= _MOST_SQL and sum(each.size for each in together) <= _MOST_BYTES
        )

    def _commit(self, group: Mapping[TableId, Change], idle: Change) -> None:
        """All tables of a group at once; one by one when something is wrong with one of them."""
        ledger, together = self._context.ledger, Change()
        for change in [idle, *group.values()]:
            together.add(change)
        only = next(iter(group)) if len(group) == 1 else None
        epoch = ledger.epoch(self._number)
        try:
            ledger.commit_lane(self._number, together, doing=_DOING, table=only)
        except EtlError as error:
            if only is not None or error.table is not None or error.kind is ErrorKind.DESTINATION_UNAVAILABLE:
                raise
            if ledger.epoch(self._number) != epoch:
                raise _overtaken() from error
            if idle.positions or idle.state:
                ledger.commit_lane(self._number, idle, doing=_DOING)
            for table, change in group.items():
                ledger.commit(change, doing=_DOING, table=table)


def _overtaken() -> DestinationError:
    """The changes were made out for a state that is no more."""
    return DestinationError(
        "The state changed while a batch was applied table by table",
        hint="It is tried again with what is there now",
        kind=ErrorKind.DESTINATION_UNAVAILABLE,
    )


def _below(entry: Entry | None, position: Lsn) -> bool:
    return entry is not None and entry.lsn < position
