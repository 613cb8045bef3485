"""One PostgreSQL for the whole session, a fresh database for each test, and no skipped tests in CI."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, LiteralString, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from hypothesis import settings
from psycopg import sql

from etl_dagster.testing.server import PostgresServer, wheel_bindir
from tests.bigquery.fixtures import bigquery_dataset, bigquery_emulator, bigquery_proxy, gcs_server

__all__ = ["bigquery_dataset", "bigquery_emulator", "bigquery_proxy", "gcs_server"]

# Programs of another version than the wheel's, to run the suite against it.
OTHER_BINDIR = "ETL_TEST_PG_BINDIR"
# URL of a server that runs already, for all tests but those that need one of their own.
EXTERNAL_DSN = "ETL_TEST_PG_DSN"
SETTINGS = {
    "max_prepared_transactions": "10",
    "max_replication_slots": "100",
    "max_wal_senders": "20",
    "max_connections": "200",
}

# A busy machine is not a wrong result. In CI, Hypothesis takes a profile of its own that has no deadline either.
if not os.environ.get("CI"):
    settings.register_profile("local", deadline=None)
    settings.load_profile("local")

# Of what the BigQuery emulator has printed, below a test that failed.
SHOWN_OF_LOG = 4000

Connect = Callable[..., psycopg.Connection[Any]]
NewServer = Callable[..., PostgresServer]
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@dataclass(frozen=True)
class ExternalServer:
    """A server that somebody else runs."""

    dsn: str

    def dsn_for(self, database: str, user: str | None = None) -> str:
        """Connection string for another database or user of this server."""
        parts = urlsplit(self.dsn)
        account, _, address = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{user or account}@{address}", path=f"/{database}").geturl()

    @property
    def port(self) -> int:
        """Where it listens."""
        return urlsplit(self.dsn).port or 5432


@pytest.fixture(scope="session")
def new_server() -> NewServer:
    """Starts a server of the version under test, for a test that needs one of its own: in a ``with`` block."""
    bindir = os.environ.get(OTHER_BINDIR)
    return partial(PostgresServer.temporary, bindir=Path(bindir) if bindir else None, die_with_parent=True)


@pytest.fixture(scope="session")
def pg_server(new_server: NewServer) -> Iterator[PostgresServer | ExternalServer]:
    """The server all tests share: logical WAL, prepared transactions, superuser without password."""
    external = os.environ.get(EXTERNAL_DSN)
    if external:
        yield ExternalServer(external)
        return
    with new_server(settings=SETTINGS) as server:
        yield server


@pytest.fixture
def database(pg_server: PostgresServer | ExternalServer) -> Iterator[str]:
    """Connection string of a fresh database; dropped afterwards with its slots and whoever is still connected."""
    with fresh_database(pg_server) as dsn:
        yield dsn


@contextmanager
def fresh_database(pg_server: PostgresServer | ExternalServer, options: LiteralString = "") -> Iterator[str]:
    """The same for fixtures of another scope, with options for ``CREATE DATABASE``."""
    name = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(pg_server.dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {} " + options).format(sql.Identifier(name)))
        try:
            yield pg_server.dsn_for(name)
        finally:
            _drop_database(admin, pg_server.dsn_for(name), name)


@pytest.fixture
def connect(database: str) -> Iterator[Connect]:
    """Open autocommit connections, to the test's database unless told otherwise; all are closed afterwards."""
    with ExitStack() as opened:

        def open_connection(dsn: str = database, **options: Any) -> psycopg.Connection[Any]:
            connection = psycopg.connect(dsn, **{"autocommit": True, **options})
            opened.callback(connection.close)
            return connection

        yield open_connection


def _drop_database(admin: psycopg.Connection[Any], dsn: str, name: str) -> None:
    _refuse_connections(admin, name)
    _drop_slots(admin, name)
    prepared = admin.execute("select gid from pg_prepared_xacts where database = %s", (name,)).fetchall()
    if prepared:
        _allow_connections(admin, name)
        with psycopg.connect(dsn, autocommit=True) as inside:
            for (gid,) in prepared:
                inside.execute(sql.SQL("rollback prepared {}").format(sql.Literal(gid)))
    admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def _refuse_connections(admin: psycopg.Connection[Any], name: str) -> None:
    # Otherwise a client that reconnects takes its slot again between the two steps.
    admin.execute(sql.SQL("alter database {} allow_connections false").format(sql.Identifier(name)))
    admin.execute("select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s", (name,))


def _allow_connections(admin: psycopg.Connection[Any], name: str) -> None:
    admin.execute(sql.SQL("alter database {} allow_connections true").format(sql.Identifier(name)))


def _drop_slots(admin: psycopg.Connection[Any], name: str) -> None:
    admin.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s", (name,))


@pytest.fixture(scope="session")
def tls_bindir() -> Path:
    """Programs of a PostgreSQL with TLS."""
    bindir = _tls_bindir()
    if bindir is None:
        pytest.fail(f"no PostgreSQL with TLS: run `apt-get install postgresql`, or set {OTHER_BINDIR}")
    return bindir


def _tls_bindir() -> Path | None:
    """Where Debian and its relatives install PostgreSQL, unless told otherwise; the newest there is."""
    other = os.environ.get(OTHER_BINDIR)
    if other:
        return Path(other)
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return max((program.parent for program in found), key=lambda path: float(path.parent.name), default=None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the server under test cannot do."""
    since = {item: int(mark.args[0]) for item in items if (mark := item.get_closest_marker("since"))}
    version = _major_version() if since else 0
    unfit = {item for item, needed in since.items() if needed > version}
    if not os.environ.get("CI") and _tls_bindir() is None:
        unfit |= {item for item in items if item.get_closest_marker("tls")}
    config.hook.pytest_deselected(items=[item for item in items if item in unfit])
    items[:] = [item for item in items if item not in unfit]


def _major_version() -> int:
    """Of the server under test."""
    external = os.environ.get(EXTERNAL_DSN)
    if external:
        with psycopg.connect(external) as connection:
            return connection.info.server_version // 10000
    bindir = os.environ.get(OTHER_BINDIR, wheel_bindir())
    said = subprocess.run([Path(bindir) / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+", said)
    assert found, said
    return int(found[0])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    emulator = getattr(item, "funcargs", {}).get("bigquery_emulator")
    if emulator and call.excinfo and call.when == "call":
        item.add_report_section("call", "BigQuery jobs that failed", emulator.log[-SHOWN_OF_LOG:])
    return _strict_in_ci((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _strict_in_ci((yield))


def _strict_in_ci(report: Report) -> Report:
    """A test that was skipped or expected to fail protects nothing, so in CI it fails."""
    if os.environ.get("CI") and report.outcome == "skipped":
        reason = getattr(report, "wasxfail", None) or report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped or expected to fail, which CI does not accept: {reason}"
        vars(report).pop("wasxfail", None)
    return report
