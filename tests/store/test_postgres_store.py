"""What only the Postgres store can get wrong: connections, privileges, secrets."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from etl_dagster.errors import StateError
from etl_dagster.model import TableId
from etl_dagster.retry import without_waiting
from etl_dagster.store import PostgresStoreConfig, TableRecord
from etl_dagster.store.postgres import PostgresStore
from etl_dagster.testing.server import free_port

ORDERS = TableId("public", "orders")
Connect = Callable[..., psycopg.Connection[Any]]


@pytest.fixture
def store(database: str) -> Iterator[PostgresStore]:
    store = _store(database)
    store.open()
    yield store
    store.close()


def _store(dsn: str) -> PostgresStore:
    return PostgresStore(PostgresStoreConfig(dsn=SecretStr(dsn)), "shop")


def _end_store_sessions(admin: psycopg.Connection[Any]) -> int:
    ended = admin.execute(
        """SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
        WHERE application_name = 'etl-dagster store shop' AND datname = current_database()"""
    )
    return len(ended.fetchall())


def test_a_broken_connection_is_opened_again(store: PostgresStore, connect: Connect) -> None:
    store.save_table(TableRecord(table=ORDERS, rows=1))
    admin = connect()
    with without_waiting():
        assert _end_store_sessions(admin) == 1
        assert store.tables()[ORDERS].rows == 1
        assert _end_store_sessions(admin) == 1
        store.save_table(TableRecord(table=ORDERS, rows=2))
    assert [record.rows for record in store.history(ORDERS)] == [1, 2]


def test_a_server_that_stays_away_ends_the_attempts(store: PostgresStore, connect: Connect) -> None:
    admin = connect()
    database = admin.info.dbname
    other = connect(admin.info.dsn, dbname="postgres")
    other.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
    _end_store_sessions(admin)
    with without_waiting(), pytest.raises(StateError, match="not currently accepting connections") as caught:
        store.tables()
    assert "after 20 attempts" in "".join(traceback.format_exception(caught.value))
    other.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')
    assert store.tables() == {}


def test_nothing_is_left_in_other_schemas(store: PostgresStore, connect: Connect) -> None:
    found = connect().execute(
        "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    assert found.fetchall() == [("etl_dagster",)]


def test_commits_are_synced_also_where_the_role_says_otherwise(connect: Connect, database: str) -> None:
    admin = connect()
    admin.execute(f'ALTER DATABASE "{admin.info.dbname}" SET synchronous_commit = off')
    store = _store(database)
    store.open()
    assert store._connected().execute("SHOW synchronous_commit").fetchone() == ("on",)
    store.close()


def test_an_unreachable_server_is_an_error_with_a_hint() -> None:
    dsn = f"postgresql://etl:hunter{2}@127.0.0.1:{free_port()}/etl"
    with pytest.raises(StateError, match=r"etl_dagster in PostgreSQL failed.*store\.dsn") as caught:
        _store(dsn).open()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_missing_database_is_an_error(database: str) -> None:
    with pytest.raises(StateError, match="does not exist"):
        _store(psycopg.conninfo.make_conninfo(database, dbname="no_such_database")).open()


@pytest.mark.parametrize("dsn", ["host=db password=hunter2 oops", "postgresql://etl:x@hunter2@db/etl", "hunter2"])
def test_a_dsn_that_cannot_be_read_is_not_repeated(dsn: str) -> None:
    with pytest.raises(StateError, match="not a connection string") as caught:
        _store(dsn).open()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_user_without_privileges_is_told_what_to_grant(connect: Connect, database: str) -> None:
    admin = connect()
    role = f"reader_{admin.info.dbname}"
    admin.execute(f'CREATE ROLE "{role}" LOGIN')
    try:
        with pytest.raises(StateError, match=r"permission denied.*Grant the store's user CREATE"):
            _store(psycopg.conninfo.make_conninfo(database, user=role)).open()
        admin.execute(f'CREATE SCHEMA etl_dagster AUTHORIZATION "{role}"')
        store = _store(psycopg.conninfo.make_conninfo(database, user=role))
        store.open()
        store.close()
    finally:
        admin.execute(f'DROP OWNED BY "{role}" CASCADE')
        admin.execute(f'DROP ROLE "{role}"')


def test_tables_of_a_newer_version_are_refused(store: PostgresStore, connect: Connect) -> None:
    store.close()
    connect().execute("INSERT INTO etl_dagster.store_version VALUES (99)")
    with pytest.raises(StateError, match=r"version 99.*Upgrade"):
        store.open()
