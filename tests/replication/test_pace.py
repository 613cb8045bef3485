"""Destinations that bill for each batch: how far apart batches are, how few chunks a copy has, what is told of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import psycopg
import pytest

from etl_dagster.model import TableId, ValueLimits
from etl_dagster.replication import RunSummary
from etl_dagster.replication.pace import Pace, seconds_until_due
from etl_dagster.replication.report import BatchReport
from etl_dagster.store.base import TableState
from tests.billed import BATCH_BYTES, COPY_BYTES, billed  # noqa: F401
from tests.replication.watching import DEADLINE_SECONDS, Journal, step_until

LONG = 1000.0
T = TableId("public", "t")


class Waited(Journal):
    """A journal that a test can wait on."""

    def __init__(self) -> None:
        super().__init__()
        self._told = threading.Condition()

    def batch_applied(self, batch: BatchReport) -> None:
        with self._told:
            super().batch_applied(batch)
            self._told.notify_all()

    def table_changed(self, record: Any) -> None:
        with self._told:
            super().table_changed(record)
            self._told.notify_all()

    @property
    def written(self) -> list[BatchReport]:
        """Batches that brought something."""
        return [batch for batch in self.batches if batch.total_changes]

    def wait(self, reached: Any) -> None:
        """Until something holds that reports tell."""
        with self._told:
            assert self._told.wait_for(reached, DEADLINE_SECONDS)


def use(scenario, **fields: Any) -> None:
    destination = {"type": "billed", "path": str(scenario.folder / "warehouse.duckdb"), **fields}
    scenario.use(destination=destination, replication={"refresh_seconds": 0.2, "idle_poll_seconds": 0.02})


def table(scenario) -> None:
    scenario.execute("create table t (id int primary key, v text)", "insert into t values (1, 'a')")


@contextmanager
def following(scenario) -> Iterator[Waited]:
    """A process that follows while the block runs."""
    journal, stop = Waited(), threading.Event()
    thread = threading.Thread(target=scenario.pipeline.follow, args=(stop, journal))
    thread.start()
    try:
        yield journal
    finally:
        stop.set()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


def test_following_begins_batches_no_closer_than_the_destination_wants(scenario) -> None:
    table(scenario)
    use(scenario, batch_seconds=1.0)
    scenario.sync()
    with following(scenario) as journal:
        scenario.execute("insert into t values (2, 'b')")
        journal.wait(lambda: len(journal.written) == 1)
        first = monotonic()
        for place in range(3, 30):
            scenario.execute(f"insert into t values ({place}, 'c')")
        journal.wait(lambda: len(journal.written) == 2)
        assert monotonic() - first > 0.5
        assert journal.written[1].total_changes == 27, "what came meanwhile is one batch"
    scenario.assert_equal("t")


def test_the_first_change_after_a_quiet_time_is_not_kept_waiting(scenario) -> None:
    table(scenario)
    use(scenario, batch_seconds=LONG)
    scenario.sync()
    with following(scenario) as journal:
        scenario.execute("insert into t values (2, 'b')")
        journal.wait(lambda: journal.written)


def test_windows_without_changes_of_ours_go_on(scenario) -> None:
    table(scenario)
    scenario.execute("create schema other", "create table other.o (id int)")
    use(scenario, batch_seconds=LONG)
    scenario.sync()
    with following(scenario) as journal:
        for place in range(3):
            scenario.execute(f"insert into other.o values ({place})")
            end = scenario.pipeline.current_position()
            journal.wait(lambda: journal.batches and journal.batches[-1].position >= end)  # noqa: B023
        assert not journal.written


def test_a_stop_ends_the_pause_and_copies_go_on_in_it(scenario) -> None:
    table(scenario)
    use(scenario, batch_seconds=LONG)
    scenario.sync()
    began = monotonic()
    with following(scenario) as journal:
        scenario.execute("insert into t values (2, 'b')")
        journal.wait(lambda: journal.written)
        scenario.execute("create table later (id int primary key)", "insert into later values (1)")
        later = TableId("public", "later")
        journal.wait(lambda: any(r.table == later and r.state is TableState.READY for r in journal.records))
        scenario.pipeline.request_resync(T)
        journal.wait(lambda: sum(r.table == T and r.state is TableState.READY for r in journal.records))
    assert monotonic() - began < DEADLINE_SECONDS
    scenario.assert_equal("t", "later")


def test_a_pause_outlives_the_process_but_not_what_is_asked_for(scenario) -> None:
    table(scenario)
    use(scenario, batch_seconds=LONG)
    scenario.sync()
    scenario.execute("insert into t values (2, 'b')")
    scenario.sync()
    scenario.execute("insert into t values (3, 'c')")
    assert not scenario.pipeline.pending().work
    assert "is due in" in scenario.pipeline.pending().reason
    with scenario.pipeline.replicator(journal := Journal()) as replicator:
        assert 0 < replicator.pause_seconds <= LONG
        for _ in range(5):
            replicator.step()
        assert not any(batch.total_changes for batch in journal.batches)
    scenario.sync()
    scenario.assert_equal("t")


def test_work_that_is_asked_for_does_not_wait_for_a_batch(scenario) -> None:
    table(scenario)
    use(scenario, batch_seconds=LONG)
    scenario.sync()
    scenario.execute("insert into t values (2, 'b')")
    scenario.sync()
    scenario.pipeline.request_resync(T)
    assert scenario.pipeline.pending().work


def test_a_run_reaches_its_position_at_once_and_ends_before_its_budget(scenario) -> None:
    table(scenario)
    use(scenario, batch_seconds=LONG)
    scenario.sync()
    scenario.execute("insert into t values (2, 'b')")
    began = monotonic()
    with scenario.pipeline.replicator(journal := Journal()) as replicator:
        for place in (3, 4):
            scenario.execute(f"insert into t values ({place}, 'c')")
            replicator.apply(until=scenario.pipeline.current_position(), budget_seconds=DEADLINE_SECONDS)
    assert monotonic() - began < DEADLINE_SECONDS / 2
    assert sum(batch.total_changes for batch in journal.batches) == 3
    scenario.assert_equal("t")


def test_changes_meanwhile_wait_in_a_long_copy_until_it_needs_the_stream(scenario) -> None:
    table(scenario)
    scenario.execute("create table large (id int primary key, v text)", "insert into large values (1, 'a')")
    use(scenario, batch_seconds=LONG)
    scenario.sync()
    large = TableId("public", "large")
    with psycopg.connect(scenario.dsn) as writer, scenario.pipeline.replicator(journal := Journal()) as replicator:
        writer.execute("insert into large values (2, 'b')")  # the barrier waits for it
        scenario.pipeline.request_resync(large)
        scenario.execute("insert into t values (2, 'b')")
        step_until(replicator, lambda: any(batch.total_changes for batch in journal.batches))
        step_until(replicator, lambda: replicator.records[large].state is TableState.COPYING)
        batches = len(journal.batches)
        scenario.execute("insert into t values (3, 'c')")
        for _ in range(5):
            replicator.step()
        assert len(journal.batches) == batches
        writer.commit()
        step_until(replicator, lambda: replicator.records[large].state is TableState.READY)
        assert len(journal.batches) > batches
    scenario.sync()
    scenario.assert_equal("t", "large")


def test_without_a_wish_no_batch_waits() -> None:
    pace = Pace(0.0)
    pace.window(monotonic(), wrote=True, caught_up=True)
    assert pace.left == 0.0
    assert seconds_until_due(datetime.now(UTC), 0.0) == 0.0


def test_a_stream_that_is_behind_is_read_on() -> None:
    pace = Pace(60.0)
    pace.window(monotonic(), wrote=True, caught_up=False)
    assert pace.left == 0.0
    pace.window(monotonic(), wrote=False, caught_up=True)
    assert 59 < pace.left <= 60


@pytest.mark.parametrize("age", [-3600.0, 0.0, 20.0, 100.0])
def test_another_process_waits_for_the_rest_of_the_time_and_never_longer(age: float) -> None:
    batch_at = datetime.now(UTC) - timedelta(seconds=age)
    pace = Pace(60.0)
    pace.resume(batch_at)
    left = min(60.0, max(0.0, 60.0 - age))
    assert pace.left == pytest.approx(left, abs=1)
    assert seconds_until_due(batch_at, 60.0) == pytest.approx(left, abs=1)


def test_what_was_billed_is_told_per_batch_and_per_run_and_summed_up(scenario) -> None:
    table(scenario)
    use(scenario)
    first = scenario.sync()
    assert first.usage["loads"] == 1, "a copy without any batch is told too"
    assert first.usage["bytes_billed"] >= COPY_BYTES
    scenario.execute("insert into t values (2, 'b')")
    with scenario.pipeline.replicator(journal := Journal()) as replicator:
        replicator.sync()
    (batch,) = [batch for batch in journal.batches if batch.total_changes]
    assert batch.usage == {"bytes_billed": BATCH_BYTES, "slot_ms": 1500, "queries": 1}
    status = scenario.pipeline.status()
    assert status.usage["bytes_billed"] == first.usage["bytes_billed"] + BATCH_BYTES
    assert status.to_json()["usage"] == dict(status.usage)


def test_a_copy_has_few_chunks_where_each_is_a_job(scenario) -> None:
    scenario.execute(
        "create table t (id int primary key, v text)",
        "insert into t select i, repeat('x', 200) from generate_series(1, 20000) i",
        "create table p (id int primary key) partition by range (id)",
        *(f"create table p{i} partition of p for values from ({i}) to ({i + 1})" for i in range(30)),
        "insert into p select generate_series(0, 29)",
    )
    chunks = {"chunk_bytes": 65_536}
    use(scenario, most_chunks=3)
    scenario.use(
        destination=scenario.pipeline.config.destination,
        replication=chunks | {"refresh_seconds": 0.2, "idle_poll_seconds": 0.02},
    )
    summary = scenario.sync()
    copies = {name.name: done.copy for name, done in summary.tables.items() if done.copy}
    assert 1 < copies["t"].chunks_total <= 3
    assert 1 <= copies["p"].chunks_total <= 3
    scenario.assert_equal("t", "p")


def test_chunks_are_as_large_as_the_destination_wants(scenario) -> None:
    scenario.execute(
        "create table t (id int primary key, v text)",
        "insert into t select i, repeat('x', 200) from generate_series(1, 20000) i",
    )
    use(scenario, chunk_bytes=1 << 30)
    scenario.use(destination=scenario.pipeline.config.destination, replication={"chunk_bytes": 65_536})
    summary = scenario.sync()
    assert summary.tables[T].copy is not None
    assert summary.tables[T].copy.chunks_total == 1


def test_limits_of_the_destination_reach_every_schema_and_change_no_type(scenario) -> None:
    scenario.execute("create table t (id int primary key, d date, v text)", "insert into t values (1, '2024-01-01')")
    use(scenario)
    scenario.sync()
    use(scenario, limits=ValueLimits().model_dump())
    summary = scenario.sync()
    assert not summary.tables, "nothing is copied again"
    assert scenario.pipeline.tables()[T].columns[1].limits == ValueLimits()
    scenario.execute("insert into t values (2, 'infinity')")
    scenario.sync()
    assert scenario.state("t") is TableState.QUARANTINED


def test_the_check_tells_what_the_destination_says_of_every_table(scenario) -> None:
    table(scenario)
    use(scenario)
    results = [result.name for result in scenario.pipeline.check()]
    assert results[-1] == "cost of public.t"
    assert "destination" not in results, "it would be started"


def test_a_summary_adds_up_what_was_billed(scenario) -> None:
    summary = RunSummary()
    table(scenario)
    use(scenario)
    with scenario.pipeline.replicator(summary) as replicator:
        replicator.sync()
        scenario.execute("insert into t values (2, 'b')")
        replicator.sync()
        scenario.execute("insert into t values (3, 'c')")
        replicator.sync()
    assert summary.usage["queries"] >= 2
    assert summary.usage["slot_ms"] == 1500 * summary.usage["queries"]
