"""Progress: bars on a terminal, few and whole lines in a log."""

from __future__ import annotations

import io
import logging
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from etl_dagster.cli.progress import LineReporter
from etl_dagster.cli.terminal import StreamRate, TerminalReporter
from etl_dagster.model import Lsn, TableId
from etl_dagster.replication.report import BatchReport, CopyProgress
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


def test_a_copy_that_finds_more_rows_than_were_estimated_stays_below_its_end() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with TerminalReporter(console) as reporter:
        reporter.copy_progressed(CopyProgress(ORDERS, 1, 1, 500, 10))
        reporter.refresh()
        assert "500 rows" in console.file.getvalue()  # type: ignore[attr-defined]
