"""The doctor on partition rules: an index that serves, or advice."""

from __future__ import annotations

from datetime import date

import pytest

from etl_dagster.model import CheckResult, KeyRanges, TimeWindows
from etl_dagster.model.slices import Every
from etl_dagster.postgres import check_slices
from etl_dagster.postgres.doctor_slices import Rule
from tests.conftest import Connect
from tests.postgres.conftest import MakeSource, source_config

DAYS = TimeWindows(column="at", start=date(2026, 1, 1))
IDS = KeyRanges(column="id", rows=1000)
NAMES = KeyRanges(column="name", rows=1000)
# Its order is that of the bytes, but no server says so of a locale of the system.
TABLE = (
    "create collation elsewhere (locale = 'C.UTF-8');"
    "create table t (id int primary key, at date, v int, name text collate elsewhere)"
)


class Said:
    """What the doctor says of a rule for the table ``t`` that a statement makes."""

    def __init__(self, connect: Connect, database: str, make_source: MakeSource) -> None:
        self._connect, self._database, self._make_source = connect, database, make_source

    def __call__(self, statements: str, rule: Rule) -> CheckResult:
        self._connect().execute(statements.encode())
        config = source_config(self._database, tables=["t"])
        (schema,) = self._make_source(config).foreseen_tables().values()
        (result,) = check_slices(config, [(schema, rule)])
        assert (result.name, result.passed) == ("partitions of public.t", True)
        return result


@pytest.fixture
def said(connect: Connect, database: str, make_source: MakeSource) -> Said:
    return Said(connect, database, make_source)


@pytest.mark.parametrize(
    ("index", "rule"),
    [
        ("", IDS),
        ("create index on t (at, v)", DAYS),
        ("create index on t using brin (at)", DAYS),
        ('create index on t (name collate "C")', NAMES),
    ],
)
def test_an_index_that_begins_with_the_column_serves(said: Said, index: str, rule: Rule) -> None:
    result = said(f"{TABLE}; {index}", rule)
    assert "an index finds them" in result.detail
    assert result.todo == ""


@pytest.mark.parametrize(
    ("index", "rule", "todo"),
    [
        ("", DAYS, 'Run CREATE INDEX CONCURRENTLY ON "public"."t" ("at")'),
        ("create index on t (v, at)", DAYS, '("at")'),
        ("create index on t (at) where v > 0", DAYS, '("at")'),
        ("create index on t using hash (at)", DAYS, '("at")'),
        ("create index on t (date_trunc('day', at::timestamp))", DAYS, '("at")'),
        ("create index on t (name)", NAMES, '("name" COLLATE "C")'),
        ("create index on t (name text_pattern_ops)", NAMES, '("name" COLLATE "C")'),
    ],
)
def test_an_index_that_does_not_serve_is_advice(said: Said, index: str, rule: Rule, todo: str) -> None:
    result = said(f"{TABLE}; {index}", rule)
    assert "each slice costs the source a scan of the table" in result.detail
    assert result.todo.endswith(todo)


def test_a_column_in_byte_order_needs_no_index_of_another_collation(said: Said) -> None:
    result = said('create table t (id int primary key, name text collate "POSIX"); create index on t (name)', NAMES)
    assert "an index finds them" in result.detail


def test_partitions_without_the_index_are_counted(said: Said) -> None:
    made = (
        "create table t (id int, at date, primary key (id)) partition by hash (id);"
        "create table t0 partition of t for values with (modulus 2, remainder 0);"
        "create table t1 (at date, id int not null); alter table t1 add primary key (id);"
        "alter table t attach partition t1 for values with (modulus 2, remainder 1);"
        "create index on t1 (at);"
    )
    result = said(made, DAYS)
    assert "a scan of 1 of its 2 partitions" in result.detail
    assert result.todo == 'Run CREATE INDEX ON "public"."t" ("at")'


def test_more_windows_than_dagster_bears_are_advice(said: Said) -> None:
    hours = TimeWindows(column="at", every=Every.HOUR, start=date(1990, 1, 1))
    result = said("create table t (id int primary key, at timestamptz); create index on t (at)", hours)
    assert result.todo.startswith("Take a later start or wider windows: more than 5,000 slices")
