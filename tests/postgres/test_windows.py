"""Bounded reads of the slot: what they hold, where they end, and that nothing is read twice or left out."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from etl_dagster.errors import ErrorKind, PublicationError, PublicationTooNew, SlotError
from etl_dagster.model import Lsn, TableId, TableSchema
from etl_dagster.postgres import PostgresSource
from etl_dagster.postgres.windows import Window
from tests.conftest import Connect
from tests.postgres.conftest import MakeSource

MANY = 1_000_000


@pytest.fixture
def admin(connect: Connect, source: PostgresSource) -> psycopg.Connection[Any]:
    """A session over a source whose table t is published and whose slot exists."""
    session = connect()
    session.execute("create table t(id int primary key, v text)")
    source.prepare_publication()
    source.create_slot()
    return session


def read(source: PostgresSource, upto: Lsn | None = None, limit: int = MANY) -> tuple[Window, list[dict[str, Any]]]:
    schemas = {table.oid: table for table in source.tables().values()}
    window = source.window(schemas, upto or source.current_position(), limit)
    rows = [
        row for piece in window for events in piece for changes in events.changes for row in changes.rows.to_pylist()
    ]
    return window, rows


def test_a_window_holds_the_changes_since_the_slot(admin: psycopg.Connection[Any], source: PostgresSource) -> None:
    admin.execute("insert into t values (1, 'a'), (2, 'b'); update t set v = 'c' where id = 1")
    upto = source.current_position()

    window, rows = read(source, upto)

    assert [row["id"] for row in rows] == [1, 2, 1]
    assert (window.changes, window.transactions, window.complete) == (3, 1, True)
    assert window.position >= upto
    assert window.bytes > 0
    assert window.newest_commit is not None


def test_reading_does_not_move_the_slot(admin: psycopg.Connection[Any], source: PostgresSource) -> None:
    admin.execute("insert into t values (1, 'a')")

    assert read(source)[1] == read(source)[1] != []


def test_after_the_slot_is_moved_nothing_comes_twice(admin: psycopg.Connection[Any], source: PostgresSource) -> None:
    admin.execute("insert into t values (1, 'a')")
    first, _ = read(source)
    source.advance_slot(first.position)
    admin.execute("insert into t values (2, 'b')")

    assert [row["id"] for row in read(source)[1]] == [2]


def test_the_limit_of_changes_ends_a_window_after_a_whole_transaction(
    admin: psycopg.Connection[Any], source: PostgresSource
) -> None:
    for first in range(0, 50, 10):
        admin.execute("insert into t select i, 'x' from generate_series(%s::int, %s::int) i", [first, first + 9])
    upto = source.current_position()
    seen: list[int] = []
    windows = 0

    while True:
        window, rows = read(source, upto, limit=15)
        seen += [row["id"] for row in rows]
        windows += 1
        source.advance_slot(window.position)
        if window.complete:
            break
        assert len(rows) in (10, 20)

    assert seen == list(range(50))
    assert windows >= 3


def test_every_boundary_splits_without_loss_or_repetition(
    admin: psycopg.Connection[Any], source: PostgresSource, make_source: MakeSource
) -> None:
    """Windows that end at any byte around two commits see each of them exactly once."""
    start = source.slot().confirmed  # type: ignore[union-attr]
    admin.execute("insert into t values (1, 'a')")
    middle = source.current_position()
    admin.execute("insert into t values (2, 'b')")
    end = source.current_position()

    for upto in [*range(start + 1, middle, 7), *range(middle - 3, middle + 60), *range(middle, end, 7), end]:
        window, rows = read(source, Lsn(upto))
        ids = [row["id"] for row in rows]
        assert window.complete
        assert window.position >= upto
        assert ids in ([], [1], [1, 2])
        # A commit that was returned ends at or before the position; one that was not, starts at or after it.
        assert (1 in ids) == (window.position >= middle or bool(ids))
    assert read(source, end)[1] != []


@pytest.mark.parametrize("offset", [-40, -8, -1, 0, 1, 8, 24, 40])
def test_moving_the_slot_to_any_byte_near_a_commit_loses_nothing(
    admin: psycopg.Connection[Any], source: PostgresSource, offset: int
) -> None:
    admin.execute("insert into t values (1, 'a')")
    middle = source.current_position()
    admin.execute("insert into t values (2, 'b')")

    first, rows = read(source, Lsn(middle + offset))
    source.advance_slot(first.position)

    assert [row["id"] for row in rows + read(source)[1]] == [1, 2]


def test_a_window_over_foreign_wal_is_empty_and_moves_on(
    admin: psycopg.Connection[Any], source: PostgresSource
) -> None:
    before, _ = read(source)
    admin.execute(
        "create temp table other(a int); insert into other select generate_series(1, 1000);"
        "create unlogged table u(a int); drop publication p; create publication p for table t;"
        "create table elsewhere as select generate_series(1, 5000) a"
    )
    source.advance_slot(source.current_position())
    admin.execute("insert into elsewhere select generate_series(1, 5000)")
    upto = source.current_position()

    window, rows = read(source, upto)

    assert rows == []
    assert window.complete
    assert window.position >= upto > before.position


def test_a_look_for_changes_sees_only_those_of_published_tables(
    admin: psycopg.Connection[Any], source: PostgresSource
) -> None:
    admin.execute("create unlogged table u(a int); insert into u values (1)")
    source.flush_wal()
    before = source.has_changes(source.current_position())
    upto = source.current_position()
    admin.execute("insert into t values (1, 'a')")

    assert not before
    assert not source.has_changes(upto)
    assert source.has_changes(source.current_position())


def test_messages_of_applications_do_no_harm(admin: psycopg.Connection[Any], source: PostgresSource) -> None:
    admin.execute("select pg_logical_emit_message(false, 'x', 'hello'), pg_logical_emit_message(true, 'x', 'hello')")
    admin.execute("insert into t values (1, 'a')")

    assert [row["id"] for row in read(source)[1]] == [1]


def test_nothing_beyond_the_flushed_wal_is_taken_for_read(
    admin: psycopg.Connection[Any], source: PostgresSource
) -> None:
    window, _ = read(source, Lsn(source.current_position() + 10_000_000))

    assert not window.complete
    assert window.position <= source.current_position()


@pytest.mark.parametrize("through_libpq", [False, True])
def test_types_without_a_binary_decoder_arrive_as_their_text(
    connect: Connect, make_source: MakeSource, through_libpq: bool
) -> None:
    admin = connect()
    admin.execute("create table net(id int primary key, a inet, r int4range, p point)")
    source = make_source(through_libpq=through_libpq)
    source.prepare_publication()
    source.create_slot()
    admin.execute(
        "insert into net select i, ('10.0.0.' || i % 250)::inet, int4range(i, i + 2), point(i, 0.5)"
        " from generate_series(1, 30000) i"
    )

    _, rows = read(source)

    assert len(rows) == 30000
    assert rows[9] == {"id": 10, "a": "10.0.0.10", "r": "[10,12)", "p": "(10,0.5)"}
    assert rows[-1]["r"] == "[30000,30002)"


def test_a_large_transaction_arrives_in_pieces(admin: psycopg.Connection[Any], source: PostgresSource) -> None:
    admin.execute("insert into t select i, repeat('x', 100) from generate_series(1, 100000) i")
    schemas = {table.oid: table for table in source.tables().values()}
    window = source.window(schemas, source.current_position(), 10)

    sizes = [sum(len(changes) for events in piece for changes in events.changes) for piece in window]

    assert sum(sizes) == 100_000
    assert len(sizes) > 2
    assert window.complete


def test_a_window_left_early_frees_the_slot(admin: psycopg.Connection[Any], source: PostgresSource) -> None:
    admin.execute("insert into t select i, repeat('x', 100) from generate_series(1, 200000) i")
    schemas = {table.oid: table for table in source.tables().values()}
    pieces = iter(source.window(schemas, source.current_position(), MANY))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]

    source.wait_until_free(10)
    assert len(read(source)[1]) == 200_000


def test_a_busy_slot_names_its_holder(admin: psycopg.Connection[Any], source: PostgresSource, database: str) -> None:
    admin.execute("insert into t values (1, 'a')")
    command = "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names 'p')"
    with psycopg.connect(database, replication="database", autocommit=True, application_name="intruder") as other:
        other.pgconn.send_query(command.format(source.config.slot.name).encode())
        other.pgconn.get_result()
        with pytest.raises(SlotError, match=f"{other.info.backend_pid} \\(intruder\\)") as refused:
            read(source)
        with pytest.raises(SlotError) as not_advanced:
            source.advance_slot(source.current_position())
        with pytest.raises(SlotError):
            source.wait_until_free(0.2)
        other.close()

    source.wait_until_free(10)
    assert refused.value.kind is not_advanced.value.kind is ErrorKind.SLOT_BUSY
    assert [row["id"] for row in read(source)[1]] == [1]


def test_a_missing_slot_is_lost(admin: psycopg.Connection[Any], source: PostgresSource) -> None:
    source.drop_slot()

    with pytest.raises(SlotError) as lost:
        read(source, Lsn(1))

    assert lost.value.kind is ErrorKind.SLOT_LOST
    assert source.slot() is None


def test_a_publication_with_an_odd_name_is_read(connect: Connect, make_source: MakeSource, database: str) -> None:
    from tests.postgres.conftest import source_config

    connect().execute("create table t(id int primary key)")
    source = make_source(source_config(database, name='Odd "pub", name', all_tables=True))
    source.prepare_publication()
    source.create_slot()
    connect().execute("insert into t values (7)")

    assert read(source)[1] == [{"id": 7}]
    assert TableId("public", "t") in source.tables()


def wide(first: int, last: int) -> str:
    return f"insert into t select i, repeat('x', 300), ('10.0.0.' || i % 250)::inet from generate_series({first}, {last}) i"


@pytest.mark.parametrize("through_libpq", [False, True])
def test_text_is_fetched_from_where_a_column_that_needs_it_joins_in(
    connect: Connect, make_source: MakeSource, through_libpq: bool
) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key, v text)")
    source = make_source(through_libpq=through_libpq)
    source.prepare_publication()
    source.create_slot()
    schemas = {table.oid: table for table in source.tables().values()}
    admin.execute("insert into t select i, repeat('x', 300) from generate_series(1, 30000) i")
    admin.execute("alter table t add net inet default '10.1.2.3'")
    admin.execute(wide(30001, 60000).encode())
    window = source.window(schemas, source.current_position(), MANY, look=source.describe)

    rows = [r for piece in window for e in piece for c in e.changes for r in c.rows.to_pylist()]

    assert window.drifted == {}
    assert [row["id"] for row in rows] == list(range(1, 60001))
    assert rows[29_999].keys() == {"id", "v"}
    assert rows[30_000] == {"id": 30001, "v": "x" * 300, "net": "10.0.0.1"}
    assert [c.missing for c in window.evolved[TableId("public", "t")].columns] == [None, None, "10.1.2.3"]
    assert window.changes == 60_000


def test_a_window_without_somebody_to_look_reports_a_drift(
    admin: psycopg.Connection[Any], source: PostgresSource
) -> None:
    schemas = {table.oid: table for table in source.tables().values()}
    admin.execute("alter table t add net inet; insert into t values (1, 'a', '10.0.0.1')")
    window = source.window(schemas, source.current_position(), MANY)

    assert list(window) == []
    assert "column net is new" in window.drifted[TableId("public", "t")]
    assert window.evolved == {}


def test_a_column_that_older_rows_may_have_filled_is_a_drift(
    admin: psycopg.Connection[Any], source: PostgresSource
) -> None:
    schemas = {table.oid: table for table in source.tables().values()}
    admin.execute("alter table t add u uuid default gen_random_uuid(); insert into t values (1, 'a')")
    window = source.window(schemas, source.current_position(), MANY, look=source.describe)

    assert list(window) == []
    assert list(window.drifted) == [TableId("public", "t")]


@pytest.mark.parametrize("change", ["", "alter table t add r int4range"])
def test_messages_of_a_held_table_come_with_the_text_that_they_need(
    connect: Connect, source: PostgresSource, change: str
) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key, a inet); create table other(id int primary key)")
    source.prepare_publication()
    source.create_slot()
    schemas = {table.oid: table for table in source.tables().values()}
    held = next(table.oid for table in schemas.values() if table.id.name == "t")
    if change:
        admin.execute(change.encode())
    admin.execute("insert into t values (1, '10.0.0.1'); insert into other values (2)")
    window = source.window(schemas, source.current_position(), MANY, held=[held])

    events = {event.table.id.name: event for piece in window for event in piece}

    raw = events["t"].held
    assert raw is not None
    assert raw.text.null_count < len(raw)
    assert b"10.0.0.1" in b"".join(text for text in raw.text.to_pylist() if text)
    assert events["other"].held is None
    assert not events["t"].changes


def test_a_publication_made_anew_is_told_from_one_that_is_missing(
    admin: psycopg.Connection[Any], source: PostgresSource
) -> None:
    schemas: dict[int, TableSchema] = {table.oid: table for table in source.tables().values()}
    admin.execute("insert into t values (1, 'a')")
    admin.execute("drop publication p")
    admin.execute("insert into t values (2, 'b')")
    if admin.info.server_version < 180000:
        with pytest.raises(PublicationError) as missing:
            list(source.window(schemas, source.current_position(), MANY))
        assert not isinstance(missing.value, PublicationTooNew)
    admin.execute("create publication p for all tables")
    admin.execute("insert into t values (3, 'c')")

    if admin.info.server_version < 180000:
        with pytest.raises(PublicationTooNew, match="publication p was made after the position") as too_new:
            list(source.window(schemas, source.current_position(), MANY))
        assert too_new.value.kind is ErrorKind.PUBLICATION
        assert f"pg_drop_replication_slot('{source.config.slot.name}')" in too_new.value.hint
        source.drop_slot()
        source.create_slot()
        admin.execute("insert into t values (4, 'd')")
        assert [row["id"] for row in read(source)[1]] == [4]
    else:
        # What was changed in between is not published; that the publication is another one, its OID tells.
        assert [row["id"] for row in read(source)[1]] == [1, 3]
        assert [t.membership for t in source.tables().values()] != [t.membership for t in schemas.values()]


def test_a_heartbeat_lets_the_position_move_and_is_no_change(
    admin: psycopg.Connection[Any], source: PostgresSource
) -> None:
    before = source.current_position()
    source.heartbeat()
    upto = source.current_position()
    window, rows = read(source, upto)

    assert upto > before
    assert rows == []
    assert window.complete
    assert not source.has_changes(upto)


def test_a_look_for_changes_does_not_fail_on_a_publication_younger_than_the_slot(
    admin: psycopg.Connection[Any], source: PostgresSource
) -> None:
    admin.execute("drop publication p")
    admin.execute("insert into t values (1, 'a')")
    if admin.info.server_version < 180000:
        with pytest.raises(PublicationError):
            source.has_changes(source.current_position())
    admin.execute("create publication p for all tables")

    assert source.has_changes(source.current_position()) is (admin.info.server_version < 180000)
