"""What goes wrong around a pipeline: sessions that die, clients that meddle, tables that change in the middle of a copy."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from etl_dagster.errors import EtlError, SlotError
from etl_dagster.model import TableId
from etl_dagster.replication import RunSummary
from etl_dagster.store.base import TableState
from etl_dagster.testing.server import PostgresServer
from tests.replication.conftest import Scenario
from tests.replication.test_copies import SMALL_CHUNKS, StepByStep, _table

T = TableId("public", "t")


class Deadline:
    """A stop that turns on by itself, so that a hang is a failed test."""

    def __init__(self, seconds: float = 30.0) -> None:
        self._timer = threading.Event()
        self._thread = threading.Timer(seconds, self._timer.set)
        self._thread.daemon = True
        self._thread.start()

    def is_set(self) -> bool:
        return self._timer.is_set()


def _bounded_sync(scenario, reporter: Any = None) -> None:
    stop = Deadline()
    with scenario.pipeline.replicator(reporter) as replicator:
        replicator.sync(stop=stop)
        replicator.sync(stop=stop)
    assert not stop.is_set(), "the sync did not end"


def test_tables_whose_names_differ_by_case_do_not_hold_each_other_up(scenario) -> None:
    scenario.execute(
        "create table a (id int primary key)",
        'create table "A" (id int primary key)',
        "create table b (id int primary key)",
    )
    _bounded_sync(scenario)
    assert sorted([scenario.state("a"), scenario.state("A")]) == [TableState.QUARANTINED, TableState.READY]
    scenario.assert_equal("b")


def test_a_resync_after_a_schema_change_that_the_stream_has_not_shown(scenario) -> None:
    _table(scenario, 100)
    scenario.sync()
    scenario.execute("alter table t add column extra int default 7")
    scenario.pipeline.request_resync(T)
    scenario.execute("update t set v = 'x' where id = 1")
    _bounded_sync(scenario)
    assert scenario.state("t") is TableState.READY
    scenario.assert_equal("t")


def test_a_schema_change_without_any_write_arrives(scenario) -> None:
    _table(scenario, 100)
    scenario.sync()
    scenario.execute("alter table t add column extra int default 7")
    _bounded_sync(scenario)
    assert "extra" in [column.name for column in scenario.pipeline.tables()[T].columns]
    scenario.assert_equal("t")


def test_a_slot_that_somebody_advances_while_we_run_is_noticed(scenario) -> None:
    _table(scenario, 100)
    scenario.sync()
    slot = scenario.pipeline.config.source.slot.name
    with scenario.pipeline.replicator() as replicator:
        replicator.sync()
        scenario.execute(
            "delete from t where id = 3", f"select pg_replication_slot_advance('{slot}', pg_current_wal_flush_lsn())"
        )
        with pytest.raises(SlotError, match="moved"):
            replicator.sync()
    scenario.sync()
    scenario.assert_equal("t")


def test_a_resync_asked_for_in_the_middle_of_a_copy_starts_it_over(scenario) -> None:
    _table(scenario)
    scenario.use(replication=SMALL_CHUNKS)
    asked = []

    class Asks(StepByStep):
        def copy_progressed(self, progress) -> None:
            if progress.chunks_done and len(asked) < 5:
                asked.append(scenario.pipeline.request_resync(T))

    _bounded_sync(scenario, Asks(scenario))
    assert len(asked) == 5
    scenario.assert_equal("t")


def test_a_table_that_left_the_publication_for_a_moment_is_copied_afresh(scenario) -> None:
    _table(scenario, 100)
    scenario.execute("create publication pub_moment for table t")
    scenario.use(
        source={
            "connection": {"dsn": scenario.dsn},
            "publication": {"name": "pub_moment", "create": False},
            "slot": {"name": scenario.pipeline.config.source.slot.name},
        }
    )
    scenario.sync()
    scenario.execute(
        "alter publication pub_moment drop table t",
        "update t set v = 'unseen' where id = 1",
        "alter publication pub_moment add table t",
        "update t set v = 'seen' where id = 2",
    )
    _bounded_sync(scenario)
    scenario.assert_equal("t")


def test_a_publication_that_was_made_anew_leads_to_a_fresh_copy(scenario) -> None:
    _table(scenario, 100)
    scenario.sync()
    version = scenario.source.info.server_version
    scenario.execute(
        "drop publication pub_test",
        "update t set v = 'unseen' where id = 1",
        f"create publication pub_test for {'tables in schema public' if version >= 150_000 else 'table t'}",
        "update t set v = 'seen' where id = 2",
    )
    _bounded_sync(scenario)
    scenario.assert_equal("t")


@pytest.mark.parametrize(
    "change",
    [
        "alter table t drop column big",
        "alter table t add column n int default 5",
        "alter table t rename column v to w",
        "alter table t alter id type bigint",
        "alter table t alter v type varchar(100)",
        "drop table t; create table t (id int primary key, w text); insert into t values (1, 'new')",
        "alter table t drop constraint t_pkey; alter table t add primary key (id, v)",
        "alter table t rename to u; create table t (id int primary key, v int); insert into t values (3, 4)",
    ],
)
def test_a_schema_change_in_the_middle_of_a_copy(scenario, change: str) -> None:
    _table(scenario, 5000)
    scenario.execute("update t set v = 'v'")
    scenario.use(replication=SMALL_CHUNKS)
    reporter = StepByStep(scenario, "update t set v = 'x' where id < 100", change)
    _bounded_sync(scenario, reporter)
    _bounded_sync(scenario)
    assert scenario.state("t") is TableState.READY
    scenario.assert_equal("t")


def test_a_key_that_changes_under_replica_identity_full(scenario) -> None:
    scenario.execute(
        "create table t (id int primary key, alt int not null)",
        "alter table t replica identity full",
        "insert into t select i, i from generate_series(1, 50) i",
    )
    scenario.sync()
    scenario.execute(
        "alter table t drop constraint t_pkey",
        "alter table t add primary key (alt)",
        "update t set id = 1",
        "insert into t values (1, 1000)",
    )
    _bounded_sync(scenario)
    scenario.assert_equal("t")


def test_a_memory_limit_that_is_too_low_is_raised(scenario) -> None:
    _table(scenario, 20000)
    scenario.use(
        destination={
            "type": "duckdb",
            "path": str(scenario.folder / "warehouse.duckdb"),
            "memory_limit": "24MB",
        }
    )
    reporter = StepByStep(scenario, "update t set v = repeat(v, 300)")
    _bounded_sync(scenario, reporter)
    scenario.execute("update t set v = v || repeat(v, 2)")
    _bounded_sync(scenario)
    assert scenario.state("t") is TableState.READY
    scenario.use()
    scenario.assert_equal("t")


@pytest.mark.parametrize("schema", ["main", "memory", "Pg", "information"])
def test_schemas_of_any_name(scenario, schema: str) -> None:
    scenario.execute(f'create schema "{schema}"', f'create table "{schema}".t (id int primary key, v text)')
    scenario.execute(f"insert into \"{schema}\".t values (1, 'a'), (2, 'b')")
    scenario.use(
        source={
            "connection": {"dsn": scenario.dsn},
            "publication": {"name": "pub_s", "schemas": [schema]},
            "slot": {"name": scenario.pipeline.config.source.slot.name},
        }
    )
    _bounded_sync(scenario)
    scenario.execute(f"update \"{schema}\".t set v = 'c' where id = 1", f'delete from "{schema}".t where id = 2')
    _bounded_sync(scenario)
    scenario.assert_equal("t")


@pytest.mark.parametrize("schema", ["warehouse", "temp", "system"])
def test_a_schema_that_duckdb_takes_for_a_database_is_refused_by_name(scenario, schema: str) -> None:
    scenario.execute(f"create schema {schema}", f"create table {schema}.t (id int primary key)")
    scenario.use(
        source={
            "connection": {"dsn": scenario.dsn},
            "publication": {"name": "pub_s", "schemas": [schema]},
            "slot": {"name": scenario.pipeline.config.source.slot.name},
        }
    )
    _bounded_sync(scenario)
    record = scenario.pipeline.record(TableId(schema, "t"))
    assert record.state is TableState.QUARANTINED
    assert schema in record.reason
    assert "another name" in record.hint


TYPES = [
    "varchar(10)",
    "char(5)",
    "numeric(10,2)",
    "numeric(10,2)[]",
    "varchar(10)[]",
    "bit(3)",
    "varbit(9)",
    "interval(3)",
    "interval day to second(2)",
    "time(3)",
    "timestamptz(3)",
    '"char"',
    "name",
    "dom_v",
    "dom_dom",
    "dom_v[]",
    "dom_arr",
    "mood",
    "mood[]",
    "pair",
    "pair[]",
    "int4range",
    "int4multirange",
    "oid",
    "regclass",
    "xid8",
    "tsvector",
    "money",
    "inet",
    "macaddr",
    "pg_lsn",
]


def test_no_type_looks_like_a_schema_change_when_it_is_none(scenario) -> None:
    scenario.execute(
        "create domain dom_v as varchar(10)",
        "create domain dom_dom as dom_v check (length(value) < 9)",
        "create domain dom_arr as numeric(8,3)[]",
        "create type mood as enum ('a', 'b')",
        "create type pair as (a int, b varchar(3))",
        "create table t (id int primary key, " + ", ".join(f"c{i} {t}" for i, t in enumerate(TYPES)) + ")",
        "insert into t (id) values (1), (2)",
    )
    scenario.sync()
    scenario.execute("update t set c0 = 'x' where id = 1", "insert into t (id) values (3)")
    summary = scenario.sync()
    assert [s.copied_rows for s in summary.tables.values()] == [None]
    scenario.assert_equal("t")


def test_a_source_that_restarts_costs_nothing_but_a_new_run(scenario, tmp_path) -> None:
    with PostgresServer.temporary(die_with_parent=True) as server:
        other = Scenario(server.dsn_for("postgres"), tmp_path, psycopg.connect(server.dsn, autocommit=True))
        _table(other)
        other.use(replication=SMALL_CHUNKS)
        happened: list[str] = []

        class Restarts(StepByStep):
            def copy_progressed(self, progress) -> None:
                if progress.chunks_done == 3 and not happened:
                    server.stop(mode="immediate")
                    server.start()
                    happened.append("restart")

        with pytest.raises(EtlError):
            _bounded_sync(other, Restarts(other))
        other.pipeline.close()
        other.source = psycopg.connect(server.dsn, autocommit=True)
        other.execute("update t set v = 'after' where id < 50", "delete from t where id between 60 and 90")
        _bounded_sync(other)
        other.assert_equal("t")
        other.pipeline.close()
        other.source.close()


def test_sessions_that_are_ended_at_the_source_are_replaced(scenario) -> None:
    _table(scenario)
    scenario.use(replication=SMALL_CHUNKS)
    end = """select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database()
        and pid <> pg_backend_pid() and pid not in (select pid from pg_locks where locktype = 'advisory')"""
    _bounded_sync(scenario, StepByStep(scenario, end, "update t set v = 'x' where id < 100", end, end))
    scenario.assert_equal("t")


def test_follow_begins_again_when_its_connections_are_cut(scenario, connect) -> None:
    scenario.execute("create table t (id int primary key)", "insert into t values (1)")
    stop = threading.Event()
    summary = RunSummary()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(scenario.pipeline.follow, stop, summary)
        _wait_for(lambda: summary.tables or following.done())
        scenario.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where application_name like 'etl-dagster%' and datname = current_database()",
            "insert into t values (2)",
        )
        before = summary.changes
        _wait_for(lambda: summary.changes > before or following.done())
        stop.set()
        records = following.result(timeout=60)
    assert [record.state for record in records.values()] == [TableState.READY]
    scenario.assert_equal("t")


def _wait_for(condition) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within a minute")


def test_two_pipelines_do_not_write_the_same_table_of_one_destination(scenario, tmp_path, pg_server, connect) -> None:
    scenario.execute("create table t (id int primary key)", "insert into t values (1)")
    scenario.sync()
    other = Scenario(scenario.dsn, tmp_path / "other", scenario.source)
    other.folder.mkdir()
    other.use(
        source={
            "connection": {"dsn": scenario.dsn},
            "publication": {"name": "pub_other", "schemas": ["public"]},
            "slot": {"name": f"{scenario.pipeline.config.source.slot.name[:50]}_other"},
        },
        destination={"type": "duckdb", "path": str(scenario.folder / "warehouse.duckdb")},
    )
    [record] = other.sync().quarantined.values()
    other.pipeline.close()
    assert "test" in record.reason
    scenario.execute("insert into t values (2)")
    scenario.sync()
    scenario.assert_equal("t")
