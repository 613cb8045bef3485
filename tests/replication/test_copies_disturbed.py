"""What others do at the source while a table is copied: long transactions, rewrites, changes of the schema."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from etl_dagster.model import TableId
from etl_dagster.replication import CopyProgress
from etl_dagster.store.base import TableState
from tests.replication.watching import Journal, catch_up, parts, publish, running, select, step_until, sync

T = TableId("public", "t")
SMALL = {
    "chunk_bytes": 16384,
    "copy_connections": 2,
    "refresh_seconds": 0.1,
    "idle_poll_seconds": 0.01,
    "barrier_notice_seconds": 0.01,
}
TABLE = [
    "create table t (id int primary key, v text, big text)",
    "alter table t alter big set storage external",
    """insert into t select i, 'v' || i, case when i % 100 = 0 then repeat('x' || i, 1500) end
        from generate_series(1, 8000) i""",
    "create table other (id int primary key)",
    "vacuum analyze t",
]
RULE = {"public.t": {"partitions": {"type": "range", "column": "id", "rows": 1000}}}


def begin(scenario) -> None:
    scenario.execute(*TABLE)
    scenario.use(**parts(scenario, replication=SMALL, tables=RULE))
    sync(scenario)


def ask(scenario, what: str) -> None:
    names = [each.name for each in scenario.pipeline.plan_slices(T)] if what == "slices" else []
    scenario.pipeline.request_resync(T, names[1:3])


@pytest.fixture(params=["whole", "slices"])
def what(request) -> str:
    return request.param


def test_a_transaction_that_stays_open_on_another_table_delays_nothing(scenario, what: str) -> None:
    begin(scenario)
    with psycopg.connect(scenario.dsn, application_name="elsewhere") as writer:
        writer.execute("insert into other values (1)")
        writer.execute("savepoint deeper")
        writer.execute("select * from t where id < 100 for update")  # locks rows, writes none
        writer.execute("insert into other values (2)")
        ask(scenario, what)
        journal = sync(scenario)
        assert journal.copies() == 1
        assert scenario.state("t") is TableState.READY
        assert not any("waits" in notice for notice in journal.notices)
        writer.execute("update t set v = 'late' where id < 100")
        writer.commit()
    sync(scenario)
    scenario.assert_equal("t", "other")


def test_a_transaction_that_has_written_to_the_table_is_waited_for_and_named(scenario, what: str) -> None:
    begin(scenario)
    journal = Journal()
    with psycopg.connect(scenario.dsn, application_name="slow writer") as writer:
        writer.execute("update t set v = 'late' where id < 3000")
        ask(scenario, what)
        with running(scenario, journal) as replicator:
            step_until(replicator, lambda: any("slow writer" in notice for notice in journal.notices))
            scenario.execute("insert into t values (9001, 'meanwhile')")
            step_until(replicator, lambda: sum(batch.total_changes for batch in journal.batches))
            assert replicator.records[T].state is TableState.COPYING
            assert not journal.progress
            assert any(str(writer.info.backend_pid) in notice for notice in journal.notices)
            writer.commit()
            catch_up(replicator)
    scenario.assert_equal("t")


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_a_prepared_transaction_is_waited_for_and_named(scenario, what: str, ending: str) -> None:
    begin(scenario)
    journal = Journal()
    with psycopg.connect(scenario.dsn, autocommit=True) as writer:
        writer.execute("begin; update t set v = 'late' where id < 3000; prepare transaction 'slow_one'")
    ask(scenario, what)
    with running(scenario, journal) as replicator:
        step_until(replicator, lambda: any("prepared" in notice for notice in journal.notices))
        assert replicator.records[T].state is TableState.COPYING
        scenario.execute(f"{ending} prepared 'slow_one'")
        catch_up(replicator)
    scenario.assert_equal("t")


def test_a_new_writer_while_the_copy_waits_is_not_waited_for(scenario) -> None:
    """Whoever begins after the copy did is in its log, however long it takes."""
    begin(scenario)
    journal = Journal()
    with psycopg.connect(scenario.dsn) as first, psycopg.connect(scenario.dsn) as second:
        first.execute("update t set v = 'first' where id = 1")
        ask(scenario, "whole")
        with running(scenario, journal) as replicator:
            step_until(replicator, lambda: journal.notices)
            second.execute("update t set v = 'second' where id = 2")
            first.commit()
            step_until(replicator, lambda: replicator.records[T].state is TableState.READY)
            second.commit()
            catch_up(replicator)
    scenario.assert_equal("t")


DISTURBANCES: dict[str, list[str]] = {
    "vacuum full": ["delete from t where id < 3000", "vacuum full t", "update t set v = 'w' where id % 7 = 0"],
    "cluster": ["update t set v = 'w' where id % 5 = 0", "cluster t using t_pkey", "delete from t where id % 7 = 0"],
    "two rewrites": ["vacuum full t", "vacuum full t", "delete from t where id % 7 = 0"],
    "new column": ["alter table t add n int default 7", "update t set n = 8 where id % 7 = 0"],
    "new column of its own each": ["alter table t add n float default random()", "delete from t where id % 7 = 0"],
    "column less": ["alter table t drop v", "delete from t where id % 7 = 0"],
    "renamed column": ["alter table t rename v to w", "update t set w = 'w' where id % 7 = 0"],
    "other type": ["alter table t alter id type bigint", "update t set v = 'w' where id % 7 = 0"],
    "other key": [
        "alter table t drop constraint t_pkey, add primary key (v)",
        "update t set v = v || 'w' where id < 99",
    ],
    "truncate": ["update t set v = 'w' where id % 7 = 0", "truncate t", "insert into t values (1, 'a'), (2, 'b')"],
    "truncate and the same again": [
        "begin; create temp table kept as table t; truncate t; insert into t table kept; drop table kept; commit",
        "update t set v = 'w' where id % 7 = 0",
    ],
    "drop and make anew": ["drop table t", *TABLE[:2], "insert into t values (1, 'a'), (2, 'b')"],
    "rename away and another one": ["alter table t rename to gone", *TABLE[:2], "insert into t values (1, 'a')"],
}


@pytest.mark.parametrize("phase", ["between chunks", "before it ends"])
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_the_table_is_altered_while_it_is_copied(scenario, disturbance: str, phase: str) -> None:
    begin(scenario)
    waiting = list(DISTURBANCES[disturbance])

    def act(report: Any) -> None:
        reached = report.state is TableState.COPIED if phase == "before it ends" else report.chunks_done
        if waiting and reached:
            statements, waiting[:] = list(waiting), []
            scenario.execute(*statements)

    scenario.pipeline.request_resync(T)
    journal = Journal(on_change=act) if phase == "before it ends" else Journal(on_progress=act)
    sync(scenario, journal)
    assert not waiting
    sync(scenario)  # looks at the catalogue, which the former one has maybe seen last before the change
    assert scenario.state("t") is TableState.READY
    scenario.assert_equal("t")


@pytest.mark.parametrize("by_root", [True, False], ids=["through the root", "leaf by leaf"])
def test_partitions_come_and_go_while_their_table_is_copied(scenario, by_root: bool) -> None:
    scenario.execute(
        "create table p (id int primary key, v text) partition by range (id)",
        "create table p1 partition of p for values from (0) to (3000)",
        "create table p2 partition of p for values from (3000) to (6000)",
        "create table p3 partition of p for values from (6000) to (9000)",
        "create table p4 (id int primary key, v text)",
        "insert into p select i, 'v' || i from generate_series(2, 8000, 2) i",
        "insert into p4 select i, 'joins' from generate_series(9000, 9500) i",
    )
    publish(scenario, f"for table p with (publish_via_partition_root = {str(by_root).lower()})", replication=SMALL)
    steps = [
        "update p set id = id + 3001 where id % 10 = 0 and id < 100",
        "alter table p attach partition p4 for values from (9000) to (12000)",
        "update p set v = 'w' where id % 7 = 0",
        "alter table p detach partition p2",
        "drop table p3",
        "truncate p1",
        "insert into p select i, 'again' from generate_series(1, 50) i",
        "create table p5 partition of p for values from (12000) to (15000)",
        "insert into p values (12001, 'new')",
    ]

    def act(progress: Any) -> None:
        if progress.chunks_done and steps:
            scenario.execute(steps.pop(0))

    sync(scenario, Journal(on_progress=act))
    scenario.execute(*steps)
    sync(scenario)
    scenario.assert_equal(*(["p"] if by_root else ["p1", "p4", "p5"]))


@pytest.mark.parametrize("of_slices", [False, True])
def test_two_columns_swap_names_while_they_are_read(scenario, of_slices: bool) -> None:
    scenario.execute(
        "create table t (id int primary key, day date, old text, new text, pad text)",
        """insert into t select i, date '2026-01-01' + i / 50, 'old', 'new', repeat('p', 300)
            from generate_series(1, 3000) i""",
        "vacuum analyze t",
    )
    rule = {"type": "time", "column": "day", "every": "month", "start": "2026-01-01"}
    # The catalogue is not looked at again in time.
    settings = {"chunk_bytes": 16384, "copy_connections": 1}
    scenario.use(**parts(scenario, replication=settings, tables={"public.t": {"partitions": rule}}))
    if of_slices:
        sync(scenario)
        scenario.pipeline.request_resync(TableId("public", "t"), ["2026-01-01", "2026-02-01"])
    swapped: list[int] = []

    def swap(progress: CopyProgress) -> None:
        if progress.chunks_done >= 2 and not swapped:
            swapped.append(progress.chunks_done)
            with scenario.source.transaction():
                for change in ("old to x", "new to old", "x to new"):
                    scenario.source.execute(f"alter table t rename {change}")

    sync(scenario, Journal(on_progress=swap))
    assert swapped
    sync(scenario)
    assert select(scenario, "select distinct old, new from public.t") == [("new", "old")]
    scenario.assert_equal("t")
