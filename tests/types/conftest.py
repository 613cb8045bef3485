"""One database with every type that the server offers, filled once; the tests only read it or add tables of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import psycopg
import pytest

from etl_dagster.testing.server import PostgresServer
from tests.conftest import ExternalServer, fresh_database
from tests.decoding.support import Connection, connect
from tests.types.walk import EXTENSIONS, OWN_TYPES, Filled, Walk, execute, make_tables


class Everything(NamedTuple):
    """The database, its types, and tables that together have a column of each; ``<name>_source`` holds their rows.

    Attributes:
        sent: Tables of types that the server sends in binary.
        unsent: Tables of types that it cannot, some of which it tries all the same.
    """

    dsn: str
    walk: Walk
    sent: list[Filled]
    unsent: list[Filled]

    @property
    def tables(self) -> list[Filled]:
        """All of them."""
        return [*self.sent, *self.unsent]


@pytest.fixture(scope="package")
def everything(pg_server: PostgresServer | ExternalServer) -> Iterator[Everything]:
    """Every type as a column."""
    with fresh_database(pg_server) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        for extension in EXTENSIONS:
            with suppress(psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile):  # not offered
                execute(connection, f"create extension {extension}")
        execute(connection, OWN_TYPES)
        walk = Walk(connection)
        yield Everything(dsn, walk, make_tables(walk, "sent", sent=True), make_tables(walk, "unsent", sent=False))


@pytest.fixture
def connection(pg_server: PostgresServer | ExternalServer) -> Iterator[Connection]:
    """One transaction that is rolled back."""
    with connect(pg_server.dsn) as opened:
        opened.execute("begin; set local timezone = 'UTC'; set local extra_float_digits = 3")
        yield opened
        opened.execute("rollback")
