"""A quarantined table is shown with its cause, and `resume` has it go on where it stopped."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from tests.cli.conftest import CommandLine, wait_until

if TYPE_CHECKING:
    from tests.conftest import Connect

# What no decimal can hold.
BAD = "insert into orders values (7, 'NaN')"


@pytest.fixture
def shop(cli: CommandLine, database: str, connect: Connect) -> CommandLine:
    """One table that is going to be quarantined, and one that goes on."""
    source = connect()
    source.execute("create table orders (id int primary key, amount numeric(10, 2))")
    source.execute("create table items (id int primary key)")
    source.execute("insert into orders values (1, 1.5)")
    cli.write_config(database)
    return cli


def warehouse(cli: CommandLine, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(cli.folder / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def orders(cli: CommandLine) -> dict[str, Any]:
    [found] = [table for table in cli("status", "--json").json["tables"] if table["table"] == "public.orders"]
    return dict(found)


def quarantine(shop: CommandLine, connect: Connect) -> None:
    assert shop("sync").code == 0
    connect().execute(BAD)
    assert shop("sync").code == 3


def choose(shop: CommandLine, database: str, more: str) -> None:
    shop.write_config(database, more=more)


def test_status_tells_cause_key_and_next_step_of_a_quarantined_table(shop: CommandLine, connect: Connect) -> None:
    quarantine(shop, connect)
    found = orders(shop)
    assert (found["state"], found["held"], found["landing"]) == ("quarantined", True, "mirror")
    assert "amount" in found["reason"]
    assert "resume public.orders" in found["hint"]
    shown = shop("status").out
    assert "etl-dagster resume TABLE" in shown
    assert found["reason"] in shown


def test_resume_applies_what_was_kept_once_the_policy_allows_it(
    shop: CommandLine, database: str, connect: Connect
) -> None:
    quarantine(shop, connect)
    source = connect()
    source.execute("insert into orders values (8, 2.5)")
    source.execute("delete from orders where id = 1")
    assert shop("sync").code == 3
    assert warehouse(shop, "select id from public.orders order by id") == [(1,)]
    choose(shop, database, "tables: {orders: {columns: {amount: {values: null}}}}\n")
    asked = shop("resume", "orders")
    assert asked.code == 0, asked.err
    assert "To be resumed" in asked.out
    result = shop("sync", "--json")
    assert result.code == 0, result.err
    assert warehouse(shop, "select id, amount is null from public.orders order by id") == [(7, True), (8, False)]
    assert result.json["tables"]["public.orders"]["copied_rows"] is None, "no new copy was needed"
    assert orders(shop)["replaced"] == {"amount": 1}
    assert "1 of amount" in shop("status").out


def test_a_resume_whose_cause_is_not_mended_leaves_the_table_out_with_the_cause(
    shop: CommandLine, connect: Connect
) -> None:
    quarantine(shop, connect)
    assert shop("resume", "orders").code == 0
    assert shop("sync").code == 3
    found = orders(shop)
    assert (found["state"], found["held"]) == ("quarantined", True)
    connect().execute("delete from orders where id = 7")
    assert shop("resync", "orders").code == 0
    assert shop("sync").code == 0
    assert warehouse(shop, "select id from public.orders") == [(1,)]


def test_a_following_process_picks_up_a_resume(shop: CommandLine, database: str, connect: Connect) -> None:
    quarantine(shop, connect)
    choose(shop, database, "defaults: {values: clamp}\n")
    process = shop.start("follow", "--json")
    assert shop("resume", "*").code == 0
    wait_until(lambda: orders(shop)["state"] == "ready" or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert warehouse(shop, "select count(*) from public.orders") == [(2,)]


def test_a_table_whose_changes_were_not_kept_is_copied_afresh_instead(shop: CommandLine, connect: Connect) -> None:
    source = connect()
    source.execute("create table visits (id int); insert into visits values (1)")
    assert shop("sync").code == 3
    source.execute("alter table visits add primary key (id)")
    asked = shop("resume", "visits")
    assert asked.code == 0, asked.err
    assert "copied afresh, since the changes were not kept" in asked.out
    assert shop("sync").code == 0
    assert warehouse(shop, "select count(*) from public.visits") == [(1,)]


def test_resume_of_a_table_that_is_not_quarantined_is_refused(shop: CommandLine, connect: Connect) -> None:
    shop("sync")
    result = shop("resume", "items")
    assert result.code == 2
    assert "items names no quarantined table; public.items is ready" in result.err
    assert "etl-dagster resync" in result.err
    assert shop("resume", "*").code == 2
    connect().execute(BAD)
    shop("sync")
    refused = shop("resume", "orders", "items")
    assert refused.code == 2
    assert "Quarantined are: public.orders" in refused.err
    assert orders(shop)["reason"], "one wrong name changes nothing"
    assert shop("sync").code == 3


@pytest.mark.parametrize(
    ("name", "said"), [("order", "Did you mean public.orders?"), ("a.b.c", "is not a table: write schema.table")]
)
def test_resume_of_an_unknown_table_suggests_the_right_one(shop: CommandLine, name: str, said: str) -> None:
    shop("sync")
    result = shop("resume", name)
    assert result.code == 2
    assert said in result.err


def test_resume_before_the_first_sync_says_so(shop: CommandLine) -> None:
    result = shop("resume", "orders")
    assert result.code == 2
    assert "has not run yet" in result.err
