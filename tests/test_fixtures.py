"""The fixtures clean up whatever a test leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import Connect

pytest_plugins = ["pytester"]

CONFTEST = """
from tests.conftest import pytest_make_collect_report, pytest_runtest_makereport
"""
SKIPPING = """
import pytest

def test_skipped():
    pytest.skip("no server here")

@pytest.mark.xfail(reason="known")
def test_known_to_fail():
    assert False

def test_good():
    pass
"""


@pytest.fixture
def gone(pg_server: Any) -> Iterator[list[str]]:
    """Databases that must be gone, with their slots, after the fixtures below have cleaned up."""
    names: list[str] = []
    yield names
    with psycopg.connect(pg_server.dsn) as admin:
        assert admin.execute("select 1 from pg_database where datname = any(%s)", (names,)).fetchall() == []
        assert admin.execute("select 1 from pg_replication_slots where database = any(%s)", (names,)).fetchall() == []


def test_everything_left_in_a_database_goes_with_it(gone: list[str], database: str, connect: Connect) -> None:
    source = connect()
    gone.append(source.info.dbname)
    source.execute("create table t (id int primary key)")
    source.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (f"slot_{source.info.dbname}",))
    source.execute("begin; insert into t values (1); prepare transaction 'left open " + source.info.dbname + "'")
    stray = psycopg.connect(database)  # never closed by the test
    stray.execute("select 1")
    gone.append(stray.info.dbname)


@pytest.mark.parametrize("ci", [True, False])
def test_a_skipped_test_fails_in_ci(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: bool) -> None:
    monkeypatch.setenv("CI", "1") if ci else monkeypatch.delenv("CI", raising=False)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(SKIPPING)
    outcome = pytester.runpytest("-p", "no:cacheprovider")
    expected = {"passed": 1, "failed": 2} if ci else {"passed": 1, "skipped": 1, "xfailed": 1}
    outcome.assert_outcomes(**expected)


def test_a_module_that_skips_itself_fails_in_ci(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("import pytest; pytest.importorskip('no_such_module')")
    assert pytester.runpytest("-p", "no:cacheprovider").ret != 0
