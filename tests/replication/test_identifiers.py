"""Names: any that Postgres allows arrives as it is, or is refused with a clear word."""

from __future__ import annotations

from itertools import product

import duckdb
import pytest

from etl_dagster.model import TableId
from etl_dagster.store.base import TableState
from tests.replication.watching import EAGER, Journal, catch_up, parts, running, select, sync

NAMES = [
    'with "quotes"',
    "it's",
    "dots.in.it",
    "two words",
    " led and trailed ",
    "UPPER Case",
    "select",
    "user",
    "n" * 63,
    "имя таблицы",
    "表",
    "ชื่อ",
    "😀 emoji",
    "back\\slash",
    "percent%s %(n)s",
    "brace {0} {}",
    "semi;colon--",
    "tab\tand\nline",
    "$1",
    "1st",
    "é",
    "%",
]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _publish_schemas(scenario, *schemas: str, **changes) -> None:
    source = {
        "connection": {"dsn": scenario.dsn},
        "publication": {"name": "pub_names", "schemas": list(schemas)},
        "slot": {"name": scenario.pipeline.config.source.slot.name},
    }
    scenario.use(**parts(scenario, source=source, **changes))


@pytest.mark.parametrize("landing", ["mirror", "soft_delete", "changelog"])
def test_tables_and_columns_of_any_name(scenario, landing: str) -> None:
    for name in NAMES:
        scenario.execute(
            f"create table {_quoted(name)} ({_quoted(name)} int primary key, {_quoted(name[:40] + ' v')} text, big text)",
            f"alter table {_quoted(name)} alter big set storage external",
            f"insert into {_quoted(name)} select i, 'v' || i, repeat('b', 5000) from generate_series(1, 5) i",
        )
    scenario.use(defaults={"landing": landing})
    sync(scenario)
    for name in NAMES:
        table, key, value = _quoted(name), _quoted(name), _quoted(name[:40] + " v")
        scenario.execute(
            f"update {table} set {value} = 'x' where {key} = 1",
            f"update {table} set {key} = 10 where {key} = 2",
            f"delete from {table} where {key} = 3",
            f"insert into {table} values (6, 'new')",
        )
    sync(scenario)
    scenario.assert_equal(*NAMES)


def test_columns_of_any_name_are_added_renamed_and_dropped(scenario) -> None:
    scenario.execute("create table t (id int primary key, v text)", "insert into t values (1, 'a'), (2, 'b')")
    journal = sync(scenario)
    for name in NAMES:
        new = _quoted(name[:60] + " 2")
        scenario.execute(
            f"alter table t add column {_quoted(name)} int default 7",
            f"update t set {_quoted(name)} = 8 where id = 1",
            f"alter table t rename column {_quoted(name)} to {new}",
            f"update t set {new} = 9 where id = 1",
        )
    sync(scenario, journal)
    scenario.assert_equal("t")
    for name in NAMES[::2]:
        scenario.execute(f"alter table t drop column {_quoted(name[:60] + ' 2')}")
    scenario.execute("insert into t (id) values (3)")
    sync(scenario, journal)
    scenario.assert_equal("t")
    assert journal.copies() == 1


def test_schemas_of_any_name_with_a_table_of_the_same_name(scenario) -> None:
    schemas = [name for name in NAMES if not name.startswith("pg_")]
    for schema in schemas:
        scenario.execute(
            f"create schema {_quoted(schema)}",
            f"create table {_quoted(schema)}.t (id int primary key, v text)",
            f"insert into {_quoted(schema)}.t values (1, 'of '), (2, 'b')",
        )
    _publish_schemas(scenario, *schemas)
    sync(scenario)
    for schema in schemas:
        scenario.execute(
            f"update {_quoted(schema)}.t set v = v || '!' where id = 1",
            f"delete from {_quoted(schema)}.t where id = 2",
        )
    sync(scenario)
    scenario.assert_equal("t")
    assert {table.schema for table in scenario.pipeline.compare()} == set(schemas)


def test_tables_of_the_same_name_in_two_schemas_live_apart(scenario) -> None:
    scenario.execute(
        "create schema a",
        "create schema b",
        "create table a.t (id int primary key, v text)",
        "create table b.t (id int primary key, n int, v date)",
        "insert into a.t values (1, 'a')",
        "insert into b.t values (1, 5, '2024-01-01')",
    )
    _publish_schemas(scenario, "a", "b", replication=EAGER)
    journal = Journal()
    with running(scenario, journal) as replicator:
        catch_up(replicator)
        scenario.execute(
            "alter table a.t add column n int default 3",
            "update a.t set n = 4",
            "insert into b.t values (2, 6)",
            "truncate a.t",
        )
        catch_up(replicator)
        scenario.pipeline.request_resync(TableId("b", "t"))
        scenario.execute("insert into a.t values (7, 'x', 8)")
        catch_up(replicator)
    scenario.assert_equal("t")
    assert journal.copies(TableId("a", "t")) == 1
    assert journal.copies(TableId("b", "t")) == 2


def test_names_with_dots_are_not_taken_for_other_tables(scenario) -> None:
    scenario.execute(
        'create schema "a.b"',
        "create schema a",
        'create table "a.b".c (id int primary key)',
        'create table a."b.c" (id int primary key, v text)',
        'insert into "a.b".c values (1)',
        "insert into a.\"b.c\" values (1, 'x'), (2, 'y')",
    )
    _publish_schemas(scenario, "a", "a.b")
    sync(scenario)
    scenario.execute('insert into "a.b".c values (2)', 'delete from a."b.c" where id = 1')
    sync(scenario)
    live = {table for table, record in scenario.pipeline._store.tables().items() if record.state is TableState.READY}
    assert live == {TableId("a.b", "c"), TableId("a", "b.c")}
    assert all(found.equal for found in scenario.pipeline.compare().values())


def test_schemas_whose_names_differ_by_case(scenario) -> None:
    """Where the destination cannot tell two names apart, one of them is taken out, and the other is right."""
    scenario.execute(
        'create schema "Shop"',
        "create schema shop",
        'create table "Shop".t (id int primary key)',
        "create table shop.t (id int primary key)",
        'insert into "Shop".t values (1)',
        "insert into shop.t values (1), (2)",
    )
    _publish_schemas(scenario, "Shop", "shop")
    sync(scenario)
    states = sorted(record.state for record in scenario.pipeline._store.tables().values())
    assert states in (["quarantined", "ready"], ["ready", "ready"])
    assert all(found.equal for found in scenario.pipeline.compare().values())


@pytest.mark.parametrize(
    ("name", "landing"),
    [*product(["_CHANGE_TYPE", "_LSN", "_TIMESTAMP", "_lsn"], ["mirror", "changelog"]), ("_UNCHANGED", "changelog")],
)
def test_a_column_that_is_called_like_one_of_ours_is_refused_by_name(scenario, name: str, landing: str) -> None:
    scenario.execute(
        f'create table t (id int primary key, "{name}" text)',
        "insert into t values (1, 'x')",
        "create table other (id int primary key)",
        "insert into other values (1)",
    )
    scenario.use(defaults={"landing": landing})
    journal = sync(scenario)
    [record] = [record for record in journal.records if record.state is TableState.QUARANTINED]
    assert name.lower() in record.reason.lower()
    assert "Rename" in record.hint
    scenario.assert_equal("other")
    scenario.execute(f'alter table t rename column "{name}" to mine')
    scenario.pipeline.request_resync(record.table)
    sync(scenario)
    scenario.assert_equal("t", "other")


def test_a_column_called_like_that_of_a_changelog_is_fine_elsewhere(scenario) -> None:
    scenario.execute('create table t (id int primary key, "_UNCHANGED" text)', "insert into t values (1, 'x')")
    sync(scenario)
    scenario.execute("update t set \"_UNCHANGED\" = 'y'")
    sync(scenario)
    scenario.assert_equal("t")


@pytest.mark.parametrize("change", ['add column "_LSN" int default 3', 'rename column v to "_CHANGE_TYPE"'])
def test_a_column_that_becomes_one_of_ours_while_the_pipeline_follows(scenario, change: str) -> None:
    scenario.execute(
        "create table t (id int primary key, v text)",
        "insert into t values (1, 'a')",
        "create table other (id int primary key)",
    )
    sync(scenario)
    scenario.execute(f"alter table t {change}", "update t set id = 2", "insert into other values (1)")
    sync(scenario)
    record = scenario.pipeline.record(TableId("public", "t"))
    assert record.state is TableState.QUARANTINED
    assert record.hint
    scenario.assert_equal("other")
    scenario.execute(
        'alter table t rename column "_LSN" to mine'
        if "LSN" in change
        else 'alter table t rename column "_CHANGE_TYPE" to w',
    )
    sync(scenario)
    scenario.pipeline.request_resync(record.table)
    sync(scenario)
    scenario.assert_equal("t", "other")


def test_a_column_that_differs_from_another_by_case(scenario) -> None:
    scenario.execute(
        'create table t (id int primary key, v text, "V" text)',
        "insert into t values (1, 'a', 'b')",
        "create table other (id int primary key)",
    )
    sync(scenario)
    record = scenario.pipeline.record(TableId("public", "t"))
    if record.state is TableState.QUARANTINED:
        assert "V" in record.reason
    else:
        scenario.assert_equal("t")
    scenario.assert_equal("other")


def test_a_column_that_comes_to_differ_by_case_takes_only_its_table_out(scenario) -> None:
    scenario.execute(
        "create table t (id int primary key, v text)",
        "insert into t values (1, 'a')",
        "create table other (id int primary key)",
    )
    sync(scenario)
    scenario.execute(
        "alter table t add column \"V\" text default 'b'",
        "update t set v = 'x'",
        "insert into other values (1)",
    )
    sync(scenario)
    if scenario.state("t") is TableState.QUARANTINED:
        scenario.execute('alter table t rename column "V" to w')
        scenario.pipeline.request_resync(TableId("public", "t"))
        sync(scenario)
    scenario.assert_equal("t", "other")


def test_a_column_is_renamed_by_case_alone(scenario) -> None:
    scenario.execute("create table t (id int primary key, v text)", "insert into t values (1, 'a')")
    journal = sync(scenario)
    scenario.execute(
        'alter table t rename column v to "V"', "update t set \"V\" = 'x'", "insert into t values (2, 'y')"
    )
    sync(scenario, journal)
    scenario.assert_equal("t")
    assert journal.copies() == 1
    assert select(scenario, 'select "V" from public.t order by id') == [("x",), ("y",)]


def test_what_the_destination_shows_is_named_as_in_the_source(scenario) -> None:
    scenario.execute(
        'create table "Ünïcode ""T""" ("Größe in €" int primary key)',
        'insert into "Ünïcode ""T""" values (5)',
    )
    sync(scenario)
    with duckdb.connect(str(scenario.folder / "warehouse.duckdb"), read_only=True) as connection:
        [(value,)] = connection.execute('select "Größe in €" from public."Ünïcode ""T"""').fetchall()
    assert value == 5
