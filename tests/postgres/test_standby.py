"""A hot standby as the source."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.errors import SourceError, StateError
from etl_dagster.model import CheckResult, TableId
from etl_dagster.postgres import PostgresSource, check
from etl_dagster.replication import RunSummary
from etl_dagster.store.base import TableState
from etl_dagster.testing.server import PostgresServer
from tests.conftest import NewServer
from tests.postgres.cluster import one, reading, replayed
from tests.postgres.conftest import source_config

FEEDBACK = {"hot_standby_feedback": "on"}


@pytest.fixture
def primary(new_server: NewServer) -> Iterator[PostgresServer]:
    with new_server() as server:
        yield server


@pytest.fixture
def standby(primary: PostgresServer) -> Iterator[PostgresServer]:
    """A hot standby that follows the primary."""
    with primary.standby(slot="standby_1", settings=FEEDBACK, die_with_parent=True) as server:
        yield server


@pytest.fixture
def admin(primary: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(primary.dsn, autocommit=True) as connection:
        connection.execute("create table t(id int primary key, v text); create publication p for table t")
        yield connection


def test_a_standby_is_read_like_its_primary(
    primary: PostgresServer, admin: psycopg.Connection[Any], standby: PostgresServer
) -> None:
    with ExitStack() as stack:
        source = PostgresSource(source_config(standby.dsn, name="p", create=False))
        stack.callback(source.close)
        admin.execute("insert into t select i, 'v' from generate_series(1, 1000) i")
        replayed(standby, admin)
        (table,) = source.tables().values()

        assert source.identify().in_recovery
        source.flush_wal()
        (plan,) = source.plan_chunks(table, 1 << 30)
        with source.read_chunk(table, plan) as reader:
            assert sum(batch.num_rows for batch in reader) == 1000
            assert 0 < reader.seen_lsn <= source.current_position()


def test_transactions_of_the_primary_count_as_writers(
    primary: PostgresServer, admin: psycopg.Connection[Any], standby: PostgresServer
) -> None:
    with ExitStack() as stack:
        source = PostgresSource(source_config(standby.dsn, name="p", create=False))
        stack.callback(source.close)
        writer = stack.enter_context(psycopg.connect(primary.dsn))
        xid = writer.execute("insert into t values (1, 'x') returning pg_current_xact_id()::text").fetchone()
        admin.execute("insert into t values (2, 'y')")
        replayed(standby, admin)
        (table,) = source.tables().values()

        assert xid is not None
        assert [found.virtual_transaction for found in source.writers([table])] == [f"primary/{xid[0]}"]
        writer.commit()
        replayed(standby, admin)
        assert source.writers([table]) == []


@contextmanager
def snapshots_on_request(primary: PostgresServer) -> Iterator[list[str]]:
    """What an operator does who reads the log; gives what was told."""
    told: list[str] = []
    asked, done = threading.Event(), threading.Event()

    class Log(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "pg_log_standby_snapshot" in record.getMessage():
                told.append(record.getMessage())
                asked.set()

    def obey() -> None:
        asked.wait()
        with psycopg.connect(primary.dsn, autocommit=True) as connection:
            while not done.is_set():  # one that comes before the slot looks out for it does not count
                connection.execute("select pg_log_standby_snapshot(), pg_sleep(0.05)")

    logger, log, operator = logging.getLogger("etl_dagster"), Log(), threading.Thread(target=obey)
    logger.addHandler(log)
    operator.start()
    try:
        yield told
    finally:
        logger.removeHandler(log)
        asked.set()
        done.set()
        operator.join()


@contextmanager
def writing(primary: PostgresServer) -> Iterator[None]:
    """Transactions on the primary, one after the other, until the end of the block."""
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(primary.dsn) as connection:
            number = 1_000_000
            while not stop.is_set():
                number += 10
                connection.execute(
                    "insert into t select i, 'new' from generate_series(%s::int, %s::int) i", [number, number + 9]
                )
                connection.execute("update t set v = v || 'u' where id %% 997 = %s", [number // 10 % 997])
                connection.execute("update t set id = -id where id = %s", [number % 20_000])
                connection.execute("delete from t where id = %s", [number - 35])
                connection.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


@pytest.mark.since(16)
def test_a_pipeline_copies_and_follows_a_standby_while_its_primary_writes(
    primary: PostgresServer, admin: psycopg.Connection[Any], standby: PostgresServer, tmp_path: Path
) -> None:
    admin.execute("insert into t select i, repeat('v', i % 100) from generate_series(1, 20000) i")
    replayed(standby, admin)
    with reading(tmp_path, standby.dsn) as reader:
        with snapshots_on_request(primary) as told, writing(primary):
            reader.sync()
            streamed = reader.sync().transactions
            reader.pipeline.request_resync(TableId("public", "t"))
            reader.sync()
        replayed(standby, admin)
        last = reader.sync()

        assert len(told) == 1
        assert streamed > 0
        assert last.transactions > 0
        assert reader.equal_rows(primary.dsn) == {"t": one(admin, "select count(*) from t")[0]}
        assert one(admin, "select count(*) from pg_replication_slots where slot_type = 'logical'") == (0,)


@pytest.mark.since(16)
def test_a_copy_from_a_standby_waits_for_transactions_of_its_primary(
    primary: PostgresServer, admin: psycopg.Connection[Any], standby: PostgresServer, tmp_path: Path
) -> None:
    admin.execute("insert into t select i, 'v' from generate_series(1, 100) i")
    replayed(standby, admin)
    table = TableId("public", "t")
    with reading(tmp_path, standby.dsn) as reader, psycopg.connect(primary.dsn) as writer:
        with snapshots_on_request(primary):
            reader.sync()
        writer.execute("insert into t values (1000, 'late')")
        admin.execute("insert into t values (1001, 'early')")
        replayed(standby, admin)
        reader.pipeline.request_resync(table)

        summary = RunSummary()
        with reader.pipeline.replicator(summary) as replicator:
            for _ in range(20):
                replicator.step()
            assert replicator.records[table].state is TableState.COPYING
            writer.commit()
            replayed(standby, admin)
            replicator.sync()

        assert reader.equal_rows(primary.dsn) == {"t": 102}


@pytest.mark.since(16)
def test_one_process_at_a_time_runs_a_pipeline_from_a_standby(
    admin: psycopg.Connection[Any], standby: PostgresServer
) -> None:
    replayed(standby, admin)
    config = source_config(standby.dsn, name="p", create=False)
    first, second = PostgresSource(config), PostgresSource(config)
    with ExitStack() as stack:
        stack.callback(first.close)
        stack.callback(second.close)
        with first.fence(), pytest.raises(StateError, match="another process runs the pipeline"), second.fence():
            pass
        with second.fence():
            assert first.is_fence_held()


def test_a_publication_cannot_be_made_on_a_standby(admin: psycopg.Connection[Any], standby: PostgresServer) -> None:
    replayed(standby, admin)
    config = source_config(standby.dsn, name="another", tables=["t"])
    source = PostgresSource(config)
    with pytest.raises(SourceError, match="CREATE PUBLICATION") as refused:
        source.prepare_publication()
    source.close()

    assert "make the publication on its primary" in refused.value.hint
    found = line(check(config), "publication")
    assert not found.passed
    assert 'CREATE PUBLICATION "another" FOR TABLE "public"."t"' in found.todo
    assert "on the primary" in found.todo
    admin.execute('create publication "another" for table t')
    replayed(standby, admin)
    PostgresSource(config).prepare_publication()


def line(results: list[CheckResult], name: str) -> CheckResult:
    return next(result for result in results if result.name == name)


def test_the_doctor_knows_which_standbys_can_be_decoded(
    admin: psycopg.Connection[Any], standby: PostgresServer
) -> None:
    replayed(standby, admin)
    results = check(source_config(standby.dsn, name="p", create=False))

    failed = [result.name for result in results if not result.passed]
    assert failed == ([] if admin.info.server_version >= 160_000 else ["standby"])


@pytest.mark.since(16)
def test_the_doctor_says_what_a_standby_needs_to_keep_its_slot(
    primary: PostgresServer, admin: psycopg.Connection[Any]
) -> None:
    with primary.standby(die_with_parent=True) as careless:
        replayed(careless, admin)
        results = check(source_config(careless.dsn, name="p", create=False))

    assert [result.name for result in results if not result.passed] == ["hot_standby_feedback", "primary_slot_name"]
    assert "ALTER SYSTEM SET hot_standby_feedback" in line(results, "hot_standby_feedback").todo
    assert "pg_create_physical_replication_slot" in line(results, "primary_slot_name").todo
