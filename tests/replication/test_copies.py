"""Copies while the table changes: whatever comes between is in the result, once."""

from __future__ import annotations

import threading
from typing import Any

import psycopg

from etl_dagster.model import TableId
from etl_dagster.store.base import TableState

SMALL_CHUNKS = {"chunk_bytes": 8192 * 2, "copy_connections": 1, "refresh_seconds": 0.2, "idle_poll_seconds": 0.02}


def _table(scenario, rows: int = 20000) -> None:
    scenario.execute(
        "create table t (id int primary key, v text, big text)",
        "alter table t alter big set storage external",
        f"insert into t select i, 'v' || i, case when i % 50 = 0 then repeat('x' || i, 1500) end from generate_series(1, {rows}) i",
        "vacuum analyze t",
    )


class StepByStep:
    """A reporter that changes the source in the middle of a copy: after each finished chunk."""

    def __init__(self, scenario, *statements: str) -> None:
        self.scenario = scenario
        self.statements = list(statements)
        self.seen: list[Any] = []

    def copy_progressed(self, progress) -> None:
        if progress.chunks_done and self.statements:
            self.scenario.execute(self.statements.pop(0))

    def table_changed(self, record) -> None:
        self.seen.append(record)

    def batch_applied(self, batch) -> None: ...

    def notice(self, message: str) -> None:
        self.seen.append(message)


def _sync(scenario, reporter) -> None:
    with scenario.pipeline.replicator(reporter) as replicator:
        replicator.sync()
        replicator.sync()  # what the reporter wrote after the first one had its goal
    assert not getattr(reporter, "statements", None), "the copy had fewer steps than the test needs"


def test_writes_of_all_kinds_during_a_copy(scenario) -> None:
    _table(scenario)
    scenario.use(replication=SMALL_CHUNKS)
    _sync(
        scenario,
        StepByStep(
            scenario,
            "update t set v = 'changed' where id % 3 = 0",
            "delete from t where id % 7 = 0",
            "insert into t select i, 'new' from generate_series(30001, 30500) i",
            "update t set id = id + 100000 where id % 11 = 0",
            "update t set v = v || '!' where id > 100000",
            "insert into t select i, 'back' from generate_series(1, 20000) i where i % 77 = 0 on conflict do nothing",
        ),
    )
    scenario.assert_equal("t")


def test_a_truncate_during_a_copy(scenario) -> None:
    _table(scenario)
    scenario.use(replication=SMALL_CHUNKS)
    _sync(
        scenario,
        StepByStep(scenario, "update t set v = 'a'", "truncate t", "insert into t values (1, 'b', 'c'), (2, 'd', 'e')"),
    )
    scenario.assert_equal("t")


def test_a_rewrite_during_a_copy_starts_it_over(scenario) -> None:
    _table(scenario)
    scenario.use(replication=SMALL_CHUNKS)
    _sync(scenario, StepByStep(scenario, "delete from t where id < 2000", "vacuum full t"))
    scenario.assert_equal("t")


def test_unchanged_toast_of_rows_that_move_during_a_copy(scenario) -> None:
    _table(scenario)
    scenario.use(replication=SMALL_CHUNKS)
    _sync(
        scenario,
        StepByStep(
            scenario,
            "update t set id = id + 200000 where id % 50 = 0",
            "update t set v = 'moved' where id > 200000",
            "update t set id = id - 200000 where id > 200000 and id % 100 = 0",
            "insert into t select i, 'other' from generate_series(50, 19950, 100) i",
        ),
    )
    scenario.assert_equal("t")


def test_a_resync_keeps_the_live_table_readable_and_current(scenario) -> None:
    _table(scenario)
    scenario.sync()
    scenario.use(replication=SMALL_CHUNKS)
    scenario.execute("update t set v = 'x' where id = 10")
    scenario.pipeline.request_resync(TableId("public", "t"))
    reporter = StepByStep(scenario, "update t set v = 'while' where id < 100", "delete from t where id = 200")
    _sync(scenario, reporter)
    states = [(seen.state, seen.live) for seen in reporter.seen if not isinstance(seen, str)]
    assert (TableState.COPYING, True) in states
    assert states[-1] == (TableState.READY, True)
    scenario.assert_equal("t")


def test_a_copy_waits_for_writers_that_were_there_before_and_names_them(scenario) -> None:
    _table(scenario)
    scenario.use(replication={**SMALL_CHUNKS, "barrier_notice_seconds": 0.05})
    with psycopg.connect(scenario.dsn, application_name="slow writer") as writer:
        scenario.execute("create table other (id int primary key)")
        with scenario.pipeline.replicator() as replicator:
            replicator.sync()  # the slot exists, so that an open transaction does not hold up its creation
        writer.execute("update t set v = 'late' where id = 1")
        scenario.pipeline.request_resync(TableId("public", "t"))
        noticed = threading.Event()

        class Watch(StepByStep):
            def notice(self, message: str) -> None:
                assert "slow writer" in message
                noticed.set()
                writer.commit()

        _sync(scenario, Watch(scenario))
        assert noticed.is_set()
    scenario.assert_equal("t", "other")


def test_the_slot_keeps_moving_while_a_copy_waits(scenario) -> None:
    _table(scenario)
    scenario.sync()
    with psycopg.connect(scenario.dsn) as writer:
        writer.execute("update t set v = 'open' where id = 1")
        scenario.pipeline.request_resync(TableId("public", "t"))
        with scenario.pipeline.replicator() as replicator:
            before = replicator.position
            replicator.step()
            scenario.execute(
                "create table noise (id int primary key)", "insert into noise select generate_series(1, 1000)"
            )
            replicator.step()
            replicator.step()
            assert scenario.state("t") is TableState.COPYING
            assert replicator.position > before
            writer.commit()
            replicator.sync()
    scenario.assert_equal("t")


def test_a_process_that_dies_in_a_copy_leaves_finished_chunks_to_the_next(scenario) -> None:
    _table(scenario)
    scenario.use(replication=SMALL_CHUNKS)

    class Dies(StepByStep):
        def copy_progressed(self, progress) -> None:
            if progress.chunks_done == 3:
                raise KeyboardInterrupt

    try:
        _sync(scenario, Dies(scenario))
    except KeyboardInterrupt:
        scenario.execute("update t set v = 'between' where id % 9 = 0", "delete from t where id % 10 = 0")
    record = scenario.pipeline.record(TableId("public", "t"))
    done = {chunk.chunk_id for chunk in scenario.pipeline._store.chunks(record.copy_id) if chunk.done}
    assert len(done) >= 3
    first: list[int] = []

    class Counts(StepByStep):
        def copy_progressed(self, progress) -> None:
            first.append(progress.chunks_done)

    _sync(scenario, Counts(scenario))
    assert first[0] == len(done)
    scenario.assert_equal("t")


def test_partitioned_tables_are_copied_through_their_root(scenario) -> None:
    scenario.execute(
        "create table p (id int, day date, v text, primary key (id, day)) partition by range (day)",
        "create table p1 partition of p for values from ('2024-01-01') to ('2024-02-01')",
        "create table p2 partition of p for values from ('2024-02-01') to ('2024-03-01')",
        "insert into p select i, date '2024-01-01' + i % 55, 'v' from generate_series(1, 500) i",
    )
    scenario.use(
        source={
            "connection": {"dsn": scenario.dsn},
            "publication": {"name": "pub_root", "create": False},
            "slot": {"name": scenario.pipeline.config.source.slot.name},
        }
    )
    scenario.execute("create publication pub_root for table p with (publish_via_partition_root = true)")
    scenario.sync()
    scenario.execute(
        "update p set v = 'w' where id < 50", "update p set day = day - 31 where id = 100", "delete from p where id = 3"
    )
    scenario.sync()
    scenario.assert_equal("p")
