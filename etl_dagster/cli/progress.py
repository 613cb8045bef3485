"""Progress of long work: bars on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from etl_dagster.cli.logs import start_logging
from etl_dagster.model import TableId
from etl_dagster.replication.report import BatchReport, CopyProgress, LogReporter, Reporter

# A following process may commit several batches a second; a log wants fewer lines.
LINE_SECONDS = 2.0


class LineReporter(LogReporter):
    """Plain log lines; what comes closely together shares one line."""

    def __init__(self) -> None:
        self._waiting: list[BatchReport] = []
        self._last_line = 0.0
        self._last_copy_line: dict[TableId, float] = {}

    def copy_progressed(self, progress: CopyProgress) -> None:
        now = time.monotonic()
        last = self._last_copy_line.setdefault(progress.table, now)
        if progress.chunks_done == progress.chunks_total or now - last >= LINE_SECONDS:
            self._last_copy_line[progress.table] = now
            super().copy_progressed(progress)

    def batch_applied(self, batch: BatchReport) -> None:
        if batch.total_changes:
            self._waiting.append(batch)
        if time.monotonic() - self._last_line >= LINE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits for its line."""
        if self._waiting:
            super().batch_applied(_merged(self._waiting))
            self._waiting.clear()
            self._last_line = time.monotonic()


def _merged(batches: list[BatchReport]) -> BatchReport:
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
    )


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
