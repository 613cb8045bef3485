"""Connections: what is refused, what is set, what happens when they break."""

from __future__ import annotations

import threading
import time

import pytest
from psycopg import sql

from etl_dagster.errors import ErrorKind, EtlError, SourceError
from etl_dagster.postgres import PostgresConfig, PostgresSource, copy_out
from etl_dagster.postgres.copy_out import CopyOut
from etl_dagster.postgres.sessions import Purpose
from etl_dagster.postgres.sessions import connect as open_session
from etl_dagster.testing.server import PostgresServer, free_port
from tests.conftest import Connect, NewServer
from tests.postgres.conftest import MakeSource, source_config

SECRET = "hunter2-of-the-night"


@pytest.mark.parametrize(
    ("dsn", "kind"),
    [
        (f"postgresql://postgres:{SECRET}@127.0.0.1:{{closed}}/postgres", ErrorKind.SOURCE_UNAVAILABLE),
        (f"postgresql://postgres:{SECRET}@no-such-host.invalid/postgres", ErrorKind.SOURCE_UNAVAILABLE),
        (f"postgresql://nobody_here:{SECRET}@127.0.0.1:{{port}}/postgres", ErrorKind.SOURCE_REFUSED),
        (f"postgresql://postgres:{SECRET}@127.0.0.1:{{port}}/no_such_database", ErrorKind.SOURCE_REFUSED),
        (f"postgresql://postgres:{SECRET}@127.0.0.1:{{port}}/postgres?sslmode=require", ErrorKind.SOURCE_REFUSED),
    ],
)
def test_a_wrong_dsn_is_told_without_its_password(pg_server: PostgresServer, dsn: str, kind: ErrorKind) -> None:
    config = PostgresConfig(dsn=dsn.format(port=pg_server.port, closed=free_port()))
    with pytest.raises(SourceError) as refused:
        open_session(config)

    assert refused.value.kind is kind
    assert refused.value.hint
    assert SECRET not in str(refused.value)
    assert SECRET not in str(refused.value.__cause__)


def test_sessions_are_the_same_whatever_the_database_sets(connect: Connect, database: str) -> None:
    name = database.rpartition("/")[2]
    connect().execute(
        f"alter database {name} set datestyle = 'German'; alter database {name} set timezone = 'Asia/Kolkata';"
        f"alter database {name} set search_path = public; alter database {name} set statement_timeout = '1ms';"
        f"alter database {name} set extra_float_digits = 0; alter database {name} set intervalstyle = 'iso_8601'"
    )
    shown = "DateStyle", "TimeZone", "search_path", "statement_timeout", "extra_float_digits", "IntervalStyle"

    def values(purpose: Purpose) -> list[object]:
        with open_session(PostgresConfig(dsn=database), purpose) as session:
            return [row[0] for name in shown for row in session.execute(f"show {name}")]  # type: ignore[arg-type]

    assert values(Purpose.ORDINARY) == ["ISO, MDY", "UTC", "pg_catalog", "1min", "1", "postgres"]
    assert values(Purpose.COPY) == values(Purpose.SLOT) == ["ISO, MDY", "UTC", "pg_catalog", "0", "1", "postgres"]


def test_ordinary_queries_time_out_and_copies_do_not(database: str) -> None:
    config = source_config(database)
    quick = config.model_copy(update={"connection": PostgresConfig(dsn=database, statement_timeout_ms=50)})
    source = PostgresSource(quick)
    try:
        with (
            pytest.raises(SourceError, match="statement timeout"),
            source._sessions.ordinary("cannot wait") as session,
        ):
            session.execute("select pg_sleep(5)")
        assert source.identify().version > 0
    finally:
        source.close()


def test_a_broken_ordinary_session_is_opened_anew(connect: Connect, source: PostgresSource) -> None:
    before = source.identify()
    connect().execute(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )

    assert source.identify() == before


def test_a_source_is_used_by_many_threads(connect: Connect, source: PostgresSource) -> None:
    connect().execute("create table t(id int primary key)")
    source.prepare_publication()
    failed: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(10):
                assert len(source.tables()) == 1
                assert source.current_position() > 0
        except (EtlError, AssertionError) as error:
            failed.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []


@pytest.mark.parametrize("through_libpq", [False, True])
def test_a_copy_leaves_the_session_as_it_was(database: str, through_libpq: bool) -> None:
    statement = sql.SQL(
        "COPY (SELECT i, repeat('x', i % 300) FROM generate_series(1, 100000) i) TO STDOUT (FORMAT binary)"
    )
    with open_session(PostgresConfig(dsn=database), Purpose.COPY) as session:
        for _ in range(3):
            with CopyOut(session, statement, "cannot copy", through_libpq=through_libpq) as blocks:
                assert sum(len(block) for block in blocks) == 100_000
            assert session.execute("select 7").fetchall() == [(7,)]


def test_the_end_of_the_answer_may_fall_on_any_border_of_a_block(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement = sql.SQL("COPY (SELECT 'x' UNION ALL SELECT 'yyyyy') TO STDOUT (FORMAT binary)")
    with open_session(PostgresConfig(dsn=database), Purpose.COPY) as session:
        for size in range(1, 120):  # the answer has 87 bytes
            monkeypatch.setattr(copy_out, "BLOCK_BYTES", size)
            with CopyOut(session, statement, "cannot copy") as blocks:
                assert sum(len(block) for block in blocks) == 2


@pytest.mark.parametrize("through_libpq", [False, True])
def test_an_error_amid_a_copy_is_told_as_ours(database: str, through_libpq: bool) -> None:
    statement = sql.SQL("COPY (SELECT 1 / (90000 - i) FROM generate_series(1, 100000) i) TO STDOUT (FORMAT binary)")
    session = open_session(PostgresConfig(dsn=database), Purpose.COPY)
    with (
        pytest.raises(SourceError, match=r"cannot copy it: division by zero \[22012\]"),
        CopyOut(session, statement, "cannot copy it", through_libpq=through_libpq) as blocks,
    ):
        list(blocks)

    assert session.closed


@pytest.mark.parametrize("through_libpq", [False, True])
def test_one_value_larger_than_a_block_comes_whole(database: str, through_libpq: bool) -> None:
    statement = sql.SQL("COPY (SELECT repeat('x', 30000000) FROM generate_series(1, 2)) TO STDOUT (FORMAT binary)")
    with (
        open_session(PostgresConfig(dsn=database), Purpose.COPY) as session,
        CopyOut(session, statement, "cannot copy", through_libpq=through_libpq) as blocks,
    ):
        sizes = [int(size) for block in blocks for size in block.ends - block.starts]

    assert sizes == [30_000_006, 30_000_006]


@pytest.mark.parametrize("through_libpq", [False, True])
def test_a_copy_left_before_its_first_row_stops_at_the_server(
    connect: Connect, database: str, through_libpq: bool
) -> None:
    statement = sql.SQL("COPY (SELECT pg_sleep(600)) TO STDOUT (FORMAT binary)")
    session = open_session(PostgresConfig(dsn=database, application_name="sleeper"), Purpose.COPY)
    admin = connect()
    running = "select count(*) from pg_stat_activity where application_name = 'sleeper' and state = 'active'"
    with CopyOut(session, statement, "cannot copy", through_libpq=through_libpq):
        _wait_until(lambda: admin.execute(running).fetchone() == (1,))

    _wait_until(lambda: admin.execute(running).fetchone() == (0,))
    assert session.closed


def _wait_until(condition: object) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_role_without_replication_is_told_what_to_run(
    connect: Connect, make_source: MakeSource, database: str
) -> None:
    admin = connect()
    admin.execute("create role plain_reader login")
    try:
        source = make_source(source_config(database.replace("postgres@", "plain_reader@")))
        with pytest.raises(SourceError, match="to use replication slots") as refused:
            source.create_slot()
        source.close()
        assert refused.value.kind is ErrorKind.SOURCE_REFUSED
        assert "ALTER ROLE" in refused.value.hint
    finally:
        admin.execute("drop role plain_reader")


def test_a_server_without_logical_wal_is_told_what_to_set(new_server: NewServer) -> None:
    with new_server(settings={"wal_level": "replica"}) as server:
        source = PostgresSource(source_config(server.dsn))
        with pytest.raises(SourceError, match="wal_level") as refused:
            source.create_slot()
        source.close()

    assert refused.value.kind is ErrorKind.SOURCE_SETTINGS
    assert "ALTER SYSTEM SET wal_level" in refused.value.hint
