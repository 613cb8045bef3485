"""A hot standby as the source."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.postgres import PostgresSource, check
from etl_dagster.testing.server import PostgresServer
from tests.conftest import NewServer
from tests.postgres.conftest import source_config


@pytest.fixture
def primary(new_server: NewServer) -> Iterator[PostgresServer]:
    with new_server() as server:
        yield server


@pytest.fixture
def standby(primary: PostgresServer) -> Iterator[PostgresServer]:
    """A hot standby that follows the primary."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as parent:
        # Under root the server, and so its backup, belongs to another user.
        owner = primary.folder.stat()
        os.chown(parent, owner.st_uid, owner.st_gid)
        folder = Path(parent) / "standby"
        subprocess.run(
            [primary.bindir / "pg_basebackup", "-D", folder, "-R", "-c", "fast", "-d", primary.dsn],
            check=True,
            cwd="/",
            user=owner.st_uid if os.geteuid() == 0 else None,
        )
        with PostgresServer(folder, bindir=primary.bindir, settings={"hot_standby_feedback": "on"}) as server:
            yield server


@pytest.fixture
def admin(primary: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(primary.dsn, autocommit=True) as connection:
        connection.execute("create table t(id int primary key, v text); create publication p for table t")
        yield connection


def _replayed(standby: PostgresServer, admin: psycopg.Connection[Any]) -> None:
    """Wait until the standby has replayed what the primary has written."""
    row = admin.execute("select pg_current_wal_flush_lsn()::text").fetchone()
    assert row is not None
    with psycopg.connect(standby.dsn, autocommit=True) as follower:
        for _ in range(1000):
            reached = follower.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn, pg_sleep(0.01)", row).fetchone()
            if reached and reached[0]:
                return
    raise AssertionError("the standby does not follow")


def test_a_standby_is_read_like_its_primary(
    primary: PostgresServer, admin: psycopg.Connection[Any], standby: PostgresServer
) -> None:
    with ExitStack() as stack:
        source = PostgresSource(source_config(standby.dsn, name="p", create=False))
        stack.callback(source.close)
        admin.execute("insert into t select i, 'v' from generate_series(1, 1000) i")
        _replayed(standby, admin)
        (table,) = source.tables().values()

        assert source.identify().in_recovery
        source.flush_wal()
        (plan,) = source.plan_chunks(table, 1 << 30)
        with source.read_chunk(table, plan.relation, plan.first_block, plan.last_block) as reader:
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
        _replayed(standby, admin)
        (table,) = source.tables().values()

        assert xid is not None
        assert [found.virtual_transaction for found in source.writers([table])] == [f"primary/{xid[0]}"]
        writer.commit()
        _replayed(standby, admin)
        assert source.writers([table]) == []


def test_the_doctor_knows_which_standbys_can_be_decoded(
    admin: psycopg.Connection[Any], standby: PostgresServer
) -> None:
    _replayed(standby, admin)
    failed = [result.name for result in check(source_config(standby.dsn, name="p", create=False)) if not result.passed]

    assert failed == ([] if admin.info.server_version >= 160_000 else ["standby"])
