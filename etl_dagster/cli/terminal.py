"""Progress on a terminal."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from etl_dagster.cli.logs import ConsoleHandler, start_logging
from etl_dagster.cli.progress import SparingReporter
from etl_dagster.cli.render import size
from etl_dagster.model import TableId
from etl_dagster.replication.report import BatchReport, CopyProgress, Reporter, told_seconds
from etl_dagster.store.base import TableRecord, TableState

# Over how long the shown rate of changes is averaged.
RATE_SECONDS = 5.0
# A screen has some twenty lines, and nobody reads more.
MOST_BARS = 8


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


class CopyBoard:
    """The copies that run: a bar for each of a few, a line for all of them."""

    def __init__(self) -> None:
        # Rich draws in a thread of its own.
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._open: dict[TableId, CopyProgress] = {}
        self._sums: Counter[str] = Counter()
        self._began = time.monotonic()

    def add(self, progress: CopyProgress) -> None:
        """Note how far a copy is."""
        with self._lock:
            before = self._open.get(progress.table)
            if before is not None and before.done and not progress.bytes_total:
                return  # single rows that are read once more, by their keys
            self._open.pop(progress.table, None)
            self._open[progress.table] = progress  # the latest ones at the end
            self._sums.update(_counted(progress))
            if before is None:
                self._sums["skipped"] += progress.skipped_bytes
            else:
                self._sums.subtract(_counted(before))

    def end(self, table: TableId) -> None:
        """The table has left its copy, one way or another; sums stand until the last one has."""
        with self._lock:
            if self._open.pop(table, None) is not None and not self._open:
                self._clear()

    def render(self) -> Group:
        """What to draw."""
        with self._lock:
            shown = self._shown()
            parts = [_bars(shown)] if shown else []
            return Group(*parts, *([_line(self._total())] if self._open else []))

    def _shown(self) -> list[CopyProgress]:
        running = [copy for copy in self._open.values() if not copy.done]
        return running if len(running) <= MOST_BARS else [copy for copy in running if copy.chunks_done][-MOST_BARS:]

    def _total(self) -> str:
        sums, seconds = self._sums, time.monotonic() - self._began
        rate = (sums["bytes_done"] - sums["skipped"]) / seconds if seconds > 0 else 0.0
        left = (sums["bytes_total"] - sums["bytes_done"]) / rate if rate > 0 else 0.0
        parts = [f"{sums['done']:,} of {sums['tables']:,} tables", f"{sums['rows']:,} rows", size(sums["bytes_done"])]
        if rate > 0:
            parts += [f"{size(int(rate))}/s", f"{told_seconds(left)} left" if left > 0 else ""]
        return f"copies    {'   '.join(filter(None, parts))}"


def _counted(progress: CopyProgress) -> dict[str, int]:
    return {
        "tables": 1,
        "done": int(progress.done),
        "rows": progress.rows_done,
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
    }


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _bars(copies: Sequence[CopyProgress]) -> Table:
    table = Table.grid(padding=(0, 2))
    for column in ("left", "left", "right", "right", "right", "right", "right"):
        table.add_column(justify=column, no_wrap=True)
    for copy in copies:
        done, total = (copy.bytes_done, copy.bytes_total) if copy.bytes_total else (copy.rows_done, copy.rows_total)
        total = max(done, total, 1)
        left = copy.seconds_left
        table.add_row(
            Text(copy.what),
            ProgressBar(total=total, completed=done, width=32),
            f"{100 * done // total}%",
            f"{copy.rows_done:,} rows",
            f"{size(copy.bytes_done)} of {size(copy.bytes_total)}" if copy.bytes_total else "",
            f"{size(int(copy.bytes_per_second))}/s" if copy.bytes_per_second else "",
            "" if left is None else f"{told_seconds(left)} left",
        )
    return table


class TerminalReporter(SparingReporter):
    """Bars for the tables that are being copied, and a line for the stream."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._board = CopyBoard()
        self._rate = StreamRate()
        self._live = Live(console=console, refresh_per_second=8, transient=True, get_renderable=self._render)

    def __enter__(self) -> TerminalReporter:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_error: object) -> None:
        self.flush()
        self._live.stop()

    def refresh(self) -> None:
        """Draw now."""
        self._live.refresh()

    def _render(self) -> Group:
        return Group(self._board.render(), _line(str(self._rate)))

    def table_changed(self, record: TableRecord) -> None:
        super().table_changed(record)
        if record.state not in {TableState.COPYING, TableState.COPIED}:
            self._board.end(record.table)

    def copy_progressed(self, progress: CopyProgress) -> None:
        self._board.add(progress)

    def batch_applied(self, batch: BatchReport) -> None:
        self._rate.add(batch)
