"""What a user gets wrong: the command says what, where, and what to do next, without a page of code or a secret."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import conninfo, sql

from tests.cli.conftest import CommandLine, Result

if TYPE_CHECKING:
    from tests.conftest import Connect, NewServer

SECRET = "s3cr3t-hunter2"
COMMANDS = [("check",), ("sync",), ("follow",), ("status",), ("resync", "public.orders"), ("partitions",)]


def lines(result: Result) -> dict[str, str]:
    """Each check with what follows it."""
    return {check["name"]: f"{check['passed']} {check['detail']} {check['todo']}" for check in result.json["checks"]}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_missing_config_file_is_named(cli: CommandLine, command: tuple[str, ...]) -> None:
    result = cli(*command)
    assert result.code == 2
    assert "etl-dagster.yaml" in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_an_unknown_field_is_named_with_its_path_and_a_right_example(cli: CommandLine) -> None:
    path = cli.write_config("postgresql://postgres@127.0.0.1:1/shop", more="replication: {copy_conections: 4}\n")
    result = cli("check")
    assert result.code == 2
    for part in (str(path), "replication.copy_conections", "did you mean copy_connections?", "copy_connections: "):
        assert part in result.err


def test_an_unset_variable_is_named(cli: CommandLine) -> None:
    cli.write_config("${SHOP_DSN}/shop")
    result = cli("sync")
    assert result.code == 2
    assert "SHOP_DSN" in result.err


def test_the_config_can_come_from_the_environment(cli: CommandLine) -> None:
    cli.environ["ETL_DAGSTER_CONFIG"] = "elsewhere.yaml"
    assert "elsewhere.yaml" in cli("sync").err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_server_that_is_not_there_fails_with_what_to_do(cli: CommandLine, command: tuple[str, ...]) -> None:
    cli.write_config(f"postgresql://etl:{SECRET}@127.0.0.1:1/shop?connect_timeout=2")
    result = cli(*command)
    said = result.out + result.err
    assert result.code == 1
    assert "127.0.0.1:1" in said
    assert SECRET not in said
    assert "Traceback" not in said


def test_a_debugging_user_gets_the_trace(cli: CommandLine) -> None:
    cli.write_config(f"postgresql://etl:{SECRET}@127.0.0.1:1/shop")
    result = cli("sync", "--debug")
    assert result.code == 1
    assert "Traceback" in result.err
    assert SECRET not in result.out + result.err


def test_a_database_that_does_not_exist_is_named(cli: CommandLine, database: str) -> None:
    cli.write_config(database + "_not")
    result = cli("sync")
    assert result.code == 1
    assert "_not" in result.err


def test_check_finds_a_role_without_the_replication_privilege(
    cli: CommandLine, database: str, connect: Connect
) -> None:
    role = "plain_" + database.rsplit("/", 1)[1]
    admin = connect()
    admin.execute("create table orders (id int primary key)")
    admin.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
    try:
        cli.write_config(as_role(database, role))
        result = cli("check", "--json")
        assert result.code == 1
        assert "False" in lines(result)["replication privilege"]
        assert "ALTER ROLE" in lines(result)["replication privilege"]
        refused = cli("sync")
        assert refused.code == 1
        assert "next:" in refused.err
    finally:
        admin.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def as_role(dsn: str, role: str) -> str:
    """The same database for another role, as a URL."""
    found = conninfo.conninfo_to_dict(dsn)
    return f"postgresql://{role}@{found['host']}:{found['port']}/{found['dbname']}"


def test_check_finds_a_server_without_logical_wal(cli: CommandLine, new_server: NewServer) -> None:
    with new_server(settings={"wal_level": "replica"}) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("create table orders (id int primary key)")
        cli.write_config(server.dsn)
        result = cli("check", "--json")
        refused = cli("sync")
    assert result.code == 1
    assert "wal_level = 'logical'" in lines(result)["wal_level"]
    assert refused.code == 1
    assert "wal_level" in refused.err


def test_a_publication_that_is_missing_is_reported_by_check_and_sync(cli: CommandLine, database: str) -> None:
    cli.write_config(database, publication="name: absent, create: false")
    result = cli("check", "--json")
    refused = cli("sync")
    assert result.code == 1
    assert "absent" in lines(result)["publication"]
    assert refused.code == 1
    assert "absent" in refused.err


def test_a_table_without_a_key_says_what_to_choose(cli: CommandLine, database: str, connect: Connect) -> None:
    source = connect()
    source.execute("create table orders (id int primary key)")
    source.execute("create table visits (page text)")
    source.execute("create publication shop for table orders, visits")
    cli.write_config(database, publication="name: shop, create: false")
    result = cli("check", "--json")
    assert result.code == 1
    line = lines(result)["key of public.visits"]
    assert "ADD PRIMARY KEY" in line
    assert "REPLICA IDENTITY" in line


def test_a_destination_that_cannot_be_opened_fails_its_line(cli: CommandLine, database: str, connect: Connect) -> None:
    connect().execute("create table orders (id int primary key)")
    cli.write_config(database)
    (cli.folder / "warehouse.duckdb").write_text("not a database")
    result = cli("check", "--json")
    assert result.code == 1
    assert "False" in lines(result)["destination"]
    assert "True" in lines(result)["connection"]


def test_a_wrong_option_is_a_matter_of_usage(cli: CommandLine) -> None:
    assert cli("sync", "--faster").code == 2
    assert cli("dance").code == 2


def test_init_writes_a_config_that_is_valid_and_overwrites_nothing(cli: CommandLine, database: str) -> None:
    cli.environ["SOURCE_DSN"] = database
    first = cli("init")
    assert first.code == 0
    written = Path(cli.folder / "etl-dagster.yaml").read_text()
    assert cli("status").code == 0
    second = cli("init")
    assert second.code == 2
    assert Path(cli.folder / "etl-dagster.yaml").read_text() == written
