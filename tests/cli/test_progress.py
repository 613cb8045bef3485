"""Progress: bars on a terminal, few and whole lines in a log."""

from __future__ import annotations

import io
import logging
import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from etl_dagster.cli.progress import LineReporter
from etl_dagster.cli.terminal import CopyBoard, StreamRate, TerminalReporter
from etl_dagster.model import Lsn, TableId
from etl_dagster.replication.report import BatchReport, CopyProgress, RunSummary, told_slices
from etl_dagster.store.base import TableRecord, TableState

ORDERS = TableId("public", "orders")


def batch(changes: int, position: int = 100) -> BatchReport:
    now = datetime.now(UTC)
    return BatchReport(
        start=Lsn(position - 50),
        position=Lsn(position),
        changes={ORDERS: changes} if changes else {},
        transactions=1,
        bytes=10,
        read_seconds=0.1,
        write_seconds=0.1,
        newest_commit=now - timedelta(seconds=2),
        finished_at=now,
    )


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("etl_dagster"), "propagate", True)
    caplog.set_level(logging.INFO, "etl_dagster")
    return caplog


def test_batches_that_follow_closely_share_a_line(log: pytest.LogCaptureFixture) -> None:
    reporter = LineReporter()
    for n in range(1, 11):
        reporter.batch_applied(batch(100, position=n * 100))
    reporter.flush()
    assert [record.message for record in log.records] == [
        "applied 100 changes of 1 transactions up to 0/64, lag 2.0 s",
        "applied 900 changes of 9 transactions up to 0/3E8, lag 2.0 s",
    ]


def test_a_copy_writes_its_end_and_a_line_now_and_then(log: pytest.LogCaptureFixture) -> None:
    reporter = LineReporter()
    for chunk in range(101):
        reporter.copy_progressed(CopyProgress(ORDERS, chunk, 100, chunk * 10, 1000))
    assert [record.message for record in log.records] == [
        "public.orders copied 1,000 of about 1,000 rows, chunk 100 of 100"
    ]


def test_a_copy_tells_bytes_rate_time_left_and_what_it_waited_for() -> None:
    running = CopyProgress(
        ORDERS, 6, 10, 1_200_000, 2_000_000, 380_000_000, 640_000_000, seconds=2.5, skipped_bytes=142_000_000
    )
    assert str(running) == (
        "public.orders copied 1,200,000 of about 2,000,000 rows (380.0 of 640.0 MB, 95.2 MB/s, 3 s left), chunk 6 of 10"
    )
    done = CopyProgress(ORDERS, 1, 1, 5, 5, barrier_seconds=312.4, slices=("2026-01-02", "2026-01-01"))
    assert str(done) == (
        "public.orders (2 slices between 2026-01-01 and 2026-01-02) copied 5 of about 5 rows, chunk 1 of 1,"
        " after 312 s of waiting for open transactions"
    )


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ((), ""),
        (("2026-01-05",), " (2026-01-05)"),
        (("from_anna", "from_bert"), " (2 slices)"),
        (("start",), " (a slice)"),
    ],
)
def test_a_log_names_windows_of_time_and_counts_ranges_whose_bounds_stand_in_rows(
    names: tuple[str, ...], told: str
) -> None:
    assert told_slices(names) == told


def test_tables_by_the_thousand_share_few_lines(log: pytest.LogCaptureFixture) -> None:
    reporter = LineReporter()
    names = [TableId("public", f"t{n}") for n in range(3000)]
    for name in names:
        reporter.table_changed(TableRecord(table=name, state=TableState.COPYING))
    for name in names:
        reporter.copy_progressed(CopyProgress(name, 1, 1, 10, 10, 1000, 1000))
    reporter.table_changed(TableRecord(table=ORDERS, state=TableState.QUARANTINED, reason="its value"))
    reporter.flush()
    lines = [record.message for record in log.records]
    assert len(lines) < 500
    assert "public.orders is quarantined: its value" in lines
    assert told_in(lines, "is copying", "more tables are copying") == len(names)
    assert told_in(lines, "public.t", "more tables copied") >= len(names)


def told_in(lines: list[str], one: str, many: str) -> int:
    """How many tables the lines tell of."""
    sums = [int(line.split()[0].replace(",", "")) for line in lines if many in line]
    return sum(sums) + sum(one in line for line in lines if many not in line)


def test_a_slow_copy_has_its_line_however_many_others_there_are(log: pytest.LogCaptureFixture) -> None:
    reporter = LineReporter()
    for n in range(1000):
        reporter.copy_progressed(CopyProgress(TableId("public", f"t{n}"), 1, 1, 1, 1))
    reporter.copy_progressed(CopyProgress(ORDERS, 9, 9, 1, 1, seconds=60.0))
    assert log.records[-1].message.startswith("public.orders copied")


def test_a_batch_without_changes_writes_no_line(log: pytest.LogCaptureFixture) -> None:
    reporter = LineReporter()
    reporter.batch_applied(batch(0))
    reporter.flush()
    assert log.records == []


def test_the_rate_counts_what_came_lately() -> None:
    rate = StreamRate()
    assert "waiting" in str(rate)
    for _ in range(5):
        rate.add(batch(1000))
    assert rate.per_second() == 1000
    assert "5,000 changes" in str(rate)
    assert "lag 2.0 s" in str(rate)


def test_a_terminal_shows_a_bar_while_a_table_is_copied_and_a_line_for_the_stream() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160)
    with TerminalReporter(console) as reporter:
        reporter.copy_progressed(CopyProgress(ORDERS, 1, 4, 250_000, 1_000_000))
        reporter.batch_applied(batch(42))
        reporter.refresh()
        assert "public.orders" in screen.getvalue()
        assert "25%" in screen.getvalue()
        assert "250,000 rows" in screen.getvalue()
        assert "42 changes" in screen.getvalue()
        screen.truncate(0)
        reporter.table_changed(TableRecord(table=ORDERS, state=TableState.READY))
        screen.truncate(0)
        reporter.refresh()
        assert "25%" not in screen.getvalue()


def test_a_terminal_shows_the_tables_that_run_and_one_line_for_all() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160)
    names = [TableId("public", f"t{n}") for n in range(2000)]
    with TerminalReporter(console) as reporter:
        for name in names:
            reporter.copy_progressed(CopyProgress(name, 0, 2, 0, 100, 0, 2_000_000))
        for name in names[:1500]:
            reporter.copy_progressed(CopyProgress(name, 2, 2, 100, 100, 2_000_000, 2_000_000))
        reporter.copy_progressed(CopyProgress(names[1999], 1, 2, 60, 100, 1_500_000, 2_000_000, seconds=0.5))
        screen.truncate(0)
        reporter.refresh()
        shown = screen.getvalue()
        assert "1,500 of 2,000 tables" in shown
        assert "150,060 rows" in shown
        assert "3.0 GB" in shown
        assert re.findall(r"public\.t\d+", shown) == ["public.t1999"]
        assert "1.5 MB of 2.0 MB" in shown
        assert "3.0 MB/s" in shown
        for name in names:
            reporter.table_changed(TableRecord(table=name, state=TableState.READY))
        screen.truncate(0)
        reporter.refresh()
        assert "copies" not in screen.getvalue()


def test_rows_that_are_read_once_more_do_not_take_a_copy_back() -> None:
    board = CopyBoard()
    console = Console(file=io.StringIO(), width=160)
    board.add(CopyProgress(ORDERS, 4, 4, 1000, 1000, 5_000_000, 5_000_000))
    board.add(CopyProgress(ORDERS, 0, 1, 0, 0))
    console.print(board.render())
    assert "1 of 1 tables   1,000 rows   5.0 MB" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_keeps_how_its_copies_went() -> None:
    summary = RunSummary()
    summary.copy_progressed(CopyProgress(ORDERS, 4, 4, 1000, 1000, 5_000_000, 5_000_000, barrier_seconds=3.0))
    summary.copy_progressed(CopyProgress(ORDERS, 1, 1, 2, 2))
    copy = summary.tables[ORDERS].copy
    assert copy is not None
    assert (copy.rows_done, copy.bytes_done, copy.barrier_seconds) == (1000, 5_000_000, 3.0)


def test_a_copy_that_finds_more_rows_than_were_estimated_stays_below_its_end() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with TerminalReporter(console) as reporter:
        reporter.copy_progressed(CopyProgress(ORDERS, 1, 1, 500, 10))
        reporter.refresh()
        assert "500 rows" in console.file.getvalue()  # type: ignore[attr-defined]
