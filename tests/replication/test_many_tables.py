"""Thousands of tables in one pipeline; `ETL_TEST_TABLES` says how many."""

from __future__ import annotations

import os
from pathlib import Path

from tests.replication.watching import measured_sync, select, timed

TABLES = int(os.environ.get("ETL_TEST_TABLES", "2000"))
AT_ONCE = 200  # tables that one transaction makes: each holds locks


def _in_all(scenario, statement: str, *, every: int = 1) -> None:
    for first in range(0, TABLES, AT_ONCE):
        last = min(first + AT_ONCE, TABLES) - 1
        scenario.execute(
            f"do $$ begin for n in {first}..{last} by {every} loop execute replace($x${statement}$x$, '?', n::text); end loop; end $$"
        )


def test_thousands_of_tables_are_copied_and_followed(scenario, tmp_path: Path) -> None:
    with timed(f"{TABLES} tables made"):
        _in_all(scenario, "create table t? (id int primary key, v text, n int)")
        _in_all(scenario, "insert into t? select i, 'v' || i, ? from generate_series(1, 5) i")
    settings = {"replication": {"idle_poll_seconds": 0.02}}
    copied = measured_sync(scenario, tmp_path, **settings)
    print("copied", copied)
    with timed("changed"):
        _in_all(scenario, "update t? set v = 'changed' where id = 2", every=4)
        _in_all(scenario, "delete from t? where id = 3", every=4)
        _in_all(scenario, "update t? set id = 100 where id = 4", every=4)
    followed = measured_sync(scenario, tmp_path, **settings)
    print("followed", followed)
    with timed("idle, and comparison of what was counted"):
        print("idle", measured_sync(scenario, tmp_path, **settings))
        _assert_equal(scenario)
    assert copied["enter"] + copied["sync"] + copied["exit"] < 0.045 * TABLES
    assert followed["enter"] + followed["sync"] + followed["exit"] < 0.045 * TABLES
    assert copied["peak_mb"] < 800


def _assert_equal(scenario) -> None:
    """All tables by what their rows hold; the source would take minutes to compare each by itself."""
    query = " union all ".join(f"select id, v, n, '{table}' as of from t{table}" for table in range(TABLES))
    ordered = f"select * from ({query}) rows order by n, id"
    held = select(scenario, ordered.replace("from t", "from public.t"))
    assert scenario.source.execute(ordered).fetchall() == held
