"""What the engine tells whoever watches: the terminal, a log, Dagster's metadata."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from etl_dagster.model import Lsn, TableId, TableSchema
from etl_dagster.store.base import TableRecord

logger = logging.getLogger("etl_dagster")

# Below, megabytes with one decimal say nothing.
_WORTH_TELLING = 100_000
# Kinds of jobs that a destination may count.
_JOBS = ("queries", "loads", "copies")


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One micro-batch that is durable at the destination.

    Attributes:
        start: Position before the batch.
        position: Position after it.
        changes: Changes applied per table; tables without any are left out.
        replaced: By table and column, values that the policy replaced.
        read_seconds: Time spent reading and decoding.
        write_seconds: Time spent in the destination.
        newest_commit: Commit time of the newest transaction in it; None when it held none.
        finished_at: When the destination had committed.
        usage: What the destination has billed since the report before, by name with the unit at its end: for this
            batch, and for copies.
    """

    start: Lsn
    position: Lsn
    changes: Mapping[TableId, int]
    transactions: int
    bytes: int
    read_seconds: float
    write_seconds: float
    newest_commit: datetime | None
    finished_at: datetime
    replaced: Mapping[TableId, Mapping[str, int]] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_usage(cls, position: Lsn, usage: Mapping[str, int]) -> BatchReport:
        """No batch, only what was billed for something else."""
        return cls(position, position, {}, 0, 0, 0.0, 0.0, None, datetime.now(UTC), usage=usage)

    @property
    def lag_seconds(self) -> float:
        """Age of the newest change at the moment it was visible at the destination."""
        if self.newest_commit is None:
            return 0.0
        return max(0.0, (self.finished_at - self.newest_commit).total_seconds())

    @property
    def total_changes(self) -> int:
        """Changes over all tables."""
        return sum(self.changes.values())


def merged(batches: Sequence[BatchReport]) -> BatchReport:
    """Batches that follow each other, as if they had been one; there must be at least one."""
    changes: dict[TableId, int] = {}
    for batch in batches:
        for table, count in batch.changes.items():
            changes[table] = changes.get(table, 0) + count
    first, last = batches[0], batches[-1]
    return BatchReport(
        start=first.start,
        position=last.position,
        changes=changes,
        transactions=sum(batch.transactions for batch in batches),
        bytes=sum(batch.bytes for batch in batches),
        read_seconds=sum(batch.read_seconds for batch in batches),
        write_seconds=sum(batch.write_seconds for batch in batches),
        newest_commit=last.newest_commit,
        finished_at=last.finished_at,
        usage=added(*(batch.usage for batch in batches)),
    )


def added(*usages: Mapping[str, int]) -> dict[str, int]:
    """The sum of what was billed."""
    return dict(sum(map(Counter, usages), Counter()))


def told_usage(usage: Mapping[str, int]) -> str:
    """What was billed, for people; empty where nothing is."""
    parts = [f"{_megabytes(usage['bytes_billed'])} MB billed"] if "bytes_billed" in usage else []
    parts += [f"{usage['slot_ms'] / 1000:,.1f} slot seconds"] if "slot_ms" in usage else []
    counts = ((name, usage.get(name, 0)) for name in _JOBS)
    return ", ".join([*parts, *(f"{count:,} {name}" for name, count in counts if count)])


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """How far the copy of one table is; ``rows_total`` and ``bytes_total`` are the planner's estimates.

    Attributes:
        bytes_done: Heap bytes of the chunks that are staged.
        seconds: Since this process began to read; what earlier ones had staged is in ``skipped_bytes``.
        skipped_bytes: Of ``bytes_done``, those that earlier processes staged.
        barrier_seconds: How long the copy waited for open transactions before it began to read.
        slices: Names of the slices that are copied; empty: the whole table is.
    """

    table: TableId
    chunks_done: int
    chunks_total: int
    rows_done: int
    rows_total: int
    bytes_done: int = 0
    bytes_total: int = 0
    seconds: float = 0.0
    skipped_bytes: int = 0
    barrier_seconds: float = 0.0
    slices: tuple[str, ...] = ()

    @property
    def bytes_per_second(self) -> float:
        """Heap bytes that this process stages in a second; 0 while nobody knows."""
        return (self.bytes_done - self.skipped_bytes) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this rate; None while nobody knows."""
        rate = self.bytes_per_second
        return max(0, self.bytes_total - self.bytes_done) / rate if rate > 0 else None

    @property
    def done(self) -> bool:
        """Everything that was planned is staged."""
        return self.chunks_done >= self.chunks_total

    @property
    def what(self) -> str:
        """What is copied, for people: the table, or which slices of it."""
        return f"{self.table}{told_slices(self.slices)}"

    def __str__(self) -> str:
        text = f"{self.what} copied {self.rows_done:,} of about {self.rows_total:,} rows"
        return f"{text}{self._volume()}, chunk {self.chunks_done} of {self.chunks_total}{self._barrier()}"

    def _volume(self) -> str:
        if self.bytes_total < _WORTH_TELLING:
            return ""
        parts = [f"{_megabytes(self.bytes_done)} of {_megabytes(self.bytes_total)} MB"]
        if rate := self.bytes_per_second:
            parts.append(f"{_megabytes(rate)} MB/s")
        if not self.done and self.seconds_left is not None:
            parts.append(f"{told_seconds(self.seconds_left)} left")
        return f" ({', '.join(parts)})"

    def _barrier(self) -> str:
        waited = self.barrier_seconds if self.done else 0
        return f", after {waited:.0f} s of waiting for open transactions" if waited >= 1 else ""


def told_slices(names: Sequence[str]) -> str:
    """Which slices, behind the name of their table; bounds of ranges are values of rows, so those are only counted."""
    if not names:
        return ""
    if not all(name[:1].isdigit() for name in names):
        return f" ({len(names)} slices)" if len(names) > 1 else " (a slice)"
    return f" ({names[0]})" if len(names) == 1 else f" ({len(names)} slices between {min(names)} and {max(names)})"


def told_seconds(seconds: float) -> str:
    """How long it takes, as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _megabytes(amount: float) -> str:
    return f"{amount / 1e6:,.1f}"


class Reporter(Protocol):
    """Receives reports, from the engine's main thread only; must return fast."""

    def table_changed(self, record: TableRecord) -> None:
        """A table entered another state."""
        ...

    def copy_progressed(self, progress: CopyProgress) -> None: ...

    def batch_applied(self, batch: BatchReport) -> None: ...

    def schema_changed(self, table: TableId, schema: TableSchema, what: str) -> None:
        """A live table has other columns from here on; ``what`` says which, for people."""
        ...

    def notice(self, message: str) -> None:
        """Something the operator should know: what a copy waits for, a retry, a lost slot."""
        ...


class LogReporter:
    """Plain log lines, to the package's logger or another one."""

    def __init__(self, to: logging.Logger = logger) -> None:
        self._log = to

    def table_changed(self, record: TableRecord) -> None:
        reason = f": {record.reason}" if record.reason else ""
        level = logging.WARNING if record.state == "quarantined" else logging.INFO
        self._log.log(
            level, "%s is %s%s%s", record.table, record.state, reason, f" — {record.hint}" if record.hint else ""
        )

    def copy_progressed(self, progress: CopyProgress) -> None:
        self._log.info("%s", progress)

    def batch_applied(self, batch: BatchReport) -> None:
        if batch.total_changes:
            usage = told_usage(batch.usage)
            self._log.info(
                "applied %s changes of %s transactions up to %s, lag %.1f s%s",
                f"{batch.total_changes:,}",
                f"{batch.transactions:,}",
                batch.position,
                batch.lag_seconds,
                f" ({usage})" if usage else "",
            )

    def schema_changed(self, table: TableId, schema: TableSchema, what: str) -> None:
        self._log.info("%s: %s", table, what)

    def notice(self, message: str) -> None:
        self._log.warning("%s", message)


@dataclass(slots=True)
class TableSummary:
    """What a run did to one table.

    Attributes:
        copied_rows: What its last copy brought; None when none was finished.
        copy: How far the copy of the run is, or was at its end.
        schema: The newest one if it changed.
    """

    changes: int = 0
    copied_rows: int | None = None
    copy: CopyProgress | None = None
    first: Lsn | None = None
    last: Lsn | None = None
    lag_seconds: float = 0.0
    replaced: Counter[str] = field(default_factory=Counter)
    schema: TableSchema | None = None


@dataclass(slots=True)
class RunSummary:
    """What a run did, summed up; itself a `Reporter`, usually behind a `FanOut`."""

    tables: dict[TableId, TableSummary] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    quarantined: dict[TableId, TableRecord] = field(default_factory=dict)
    batches: int = 0
    transactions: int = 0
    position: Lsn | None = None
    max_lag_seconds: float = 0.0
    usage: Counter[str] = field(default_factory=Counter)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _copied: set[TableId] = field(default_factory=set)

    def _table(self, table: TableId) -> TableSummary:
        return self.tables.setdefault(table, TableSummary())

    @property
    def changes(self) -> int:
        """Changes applied over all tables."""
        return sum(table.changes for table in self.tables.values())

    def table_changed(self, record: TableRecord) -> None:
        if record.state == "copied":
            self._copied.add(record.table)
        if record.state == "ready" and record.table in self._copied:
            self._table(record.table).copied_rows = record.copied_rows
        if record.state == "quarantined":
            self.quarantined[record.table] = record

    def copy_progressed(self, progress: CopyProgress) -> None:
        self._copied.add(progress.table)
        summary = self._table(progress.table)
        # Rows that are read once more by their keys come after the copy, and are few.
        if progress.bytes_total or summary.copy is None:
            summary.copy = progress

    def batch_applied(self, batch: BatchReport) -> None:
        self.usage.update(batch.usage)
        self.batches += 1
        self.transactions += batch.transactions
        self.position = batch.position
        self.max_lag_seconds = max(self.max_lag_seconds, batch.lag_seconds)
        for table, changes in batch.changes.items():
            summary = self._table(table)
            summary.changes += changes
            summary.first = summary.first or batch.start
            summary.last = batch.position
            summary.lag_seconds = batch.lag_seconds
        for table, replaced in batch.replaced.items():
            self._table(table).replaced.update(replaced)

    def schema_changed(self, table: TableId, schema: TableSchema, what: str) -> None:
        self._table(table).schema = schema

    def notice(self, message: str) -> None:
        self.notices.append(message)


class FanOut:
    """Passes every report on to several reporters."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = tuple(reporters)

    def table_changed(self, record: TableRecord) -> None:
        for reporter in self._reporters:
            reporter.table_changed(record)

    def copy_progressed(self, progress: CopyProgress) -> None:
        for reporter in self._reporters:
            reporter.copy_progressed(progress)

    def batch_applied(self, batch: BatchReport) -> None:
        for reporter in self._reporters:
            reporter.batch_applied(batch)

    def schema_changed(self, table: TableId, schema: TableSchema, what: str) -> None:
        for reporter in self._reporters:
            reporter.schema_changed(table, schema, what)

    def notice(self, message: str) -> None:
        for reporter in self._reporters:
            reporter.notice(message)
