"""A slot that survives a failover: the standby keeps a copy of it, is promoted, and the pipeline goes on there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.errors import ConfigError, ErrorKind, SlotError
from etl_dagster.model import Lsn
from etl_dagster.postgres import PostgresSource, SlotConfig, SourceConfig, check
from etl_dagster.testing.server import PostgresServer
from tests.conftest import NewServer
from tests.postgres.cluster import Reader, one, reading, replayed, wait_until
from tests.postgres.conftest import source_config


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


def until_synced(admin: psycopg.Connection[Any], standby: PostgresServer, reader: Reader) -> None:
    """A standby keeps a slot once it has moved past what the standby had when it first heard of it."""
    while not has_synced_slot(standby):
        admin.execute("select pg_log_standby_snapshot(); insert into t select coalesce(max(id), 0) + 1, 'more' from t")
        reader.sync()


def promote(primary: PostgresServer, standby: PostgresServer, *, mode: str) -> None:
    primary.stop(mode=mode)  # type: ignore[arg-type]
    with psycopg.connect(standby.dsn, autocommit=True) as follower:
        assert one(follower, "select pg_promote()") == (True,)


@pytest.mark.since(17)
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_pipeline_goes_on_at_the_promoted_standby(
    primary: PostgresServer, standby: PostgresServer, admin: psycopg.Connection[Any], reader: Reader, mode: str
) -> None:
    ports = f"{standby.port},{primary.port}"
    reader.connect(f"host=127.0.0.1,127.0.0.1 port={ports} user=postgres dbname=postgres target_session_attrs=primary")
    admin.execute("insert into t select i, 'copied' from generate_series(1, 1000) i")
    reader.sync()
    admin.execute("insert into t select i, 'streamed' from generate_series(1001, 2000) i")
    reader.sync()
    until_synced(admin, standby, reader)
    before = reader.equal_rows()["t"]
    admin.execute("update t set v = 'before' where id % 2 = 0; delete from t where id % 5 = 0")
    replayed(standby, admin)
    admin.close()

    promote(primary, standby, mode=mode)
    with psycopg.connect(standby.dsn, autocommit=True) as promoted:
        promoted.execute("insert into t select i, 'after' from generate_series(100001, 101000) i")
        promoted.execute("update t set v = 'after' where id % 3 = 0")
    summary = reader.sync()

    assert summary.transactions >= 3  # the copy of the slot may lag, so that some come again
    assert not [record for record in reader.pipeline.status().tables if record.reason]
    assert reader.equal_rows()["t"] == before - before // 5 + 1000


@pytest.mark.since(17)
def test_the_stream_waits_for_the_standbys_that_are_named(
    primary: PostgresServer, standby: PostgresServer, admin: psycopg.Connection[Any], reader: Reader
) -> None:
    config = reader.pipeline.config.source
    assert not line(config, "failover").passed
    admin.execute("alter system set synchronized_standby_slots = 'standby_1'")
    admin.execute("select pg_reload_conf()")
    wait_until(lambda: line(config, "failover").passed, "the setting is not taken over")
    reader.sync()
    standby.stop()
    admin.execute("insert into t values (1, 'not at the standby yet')")

    syncing = threading.Thread(target=reader.sync)
    syncing.start()
    waits = "select count(*) from pg_stat_activity where wait_event = 'WaitForStandbyConfirmation'"
    wait_until(lambda: one(admin, waits) == (1,), "the read does not wait")
    assert syncing.is_alive()
    standby.start()
    syncing.join()

    assert reader.equal_rows() == {"t": 1}


@pytest.mark.since(17)
def test_a_slot_that_exists_is_switched_by_the_next_run(
    primary: PostgresServer, admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    admin.execute("create role plain login replication; grant select on t to plain")
    dsn = primary.dsn_for("postgres", "plain")
    kept = "select failover from pg_replication_slots"
    with reading(tmp_path, dsn) as reader:
        reader.sync()
        assert one(admin, kept) == (False,)
    with reading(tmp_path, dsn, failover=True) as reader:
        assert "from the next run on" in line(reader.pipeline.config.source, "failover").detail
        admin.execute("insert into t values (1, 'streamed')")
        assert reader.sync().transactions == 1
    assert one(admin, kept) == (True,)


@pytest.mark.since(17)
def test_a_standby_that_is_not_promoted_yet_is_not_read(
    primary: PostgresServer, standby: PostgresServer, admin: psycopg.Connection[Any], reader: Reader
) -> None:
    reader.sync()
    until_synced(admin, standby, reader)
    there = reader.pipeline.config.source.model_copy(update={"connection": source_config(standby.dsn).connection})
    unaware = there.model_copy(update={"slot": SlotConfig(name="etl")})
    with closing(PostgresSource(there)) as source, pytest.raises(SlotError, match="this server is a standby") as told:
        source.prepare_publication()
    with (
        closing(PostgresSource(unaware)) as source,
        pytest.raises(SlotError, match="copy that a standby keeps") as also,
    ):
        source.slot()

    assert told.value.kind is also.value.kind is ErrorKind.SOURCE_UNAVAILABLE  # so `follow` waits for the promotion
    assert "target_session_attrs" in told.value.hint
    assert "promote" in line(unaware, "slot").todo


def test_only_servers_that_know_failover_slots_are_asked_for_one(database: str) -> None:
    config = source_config(database, all_tables=True).model_copy(update={"slot": SlotConfig(name="s", failover=True)})
    with closing(PostgresSource(config)) as source:
        if source.identify().version >= 170000:
            source.create_slot()
            status = source.slot()
            assert status is not None
            assert status.failover
            source.drop_slot()
            return
        for attempt in (source.prepare_publication, source.create_slot):
            with pytest.raises(ConfigError, match=r"source\.slot\.failover needs PostgreSQL 17"):
                attempt()
    assert "copied afresh" in line(config, "failover").todo


@pytest.mark.since(17)
@pytest.mark.parametrize("rows", [10, 60_000], ids=["ends before", "has gone past"])
def test_what_a_failover_lost_is_noticed_by_the_timeline(
    primary: PostgresServer, standby: PostgresServer, admin: psycopg.Connection[Any], reader: Reader, rows: int
) -> None:
    """Whether the new primary ends before the position that the destination has, or has gone past it since."""
    reader.sync()
    until_synced(admin, standby, reader)
    standby.stop()
    admin.execute("insert into t select i, 'lost' from generate_series(1001, 30000) i")
    reader.sync()
    admin.close()
    primary.stop(mode="immediate")  # before the standby is back, or it would catch up
    standby.start()
    with psycopg.connect(standby.dsn, autocommit=True) as follower:
        assert one(follower, "select pg_promote()") == (True,)
    with psycopg.connect(standby.dsn, autocommit=True) as promoted:
        promoted.execute(f"insert into t select i, 'new' from generate_series(100001, 100000 + {rows}) i")
    reader.connect(standby.dsn)
    summary = reader.sync()
    assert any("copied afresh" in notice for notice in summary.notices)
    assert reader.equal_rows()["t"] >= rows


@pytest.mark.since(17)
def test_a_promoted_standby_that_lacks_wal_gives_its_positions_anew(
    primary: PostgresServer, standby: PostgresServer, admin: psycopg.Connection[Any], reader: Reader
) -> None:
    """What the server does after a failover that lost transactions: nothing in it tells so but the timeline."""
    reader.sync()
    until_synced(admin, standby, reader)
    config = reader.pipeline.config.source
    standby.stop()
    admin.execute("insert into t select i, 'lost' from generate_series(1001, 50000) i")
    reader.sync()
    ahead = reader.pipeline.status().position
    assert ahead is not None
    admin.close()
    primary.stop(mode="immediate")  # before the standby is back, or it would catch up
    standby.start()
    with psycopg.connect(standby.dsn, autocommit=True) as follower:
        assert one(follower, "select pg_promote()") == (True,)

    there = config.model_copy(update={"connection": source_config(standby.dsn).connection})
    with closing(PostgresSource(there)) as source, psycopg.connect(standby.dsn, autocommit=True) as promoted:
        assert source.current_position() < ahead
        source.advance_slot(ahead)  # stops at the end without a word
        status = source.slot()
        assert status is not None
        assert status.confirmed <= source.current_position() < ahead

        promoted.execute("insert into t values (-1, 'new')")
        window = source.window({}, Lsn(ahead), 1000, after=ahead)
        list(window)
        assert window.transactions == 1  # at a position that the destination takes for known
        assert window.position < ahead
        file = one(promoted, "select pg_walfile_name(pg_current_wal_insert_lsn())")
        assert str(file[0]).startswith("00000002")


def line(config: SourceConfig, name: str) -> Any:
    return next(result for result in check(config) if result.name == name)
