"""What the doctor, and a refused sync, tell a plain role to do: statements that can be run as they stand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from etl_dagster.errors import PublicationError
from etl_dagster.model import CheckResult
from etl_dagster.postgres import check
from tests.conftest import Connect
from tests.postgres.conftest import MakeSource, source_config


@pytest.fixture
def plain_dsn(connect: Connect, database: str) -> Iterator[str]:
    """A role that owns nothing and may read nothing."""
    admin = connect()
    admin.execute("create role plain_advised login replication")
    yield database.replace("postgres@", "plain_advised@")
    admin.execute("drop owned by plain_advised")
    admin.execute("drop role plain_advised")


def line(results: list[CheckResult], name: str) -> CheckResult:
    return next(result for result in results if result.name == name)


def test_a_sync_that_may_not_make_the_publication_says_who_may_and_how(
    connect: Connect, make_source: MakeSource, plain_dsn: str
) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key)")
    source = make_source(source_config(plain_dsn, tables=["t"]))

    with pytest.raises(PublicationError, match="lacks CREATE on the database") as refused:
        source.prepare_publication()
    admin.execute(refused.value.hint.partition(": ")[2].encode())

    source.prepare_publication()


@pytest.mark.parametrize("wanted", [{"create": False}, {"create": True}])
def test_a_publication_without_named_tables_says_what_to_write(
    connect: Connect, database: str, wanted: dict[str, object]
) -> None:
    connect().execute("create table t(id int primary key)")
    result = line(check(source_config(database, **wanted)), "publication")

    assert not result.passed
    assert "CREATE PUBLICATION" in result.todo or "source.publication" in result.todo
