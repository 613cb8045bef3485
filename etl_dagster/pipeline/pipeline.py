"""The composition root: from one config to a running pipeline.

Everything that people and Dagster ask of a pipeline goes through `Pipeline`; here alone are source, store, destination
and engine put together.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from time import monotonic, sleep

from etl_dagster.arrow.landing import present_rows
from etl_dagster.config import PipelineConfig, load_config
from etl_dagster.destinations.base import Destination
from etl_dagster.destinations.registry import open_destination
from etl_dagster.errors import ConfigError, ErrorKind, EtlError, StateError
from etl_dagster.model import CheckResult, Landing, Lsn, Slice, TableId, TableSchema
from etl_dagster.pipeline.slices import TableSlices
from etl_dagster.pipeline.status import Comparison, Pending, PipelineStatus, table_statuses
from etl_dagster.postgres import Difference, PostgresSource, check, check_slices, compare_table
from etl_dagster.replication import LogReporter, Replicator, Reporter, Stop, seconds_until_due
from etl_dagster.retry import Backoff, Retrier, pause, retry
from etl_dagster.store import open_store
from etl_dagster.store.base import Request, RequestKind, Store, TableRecord, TableState

# WAL that holds nothing for us is passed over once it adds up to this much, so that the slot does not keep it back.
IDLE_WAL_BYTES = 64 * 1024 * 1024
# It is also the most that a look for changes may scan: some tenths of a second at the source.
_BUSY_POLL_SECONDS = 0.25
_ENDS = (TableState.READY, TableState.QUARANTINED, TableState.REMOVED)
# A following process outlives a restart of its source, a longer maintenance of it, and a quota that is used up until
# the next day.
_BEGIN_AGAIN = Backoff(max_seconds=60.0, max_attempts=10_000, max_total_seconds=26 * 3600)
# How long the server may take to notice that our own former connection is gone.
_TAKE_OVER_SECONDS = 10.0


class Pipeline:
    """One source database, one publication, one slot, one destination.

    Nothing is opened until it is needed. One object serves one thread at a time, except `pending`, `status`,
    `request_resync` and `request_resume`, which may be called beside a running `replicator`.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self._watching = threading.Lock()
        self._opening = threading.Lock()
        self._opened: Destination | None = None
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

    @property
    def batch_seconds(self) -> float:
        """How far apart batches are, at the destination's wish."""
        return self._destination.capabilities.batch_seconds

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
                pause(retrier.failed(error))
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
        if left := seconds_until_due(record.batch_at, self.batch_seconds):
            return Pending(False, f"the next batch is due in {left:.0f} s", current)
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
                usage=record.usage if record else {},
                tables=table_statuses(self._store, self._watch, lag_bytes, lag_seconds),
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
            chosen = self._slices_of(table).chosen(record, slices) if slices else ()
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

    def slices(self, table: TableId) -> list[Slice]:
        """The slices of a table as they are now; none without a rule that fits, or while its ranges are not planned."""
        with self._watching:
            return self._slices_of(table).now()

    def plan_slices(self, table: TableId) -> list[Slice]:
        """The same, with ranges planned that were not, and the last one cut again when it has grown.

        Reads a sample of the source's table; keeps what it found in the store.
        """
        with self._watching:
            slices = self._slices_of(table)
            slices.plan(self._watch)
            return slices.now()

    def _slices_of(self, table: TableId) -> TableSlices:
        version = self._store.schema(table)
        schema = self._watch.foreseen_tables().get(table) if version is None else version.schema_
        if schema is None:
            raise self._unknown(table, self._store.tables())
        choices = self.config.choices
        return TableSlices(choices, self._store, choices.apply(schema))

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
            raise self._unknown(table, records)
        return records[table]

    def _unknown(self, table: TableId, known: Iterable[TableId]) -> ConfigError:
        names = ", ".join(sorted(map(str, known))) or "none yet: run a sync first"
        return ConfigError(f"The pipeline {self.name} has no table {table}", hint=f"Its tables: {names}")

    def record(self, table: TableId) -> TableRecord | None:
        """What the store knows of a table."""
        with self._watching:
            return self._store.tables().get(table)

    def check(self) -> list[CheckResult]:
        """Examine source, store and destination; never raises for what it examines."""
        tables = self._foreseen_tables()
        keys = {f"key of {name}": table.landing for name, table in tables.items()}
        source = [_as_it_lands(result, keys.get(result.name)) for result in check(self.config.source)]
        choices = [*self._check_choices(tables), *self._check_partitions(tables)]
        return [*source, *choices, self._check_store(), *self._check_destination(tables)]

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
        def compare() -> Difference:
            rows = present_rows(schema, self._destination.read_table(schema))
            exact = self._destination.capabilities.json_text
            return compare_table(self.config.source.connection, schema, rows, json_text=exact)

        found = retry(compare, what=f"the comparison of {record.table}", when=_is_destination_away)
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

    @property
    def _destination(self) -> Destination:
        # One object, whoever asks first: the replicator's thread, or one that asks what is pending beside it.
        with self._opening:
            if self._opened is None:
                self._opened = open_destination(self.config.destination)
            return self._opened

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

    def _check_partitions(self, tables: Mapping[TableId, TableSchema]) -> list[CheckResult]:
        rules = ((schema, self.config.choices.partitions(schema)) for _, schema in sorted(tables.items()))
        return check_slices(self.config.source, [(schema, rule) for schema, rule in rules if rule is not None])

    def _check_store(self) -> CheckResult:
        try:
            tables = len(self._store.tables())
        except EtlError as error:
            return CheckResult("state store", passed=False, detail=error.message, todo=error.hint)
        return CheckResult(
            "state store", passed=True, detail=f"{self.config.store.type}, {tables} tables known", todo=""
        )

    def _check_destination(self, tables: Mapping[TableId, TableSchema]) -> Iterator[CheckResult]:
        try:
            destination = self._destination
        except EtlError as error:
            yield CheckResult("destination", passed=False, detail=error.message, todo=error.hint)
            return
        told = list(destination.check(self._sizes(tables)))
        # A start makes what is missing, and waits long for a destination that is away.
        yield from told or [self._check_startup(destination)]

    def _check_startup(self, destination: Destination) -> CheckResult:
        try:
            destination.startup(self._owner)
            try:
                tables = len(destination.positions())
            finally:
                destination.shutdown()
        except EtlError as error:
            return CheckResult("destination", passed=False, detail=error.message, todo=error.hint)
        detail = f"{self.config.destination.type}, {tables} tables replicated"
        return CheckResult("destination", passed=True, detail=detail, todo="")

    def _sizes(self, tables: Mapping[TableId, TableSchema]) -> Mapping[TableId, int]:
        """Bytes of the tables at the source; none of a source that cannot be asked, or is being altered."""
        try:
            with self._watching:
                return self._watch.table_bytes(list(tables.values())) if tables else {}
        except EtlError:  # an estimate is all that is lost
            return dict.fromkeys(tables, 0)


def _is_out(record: TableRecord) -> bool:
    """The pipeline does nothing for the table."""
    return record.state is TableState.REMOVED or (record.state is TableState.QUARANTINED and not record.held)


def _is_destination_away(error: Exception) -> bool:
    return isinstance(error, EtlError) and error.kind is ErrorKind.DESTINATION_UNAVAILABLE


def _as_it_lands(result: CheckResult, landing: Landing | None) -> CheckResult:
    """The verdict on a table's key in the light of its landing: a changelog matches no rows, so it needs none."""
    if result.passed or landing is None:
        return result
    if landing is Landing.CHANGELOG:
        return replace(result, passed=True, detail="none, and a changelog needs none", todo="")
    return replace(result, todo=f"{result.todo}; or choose `landing: changelog` for it")


def _may_begin_again(error: Exception) -> bool:
    """Cut connections take the fence along; what it protected is looked at afresh when the pipeline begins again."""
    kinds = (
        ErrorKind.PIPELINE_BUSY,
        ErrorKind.SOURCE_UNAVAILABLE,
        ErrorKind.SLOT_BUSY,
        ErrorKind.DESTINATION_UNAVAILABLE,
    )
    return isinstance(error, EtlError) and error.kind in kinds


def _waiting(records: Mapping[TableId, TableRecord]) -> tuple[TableId, ...]:
    states = (TableState.INIT, TableState.COPYING, TableState.COPIED)
    return tuple(sorted(table for table, record in records.items() if record.state in states))


def _to_resume(records: Mapping[TableId, TableRecord]) -> tuple[TableId, ...]:
    return tuple(sorted(table for table, record in records.items() if record.resume))


def _few(tables: tuple[TableId, ...]) -> str:
    return ", ".join(map(str, tables[:3])) + (" …" if len(tables) > 3 else "")


def _age(moment: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - moment).total_seconds())
