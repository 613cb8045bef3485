"""`partitions`, and `resync` of single slices, against a real source and a real DuckDB file."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from etl_dagster.cli.partitions import Partitions, Wanted
from etl_dagster.errors import ConfigError
from etl_dagster.model import Column, KeyRanges, PgType, RangePlan, TableId, TimeWindows
from etl_dagster.model.slices import Every
from tests.cli.conftest import CommandLine, wait_until

if TYPE_CHECKING:
    from tests.conftest import Connect

RULES = """
tables:
  orders: {partitions: {type: time, column: at, every: month, start: 2025-01-01}}
  items: {partitions: {type: range, column: id, rows: 100}}
  people: {partitions: {type: range, column: name, rows: 100}}
  misfit: {partitions: {type: time, column: id, start: 2025-01-01}}
"""
TABLES = """
create table orders (id int primary key, at date, note text);
insert into orders select n, date '2025-01-15' + n % 10 * 30, 'old' from generate_series(1, 1000) n;
create table items (id int primary key);
insert into items select generate_series(1, 1000);
create table people (name text primary key);
insert into people select 'someone-' || n from generate_series(1, 1000) n;
create table misfit (id int primary key);
create table plain (id int primary key);
analyze;
"""


@pytest.fixture
def shop(cli: CommandLine, database: str, connect: Connect) -> CommandLine:
    """Tables with rules and without, and a config for them."""
    connect().execute(TABLES.encode())
    cli.write_config(database, more=RULES)
    return cli


@pytest.fixture
def synced(shop: CommandLine) -> CommandLine:
    """The same, replicated, its ranges planned."""
    assert shop("sync").code == 0
    assert shop("partitions", "--plan").code == 0
    return shop


AT = Column(attnum=1, name="at", type=PgType(oid=1082, name="date"))
NAME = Column(attnum=1, name="name", type=PgType(oid=25, name="text"))
MONTHS = TimeWindows(column="at", every=Every.MONTH, start=date(2025, 1, 1))
RANGES = KeyRanges(column="id")
ORDERS = Partitions(TableId("public", "orders"), MONTHS, MONTHS.slices(AT, datetime(2025, 12, 5, tzinfo=UTC)))
ITEMS = Partitions(
    TableId("public", "items"),
    RANGES,
    RangePlan(relation=7, attnum=1, type_oid=20, bounds=("-7", "90", "100")).slices(NAME),
)
PEOPLE = Partitions(
    TableId("public", "people"),
    RANGES,
    RangePlan(relation=7, attnum=1, type_oid=20, bounds=("anna@x.example",)).slices(NAME),
    of_texts=True,
)


@pytest.mark.parametrize(
    ("found", "wanted", "keys"),
    [
        (ORDERS, Wanted(["2025-03-01", "2025-02-01", "2025-03-01"]), ["2025-02-01", "2025-03-01"]),
        (ORDERS, Wanted(["2025-01-01"], "2025-11-01"), ["2025-01-01", "2025-11-01", "2025-12-01"]),
        (ORDERS, Wanted((), "2025-02-01", "2025-03-01"), ["2025-02-01", "2025-03-01"]),
        (ITEMS, Wanted((), None, "from_90"), ["start", "from_-7", "from_90"]),
    ],
)
def test_the_keys_that_are_wanted_come_once_and_in_order(found: Partitions, wanted: Wanted, keys: list[str]) -> None:
    assert wanted
    assert wanted.of(found) == keys


@pytest.mark.parametrize(
    ("found", "wanted", "parts"),
    [
        (ORDERS, Wanted(["2025-02-10"]), ["no slice 2025-02-10", "nearest: 2025-02-01 and 2025-03-01."]),
        (ORDERS, Wanted((), "1999-01-01"), ["no slice 1999-01-01", "12 slices", "nearest: 2025-01-01 and"]),
        (ORDERS, Wanted((), None, "2026-01-01"), ["no slice 2026-01-01", "nearest: 2025-12-01."]),
        (ORDERS, Wanted((), "2025-03-01", "2025-02-01"), ["2025-03-01 comes after 2025-02-01", "Swap"]),
        (ITEMS, Wanted(["from_95"]), ["no slice from_95", "4 slices", "nearest: from_90 and from_100."]),
        (ITEMS, Wanted(["-9"]), ["nearest: start and from_-7."]),
        (PEOPLE, Wanted(["from_anna"]), ["2 slices. All: etl-dagster partitions public.people"]),
    ],
)
def test_a_key_that_does_not_exist_is_told_with_the_nearest(
    found: Partitions, wanted: Wanted, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        wanted.of(found)
    said = f"{caught.value.message} {caught.value.hint}"
    assert all(part in said for part in parts), said
    assert "anna@" not in said, "what stands in rows is no part of an error"
    assert "anna%40" not in said


def slices(cli: CommandLine, *options: str) -> dict[str, dict[str, Any]]:
    result = cli("partitions", *options, "--json")
    assert result.code == 0, result.err
    return {table["table"]: table for table in result.json["tables"]}


def status(cli: CommandLine, table: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in cli("status", "--json").json["tables"] if each["table"] == table)
    return found


def test_windows_are_listed_before_the_first_sync(shop: CommandLine) -> None:
    found = slices(shop)["public.orders"]
    assert found["slices"][:2] == [
        {"key": "2025-01-01", "from": None, "to": "2025-02-01", "nulls": True},
        {"key": "2025-02-01", "from": "2025-02-01", "to": "2025-03-01", "nulls": False},
    ]
    assert found["slices"][-1]["to"] is None
    shown = shop("partitions", "orders").out
    assert "one for each month of at (UTC)" in shown
    assert "2025-02-01   2025-02-01             2025-03-01" in shown


def test_ranges_are_listed_once_they_are_planned(shop: CommandLine) -> None:
    before = slices(shop)["public.items"]
    assert (before["slices"], before["problem"]) == ([], "its ranges are not planned yet")
    assert "etl-dagster partitions public.items --plan" in shop("partitions", "items").out
    planned = slices(shop, "items", "--plan")["public.items"]["slices"]
    assert len(planned) == 10
    assert slices(shop)["public.items"]["slices"] == planned


def test_a_table_without_a_rule_that_fits_says_so(shop: CommandLine) -> None:
    found = slices(shop)
    assert "public.plain" not in found
    assert "id is integer, which time slices cannot be cut by" in found["public.misfit"]["problem"]
    assert "Add tables.public.plain.partitions to the config" in shop("partitions", "plain").out


def test_a_pipeline_without_rules_says_so(cli: CommandLine, database: str, connect: Connect) -> None:
    connect().execute("create table orders (id int primary key)")
    cli.write_config(database)
    result = cli("partitions")
    assert result.code == 0
    assert "No table of pipeline" in result.out
    assert "partitions, for example {type: time" in result.out


def test_a_slice_that_drifted_is_mended_and_the_others_are_left(synced: CommandLine) -> None:
    with duckdb.connect(str(synced.folder / "warehouse.duckdb")) as connection:
        connection.execute("update public.orders set note = 'spoilt'")
        connection.execute("delete from public.orders where id % 2 = 0")
    asked = synced("resync", "orders", "--partition", "2025-02-01", "--from", "2025-04-01", "--to", "2025-05-01")
    assert asked.code == 0, asked.err
    assert "public.orders (3 slices between 2025-02-01 and 2025-05-01)" in asked.out
    assert status(synced, "public.orders")["asked"] == ["3 slices between 2025-02-01 and 2025-05-01"]
    assert "not taken up yet: 3 slices between 2025-02-01" in synced("status").out
    done = synced("sync", "--json")
    assert done.code == 0, done.err
    assert done.json["tables"]["public.orders"]["copy"]["slices"] == ["2025-02-01", "2025-04-01", "2025-05-01"]
    assert status(synced, "public.orders")["asked"] == []
    with duckdb.connect(str(synced.folder / "warehouse.duckdb"), read_only=True) as connection:
        rows = connection.execute(
            "select strftime(\"at\", '%Y-%m'), note, count(*) from public.orders group by all order by 1"
        ).fetchall()
    mended = {month for month, note, count in rows if note == "old"}
    assert mended == {"2025-02", "2025-04", "2025-05"}
    assert dict.fromkeys(month for month, _, _ in rows) == dict.fromkeys(month for month, note, _ in rows if note)


def test_from_alone_goes_on_to_the_last_slice(synced: CommandLine) -> None:
    keys = [each["key"] for each in slices(synced)["public.items"]["slices"]]
    assert "public.items (3 slices)" in synced("resync", "items", "--from", keys[-3]).out
    assert "public.items (2 slices)" in synced("resync", "items", "--to", keys[1]).out


def test_a_key_that_does_not_exist_changes_nothing(synced: CommandLine) -> None:
    result = synced("resync", "orders", "items", "--partition", "2025-02-01")
    assert result.code == 2
    assert "public.items has no slice 2025-02-01" in result.err
    assert "Add tables.public.plain.partitions" in synced("resync", "plain", "--to", "x").err
    assert all(table["asked"] == [] for table in synced("status", "--json").json["tables"])


def test_slices_of_a_quarantined_table_are_refused(shop: CommandLine, connect: Connect) -> None:
    connect().execute("alter table orders drop constraint orders_pkey")
    assert shop("sync").code == 3
    result = shop("resync", "orders", "--partition", "2025-02-01")
    assert result.code == 2
    assert "it is quarantined" in result.err


def test_status_tells_what_a_copy_waits_for(synced: CommandLine, connect: Connect) -> None:
    writer = connect(autocommit=False, application_name="nightly-import")
    writer.execute("insert into orders values (0, '2025-02-02', 'open')")
    assert synced("resync", "orders", "--partition", "2025-02-01").code == 0
    process = synced.start("sync", "--json")
    wait_until(lambda: bool(status(synced, "public.orders")["waits_for"]))
    found = status(synced, "public.orders")
    assert found["slices"] == ["2025-02-01"]
    assert found["waits_for"][0].startswith(
        f"pid {writer.info.backend_pid} (nightly-import, idle in transaction, open for "
    )
    shown = synced("status").out
    assert (
        f"public.orders: its copy waits for pid {writer.info.backend_pid} (nightly-import, idle in transaction, open for"
        in shown
    )
    assert "its copy is of slices 2025-02-01" in shown
    started = time.monotonic()
    writer.commit()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert time.monotonic() - started < 30


def test_check_has_a_line_for_each_table_with_slices_and_advice_fails_nothing(
    shop: CommandLine, connect: Connect
) -> None:
    (shop.folder / "etl-dagster.yaml").write_text(
        (shop.folder / "etl-dagster.yaml").read_text().replace("  misfit: {", "  'mis*fit': {landing: mirror} #")
    )
    result = shop("check")
    assert result.code == 0, result.out
    assert 'CREATE INDEX CONCURRENTLY ON "public"."orders" ("at")' in result.out
    assert "note  partitions of public.orders" in result.out
    assert "pass  partitions of public.items" in result.out
    connect().execute("create index on orders (at)")
    assert "note" not in shop("check").out
