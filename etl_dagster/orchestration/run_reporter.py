"""What a run's log in Dagster says while it works: few lines, because each is an event that takes 5 to 10 ms."""

import logging
from collections.abc import Callable
from time import monotonic

from etl_dagster.model import TableId, TableSchema
from etl_dagster.replication import LogReporter
from etl_dagster.replication.report import BatchReport, CopyProgress
from etl_dagster.store import TableRecord, TableState

# Between two lines on the progress of one table, on that of any two, and on batches.
TABLE_SECONDS, LINE_SECONDS, BATCH_SECONDS = 5.0, 1.0, 5.0
# A thousand tables go through three states each in their first copy.
MAX_STATES = 100


class RunReporter:
    """Passes on to a run's log what people follow; whatever went wrong, or is waited for, without exception."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = monotonic) -> None:
        self._lines = LogReporter(log)
        self._log = log
        self._clock = clock
        self._due: dict[TableId | str, float] = {}
        self._states = 0

    def table_changed(self, record: TableRecord) -> None:
        if record.state is TableState.QUARANTINED:
            self._lines.table_changed(record)
            return
        self._states += 1
        if self._states <= MAX_STATES:
            self._lines.table_changed(record)
        elif self._states == MAX_STATES + 1:
            self._log.info("further tables that change their state are not told here, unless something is wrong")

    def copy_progressed(self, progress: CopyProgress) -> None:
        if self._is_due(progress.table) and self._is_due("any table"):
            self._next(progress.table, TABLE_SECONDS)
            self._next("any table", LINE_SECONDS)
            self._lines.copy_progressed(progress)

    def batch_applied(self, batch: BatchReport) -> None:
        if batch.total_changes and self._is_due("batches"):
            self._next("batches", BATCH_SECONDS)
            self._lines.batch_applied(batch)

    def schema_changed(self, table: TableId, schema: TableSchema, what: str) -> None:
        self._lines.schema_changed(table, schema, what)

    def notice(self, message: str) -> None:
        self._lines.notice(message)

    def _is_due(self, what: TableId | str) -> bool:
        return self._clock() >= self._due.get(what, float("-inf"))

    def _next(self, what: TableId | str, seconds: float) -> None:
        self._due[what] = self._clock() + seconds
