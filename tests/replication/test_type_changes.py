"""Types that change without a rewrite of the rows follow in the stream; those that rewrite them copy the table."""

from __future__ import annotations

from typing import Any

import pytest

from tests.replication.watching import EAGER, STREAM_ONLY, Following, Journal, columns, running, step_until, sync

TABLE = "create table t (id int primary key, v varchar(20), at timestamp(3), n numeric(10,2))"
ROWS = (
    "insert into t select i, 'v' || i, timestamp '2024-01-01' + i * interval '1.5 s', i / 3.0 "
    "from generate_series(1, 50) i"
)
WRITES = ("update t set v = v || '!' where id < 4", "insert into t (id, v) select max(id) + 1, 'new' from t")


@pytest.fixture(params=["the stream tells", "the catalogue tells"])
def following(scenario, request) -> Any:
    made = Following(scenario, restarts=request.param == "the catalogue tells")
    yield made
    made.close()


@pytest.mark.parametrize(
    "change",
    [
        "alter table t alter v type varchar(60)",
        "alter table t alter v type varchar",
        "alter table t alter v type text",
        "alter table t alter v type text using v::text",
        "alter table t alter at type timestamp(6)",
        "alter table t rename v to w; alter table t alter w type text; alter table t rename w to v",
        "alter table t add column x int default 7, alter v type text",
    ],
)
def test_a_wider_type_is_followed(following, change: str) -> None:
    following.begin(TABLE, ROWS)
    following.then(WRITES[0], change)
    following.then(*WRITES)
    following.end("t", copies=1)
    assert any("now" in what for _, what in following.journal.schemas)


@pytest.mark.parametrize(
    "change",
    [
        "alter table t alter v type text using upper(v)",
        "alter table t alter v type varchar(60) using v || '?'",
        "alter table t alter v type varchar(10)",
        "alter table t alter at type timestamp(0)",
        "alter table t alter v type text using upper(v); alter table t alter v type varchar",
        "alter table t alter v type text; alter table t alter v type text using reverse(v)",
        "alter table t alter n type numeric(12,2)",
        "alter table t alter id type bigint",
        "alter table t alter v type char(30)",
    ],
)
def test_a_type_that_may_have_changed_values_copies_the_table(following, change: str) -> None:
    following.begin(TABLE, ROWS)
    following.then(WRITES[0], change, *WRITES)
    following.end("t")
    assert following.journal.copies("t") == 2


def test_types_that_widen_one_after_the_other(following) -> None:
    following.begin(TABLE, ROWS)
    for change in ("varchar(30)", "varchar(40)", "varchar", "text"):
        following.then(f"alter table t alter v type {change}", *WRITES)  # rows tell before the catalogue is asked
    following.end("t", copies=1)
    assert columns(following.scenario, "t")[1][0] == "v"


def test_partitions_follow_too(following) -> None:
    following.begin(
        "create table t (id int primary key, v varchar(20)) partition by range (id)",
        "create table t1 partition of t for values from (0) to (100)",
        "create table t2 partition of t for values from (100) to (200)",
        "insert into t select i, 'v' || i from generate_series(1, 150) i",
    )
    following.then("alter table t alter v type text", "update t set v = repeat('x', 30) where id % 10 = 0")
    following.end("t", copies=1)


def test_partitions_that_are_rewritten_are_copied(following) -> None:
    following.begin(
        "create table t (id int primary key, v varchar(20)) partition by range (id)",
        "create table t1 partition of t for values from (0) to (100)",
        "insert into t select i, 'v' || i from generate_series(1, 50) i",
    )
    following.then("alter table t alter v type text using upper(v)", "update t set v = v || '!' where id < 4")
    following.end("t")
    assert following.journal.copies("t") == 2


@pytest.mark.parametrize("landing", ["soft_delete", "changelog"])
def test_other_landings_follow_too(scenario, landing: str) -> None:
    scenario.execute(TABLE, ROWS)
    scenario.use(defaults={"landing": landing})
    sync(scenario)
    scenario.execute(WRITES[0], "delete from t where id = 9", "alter table t alter v type text", *WRITES)
    journal = sync(scenario)
    assert not journal.copies("t")
    scenario.assert_equal("t")


def test_a_table_that_was_rewritten_before_is_copied_though_its_files_are_known_since(scenario) -> None:
    """VACUUM FULL too writes a new file; what happened to it meanwhile cannot be told."""
    scenario.execute(TABLE, ROWS)
    sync(scenario)
    scenario.execute("vacuum full t", "alter table t alter v type text", *WRITES)
    journal = sync(scenario)
    assert journal.copies("t") == 1
    scenario.assert_equal("t")
    scenario.execute("vacuum full t")
    sync(scenario)
    scenario.execute("alter table t alter v type varchar", *WRITES)
    assert not sync(scenario).copies("t")
    scenario.assert_equal("t")


@pytest.mark.parametrize("settings", [EAGER, STREAM_ONLY], ids=["eager", "stream only"])
def test_values_under_the_old_and_the_new_type_in_one_window(scenario, settings: dict[str, Any]) -> None:
    scenario.execute(TABLE, ROWS)
    scenario.use(replication=settings)
    sync(scenario)
    with scenario.source.transaction():
        scenario.execute(WRITES[0], "alter table t alter v type text", "update t set v = repeat('y', 100) where id = 5")
    scenario.execute("delete from t where id = 7")
    journal = Journal()
    with running(scenario, journal) as replicator:
        step_until(replicator, lambda: journal.schemas)
        replicator.sync()
    assert not journal.copies("t")
    scenario.assert_equal("t")


def test_bigquery_follows_too(scenario, bigquery_dataset) -> None:
    scenario.execute(TABLE, ROWS)
    scenario.use(destination=bigquery_dataset.settings() | {"batch_seconds": 0.0})
    sync(scenario)
    scenario.execute("alter table t alter v type text, alter at type timestamp", *WRITES)
    scenario.execute("update t set v = repeat('x', 100), at = '2024-01-01 00:00:00.123456' where id = 5")
    journal = sync(scenario)
    assert not journal.copies("t")
    scenario.assert_equal("t")
