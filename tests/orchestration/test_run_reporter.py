"""A run's log has few lines, and all that is wrong."""

import logging
from datetime import UTC, datetime

import pytest

from etl_dagster.model import Lsn, TableId
from etl_dagster.orchestration.run_reporter import MAX_ENDS, MAX_STATES, RunReporter
from etl_dagster.replication.report import BatchReport, CopyProgress
from etl_dagster.store import TableRecord, TableState

ORDERS, ITEMS = TableId("shop", "orders"), TableId("shop", "items")


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reporter(clock: Clock, caplog: pytest.LogCaptureFixture) -> RunReporter:
    caplog.set_level(logging.INFO)
    return RunReporter(logging.getLogger("a run"), clock)


def progress(table: TableId, chunk: int) -> CopyProgress:
    return CopyProgress(table, chunk, 1000, chunk * 10, 10_000)


def test_a_line_per_table_in_five_seconds(
    reporter: RunReporter, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for chunk in range(200):  # 20 seconds of ten chunks a second
        clock.now = chunk / 10
        reporter.copy_progressed(progress(ORDERS, chunk))
        reporter.copy_progressed(progress(ITEMS, chunk))
    told = [sum(str(table) in line for line in caplog.messages) for table in (ORDERS, ITEMS)]
    assert told == [4, 4]


def test_many_tables_together_do_not_fill_the_log(
    reporter: RunReporter, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2000):
        clock.now = number / 100
        table = TableId("shop", f"t{number}")
        reporter.table_changed(TableRecord(table=table, state=TableState.COPYING))
        reporter.copy_progressed(progress(table, 1))
    assert len(caplog.messages) <= MAX_STATES + 1 + 20


def test_what_is_wrong_or_waited_for_is_told_each_time(reporter: RunReporter, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(MAX_STATES + 50):
        reporter.table_changed(TableRecord(table=TableId("shop", f"t{number}"), state=TableState.QUARANTINED))
        reporter.notice("waits for pid 7")
    assert len(caplog.records) == 2 * (MAX_STATES + 50)
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_batches_are_told_now_and_then(reporter: RunReporter, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    batch = BatchReport(Lsn(1), Lsn(2), {ORDERS: 3}, 1, 100, 0.1, 0.1, None, datetime.now(UTC))
    for number in range(100):
        clock.now = number / 10
        reporter.batch_applied(batch)
    assert len(caplog.messages) == 2


def test_batches_between_two_lines_are_added_up(
    reporter: RunReporter, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):  # 10 seconds of ten batches a second
        clock.now = number / 10
        reporter.batch_applied(
            BatchReport(Lsn(number), Lsn(number + 1), {ORDERS: 3}, 2, 100, 0.1, 0.1, None, datetime.now(UTC))
        )
    reporter.flush()
    reporter.flush()
    told = [line.partition(" up to ")[0] for line in caplog.messages]
    assert told == [
        "applied 3 changes of 2 transactions",
        "applied 150 changes of 100 transactions",
        "applied 147 changes of 98 transactions",
    ]


def test_the_end_of_a_short_copy_is_told_before_what_became_of_the_table(
    reporter: RunReporter, caplog: pytest.LogCaptureFixture
) -> None:
    reporter.copy_progressed(CopyProgress(ORDERS, 0, 1, 0, 25_000))
    reporter.copy_progressed(CopyProgress(ORDERS, 1, 1, 25_000, 25_000, barrier_seconds=7))
    reporter.table_changed(TableRecord(table=ORDERS, state=TableState.COPIED))
    reporter.copy_progressed(CopyProgress(ORDERS, 1, 1, 0, 0))  # rows that were read once more
    reporter.flush()
    first, last, state = caplog.messages
    assert "copied 0 of about 25,000 rows" in first
    assert "copied 25,000 of about 25,000 rows" in last
    assert "after 7 s of waiting" in last
    assert state == "shop.orders is copied"


def test_a_copy_that_goes_on_in_another_run_ends_with_how_far_it_is(
    reporter: RunReporter, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for chunk in range(8):
        clock.now = chunk / 10
        reporter.copy_progressed(progress(ORDERS, chunk))
    reporter.flush()
    assert "chunk 7 of 1000" in caplog.messages[-1]


def test_the_ends_of_thousands_of_copies_are_summed_up(
    reporter: RunReporter, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2000):
        clock.now = number / 1000
        reporter.copy_progressed(CopyProgress(TableId("shop", f"t{number}"), 1, 1, 10, 10))
    reporter.flush()
    assert len(caplog.messages) <= 2 * MAX_ENDS + 5
    assert "more tables copied" in caplog.messages[-1]


def test_lines_belong_to_the_step_that_the_run_is_in(reporter: RunReporter, caplog: pytest.LogCaptureFixture) -> None:
    reporter.notice("one")
    reporter.log_to(logging.getLogger("the next step"))
    reporter.notice("two")
    assert [(record.name, record.message) for record in caplog.records] == [("a run", "one"), ("the next step", "two")]
