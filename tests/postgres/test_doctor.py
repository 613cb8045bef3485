"""The doctor's lines: each passes, or says what to do."""

from __future__ import annotations

import psycopg
import pytest

from etl_dagster.model import CheckResult
from etl_dagster.postgres import check
from etl_dagster.testing.server import free_port
from tests.conftest import Connect, NewServer
from tests.postgres.conftest import MakeSource, source_config


def line(results: list[CheckResult], name: str) -> CheckResult:
    found = [result for result in results if result.name == name]
    assert len(found) == 1, results
    return found[0]


def failures(results: list[CheckResult]) -> list[str]:
    for result in results:
        assert result.detail
        assert result.passed or result.todo
    return [result.name for result in results if not result.passed]


def test_a_ready_source_passes_every_line(connect: Connect, make_source: MakeSource, database: str) -> None:
    connect().execute("create table t(id int primary key)")
    config = source_config(database)

    assert failures(check(config)) == []

    source = make_source(config)
    source.prepare_publication()
    source.create_slot()
    results = check(config)

    assert failures(results) == []
    assert "all 1 tables have a key" in line(results, "keys").detail


def test_a_wrong_dsn_is_one_failing_line() -> None:
    results = check(source_config(f"postgresql://u:hunter2@127.0.0.1:{free_port()}/d"))

    assert failures(results) == ["connection"]
    assert "hunter2" not in str(results)


def test_tables_without_key_are_named_with_the_choices(connect: Connect, database: str) -> None:
    connect().execute(
        'create table good(id int primary key); create table "No key"(a int);'
        'create publication p for table good, "No key"'
    )
    results = check(source_config(database, name="p", create=False))

    assert failures(results) == ["key of public.No key", "replica identity of public.No key"]
    todo = line(results, "key of public.No key").todo
    assert 'ALTER TABLE "public"."No key" ADD PRIMARY KEY' in todo
    assert "REPLICA IDENTITY USING INDEX" in todo
    assert "exclude" in todo


@pytest.mark.since(15)
def test_a_column_list_without_the_key_is_told(connect: Connect, database: str) -> None:
    connect().execute("create table listed(id int primary key, v int); create publication p for table listed (v)")

    results = check(source_config(database, name="p", create=False))

    assert failures(results) == ["key of public.listed", "replica identity of public.listed"]


def test_a_missing_publication_that_may_not_be_made_fails(connect: Connect, database: str) -> None:
    connect().execute("create table t(id int primary key)")
    result = line(check(source_config(database, create=False, tables=["t"])), "publication")

    assert not result.passed
    assert 'CREATE PUBLICATION "p" FOR TABLE "public"."t"' in result.todo


@pytest.mark.parametrize("wanted", [{"tables": ["Typo"]}, {"tables": ["x*"]}])
def test_a_publication_of_nothing_fails(connect: Connect, database: str, wanted: dict[str, object]) -> None:
    connect().execute("create table t(id int primary key)")

    assert failures(check(source_config(database, **wanted))) == ["publication"]


def test_a_plain_role_fails_where_it_lacks_something(connect: Connect, database: str) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key); create table u(id int primary key)")
    admin.execute("create publication existing for table t")
    admin.execute("create role plain_doctor login")
    try:
        dsn = database.replace("postgres@", "plain_doctor@")
        results = check(source_config(dsn, name="existing", create=False))
        assert failures(results) == ["replication privilege", "select privilege on public.t"]
        assert 'ALTER ROLE "plain_doctor" REPLICATION' in line(results, "replication privilege").todo
        assert "GRANT SELECT" in line(results, "select privilege on public.t").todo

        unmade = line(check(source_config(dsn, tables=["u"])), "publication")
        assert "lacks CREATE on the database" in unmade.detail
    finally:
        admin.execute("drop role plain_doctor")


def test_a_slot_in_use_names_its_holder(connect: Connect, make_source: MakeSource, database: str) -> None:
    connect().execute("create table t(id int primary key)")
    source = make_source()
    source.prepare_publication()
    source.create_slot()
    name = source.config.slot.name
    with psycopg.connect(database, replication="database", autocommit=True, application_name="intruder") as other:
        other.pgconn.send_query(
            f"START_REPLICATION SLOT {name} LOGICAL 0/0 (proto_version '1', publication_names 'p')".encode()
        )
        other.pgconn.get_result()
        result = line(check(source.config), "slot")
        other.close()

    assert not result.passed
    assert "intruder" in result.detail


def test_settings_of_a_server_that_is_not_ready_fail(new_server: NewServer) -> None:
    settings = {"wal_level": "replica", "max_replication_slots": "1"}
    with new_server(settings=settings) as server:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute("create table t(id int primary key); select pg_create_physical_replication_slot('theirs')")
        results = check(source_config(server.dsn))

    assert failures(results) == ["wal_level", "max_replication_slots"]
    assert "ALTER SYSTEM SET wal_level" in line(results, "wal_level").todo


def test_a_lost_slot_fails(new_server: NewServer) -> None:
    settings = {"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    with new_server(settings=settings) as server:
        config = source_config(server.dsn)
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute("create table t(id int primary key)")
            admin.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [config.slot.name])
            for _ in range(3):
                admin.execute("select pg_switch_wal(); insert into t select coalesce(max(id), 0) + 1 from t")
            admin.execute("checkpoint")
            lost = admin.execute("select wal_status from pg_replication_slots").fetchone()
        result = line(check(config), "slot")

    assert lost == ("lost",)
    assert not result.passed
    assert "pg_drop_replication_slot" in result.todo


@pytest.mark.parametrize("withheld", ["insert, update, delete", "insert"])
def test_a_publication_that_withholds_changes_fails(connect: Connect, database: str, withheld: str) -> None:
    admin = connect()
    admin.execute(f"create table t(id int primary key); create publication p for table t with (publish = '{withheld}')")
    config = source_config(database, name="p", create=False)

    found = line(check(config), "published operations")
    assert not found.passed
    assert "truncate" in found.detail
    admin.execute(found.todo.removeprefix("Run ").encode())

    assert failures(check(config)) == []


def test_tables_that_refuse_updates_while_they_are_published_are_told(connect: Connect, database: str) -> None:
    admin = connect()
    admin.execute("create table nothing(id int primary key); alter table nothing replica identity nothing")
    admin.execute("create table whole(a int); alter table whole replica identity full")
    admin.execute("create table root(id int primary key) partition by range (id)")
    admin.execute("create table leaf partition of root for values from (0) to (10)")
    admin.execute("create publication p for table nothing, whole, root with (publish_via_partition_root = true)")
    admin.execute("insert into nothing values (1)")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        admin.execute("update nothing set id = 2")
    config = source_config(database, name="p", create=False)

    results = check(config)
    assert failures(results) == ["key of public.whole", "replica identity of public.nothing"]
    found = line(results, "replica identity of public.nothing")
    assert "refuses UPDATE and DELETE" in found.detail
    admin.execute(found.todo.removeprefix("Run ").encode())
    admin.execute("update nothing set id = 2")

    assert failures(check(config)) == ["key of public.whole"]


def test_tables_are_looked_at_before_their_publication_is_made(connect: Connect, database: str) -> None:
    connect().execute("create table good(id int primary key); create table keyless(a int)")

    results = check(source_config(database, tables=["*"]))

    assert failures(results) == ["key of public.keyless", "replica identity of public.keyless"]
    assert line(results, "select privilege").passed


def test_what_can_never_be_published_is_told_as_what_it_is(connect: Connect, database: str) -> None:
    admin = connect()
    admin.execute(
        "create unlogged table fast(id int primary key); create view v as select 1; create table t(id int primary key)"
    )
    admin.execute(
        "create foreign data wrapper w; create server s foreign data wrapper w; create foreign table f(id int) server s"
    )

    found = line(check(source_config(database, tables=["t", "fast", "v", "f"])), "publication")
    assert not found.passed
    for told in ("public.fast (unlogged)", "public.v (a view)", "public.f (a foreign table)"):
        assert told in found.detail
    assert failures(check(source_config(database, schemas=["public"]))) == []


@pytest.mark.since(18)
def test_a_time_limit_for_idle_slots_is_told(new_server: NewServer) -> None:
    settings = {"idle_replication_slot_timeout": "2h", "max_slot_wal_keep_size": "10GB"}
    with new_server(settings=settings) as server:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute("create table t(id int primary key)")
        results = check(source_config(server.dsn))

    assert "7200 s" in line(results, "idle_replication_slot_timeout").detail
    assert "10240 MB" in line(results, "max_slot_wal_keep_size").detail


def test_generated_columns_that_are_left_out_are_named(connect: Connect, database: str) -> None:
    admin = connect()
    admin.execute("create table t (id int primary key, twice int generated always as (id * 2) stored)")
    admin.execute("create publication p for table t")
    (line,) = [each for each in check(source_config(database)) if each.name == "generated columns"]
    assert line.passed
    assert "public.t.twice" in line.detail
    assert ("publish_generated_columns" in line.detail) == (admin.info.server_version >= 180000)
