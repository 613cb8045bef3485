"""What a run's log in Dagster says while it works: few lines, because each is an event that takes 5 to 10 ms."""

import logging
from collections.abc import Callable
from time import monotonic

from etl_dagster.model import TableId, TableSchema
from etl_dagster.replication import LogReporter
from etl_dagster.replication.report import BatchReport, CopyProgress, merged
from etl_dagster.store import TableRecord, TableState

# Between two lines on the progress of one table, on that of any two, and on batches.
TABLE_SECONDS, LINE_SECONDS, BATCH_SECONDS = 5.0, 1.0, 5.0
# A thousand tables go through three states each in their first copy.
MAX_STATES = 100
# So many copies may end with a line each, whatever else the log has said in this second.
MAX_ENDS = 100


class RunReporter:
    """Passes on to a run's log what people follow; whatever went wrong, or is waited for, without exception."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._due: dict[TableId | str, float] = {}
        self._states = 0
        self._ends = 0
        self._untold: dict[TableId, CopyProgress] = {}
        self._copies: set[TableId] = set()
        self._batches: list[BatchReport] = []
        self.log_to(log)

    def log_to(self, log: logging.Logger) -> None:
        """Write to another log from here on, such as that of the run's next step."""
        self._log = log
        self._lines = LogReporter(log)

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
        if progress.table in self._copies and not (progress.rows_total or progress.bytes_total):
            return  # rows that are read once more by their keys come after the copy, and are few
        self._copies.add(progress.table)
        if self._is_end(progress) or (self._is_due(progress.table) and self._is_due("any table")):
            self._tell_copy(progress)
        else:
            self._untold[progress.table] = progress

    def _is_end(self, progress: CopyProgress) -> bool:
        """A copy's last line must not wait for its turn: what became of the table comes right after it."""
        self._ends += progress.done
        return progress.done and self._ends <= MAX_ENDS

    def _tell_copy(self, progress: CopyProgress) -> None:
        self._untold.pop(progress.table, None)
        self._next(progress.table, TABLE_SECONDS)
        self._next("any table", LINE_SECONDS)
        self._lines.copy_progressed(progress)

    def batch_applied(self, batch: BatchReport) -> None:
        if batch.total_changes:
            self._batches.append(batch)
            if self._is_due("batches"):
                self._next("batches", BATCH_SECONDS)
                self._tell_batches()

    def _tell_batches(self) -> None:
        if self._batches:
            self._lines.batch_applied(merged(self._batches))
            self._batches.clear()

    def flush(self) -> None:
        """Write what waits for its line; of many copies only how much they were."""
        for progress in list(self._untold.values())[:MAX_ENDS]:
            self._tell_copy(progress)
        if self._untold:
            rows = sum(progress.rows_done for progress in self._untold.values())
            self._log.info("%s more tables copied: %s rows", f"{len(self._untold):,}", f"{rows:,}")
            self._untold.clear()
        self._tell_batches()

    def schema_changed(self, table: TableId, schema: TableSchema, what: str) -> None:
        self._lines.schema_changed(table, schema, what)

    def notice(self, message: str) -> None:
        self._lines.notice(message)

    def _is_due(self, what: TableId | str) -> bool:
        return self._clock() >= self._due.get(what, float("-inf"))

    def _next(self, what: TableId | str, seconds: float) -> None:
        self._due[what] = self._clock() + seconds
