"""What the config chooses per table, from the file to the warehouse."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from etl_dagster.config import load_config
from etl_dagster.model import TableId
from etl_dagster.pipeline import Pipeline
from tests.cli.conftest import CommandLine, Result

if TYPE_CHECKING:
    from tests.conftest import Connect


@pytest.fixture
def shop(cli: CommandLine, database: str, connect: Connect) -> CommandLine:
    source = connect()
    source.execute("create table orders (id int primary key, amount numeric, note text)")
    source.execute("create table events (what text)")
    source.execute("insert into orders values (1, 1.25, 'a'), (2, 2.5, 'b')")
    source.execute("insert into events values ('begun')")
    return cli


def warehouse(cli: CommandLine, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(cli.folder / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def lines(result: Result, name: str) -> list[dict[str, Any]]:
    return [check for check in result.json["checks"] if check["name"] == name]


def test_each_table_lands_as_it_was_chosen(shop: CommandLine, database: str, connect: Connect) -> None:
    path = shop.write_config(
        database,
        more='defaults: {numeric: "decimal(38,9)"}\n'
        "tables:\n  orders: {landing: soft_delete}\n  ev*: {landing: changelog}\n",
    )
    assert shop("sync").code == 0
    source = connect()
    source.execute("delete from orders where id = 1")
    source.execute("insert into events values ('ended')")
    assert shop("sync").code == 0
    rows = 'select id, amount, "_CHANGE_TYPE"::varchar from public.orders order by id'
    assert warehouse(shop, rows) == [(1, Decimal("1.25"), "delete"), (2, Decimal("2.5"), "copy")]
    assert warehouse(shop, 'select what, "_CHANGE_TYPE"::varchar from public.events order by "_LSN"') == [
        ("begun", "copy"),
        ("ended", "insert"),
    ]
    shown = shop("status")
    assert "soft_delete" in shown.out
    assert "changelog" in shown.out
    landings = {table["table"]: table["landing"] for table in shop("status", "--json").json["tables"]}
    assert landings == {"public.orders": "soft_delete", "public.events": "changelog"}
    pipeline = Pipeline(load_config(path))
    found = pipeline.compare()
    pipeline.close()
    assert {table: difference.equal for table, difference in found.items()} == {
        TableId("public", "orders"): True,
        TableId("public", "events"): True,
    }


def test_replaced_values_are_counted_per_column_and_told_by_a_comparison(
    shop: CommandLine, database: str, connect: Connect
) -> None:
    connect().execute("insert into orders values (3, 'NaN', 'c'), (4, 'infinity', 'd')")
    connect().execute("drop table events")
    path = shop.write_config(
        database, more='tables: {orders: {columns: {amount: {values: null, numeric: "decimal(38,9)"}}}}\n'
    )
    result = shop("sync", "--json")
    assert result.code == 0, result.err
    assert result.json["tables"]["public.orders"]["replaced"] == {"amount": 2}
    connect().execute("insert into orders values (5, 'NaN', 'e')")
    assert "3 of amount" in shop("sync").out
    pipeline = Pipeline(load_config(path))
    found = pipeline.compare()[TableId("public", "orders")]
    pipeline.close()
    assert not found.equal
    assert found.replaced == {"amount": 3}
    assert (found.missing, found.extra) == (3, 3)


def test_check_tells_names_that_match_nothing(shop: CommandLine, database: str) -> None:
    shop.write_config(
        database,
        more="tables:\n  ordrs: {landing: soft_delete}\n  orders: {columns: {amuont: {values: clamp}}}\n"
        "  events: {landing: changelog}\n",
    )
    result = shop("check", "--json")
    assert result.code == 1
    details = [line["detail"] for line in lines(result, "choices") if not line["passed"]]
    assert details == [
        "tables.ordrs names no table of the publication; did you mean public.orders?",
        "tables.orders.columns.amuont is a column of no table that it could be in; did you mean amount?",
    ]
    shop.write_config(database, more="tables: {events: {landing: changelog}}\n")
    assert lines(shop("check", "--json"), "choices")[0]["passed"]


def test_a_run_says_so_too_and_goes_on(shop: CommandLine, database: str) -> None:
    shop.write_config(database, more="tables: {ordrs: {landing: soft_delete}, events: {landing: changelog}}\n")
    result = shop("sync")
    assert result.code == 0
    assert "tables.ordrs names no table of the publication; did you mean public.orders?" in result.err


def test_a_changelog_needs_no_key(shop: CommandLine, database: str, connect: Connect) -> None:
    connect().execute("create publication shop for table orders, events")
    publication = "name: shop, create: false"
    shop.write_config(database, publication=publication)
    [refused] = lines(shop("check", "--json"), "key of public.events")
    assert not refused["passed"]
    assert "landing: changelog" in refused["todo"]
    shop.write_config(database, publication=publication, more="tables: {events: {landing: changelog}}\n")
    [allowed] = lines(shop("check", "--json"), "key of public.events")
    assert allowed["passed"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("tables: {orders: {landing: append}}", "tables.orders.landing must be 'mirror', 'soft_delete' or 'changelog'"),
        ("tables: {orders: {columns: {amount: {numeric: decimal}}}}", "tables.orders.columns.amount.numeric must be"),
        ("defaults: {values: zero}", "defaults.values must be 'fail', 'null', 'clamp' or 'text', but is 'zero'"),
    ],
)
def test_a_wrong_choice_is_named_with_its_path(shop: CommandLine, database: str, wrong: str, said: str) -> None:
    shop.write_config(database, more=f"{wrong}\n")
    result = shop("sync")
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
