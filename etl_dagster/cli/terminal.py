"""Progress on a terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from etl_dagster.cli.logs import ConsoleHandler, start_logging
from etl_dagster.model import TableId
from etl_dagster.replication.report import BatchReport, CopyProgress, LogReporter, Reporter
from etl_dagster.store.base import TableRecord, TableState

# Over how long the shown rate of changes is averaged.
RATE_SECONDS = 5.0


@contextmanager
def on_terminal(*, debug: bool = False) -> Iterator[Reporter]:
    """Draw progress on standard error, with the log lines above it."""
    console = Console(stderr=True, highlight=False)
    start_logging(ConsoleHandler(console), debug=debug)
    try:
        with TerminalReporter(console) as reporter:
            yield reporter
    finally:
        start_logging(debug=debug)


class StreamRate:
    """How fast the stream went lately, and where it is."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque()
        self.total = 0
        self.last: BatchReport | None = None

    def add(self, batch: BatchReport) -> None:
        """Count one batch."""
        self._recent.append((time.monotonic(), batch.total_changes))
        self.total += batch.total_changes
        self.last = batch

    def per_second(self) -> float:
        """Changes per second over the last seconds."""
        start = time.monotonic() - RATE_SECONDS
        while self._recent and self._recent[0][0] < start:
            self._recent.popleft()
        return sum(count for _, count in self._recent) / RATE_SECONDS

    def __str__(self) -> str:
        if self.last is None:
            return "stream    waiting for changes"
        age = (datetime.now(UTC) - self.last.finished_at).total_seconds()
        return (
            f"stream    {self.total:,} changes   {self.per_second():,.0f}/s   lag {self.last.lag_seconds:.1f} s   "
            f"last batch {age:.0f} s ago   {self.last.position}"
        )


class TerminalReporter(LogReporter):
    """One bar per table that is being copied, and one line for the stream."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            TextColumn("{task.fields[rows]} rows"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._tasks: dict[TableId, TaskID] = {}
        self._rate = StreamRate()
        self._live = Live(console=console, refresh_per_second=8, transient=True, get_renderable=self._render)

    def __enter__(self) -> TerminalReporter:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_error: object) -> None:
        self._live.stop()

    def refresh(self) -> None:
        """Draw now."""
        self._live.refresh()

    def _render(self) -> Group:
        return Group(self._bars, Text(str(self._rate), no_wrap=True, overflow="ellipsis"))

    def table_changed(self, record: TableRecord) -> None:
        super().table_changed(record)
        if record.state not in {TableState.COPYING, TableState.COPIED} and record.table in self._tasks:
            self._bars.remove_task(self._tasks.pop(record.table))

    def copy_progressed(self, progress: CopyProgress) -> None:
        task = self._tasks.get(progress.table)
        if task is None:
            task = self._bars.add_task(str(progress.table), rows="0", rate="")
            self._tasks[progress.table] = task
        speed = self._bars.tasks[self._bars.task_ids.index(task)].speed
        self._bars.update(
            task,
            total=max(progress.rows_total, progress.rows_done),
            completed=progress.rows_done,
            rows=f"{progress.rows_done:,}",
            rate=f"{speed:,.0f}/s" if speed else "",
        )

    def batch_applied(self, batch: BatchReport) -> None:
        self._rate.add(batch)
