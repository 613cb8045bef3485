"""The stream: whatever happens at the source ends up in the destination, exactly."""

from __future__ import annotations

import psycopg
import pytest

from etl_dagster.store.base import TableState

ORDERS = """create table orders (id bigint primary key, customer int not null, amount numeric(12, 2), note text,
    created timestamptz default now(), tags text[], details jsonb)"""
FILL = """insert into orders select i, i %% 10, i * 1.5, 'note ' || i, timestamptz '2024-01-01' + i * interval '1 s',
    array['a', 'b' || i], jsonb_build_object('n', i) from generate_series(%s, %s) i"""


def _orders(scenario, first: int = 1, last: int = 100) -> None:
    scenario.execute(ORDERS, FILL % (first, last))


def test_a_first_sync_copies_every_table(scenario) -> None:
    _orders(scenario)
    scenario.execute("create table empty (id int primary key, v text)")
    summary = scenario.sync()
    assert {table.name: found.copied_rows for table, found in summary.tables.items()} == {"orders": 100, "empty": 0}
    scenario.assert_equal("orders", "empty")


def test_inserts_updates_deletes_and_key_changes_follow(scenario) -> None:
    _orders(scenario)
    scenario.sync()
    scenario.execute(
        FILL % (101, 150),
        "update orders set amount = amount + 1, note = null where id <= 50",
        "delete from orders where id between 60 and 70",
        "update orders set id = id + 1000 where id between 80 and 90",
    )
    summary = scenario.sync()
    assert summary.changes > 0
    scenario.assert_equal("orders")


def test_one_transaction_may_update_delete_and_insert_the_same_key(scenario) -> None:
    _orders(scenario)
    scenario.sync()
    with scenario.source.transaction():
        scenario.execute(
            "update orders set note = 'changed' where id = 1",
            "delete from orders where id = 1",
            FILL % (1, 1),
            "update orders set id = -2 where id = 2",
            "update orders set id = 2 where id = 3",
            "update orders set id = 3 where id = -2",
        )
    scenario.sync()
    scenario.assert_equal("orders")


def test_what_was_rolled_back_does_not_arrive(scenario) -> None:
    _orders(scenario)
    scenario.sync()
    with scenario.source.transaction(force_rollback=True):
        scenario.execute("delete from orders")
    with scenario.source.transaction():
        scenario.execute("update orders set note = 'kept' where id = 5")
        with scenario.source.transaction(force_rollback=True):
            scenario.execute("update orders set note = 'gone' where id = 6")
    scenario.sync()
    scenario.assert_equal("orders")


def test_a_truncate_of_several_tables_follows(scenario) -> None:
    _orders(scenario)
    scenario.execute(
        "create table lines (id int primary key, o bigint references orders)",
        "insert into lines select i, i from generate_series(1, 50) i",
    )
    scenario.sync()
    with scenario.source.transaction():
        scenario.execute("update orders set note = 'before'", "truncate orders cascade", FILL % (7, 9))
    scenario.sync()
    scenario.assert_equal("orders", "lines")


def test_unchanged_toast_values_are_kept_also_when_the_key_changes(scenario) -> None:
    scenario.execute(
        "create table docs (id int primary key, n int, body text)",
        "alter table docs alter body set storage external",
        "insert into docs select i, 0, repeat('body ' || i, 2000) from generate_series(1, 20) i",
    )
    scenario.sync()
    scenario.execute(
        "update docs set n = n + 1",
        "update docs set id = id + 100, n = n + 1 where id <= 5",
        "update docs set n = 9 where id = 101",
        "insert into docs values (200, 1, repeat('x', 9000)); ",
        "update docs set id = 201 where id = 200",
    )
    scenario.sync()
    scenario.assert_equal("docs")


def test_a_type_without_binary_decoder_arrives_as_the_servers_text(scenario) -> None:
    scenario.execute(
        "create type pair as (a int, b text)",
        "create table odd (id int primary key, p pair, r int4range, i inet, b bit(3), m money, pt point)",
        "insert into odd select i, row(i, 'x'::text)::pair, int4range(i, i + 5), '10.0.0.1', b'101', 12.5, '(1,2)' from generate_series(1, 10) i",
    )
    scenario.sync()
    scenario.execute(
        "update odd set p = row(7, 'it''s'::text)::pair, r = 'empty', i = '::1/64' where id < 4",
        "delete from odd where id = 9",
    )
    scenario.sync()
    scenario.assert_equal("odd")


def test_a_second_sync_with_nothing_to_do_changes_nothing(scenario) -> None:
    _orders(scenario)
    scenario.sync()
    summary = scenario.sync()
    assert summary.changes == 0
    scenario.assert_equal("orders")


def test_the_slot_follows_also_past_wal_that_holds_nothing_for_us(scenario) -> None:
    _orders(scenario)
    scenario.sync()
    scenario.execute(
        "create schema other",
        "create table other.noise (i int)",
        "insert into other.noise select generate_series(1, 20000)",
    )
    scenario.sync()
    [(confirmed, end)] = scenario.source.execute(
        "select confirmed_flush_lsn, pg_current_wal_flush_lsn() from pg_replication_slots where database = current_database()"
    ).fetchall()
    assert confirmed == end or scenario.pipeline.status().lag_bytes < 10_000


def test_a_table_that_joins_the_publication_is_copied_and_one_that_leaves_is_left_alone(scenario) -> None:
    _orders(scenario)
    scenario.sync()
    scenario.execute("create table late (id int primary key)", "insert into late select generate_series(1, 10)")
    scenario.sync()
    scenario.assert_equal("orders", "late")
    scenario.execute("drop table late")
    scenario.sync()
    assert scenario.state("late") is TableState.REMOVED
    scenario.assert_equal("orders")


def test_a_changed_schema_leads_to_a_fresh_copy_of_that_table(scenario) -> None:
    _orders(scenario)
    scenario.sync()
    scenario.execute("alter table orders add column extra int default 7", "update orders set note = 'x' where id = 1")
    scenario.sync()
    scenario.assert_equal("orders")
    assert "extra" in [column.name for column in scenario.pipeline.tables()[("public", "orders")].columns]


def test_a_table_without_key_is_put_aside_with_advice_and_the_others_go_on(scenario) -> None:
    _orders(scenario)
    scenario.execute("create table keyless (v text)", "insert into keyless values ('a')")
    summary = scenario.sync()
    [record] = summary.quarantined.values()
    assert record.table.name == "keyless"
    assert "ADD PRIMARY KEY" in record.hint
    assert "exclude" in record.hint
    scenario.assert_equal("orders")
    scenario.execute("alter table keyless add primary key (v)")
    scenario.pipeline.request_resync(record.table)
    scenario.sync()
    scenario.assert_equal("orders", "keyless")


def test_a_value_that_cannot_be_held_takes_only_its_table_out(scenario) -> None:
    _orders(scenario)
    scenario.execute("create table odd (id int primary key, n numeric(10, 2))", "insert into odd values (1, 1)")
    scenario.sync()
    scenario.execute("insert into odd values (2, 'NaN')", "update orders set note = 'after' where id = 3")
    summary = scenario.sync()
    [record] = summary.quarantined.values()
    assert record.table.name == "odd"
    assert "NaN" in record.reason
    scenario.assert_equal("orders")


def test_one_transaction_larger_than_a_piece_arrives_whole(scenario) -> None:
    _orders(scenario)
    scenario.use(replication={"piece_bytes": 65536, "refresh_seconds": 0.2, "idle_poll_seconds": 0.02})
    scenario.sync()
    with scenario.source.transaction():
        scenario.execute(
            FILL % (1000, 20000), "update orders set note = 'again'", "delete from orders where id % 7 = 0"
        )
    scenario.sync()
    scenario.assert_equal("orders")


@pytest.mark.parametrize("identity", ["full", "using index orders_alt"])
def test_other_replica_identities_work(scenario, identity: str) -> None:
    _orders(scenario)
    scenario.execute(
        "alter table orders add column alt int",
        "update orders set alt = id * 2",
        "alter table orders alter alt set not null",
        "create unique index orders_alt on orders (alt)",
        f"alter table orders replica identity {identity}",
    )
    scenario.sync()
    scenario.execute(
        "update orders set note = 'y' where id < 9",
        "update orders set alt = -alt where id = 20",
        "delete from orders where id > 90",
    )
    scenario.sync()
    scenario.assert_equal("orders")


def test_two_processes_do_not_work_on_one_pipeline(scenario) -> None:
    _orders(scenario)
    with scenario.pipeline.replicator() as replicator:
        replicator.sync()
        other = type(scenario)(scenario.dsn, scenario.folder, scenario.source)
        with pytest.raises(Exception, match=r"another process|holds") as caught:
            other.sync()
        assert caught.value.kind == "pipeline_busy"
    scenario.sync()


def test_logical_messages_are_passed_over(scenario) -> None:
    _orders(scenario)
    scenario.sync()
    scenario.execute(
        "select pg_logical_emit_message(true, 'prefix', 'text')",
        "select pg_logical_emit_message(false, 'prefix', 'text')",
        "update orders set note = 'z' where id = 1",
    )
    scenario.sync()
    scenario.assert_equal("orders")


def test_a_prepared_transaction_arrives_when_it_is_committed(scenario) -> None:
    _orders(scenario)
    scenario.sync()
    with psycopg.connect(scenario.dsn, autocommit=True) as other:
        other.execute("begin")
        other.execute("update orders set note = 'prepared' where id = 1")
        other.execute("prepare transaction 'p1'")
        scenario.execute("update orders set note = 'meanwhile' where id = 2")
        scenario.sync()
        other.execute("commit prepared 'p1'")
    scenario.sync()
    scenario.assert_equal("orders")


@pytest.mark.since(18)
def test_generated_columns_follow_where_they_are_published(scenario) -> None:
    scenario.execute(
        "create table sums(id int primary key, a int, twice int generated always as (a * 2) stored)",
        "insert into sums select i, i from generate_series(1, 100) i",
        "create publication pub_test for table sums with (publish_generated_columns = stored)",
    )
    scenario.sync()
    scenario.execute("update sums set a = 7 where id < 10", "insert into sums values (101, 5)")
    scenario.sync()
    scenario.assert_equal("sums")
