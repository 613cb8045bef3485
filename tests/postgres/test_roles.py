"""Roles that are not superusers: what they can do, and what the doctor says they lack, one statement for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.model import CheckResult, TableId
from etl_dagster.postgres import PostgresSource, check
from etl_dagster.store.base import TableState
from tests.conftest import Connect
from tests.postgres.cluster import Reader, reading
from tests.postgres.conftest import source_config

Admin = psycopg.Connection[Any]
DsnOf = Callable[[str], str]


@pytest.fixture
def dsn_of(database: str) -> DsnOf:
    """The test's database as another role sees it."""
    return lambda role: database.replace("postgres@", f"{role}@")


@pytest.fixture
def admin(connect: Connect, database: str) -> Iterator[Admin]:
    """A superuser, and the roles of the tests, gone afterwards."""
    connection = connect()
    name = database.rsplit("/", 1)[-1]
    connection.execute("create role etl login replication; create role app")
    connection.execute(
        f'revoke all on database "{name}" from public; grant connect, temporary on database "{name}" to etl'
    )
    yield connection
    for role in ("etl", "app"):
        connection.execute(f"drop owned by {role} cascade")
        connection.execute(f"drop role {role}")


SHOP = """
create schema sales; alter schema sales owner to app;
set role app;
create table sales.orders(id int primary key, note text, secret text);
create table sales.parts(id int, day int, v text, primary key (id, day)) partition by list (day);
create table sales.parts_1 partition of sales.parts for values in (1);
create table sales.parts_2 partition of sales.parts for values in (2);
insert into sales.orders select i, repeat('n', i % 50), 's' from generate_series(1, 2000) i;
insert into sales.parts select i, 1 + i % 2, 'v' from generate_series(1, 2000) i;
reset role;
"""
_GUIDE = Path(__file__).parents[2] / "docs/guide.md"


def guide(number: int, database: str = "") -> str:
    """A block of SQL that the guide shows for roles; theirs is here already."""
    section = _GUIDE.read_text().partition("### A role\n")[2].partition("\n### ")[0]
    block = re.findall(r"```sql\n(.+?)```", section, flags=re.DOTALL)[number]
    return str(block).replace("CREATE ROLE", "ALTER ROLE").replace("DATABASE shop", f'DATABASE "{database}"')


def traffic(admin: Admin, run: int) -> None:
    admin.execute(
        "update sales.orders set note = note || 'u' where id % 3 = 0; delete from sales.orders where id % 97 = 0"
    )
    admin.execute("insert into sales.orders values (%s, 'new', null)", [10_000 + run])
    admin.execute(
        "update sales.parts set day = 3 - day where id % 5 = 0; update sales.parts set id = -id where id % 7 = 0"
    )


def run_through(admin: Admin, reader: Reader) -> None:
    """Copy, stream, catch up, re-sync, beside traffic that an open transaction is part of."""
    reader.sync()
    traffic(admin, 1)
    assert reader.sync().transactions > 0
    reader.pipeline.request_resync(TableId("sales", "orders"))
    reader.pipeline.request_resync(TableId("sales", "parts"))
    traffic(admin, 2)
    reader.sync()
    traffic(admin, 3)
    reader.sync()
    counts = admin.execute("select (select count(*) from sales.orders), (select count(*) from sales.parts)").fetchone()
    assert tuple(reader.equal_rows().values()) == counts


def test_a_role_that_may_only_read_runs_a_whole_pipeline(admin: Admin, dsn_of: DsnOf, tmp_path: Path) -> None:
    admin.execute(SHOP)
    admin.execute(guide(0).encode())
    admin.execute("create publication p for table sales.orders, sales.parts with (publish_via_partition_root = true)")
    with reading(tmp_path, dsn_of("etl")) as reader:
        assert failures(reader.pipeline.check()) == []
        run_through(admin, reader)
        assert failures(reader.pipeline.check()) == []
        admin.execute("set role app; create table sales.later(id int primary key); insert into sales.later values (1)")
        admin.execute("reset role; alter publication p add table sales.later")
        reader.sync()
        assert reader.equal_rows()["later"] == 1
        with closing(PostgresSource(reader.pipeline.config.source)) as source, source.fence():
            assert reader.pipeline.is_held()
            before = source.current_position()
            source.heartbeat()
            assert source.current_position() > before
        assert {table.state for table in reader.pipeline.status().tables} == {TableState.READY}
    written = admin.execute(
        "select count(*) from pg_class where relowner = 'etl'::regrole and relpersistence <> 't' "
        "union all select count(*) from pg_publication where pubowner = 'etl'::regrole"
    ).fetchall()
    assert written == [(0,), (0,)]


def test_a_role_that_owns_its_tables_makes_its_publication(admin: Admin, dsn_of: DsnOf, tmp_path: Path) -> None:
    admin.execute(SHOP)
    with reading(tmp_path, dsn_of("etl")) as reader:
        reader.connect(dsn_of("etl"), create=True, schemas=["sales"])
        told = [result for result in reader.pipeline.check() if not result.passed and result.name != "publication"]
        assert [result.name for result in told] == [
            "create privilege",
            "owner of sales.orders",
            "owner of sales.parts",
            "usage privilege on schema sales",
            *(f"select privilege on sales.{table}" for table in ("orders", "parts", "parts_1", "parts_2")),
        ]
        admin.execute(guide(1, admin.info.dbname).encode())

        assert failures(reader.pipeline.check()) == []
        run_through(admin, reader)
        admin.execute("set role app; create table sales.later(id int primary key); reset role")
        reader.sync()
        assert "later" in reader.equal_rows()


def test_each_missing_grant_is_one_line_with_the_statement_to_run(admin: Admin, dsn_of: DsnOf, database: str) -> None:
    admin.execute(SHOP)
    admin.execute("alter role etl noreplication")
    admin.execute('create schema "Odd one"; create table "Odd one"."T"("Id" int primary key, b int, c int)')
    admin.execute('grant select ("Id") on "Odd one"."T" to etl; grant select on sales.parts to etl')
    admin.execute(
        'create publication p for table sales.orders, "Odd one"."T", sales.parts with (publish_via_partition_root)'
    )
    revoked = ("pg_control_system()", "pg_logical_emit_message(boolean, text, text)")
    if admin.info.server_version >= 170000:
        revoked = (revoked[0], "pg_logical_emit_message(boolean, text, text, boolean)")
    for function in revoked:
        admin.execute(f"revoke execute on function {function} from public")
    config = source_config(dsn_of("etl"), name="p", create=False)

    told = [result for result in check(config) if not result.passed]
    assert [result.name for result in told] == [
        "replication privilege",
        "execute privilege on pg_control_system",
        "execute privilege on pg_logical_emit_message",
        "usage privilege on schema Odd one",
        "usage privilege on schema sales",
        "select privilege on Odd one.T",
        "select privilege on sales.orders",
        "select privilege on sales.parts_1",
        "select privilege on sales.parts_2",
    ]
    assert told[5].todo == 'Run GRANT SELECT ("ctid", "b", "c") ON "Odd one"."T" TO "etl"'
    run(admin, *told)

    assert failures(check(config)) == []


@pytest.mark.since(15)
def test_only_what_is_published_has_to_be_readable(admin: Admin, dsn_of: DsnOf, tmp_path: Path) -> None:
    admin.execute(SHOP)
    admin.execute("create publication p for table sales.orders (id, note) where (secret is not null)")
    admin.execute("alter table sales.orders replica identity full; alter publication p set (publish = 'insert')")
    admin.execute("grant usage on schema sales to etl; grant select (id, note) on sales.orders to etl")
    config = source_config(dsn_of("etl"), name="p", create=False)

    told = [result for result in check(config) if result.name.startswith("select privilege")]
    assert [result.todo for result in told] == ['Run GRANT SELECT ("ctid", "secret") ON "sales"."orders" TO "etl"']
    run(admin, *told)
    assert [result.name for result in check(config) if not result.passed] == ["published operations"]

    source = PostgresSource(config)
    (table,) = source.tables().values()
    (plan,) = source.plan_chunks(table, 1 << 30)
    with source.read_chunk(table, plan) as reader:
        assert sum(batch.num_rows for batch in reader) == 2000
    source.close()


@pytest.mark.parametrize("forced", [False, True])
def test_row_level_security_that_would_hide_rows_is_told(admin: Admin, dsn_of: DsnOf, forced: bool) -> None:
    admin.execute(SHOP)
    admin.execute(guide(0).encode())
    admin.execute("create publication p for table sales.orders, sales.parts")
    admin.execute(
        "alter table sales.orders enable row level security; alter table sales.parts_2 enable row level security"
    )
    if forced:
        admin.execute("alter table sales.orders owner to etl; alter table sales.orders force row level security")
    config = source_config(dsn_of("etl"), name="p", create=False)

    told = [result for result in check(config) if not result.passed]
    assert [result.name for result in told] == [
        "row-level security of sales.orders",
        "row-level security of sales.parts_2",
    ]
    assert ("NO FORCE" in told[0].todo) is forced
    assert "exclude" in told[0].todo
    admin.execute("alter role etl bypassrls")
    assert failures(check(config)) == []


def run(admin: Admin, *told: CheckResult) -> None:
    """Run what the doctor says, up to the first alternative."""
    for result in told:
        assert result.todo.startswith("Run "), result
        statement = result.todo.removeprefix("Run ").partition(" (Amazon")[0].partition("; or")[0]
        admin.execute(statement)  # type: ignore[call-overload]


def failures(results: list[CheckResult]) -> list[tuple[str, str]]:
    return [(result.name, result.detail) for result in results if not result.passed]
