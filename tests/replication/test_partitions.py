"""Partitioned tables, published through their root or leaf by leaf."""

from __future__ import annotations

from typing import Any

import pytest

from etl_dagster.model import TableId
from etl_dagster.store.base import TableState
from tests.replication.watching import EAGER, Journal, after_chunks, catch_up, publish, running, step_into, sync

ROOT, LEAVES = "through the root", "leaf by leaf"
PARTITIONED = [
    "create table p (id int primary key, v text) partition by range (id)",
    "create table p0 partition of p for values from (0) to (100)",
    "create table p1 partition of p for values from (100) to (200)",
    "insert into p select i, 'v' || i from generate_series(50, 150) i",
]
P = TableId("public", "p")


class Partitions:
    """A partitioned table, published one way or the other, and a process that follows it."""

    def __init__(self, scenario, way: str, restarts: bool) -> None:
        self.scenario = scenario
        self.by_root = way == ROOT
        self.restarts = restarts
        self.journal = Journal()

    def begin(self, *statements: str, table: str = "p") -> None:
        self.scenario.execute(*statements)
        publish(
            self.scenario,
            f"for table {table} with (publish_via_partition_root = {str(self.by_root).lower()})",
            replication=EAGER,
        )
        self._entered: Any = self.scenario.pipeline.replicator(self.journal)
        self.replicator = self._entered.__enter__()
        catch_up(self.replicator)

    def then(self, *statements: str) -> None:
        if self.restarts:
            self.close()
        self.scenario.execute(*statements)
        if self.restarts:
            self._entered = self.scenario.pipeline.replicator(self.journal)
            self.replicator = self._entered.__enter__()
        catch_up(self.replicator)
        catch_up(self.replicator)

    def together(self, *statements: str) -> None:
        with self.scenario.source.transaction():
            self.scenario.execute(*statements)
        self.then()

    def close(self) -> None:
        if self._entered is not None:
            self._entered.__exit__(None, None, None)
            self._entered = None

    def end(self, *leaves: str, root: str = "p") -> None:
        """Both sides are equal: the root, or each of the leaves."""
        self.close()
        sync(self.scenario, self.journal)
        tables = (root,) if self.by_root else leaves
        self.scenario.assert_equal(*tables)
        live = {
            record.table.name
            for record in self.scenario.pipeline._store.tables().values()
            if record.state is TableState.READY
        }
        assert live == set(tables)


@pytest.fixture(params=[ROOT, LEAVES])
def way(request) -> str:
    return request.param


@pytest.fixture
def partitions(scenario, way: str) -> Any:
    made = Partitions(scenario, way, restarts=False)
    yield made
    made.close()


@pytest.fixture(params=[(ROOT, False), (ROOT, True), (LEAVES, False)], ids=[ROOT, f"{ROOT}, restarted", LEAVES])
def both(scenario, request) -> Any:
    way, restarts = request.param
    made = Partitions(scenario, way, restarts=restarts)
    yield made
    made.close()


def test_rows_of_all_kinds(partitions) -> None:
    partitions.begin(*PARTITIONED)
    partitions.then(
        "insert into p values (1, 'a'), (199, 'b')",
        "update p set v = 'c' where id in (60, 140)",
        "delete from p where id in (61, 141)",
        "update p set id = id - 40 where id between 50 and 55",
    )
    partitions.end("p0", "p1")


def test_a_row_moves_to_another_partition(partitions) -> None:
    partitions.begin(*PARTITIONED)
    partitions.then(
        "update p set id = id + 100 where id between 60 and 70",
        "update p set id = id - 99, v = 'back' where id between 101 and 103",
    )
    partitions.together(
        "update p set id = 190 where id = 71",
        "update p set v = 'moved' where id = 190",
        "update p set id = 40 where id = 190",
    )
    partitions.end("p0", "p1")


def test_unchanged_toast_moves_to_another_partition(partitions) -> None:
    partitions.begin(
        *PARTITIONED,
        "alter table p alter v set storage external",
        "update p set v = repeat('long' || id, 2000)",
        "alter table p add column n int",
    )
    partitions.then(
        "update p set n = 1 where id < 70",
        "update p set id = id + 100 where id between 52 and 60",
        "update p set n = 2 where id between 152 and 158",
    )
    partitions.end("p0", "p1")


def test_a_new_partition_needs_no_fresh_copy(both) -> None:
    both.begin(*PARTITIONED)
    both.then(
        "create table p2 partition of p for values from (200) to (300)",
        "insert into p select i, 'new' from generate_series(200, 220) i",
    )
    both.together(
        "create table p3 partition of p for values from (300) to (400)",
        "insert into p select i, 'same' from generate_series(300, 320) i",
        "update p set id = id + 300 where id < 60",
    )
    both.end("p0", "p1", "p2", "p3")
    assert both.journal.copies("p") == (1 if both.by_root else 0)
    assert {both.journal.copies(leaf) for leaf in ("p0", "p1", "p2", "p3")} == ({0} if both.by_root else {1})


def test_a_filled_table_is_attached(both) -> None:
    both.begin(
        *PARTITIONED,
        "create table p2 (like p including all)",
        "insert into p2 select i, 'own' from generate_series(200, 250) i",
    )
    both.then(
        "alter table p attach partition p2 for values from (200) to (300)", "update p set v = 'attached' where id > 240"
    )
    both.end("p0", "p1", "p2")


def test_a_table_is_filled_and_attached_in_one_transaction(both) -> None:
    both.begin(*PARTITIONED)
    both.together(
        "create table p2 (like p including all)",
        "insert into p2 select i, 'own' from generate_series(200, 250) i",
        "alter table p attach partition p2 for values from (200) to (300)",
        "update p set v = 'attached' where id > 240",
    )
    both.end("p0", "p1", "p2")


def test_a_partition_is_detached(both) -> None:
    both.begin(*PARTITIONED)
    both.then(
        "update p set v = 'last' where id = 120",
        "alter table p detach partition p1",
        "update p1 set v = 'alone'",
        "update p set v = 'x' where id = 60",
    )
    both.end("p0")


def test_a_partition_is_detached_changed_and_attached_again(both) -> None:
    both.begin(*PARTITIONED)
    both.then(
        "alter table p detach partition p1",
        "update p1 set v = 'alone' where id < 120",
        "delete from p1 where id > 140",
        "alter table p attach partition p1 for values from (100) to (200)",
        "update p set v = 'again' where id = 130",
    )
    both.end("p0", "p1")


def test_a_partition_is_dropped(both) -> None:
    both.begin(*PARTITIONED)
    both.then("drop table p1", "update p set v = 'x' where id = 60")
    both.end("p0")


def test_a_partition_is_dropped_and_made_again(both) -> None:
    both.begin(*PARTITIONED)
    both.then(
        "drop table p1",
        "create table p1 partition of p for values from (100) to (200)",
        "insert into p values (111, 'new')",
    )
    both.end("p0", "p1")


def test_one_leaf_is_truncated(both) -> None:
    both.begin(*PARTITIONED)
    both.then("update p set v = 'x' where id = 60", "truncate p1", "insert into p values (101, 'after')")
    both.end("p0", "p1")


def test_one_leaf_is_truncated_in_the_transaction_that_fills_it(both) -> None:
    both.begin(*PARTITIONED)
    both.together("truncate p1", "insert into p select i, 'again' from generate_series(120, 170) i")
    both.end("p0", "p1")


def test_the_root_is_truncated(both) -> None:
    both.begin(*PARTITIONED)
    both.then("truncate p", "insert into p values (70, 'a'), (170, 'b')")
    both.end("p0", "p1")


def test_partitions_of_partitions(both) -> None:
    both.begin(
        "create table p (id int, day int, v text, primary key (id, day)) partition by range (id)",
        "create table p0 partition of p for values from (0) to (100) partition by list (day)",
        "create table p0a partition of p0 for values in (1, 2)",
        "create table p0b partition of p0 default",
        "create table p1 partition of p for values from (100) to (200)",
        "insert into p select i, i % 4, 'v' || i from generate_series(50, 150) i",
    )
    both.then(
        "update p set day = 1 where id between 60 and 70",
        "update p set id = id + 100 where id between 71 and 80 and day = 3",
        "create table p2 partition of p for values from (200) to (300) partition by hash (id)",
        "create table p2a partition of p2 for values with (modulus 2, remainder 0)",
        "create table p2b partition of p2 for values with (modulus 2, remainder 1)",
        "insert into p select i, 7, 'deep' from generate_series(200, 230) i",
        "delete from p where id = 65",
    )
    both.end("p0a", "p0b", "p1", "p2a", "p2b")


def test_a_filled_subtree_is_attached_and_another_detached(both) -> None:
    both.begin(
        *PARTITIONED,
        "create table p2 (like p including all) partition by range (id)",
        "create table p2a partition of p2 for values from (200) to (250)",
        "insert into p2 select i, 'deep' from generate_series(200, 240) i",
    )
    both.then(
        "alter table p attach partition p2 for values from (200) to (300)", "update p set v = 'attached' where id > 230"
    )
    both.then(
        "alter table p2 detach partition p2a", "insert into p values (51, 'x') on conflict (id) do update set v = 'x'"
    )
    both.end("p0", "p1")


def test_a_default_partition(both) -> None:
    both.begin(
        *PARTITIONED,
        "create table rest partition of p default",
        "insert into p select i, 'far' from generate_series(900, 950) i",
    )
    both.then(
        "update p set id = id + 1000 where id between 60 and 65",
        "insert into p values (-5, 'near')",
        "update p set id = 5 where id = -5",
    )
    both.end("p0", "p1", "rest")


def test_rows_of_the_default_partition_become_one_of_their_own(both) -> None:
    both.begin(
        *PARTITIONED,
        "create table rest partition of p default",
        "insert into p select i, 'far' from generate_series(900, 950) i",
    )
    both.together(
        "alter table p detach partition rest",
        "create table p9 partition of p for values from (900) to (925)",
        "insert into p select * from rest where id < 925",
        "delete from rest where id < 925",
        "alter table p attach partition rest default",
    )
    both.end("p0", "p1", "p9", "rest")


def test_a_partition_is_attached_while_the_table_is_copied(scenario, way: str) -> None:
    scenario.execute(
        *PARTITIONED[:3],
        "insert into p select i, repeat('v', 500) from generate_series(0, 199) i",
        "create table p2 (like p including all)",
        "insert into p2 select i, 'own' from generate_series(200, 250) i",
    )
    root = way == ROOT
    publish(
        scenario,
        f"for table p with (publish_via_partition_root = {str(root).lower()})",
        replication={**EAGER, "chunk_bytes": 8192 * 2, "copy_connections": 1},
    )
    sync(
        scenario,
        after_chunks(
            scenario,
            "update p set v = 'x' where id % 10 = 0",
            "alter table p attach partition p2 for values from (200) to (300)",
            "update p set v = 'y' where id > 190",
        ),
    )
    sync(scenario)
    scenario.assert_equal(*(["p"] if root else ["p0", "p1", "p2"]))


def test_a_partitioned_table_of_a_published_schema(scenario) -> None:
    """Without the setting, a pipeline's own publication is told apart by the catalogue, not by what we assume."""
    scenario.execute(*PARTITIONED, "create table plain (id int primary key)", "insert into plain values (1)")
    scenario.sync()
    scenario.execute(
        "update p set v = 'x' where id in (60, 140)",
        "create table p2 partition of p for values from (200) to (300)",
        "insert into p values (250, 'n')",
    )
    scenario.sync()
    scenario.assert_equal("plain")
    total = sum(
        found.rows
        for table, found in scenario.pipeline.compare().items()
        if table.name.startswith("p") and table.name != "plain"
    )
    assert total == 102


def test_the_setting_is_changed_while_the_pipeline_runs(scenario) -> None:
    scenario.execute(*PARTITIONED)
    publish(scenario, "for table p", replication=EAGER)
    with running(scenario) as replicator:
        catch_up(replicator)
        scenario.execute(
            "alter publication pub_own set (publish_via_partition_root = true)",
            "update p set v = 'x' where id in (60, 140)",
        )
        step_into(replicator, P, TableState.READY)
        catch_up(replicator)
        scenario.execute("update p set v = 'y' where id in (61, 141)")
        catch_up(replicator)
    scenario.assert_equal("p")
    assert scenario.state("p0") is TableState.REMOVED
