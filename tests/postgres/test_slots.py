"""The slot: made, looked at, moved, dropped."""

from __future__ import annotations

import logging
import threading

import pytest

from etl_dagster.errors import ErrorKind, SlotError
from etl_dagster.model import Lsn
from etl_dagster.postgres import PostgresSource
from etl_dagster.testing.server import PostgresServer
from tests.conftest import Connect
from tests.postgres.conftest import MakeSource


def test_a_new_slot_starts_where_it_says(connect: Connect, source: PostgresSource) -> None:
    assert source.slot() is None
    start = source.create_slot()
    connect().execute("create table t as select generate_series(1, 1000) a")
    source.flush_wal()

    status = source.slot()

    assert status is not None
    assert (status.confirmed, status.active_pid, status.lost) == (start, None, False)
    assert status.restart <= start
    assert status.retained_bytes > 1000


def test_advancing_goes_forward_only(connect: Connect, source: PostgresSource) -> None:
    start = source.create_slot()
    connect().execute("create table t(a int)")
    source.flush_wal()
    target = source.current_position()

    source.advance_slot(target)
    source.advance_slot(Lsn(start))
    source.advance_slot(target)

    status = source.slot()
    assert status is not None
    assert status.confirmed == target


def test_advancing_beyond_the_end_stops_at_the_end(source: PostgresSource) -> None:
    source.create_slot()

    source.advance_slot(Lsn(source.current_position() + 1_000_000_000))

    status = source.slot()
    assert status is not None
    assert status.confirmed <= source.current_position()


def test_a_slot_that_exists_is_not_made_again(source: PostgresSource) -> None:
    source.create_slot()
    with pytest.raises(SlotError, match="exists already"):
        source.create_slot()


def test_dropping_twice_is_as_good(source: PostgresSource) -> None:
    source.create_slot()
    source.drop_slot()
    source.drop_slot()

    assert source.slot() is None


def test_moving_a_missing_slot_says_it_is_lost(source: PostgresSource) -> None:
    with pytest.raises(SlotError, match="does not exist") as missing:
        source.advance_slot(Lsn(1))

    assert missing.value.kind is ErrorKind.SLOT_LOST


@pytest.mark.parametrize(
    "create", ["pg_create_logical_replication_slot(%s, 'pgoutput')", "pg_create_physical_replication_slot(%s)"]
)
def test_a_slot_of_another_database_or_kind_is_not_touched(
    connect: Connect, make_source: MakeSource, create: str, pg_server: PostgresServer
) -> None:
    source = make_source()
    admin = connect(pg_server.dsn)
    name = source.config.slot.name
    admin.execute(f"select {create}", [name])
    try:
        with pytest.raises(SlotError, match="Choose another name") as refused:
            source.slot()
        assert refused.value.kind is ErrorKind.SOURCE_SETTINGS
    finally:
        admin.execute("select pg_drop_replication_slot(%s)", [name])


def test_the_flushed_position_reaches_what_was_inserted(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute("set synchronous_commit = off; create table t(a int); insert into t values (1)")
    inserted = admin.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()

    source.flush_wal()

    assert inserted is not None
    assert source.current_position() >= inserted[0]


def test_the_server_is_identified(connect: Connect, source: PostgresSource) -> None:
    identity = source.identify()

    assert identity.version == connect().info.server_version
    assert identity.system_id.isdigit()
    assert identity.in_recovery is False


def test_making_a_slot_says_which_transactions_it_waits_for(connect: Connect, source: PostgresSource) -> None:
    writer = connect(autocommit=False, application_name="night job")
    writer.execute("create table t (id int)")
    told = threading.Event()

    class EndsTheWriter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert "night job" in record.getMessage()
            writer.rollback()
            told.set()

    logger, handler = logging.getLogger("etl_dagster"), EndsTheWriter()
    logger.addHandler(handler)
    try:
        source.create_slot()
    finally:
        logger.removeHandler(handler)
    assert told.is_set()
