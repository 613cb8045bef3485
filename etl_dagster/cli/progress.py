"""Progress of long work: bars on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from etl_dagster.cli.logs import start_logging
from etl_dagster.model import TableId
from etl_dagster.replication.report import BatchReport, CopyProgress, LogReporter, Reporter, merged
from etl_dagster.store.base import TableRecord, TableState

# A following process may commit several batches a second; a log wants fewer lines.
LINE_SECONDS = 2.0
# In that time, so many lines may be of tables that have begun or ended something; a terminal scrolls no faster.
LINES_OF_TABLES = 100

logger = logging.getLogger("etl_dagster")


class SparingReporter(LogReporter):
    """Plain log lines for a few tables; where thousands get there at once, one line for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self._period = 0.0
        self._lines = 0
        self._states: Counter[TableState] = Counter()

    def table_changed(self, record: TableRecord) -> None:
        if self.has_room() or record.state is TableState.QUARANTINED:
            super().table_changed(record)
        else:
            self._states[record.state] += 1

    def has_room(self) -> bool:
        """Whether one more table may have a line of its own now; takes the room."""
        now = time.monotonic()
        if now - self._period >= LINE_SECONDS:
            self.sum_up()
            self._period, self._lines = now, 0
        self._lines += 1
        return self._lines <= LINES_OF_TABLES

    def sum_up(self) -> None:
        """Write what has had no line of its own."""
        for state, count in self._states.items():
            logger.info("%s more tables are %s", f"{count:,}", state)
        self._states.clear()

    def flush(self) -> None:
        """Write what waits for its line."""
        self.sum_up()


class LineReporter(SparingReporter):
    """Plain log lines; what comes closely together shares one line."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[BatchReport] = []
        self._last_line = 0.0
        self._last_copy_line: dict[TableId, float] = {}
        self._copied: list[CopyProgress] = []

    def copy_progressed(self, progress: CopyProgress) -> None:
        now = time.monotonic()
        began = self._last_copy_line.setdefault(progress.table, now)
        if progress.done:
            del self._last_copy_line[progress.table]
            self._copy_ended(progress)
        elif now - began >= LINE_SECONDS:
            self._last_copy_line[progress.table] = now
            super().copy_progressed(progress)

    def _copy_ended(self, progress: CopyProgress) -> None:
        if self.has_room() or progress.seconds >= LINE_SECONDS:
            super().copy_progressed(progress)
        else:
            self._copied.append(progress)

    def sum_up(self) -> None:
        if self._copied:
            rows = sum(progress.rows_done for progress in self._copied)
            megabytes = sum(progress.bytes_done for progress in self._copied) / 1e6
            logger.info("%s more tables copied: %s rows (%s MB)", len(self._copied), f"{rows:,}", f"{megabytes:,.1f}")
            self._copied.clear()
        super().sum_up()

    def batch_applied(self, batch: BatchReport) -> None:
        if batch.total_changes:
            self._waiting.append(batch)
        if time.monotonic() - self._last_line >= LINE_SECONDS:
            self.flush()

    def flush(self) -> None:
        super().flush()
        if self._waiting:
            super().batch_applied(merged(self._waiting))
            self._waiting.clear()
            self._last_line = time.monotonic()


@contextmanager
def watching(*, debug: bool = False) -> Iterator[Reporter]:
    """A reporter that suits where standard error goes; log lines go the same way."""
    if sys.stderr.isatty():
        from etl_dagster.cli.terminal import on_terminal

        with on_terminal(debug=debug) as reporter:
            yield reporter
    else:
        start_logging(debug=debug)
        lines = LineReporter()
        try:
            yield lines
        finally:
            lines.flush()
