"""The composition root: from one config to a running pipeline.

Everything that people and Dagster ask of a pipeline goes through `Pipeline`; here alone are source, store, destination
and engine put together.
"""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from etl_dagster.arrow.landing import present_rows
from etl_dagster.config import PipelineConfig, load_config
from etl_dagster.destinations.base import Destination
from etl_dagster.destinations.registry import open_destination
from etl_dagster.errors import ConfigError, ErrorKind, EtlError, StateError
from etl_dagster.model import Column, KeyRanges, Landing, Lsn, RangePlan, Slice, TableId, TableSchema, TimeWindows
from etl_dagster.model.slices import MAX_SLICES
from etl_dagster.postgres import CheckResult, Difference, PostgresSource, check, compare_table
from etl_dagster.replication import LogReporter, Replicator, Reporter, Stop, told
from etl_dagster.retry import Backoff, Retrier
from etl_dagster.store import open_store
from etl_dagster.store.base import Request, RequestKind, Store, TableRecord, TableState

# WAL that holds nothing for us is passed over once it adds up to this much, so that the slot does not keep it back.
IDLE_WAL_BYTES = 64 * 1024 * 1024
# It is also the most that a look for changes may scan: some tenths of a second at the source.
_BUSY_POLL_SECONDS = 0.25
_ENDS = (TableState.READY, TableState.QUARANTINED, TableState.REMOVED)
# A following process outlives a restart of its source, and also a longer maintenance of it.
_BEGIN_AGAIN = Backoff(max_attempts=10_000, max_total_seconds=6 * 3600)
# How long the server may take to notice that our own former connection is gone.
_TAKE_OVER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Pending:
    """Whether a pipeline has something to do.

    Attributes:
        reason: Why, or why not, for people.
        current: Flushed end of the source's WAL when it was asked.
        tables_to_copy: Tables that wait for a copy, or whose copy is unfinished, or that are to be resumed.
        changes: The stream holds changes, or so much WAL that it should be passed over.
        tables: The tables that the pipeline replicates, or keeps the changes of.
    """

    work: bool
    reason: str
    current: Lsn
    tables_to_copy: tuple[TableId, ...] = ()
    changes: bool = False
    tables: tuple[TableId, ...] = ()


@dataclass(frozen=True, slots=True)
class TableStatus:
    """Where one table stands.

    Attributes:
        rows: Rows that its last copy, whole or of slices, brought.
        lag_bytes: WAL between what the destination has and the source's end; None when the table is not followed.
        lag_seconds: Age of what the destination has; 0 when it has everything, None when unknown.
        chunks_done: Chunks of the running copy that are staged.
        chunks_total: Chunks of the running copy; 0 when there is none.
        landing: How its changes land; None while nothing is known of the table.
        replaced: Values that the policy replaced since the last copy began, by column.
        held: Quarantined, with its changes kept, so that it can be resumed.
        asked: What is asked for and not taken up yet.
        waits_for: Transactions at the source that its copy waits for, which have written to it.
        slices: Names of the slices that its copy is of; none: of the whole table.
        rows_done: Rows that its running copy has staged.
        rows_total: Rows that it is expected to bring.
        bytes_done: Heap bytes of what it has staged.
        bytes_total: Heap bytes of all of it.
    """

    table: TableId
    state: TableState
    rows: int | None
    reason: str
    hint: str
    lag_bytes: int | None
    lag_seconds: float | None
    chunks_done: int
    chunks_total: int
    landing: Landing | None = None
    replaced: Mapping[str, int] = field(default_factory=dict)
    held: bool = False
    asked: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    rows_done: int = 0
    rows_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0


@dataclass(frozen=True, slots=True)
class Comparison(Difference):
    """How a table differs from its source.

    Attributes:
        replaced: Values that the policy replaced, by column; their rows count as different.
    """

    replaced: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """Where a pipeline stands.

    Attributes:
        position: Everything committed before it is at the destination; None before the first run.
        retained_bytes: WAL that the slot keeps back at the source; None without a slot.
        slot_active_pid: Backend that reads the slot right now.
    """

    name: str
    slot: str
    current: Lsn
    position: Lsn | None
    lag_bytes: int | None
    lag_seconds: float | None
    retained_bytes: int | None
    slot_active_pid: int | None
    tables: list[TableStatus] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; positions in the notation of Postgres."""
        tables = [
            {**{name: getattr(table, name) for name in TableStatus.__slots__}, "table": str(table.table)}
            for table in self.tables
        ]
        plain = {name: getattr(self, name) for name in PipelineStatus.__slots__}
        position = None if self.position is None else str(self.position)
        return plain | {"current": str(self.current), "position": position, "tables": tables}


class Pipeline:
    """One source database, one publication, one slot, one destination.

    Nothing is opened until it is needed. One object serves one thread at a time, except `pending`, `status`,
    `request_resync` and `request_resume`, which may be called beside a running `replicator`.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self._watching = threading.Lock()
        # From where to where the slot was found to hold nothing of ours.
        self._empty = (Lsn(0), Lsn(0))

    @classmethod
    def load(cls, path: Path) -> Pipeline:
        """The pipeline of a config file.

        Raises:
            ConfigError: naming file, field and problem.
        """
        return cls(load_config(path))

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self.config.name

    @contextmanager
    def replicator(self, reporter: Reporter | None = None, *, wait_seconds: float = 0.0) -> Iterator[Replicator]:
        """The engine, holding the pipeline until the end of the ``with`` block.

        Raises:
            StateError: of kind ``PIPELINE_BUSY`` when another process still holds the pipeline after ``wait_seconds``.
        """
        with ExitStack() as stack:
            replicator = self._enter(reporter, monotonic() + wait_seconds)
            stack.push(replicator)
            yield replicator

    def follow(
        self, stop: Stop, reporter: Reporter | None = None, *, wait_seconds: float = 0.0
    ) -> Mapping[TableId, TableRecord]:
        """Replicate until asked to stop; begins again by itself when the source was away or its connections were cut.

        Returns:
            The state of every table at the end.

        Raises:
            EtlError: It cannot begin, or an error that waiting does not mend.
        """
        with self.replicator(reporter, wait_seconds=wait_seconds) as replicator:
            records = self._followed(replicator, stop, reporter)
        retrier = Retrier(f"the pipeline {self.name}", when=_may_begin_again, backoff=_BEGIN_AGAIN)
        while records is None:
            try:
                with self.replicator(reporter, wait_seconds=_TAKE_OVER_SECONDS) as replicator:
                    retrier.progressed()
                    records = self._followed(replicator, stop, reporter)
            except EtlError as error:
                sleep(retrier.failed(error))
            if stop.is_set():
                break
        return records if records is not None else self._store.tables()

    def _followed(
        self, replicator: Replicator, stop: Stop, reporter: Reporter | None
    ) -> Mapping[TableId, TableRecord] | None:
        """The tables' records once stopped; None when it has to begin again."""
        try:
            replicator.follow(stop=stop)
        except EtlError as error:
            if not _may_begin_again(error):
                raise
            (reporter or LogReporter()).notice(f"{error.message}; beginning again")
            return None
        return dict(replicator.records)

    def tables(self) -> dict[TableId, TableSchema]:
        """Schemas of the replicated tables: the stored ones, or the catalogue's when nothing is stored yet."""
        with self._watching:
            stored = {table: version.schema_ for table, version in self._store.schemas().items()}
            found = stored or self._watch.foreseen_tables()
        choices = self.config.choices
        return {table: choices.apply(schema) for table, schema in found.items()}

    def pending(self) -> Pending:
        """Whether there is something to do; reads only, and little."""
        with self._watching:
            records = self._store.tables()
            known = tuple(sorted(table for table, record in records.items() if not _is_out(record)))
            asked = {request.table for request in self._store.requests() if request.table in records}
            waiting = tuple(sorted({*_waiting(records), *asked}))
            return replace(self._pending(waiting, _to_resume(records)), tables=known)

    def _pending(self, waiting: tuple[TableId, ...], to_resume: tuple[TableId, ...]) -> Pending:
        slot = self._watch.slot()
        current = self._watch.current_position()
        record = self._store.slot()
        if record is None or slot is None:
            return Pending(True, "the pipeline has not run yet", current)
        if waiting:
            reason = f"{len(waiting)} tables wait for a copy, or for what was asked for: {_few(waiting)}"
            return Pending(True, reason, current, waiting + to_resume, True)
        if to_resume:
            return Pending(
                True, f"{len(to_resume)} tables are to be resumed: {_few(to_resume)}", current, to_resume, True
            )
        behind = current - record.position
        if behind <= 0:
            return Pending(False, f"nothing was written since {record.position}", current)
        if behind > IDLE_WAL_BYTES:
            return Pending(True, f"{behind:,} bytes of WAL to apply or to pass over", current, changes=True)
        if self._has_changes(record.position, current):
            return Pending(True, f"changes after {record.position}", current, changes=True)
        return Pending(False, f"no changes of ours in {behind:,} bytes of WAL", current)

    def _has_changes(self, position: Lsn, current: Lsn) -> bool:
        """Whether the stream holds changes; each look begins at the slot's position, so it does not go on for ever."""
        upto = Lsn(min(current, position + IDLE_WAL_BYTES))
        if self._empty == (position, upto):
            return False
        found = self._watch.has_changes(upto)
        if not found:
            self._empty = (position, upto)
        return found

    def current_position(self) -> Lsn:
        """Flushed end of the source's WAL."""
        with self._watching:
            return self._watch.current_position()

    def applied_position(self) -> Lsn | None:
        """Everything committed before it is at the destination; None before the first run."""
        with self._watching:
            record = self._store.slot()
            return None if record is None else record.position

    def is_held(self) -> bool:
        """Whether any process runs the pipeline right now."""
        with self._watching:
            return self._watch.is_fence_held()

    def status(self) -> PipelineStatus:
        """Where the pipeline and each table stand."""
        with self._watching:
            record, slot = self._store.slot(), self._watch.slot()
            current = self._watch.current_position()
            position = record.position if record else None
            lag_bytes = None if position is None else max(0, current - position)
            lag_seconds = None
            if record is not None:
                behind = bool(lag_bytes) and self._has_changes(record.position, current)
                lag_seconds = _age(record.newest_commit or record.updated_at) if behind else 0.0
            return PipelineStatus(
                name=self.name,
                slot=self.config.source.slot.name,
                current=current,
                position=position,
                lag_bytes=lag_bytes,
                lag_seconds=lag_seconds,
                retained_bytes=slot.retained_bytes if slot else None,
                slot_active_pid=slot.active_pid if slot else None,
                tables=self._table_statuses(lag_bytes, lag_seconds),
            )

    def request_resync(self, table: TableId, slices: Sequence[str] = (), *, request_id: str | None = None) -> Request:
        """Have a table, or slices of it, copied afresh by whichever process runs the pipeline now or next.

        Args:
            slices: Names of slices; none, or all of them: the whole table.
            request_id: Asked again with the same one, it is one request.

        Raises:
            ConfigError: The pipeline has no such table, or the table no such slices; or it is not live, so that only
                all of it can be copied.
        """
        with self._watching:
            record = self._known_record(table)
        chosen = self._chosen_slices(record, slices) if slices else ()
        kind = RequestKind.SLICES if chosen else RequestKind.RESYNC
        return self._ask(Request(request_id=request_id or uuid.uuid4().hex, table=table, kind=kind, slices=chosen))

    def request_resume(self, table: TableId, *, request_id: str | None = None) -> Request:
        """Have a quarantined table go on where it was taken out, by whichever process runs the pipeline now or next.

        A table whose changes were not kept is copied afresh instead; the request's kind tells.

        Raises:
            ConfigError: The pipeline has no such table, or it is not quarantined.
        """
        with self._watching:
            record = self._known_record(table)
        if record.state is not TableState.QUARANTINED:
            hint = f"Only a quarantined table is resumed; to have it copied afresh, re-sync {table}"
            raise ConfigError(f"{table} is not quarantined, it is {record.state}", hint=hint)
        kind = RequestKind.RESUME if record.held else RequestKind.RESYNC
        return self._ask(Request(request_id=request_id or uuid.uuid4().hex, table=table, kind=kind))

    def _ask(self, request: Request) -> Request:
        with self._watching:
            self._store.add_request(request)
        return request

    def _chosen_slices(self, record: TableRecord, names: Sequence[str]) -> tuple[Slice, ...]:
        """The slices of these names; none where they are the whole table."""
        table = record.table
        if record.state in (TableState.QUARANTINED, TableState.REMOVED):
            hint = f"Mend the cause, then resume {table}, or re-sync all of it"
            raise ConfigError(f"Slices of {table} cannot be copied, since it is {record.state}", hint=hint)
        known = {each.name: each for each in self.slices(table)}
        if not known:
            raise ConfigError(f"{table} has no slices", hint=self._why_no_slices(table))
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"{table} has no slice {unknown[0]}", hint=_nearest(unknown[0], list(known)))
        chosen = dict.fromkeys(names)
        return () if len(chosen) == len(known) else tuple(known[name] for name in chosen)

    def _why_no_slices(self, table: TableId) -> str:
        rule = self.config.choices.rule(table)
        if rule is None:
            return f"Give it a rule in the config: tables.{table}.partitions"
        if isinstance(rule, KeyRanges) and self.config.choices.partitions(self.tables()[table]) is not None:
            return "Its ranges are not planned yet"
        return f"tables.{table}.partitions does not fit it; see: etl-dagster check"

    def slices(self, table: TableId) -> list[Slice]:
        """The slices of a table as they are now; none without a rule that fits, or while its ranges are not planned."""
        schema = self.tables().get(table)
        if schema is None or (rule := self.config.choices.partitions(schema)) is None:
            return []
        column = next(column for column in schema.columns if column.name == rule.column)
        if isinstance(rule, TimeWindows):
            return rule.slices(column, datetime.now(UTC))
        with self._watching:
            plan = self._store.range_plan(table)
        return plan.slices(column) if plan is not None and plan.attnum == column.attnum else []

    def plan_slices(self, table: TableId) -> list[Slice]:
        """The same, with ranges planned that were not, and the last one cut again when it has grown.

        Reads a sample of the source's table; keeps what it found in the store.
        """
        schema = self.tables().get(table)
        rule = None if schema is None else self.config.choices.partitions(schema)
        if schema is not None and isinstance(rule, KeyRanges):
            column = next(column for column in schema.columns if column.name == rule.column)
            with self._watching:
                known = self._store.range_plan(table)
                plan = self._planned(schema, column, rule, known)
                if plan != known:
                    self._store.save_range_plan(table, plan)
        return self.slices(table)

    def _planned(self, schema: TableSchema, column: Column, rule: KeyRanges, known: RangePlan | None) -> RangePlan:
        """The ranges of a table: those that are known stay, but for the last one, which may have grown."""
        bounds = known.bounds if known is not None and known.attnum == column.attnum else ()
        if len(bounds) + 1 >= MAX_SLICES:
            return RangePlan(attnum=column.attnum, bounds=bounds)
        found = self._watch.plan_ranges(schema, column, rule.rows, bounds[-1] if bounds else None)
        return RangePlan(attnum=column.attnum, bounds=(*bounds, *found)[: MAX_SLICES - 1])

    def is_done(self, request: Request) -> bool:
        """Whether what was asked for has been taken up and seen through, well or not: the table's record tells."""
        with self._watching:
            if any(waiting.request_id == request.request_id for waiting in self._store.requests()):
                return False
            record = self._store.tables().get(request.table)
        return record is None or (record.state in _ENDS and not record.resume)

    def _known_record(self, table: TableId) -> TableRecord:
        records = self._store.tables()
        if table not in records:
            known = ", ".join(sorted(map(str, records))) or "none yet: run a sync first"
            raise ConfigError(f"The pipeline {self.name} has no table {table}", hint=f"Its tables: {known}")
        return records[table]

    def record(self, table: TableId) -> TableRecord | None:
        """What the store knows of a table."""
        with self._watching:
            return self._store.tables().get(table)

    def check(self) -> list[CheckResult]:
        """Examine source, store and destination; never raises for what it examines."""
        tables = self._foreseen_tables()
        keys = {f"key of {name}": table.landing for name, table in tables.items()}
        source = [_as_it_lands(result, keys.get(result.name)) for result in check(self.config.source)]
        return [*source, *self._check_choices(tables), self._check_store(), self._check_destination()]

    def compare(self) -> Mapping[TableId, Comparison]:
        """Compare every live table with its source, both ways; nothing may write to either meanwhile.

        Of a table with soft deletes or a changelog, those rows are compared that stand at the source.
        """
        comparisons = {}
        self._destination.startup(self._owner)
        try:
            with self._watching:
                schemas = {table: version.schema_ for table, version in self._store.schemas().items()}
                live = [record for record in self._store.tables().values() if record.state is TableState.READY]
            for record in sorted(live, key=lambda record: record.table):
                comparisons[record.table] = self._compared(schemas[record.table], record)
        finally:
            self._destination.shutdown()
        return comparisons

    def _compared(self, schema: TableSchema, record: TableRecord) -> Comparison:
        rows = present_rows(schema, self._destination.read_table(schema))
        found = compare_table(self.config.source.connection, schema, rows)
        return Comparison(found.missing, found.extra, found.rows, found.sample_keys, record.replaced)

    def close(self) -> None:
        """Let go of the connections that `pending` and `status` keep open."""
        with self._watching:
            for name, thing in (("_watch", self.__dict__.get("_watch")), ("_store", self.__dict__.get("_store"))):
                if thing is not None:
                    thing.close()
                    del self.__dict__[name]

    def _enter(self, reporter: Reporter | None, deadline: float) -> Replicator:
        while True:
            replicator = Replicator(
                source=PostgresSource(self.config.source),
                destination=self._destination,
                store=self._own_store(),
                settings=self.config.replication,
                reporter=reporter,
                owner=self._owner,
                choices=self.config.choices,
                heartbeat_seconds=self.config.source.heartbeat_seconds,
            )
            try:
                return replicator.__enter__()
            except StateError as error:
                if error.kind is not ErrorKind.PIPELINE_BUSY or monotonic() >= deadline:
                    raise
                sleep(_BUSY_POLL_SECONDS)

    def _own_store(self) -> Store:
        """A store that a replicator may close; state in memory has only the one."""
        return self._store if self.config.store.type == "memory" else open_store(self.config.store, self.name)

    @property
    def _owner(self) -> str:
        """What the destination knows the pipeline by; the slot tells apart namesakes that read other databases."""
        return f"{self.name} (slot {self.config.source.slot.name})"

    @cached_property
    def _watch(self) -> PostgresSource:
        return PostgresSource(self.config.source)

    @cached_property
    def _store(self) -> Store:
        return open_store(self.config.store, self.name)

    @cached_property
    def _destination(self) -> Destination:
        return open_destination(self.config.destination)

    def _table_statuses(self, lag_bytes: int | None, lag_seconds: float | None) -> list[TableStatus]:
        schemas = {table: version.schema_ for table, version in self._store.schemas().items()}
        records = self._store.tables()
        copying = [schemas[table] for table, record in records.items() if record.state is TableState.COPYING]
        waits = self._barriers(copying)
        asked: dict[TableId, list[str]] = {}
        for request in self._store.requests():
            asked.setdefault(request.table, []).append(_asked(request))
        statuses = (
            self._table_status(record, schemas.get(table), lag_bytes, lag_seconds)
            for table, record in sorted(records.items())
        )
        return [
            replace(
                status,
                asked=tuple(asked.get(status.table, ())),
                waits_for=() if status.chunks_total else waits[status.table],
            )
            for status in statuses
        ]

    def _barriers(self, copying: Sequence[TableSchema]) -> Mapping[TableId, tuple[str, ...]]:
        """Who has written to tables whose copies may still wait for them."""
        found: defaultdict[TableId, tuple[str, ...]] = defaultdict(tuple)
        for writer in self._watch.writers(copying) if copying else ():
            found[writer.table] += (told(writer),)
        return found

    def _table_status(
        self, record: TableRecord, schema: TableSchema | None, lag_bytes: int | None, lag_seconds: float | None
    ) -> TableStatus:
        followed = record.live and not record.held
        chunks = self._store.chunks(record.copy_id) if record.copy_id else ()
        return TableStatus(
            table=record.table,
            state=record.state,
            rows=record.rows,
            reason=record.reason,
            hint=record.hint,
            lag_bytes=lag_bytes if followed else None,
            lag_seconds=lag_seconds if followed else None,
            chunks_done=sum(chunk.done for chunk in chunks),
            chunks_total=len(chunks),
            landing=None if schema is None else schema.landing,
            replaced=record.replaced,
            held=record.held,
            slices=tuple(each.name for each in record.slices),
            rows_done=sum(chunk.rows or 0 for chunk in chunks),
            rows_total=sum(chunk.estimated_rows if chunk.rows is None else chunk.rows for chunk in chunks),
            bytes_done=sum(chunk.estimated_bytes for chunk in chunks if chunk.done),
            bytes_total=sum(chunk.estimated_bytes for chunk in chunks),
        )

    def _foreseen_tables(self) -> Mapping[TableId, TableSchema]:
        """The tables as the source has them now, with what is chosen for them; none when it cannot be asked."""
        try:
            with self._watching:
                found = self._watch.foreseen_tables()
        except EtlError:  # the source's own line says why
            return {}
        return {table: self.config.choices.apply(schema) for table, schema in found.items()}

    def _check_choices(self, tables: Mapping[TableId, TableSchema]) -> list[CheckResult]:
        if not self.config.tables or not tables:
            return []
        problems = self.config.choices.unmatched(tables.values())
        if not problems:
            return [CheckResult("choices", passed=True, detail="all that is chosen for tables names some", todo="")]
        todo = "Correct the name in the config, or publish the table"
        return [CheckResult("choices", passed=False, detail=problem, todo=todo) for problem in problems]

    def _check_store(self) -> CheckResult:
        try:
            tables = len(self._store.tables())
        except EtlError as error:
            return CheckResult("state store", passed=False, detail=error.message, todo=error.hint)
        return CheckResult(
            "state store", passed=True, detail=f"{self.config.store.type}, {tables} tables known", todo=""
        )

    def _check_destination(self) -> CheckResult:
        try:
            destination = self._destination
            destination.startup(self._owner)
            try:
                tables = len(destination.positions())
            finally:
                destination.shutdown()
        except EtlError as error:
            return CheckResult("destination", passed=False, detail=error.message, todo=error.hint)
        detail = f"{self.config.destination.type}, {tables} tables replicated"
        return CheckResult("destination", passed=True, detail=detail, todo="")


def _is_out(record: TableRecord) -> bool:
    """The pipeline does nothing for the table."""
    return record.state is TableState.REMOVED or (record.state is TableState.QUARANTINED and not record.held)


def _as_it_lands(result: CheckResult, landing: Landing | None) -> CheckResult:
    """The verdict on a table's key in the light of its landing: a changelog matches no rows, so it needs none."""
    if result.passed or landing is None:
        return result
    if landing is Landing.CHANGELOG:
        return replace(result, passed=True, detail="none, and a changelog needs none", todo="")
    return replace(result, todo=f"{result.todo}; or choose `landing: changelog` for it")


def _may_begin_again(error: Exception) -> bool:
    """Cut connections take the fence along; what it protected is looked at afresh when the pipeline begins again."""
    kinds = (ErrorKind.PIPELINE_BUSY, ErrorKind.SOURCE_UNAVAILABLE, ErrorKind.SLOT_BUSY)
    return isinstance(error, EtlError) and error.kind in kinds


def _waiting(records: Mapping[TableId, TableRecord]) -> tuple[TableId, ...]:
    states = (TableState.INIT, TableState.COPYING, TableState.COPIED)
    return tuple(sorted(table for table, record in records.items() if record.state in states))


def _to_resume(records: Mapping[TableId, TableRecord]) -> tuple[TableId, ...]:
    return tuple(sorted(table for table, record in records.items() if record.resume))


def _asked(request: Request) -> str:
    names = ", ".join(each.name for each in request.slices)
    return f"{request.kind}{f' {names}' if names else ''}"


def _nearest(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    span = f"{len(known)} slices, from {known[0]} to {known[-1]}"
    return f"It has {span}" + (f"; like it are {', '.join(close)}" if close else "")


def _few(tables: tuple[TableId, ...]) -> str:
    return ", ".join(map(str, tables[:3])) + (" …" if len(tables) > 3 else "")


def _age(moment: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - moment).total_seconds())
