"""A slot that survives a failover: the standby keeps a copy of it, is promoted, and the pipeline goes on there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.testing.server import PostgresServer
from tests.conftest import NewServer
from tests.postgres.cluster import Reader, one, reading, replayed


@pytest.fixture
def primary(new_server: NewServer) -> Iterator[PostgresServer]:
    with new_server() as server:
        yield server


@pytest.fixture
def standby(primary: PostgresServer) -> Iterator[PostgresServer]:
    settings = {"hot_standby_feedback": "on", "sync_replication_slots": "on"}
    with primary.standby(slot="standby_1", settings=settings, die_with_parent=True) as server:
        yield server


@pytest.fixture
def admin(primary: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(primary.dsn, autocommit=True) as connection:
        connection.execute("create table t(id int primary key, v text); create publication p for table t")
        yield connection


@pytest.fixture
def reader(primary: PostgresServer, admin: psycopg.Connection[Any], tmp_path: Path) -> Iterator[Reader]:
    with reading(tmp_path, primary.dsn, failover=True) as made:
        yield made


def has_synced_slot(standby: PostgresServer) -> bool:
    with psycopg.connect(standby.dsn, autocommit=True) as follower:
        return one(follower, "select count(*) filter (where synced and not temporary) from pg_replication_slots") == (
            1,
        )


def promote(primary: PostgresServer, standby: PostgresServer, *, mode: str) -> None:
    primary.stop(mode=mode)  # type: ignore[arg-type]
    with psycopg.connect(standby.dsn, autocommit=True) as follower:
        assert one(follower, "select pg_promote()") == (True,)


@pytest.mark.since(17)
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_pipeline_goes_on_at_the_promoted_standby(
    primary: PostgresServer, standby: PostgresServer, admin: psycopg.Connection[Any], reader: Reader, mode: str
) -> None:
    admin.execute("insert into t select i, 'copied' from generate_series(1, 1000) i")
    reader.sync()
    admin.execute("insert into t select i, 'streamed' from generate_series(1001, 2000) i")
    reader.sync()
    # A slot is kept by the standby once it has moved past what the standby had when it first heard of it.
    while not has_synced_slot(standby):
        admin.execute("select pg_log_standby_snapshot(); insert into t select max(id) + 1, 'more' from t")
        reader.sync()
    before = reader.equal_rows()["t"]
    admin.execute("update t set v = 'before' where id % 2 = 0; delete from t where id % 5 = 0")
    replayed(standby, admin)
    admin.close()

    promote(primary, standby, mode=mode)
    with psycopg.connect(standby.dsn, autocommit=True) as promoted:
        promoted.execute("insert into t select i, 'after' from generate_series(100001, 101000) i")
        promoted.execute("update t set v = 'after' where id % 3 = 0")
    reader.connect(standby.dsn)
    summary = reader.sync()

    assert summary.transactions == 4
    assert not [record for record in reader.pipeline.status().tables if record.reason]
    assert reader.equal_rows()["t"] == before - before // 5 + 1000
