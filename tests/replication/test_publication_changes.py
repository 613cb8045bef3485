"""A publication that changes while the pipeline runs: it takes effect without restart, and loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from etl_dagster.errors import PublicationError
from etl_dagster.model import TableId
from etl_dagster.store.base import TableState
from tests.replication.watching import (
    EAGER,
    Journal,
    T,
    catch_up,
    columns,
    publish,
    running,
    select,
    step_into,
    step_until,
    sync,
)

TABLE = "create table t (id int primary key, v text, n int default 1)"
ROWS = "insert into t select i, 'v' || i from generate_series(1, 50) i"
OTHER = TableId("public", "other")


class Running:
    """One process that follows its own publication while the test changes it."""

    def __init__(self, scenario, replicator, journal: Journal) -> None:
        self.scenario = scenario
        self.replicator = replicator
        self.journal = journal

    def then(self, *statements: str) -> None:
        """Statements, and what follows from them."""
        self.scenario.execute(*statements)
        catch_up(self.replicator)
        catch_up(self.replicator)


@contextmanager
def following(scenario, publication: str, *statements: str, **settings: Any) -> Iterator[Running]:
    """A process that has copied everything; afterwards both sides are equal."""
    scenario.execute(TABLE, ROWS, "create table other (id int primary key, v text)", *statements)
    publish(scenario, publication, replication={**EAGER, **settings})
    journal = Journal()
    with running(scenario, journal) as replicator:
        catch_up(replicator)
        yield Running(scenario, replicator, journal)
        catch_up(replicator)
        catch_up(replicator)
    scenario.assert_equal("t")


# -- tables that join and leave ----------------------------------------------------------------------------------------


def test_a_table_joins_while_a_transaction_that_wrote_to_it_is_open(scenario, connect) -> None:
    early = connect()
    with following(scenario, "for table t", "insert into other select i, 'o' from generate_series(1, 20) i") as run:
        early.execute("begin; insert into other values (100, 'early'); update other set v = 'early' where id = 1")
        run.scenario.execute("alter publication pub_own add table other")
        step_into(run.replicator, OTHER, TableState.COPYING)
        for _ in range(5):
            run.replicator.step()
        assert run.replicator.records[OTHER].state is TableState.COPYING
        early.execute("delete from other where id = 2; commit")
        run.then("insert into other values (101, 'late')")
    scenario.assert_equal("t", "other")
    assert run.journal.copies("other") == 1
    assert run.journal.copies("t") == 1


def test_a_table_joins_while_a_transaction_that_wrote_to_it_is_prepared(scenario, connect) -> None:
    early = connect()
    with following(scenario, "for table t", "insert into other select i, 'o' from generate_series(1, 20) i") as run:
        early.execute("begin; insert into other values (100, 'early'); delete from other where id = 3")
        early.execute("prepare transaction 'joins'")
        run.scenario.execute("alter publication pub_own add table other")
        step_into(run.replicator, OTHER, TableState.COPYING)
        for _ in range(5):
            run.replicator.step()
        assert run.replicator.records[OTHER].state is TableState.COPYING
        early.execute("commit prepared 'joins'")
        run.then("insert into other values (101, 'late')")
    scenario.assert_equal("t", "other")


def test_a_transaction_that_began_early_but_writes_late_is_not_lost_either(scenario, connect) -> None:
    early = connect()
    with following(scenario, "for table t") as run:
        early.execute("begin; update t set v = 'first' where id = 1")
        run.scenario.execute("alter publication pub_own add table other")
        step_until(run.replicator, lambda: run.replicator.records.get(OTHER) is not None)
        early.execute("insert into other values (1, 'after the publication')")
        for _ in range(5):
            run.replicator.step()
        early.execute("commit")
        run.then()
    scenario.assert_equal("t", "other")


def test_a_table_leaves_and_comes_back(scenario) -> None:
    with following(scenario, "for table t, other") as run:
        run.then("insert into other values (1, 'a')", "alter publication pub_own drop table other")
        step_into(run.replicator, OTHER, TableState.REMOVED)
        run.then(
            "insert into other values (2, 'unseen')", "delete from other where id = 1", "insert into t (id) values (60)"
        )
        run.then("alter publication pub_own add table other", "insert into other values (3, 'seen')")
    scenario.assert_equal("t", "other")
    assert (run.journal.copies("t"), run.journal.copies("other")) == (1, 2)


def test_a_table_leaves_while_it_is_copied(scenario, connect) -> None:
    early = connect()
    with following(scenario, "for table t") as run:
        early.execute("begin; insert into other values (1, 'early')")
        run.scenario.execute("alter publication pub_own add table other")
        step_into(run.replicator, OTHER, TableState.COPYING)
        run.scenario.execute("alter publication pub_own drop table other")
        step_into(run.replicator, OTHER, TableState.REMOVED)
        early.execute("commit")
        run.then("alter publication pub_own add table other")
    scenario.assert_equal("t", "other")


def test_a_table_leaves_with_changes_that_were_not_read_yet(scenario) -> None:
    with following(scenario, "for table t, other") as run:
        run.then("insert into other values (1, 'a')")
        run.scenario.execute(
            "insert into other values (2, 'published')",
            "alter publication pub_own drop table other",
            "insert into other values (3, 'not published')",
            "insert into t (id) values (70)",
        )
    assert scenario.state("other") is TableState.REMOVED


@pytest.mark.since(15)
def test_a_table_of_a_schema_joins_by_being_created(scenario) -> None:
    scenario.execute(TABLE, ROWS)
    publish(scenario, "for tables in schema public", replication=EAGER)
    journal = Journal()
    with running(scenario, journal) as replicator:
        catch_up(replicator)
        with scenario.source.transaction():
            scenario.execute("create table made (id int primary key)", "insert into made values (1), (2)")
        step_until(replicator, lambda: TableId("public", "made") in replicator.records)
        scenario.execute("insert into made values (3)")
        catch_up(replicator)
        scenario.execute("drop table made")
        step_into(replicator, TableId("public", "made"), TableState.REMOVED)
        scenario.execute("create table made (id int primary key, v text)", "insert into made values (7, 'x')")
        step_into(replicator, TableId("public", "made"), TableState.READY)
        catch_up(replicator)
    scenario.assert_equal("t", "made")
    assert journal.copies() == 1


# -- column lists ------------------------------------------------------------------------------------------------------


@pytest.mark.since(15)
def test_a_column_list_is_added_and_taken_away(scenario) -> None:
    with following(scenario, "for table t") as run:
        run.then(
            "update t set n = 2 where id = 1",
            "alter publication pub_own set table t (id, v)",
            "update t set v = 'x', n = 3 where id < 5",
            "insert into t values (60, 'y', 4)",
        )
        assert [column.name for column in run.replicator.schemas[T].columns] == ["id", "v"]
        run.then(
            "update t set n = 5 where id between 3 and 8",
            "alter publication pub_own set table t",
            "update t set n = 6 where id between 6 and 10",
        )
        assert [column.name for column in run.replicator.schemas[T].columns] == ["id", "v", "n"]


@pytest.mark.since(15)
def test_a_column_list_changes(scenario) -> None:
    with following(scenario, "for table t (id, v)") as run:
        run.then("update t set n = 9 where id = 1", "update t set v = 'x' where id = 2")
        run.then(
            "alter publication pub_own set table t (id, n)",
            "update t set n = 8, v = 'unseen' where id < 4",
            "insert into t values (60, 'z', 7)",
        )
        assert [column.name for column in run.replicator.schemas[T].columns] == ["id", "n"]
    assert {"id", "n"} <= set(columns(scenario))


@pytest.mark.since(15)
def test_a_column_list_changes_with_a_transaction_open_that_wrote_before(scenario, connect) -> None:
    early = connect()
    with following(scenario, "for table t (id, v)") as run:
        early.execute("begin; update t set n = 9, v = 'early' where id = 1; insert into t values (80, 'e', 8)")
        run.scenario.execute("alter publication pub_own set table t (id, v, n)")
        step_until(run.replicator, lambda: run.replicator.records[T].state is not TableState.READY)
        for _ in range(5):
            run.replicator.step()
        assert run.replicator.records[T].state is not TableState.READY
        early.execute("update t set n = 10 where id = 2; commit")
        run.then("update t set n = 11 where id = 3")
    assert select(scenario, "select n from public.t where id in (1, 2, 3, 80) order by id") == [
        (9,),
        (10,),
        (11,),
        (8,),
    ]


@pytest.mark.since(15)
def test_a_new_column_does_not_come_through_a_column_list(scenario) -> None:
    with following(scenario, "for table t (id, v)") as run:
        run.then("alter table t add column extra int default 5", "update t set extra = 6, v = 'x' where id = 1")
        run.then(
            "alter table t drop column n", "alter table t rename column v to w", "update t set w = 'y' where id = 2"
        )
        assert [column.name for column in run.replicator.schemas[T].columns] == ["id", "w"]
    assert run.journal.copies() == 1


# -- row filters -------------------------------------------------------------------------------------------------------


@pytest.mark.since(15)
@pytest.mark.parametrize(
    ("before", "after"),
    [("t", "t where (id > 20)"), ("t where (id > 20)", "t where (id <= 20)"), ("t where (id > 20)", "t")],
    ids=["added", "changed", "removed"],
)
@pytest.mark.parametrize("how", ["committed", "prepared"])
def test_a_row_filter_changes_with_transactions_open(scenario, connect, before: str, after: str, how: str) -> None:
    early = connect()
    with following(scenario, f"for table {before}") as run:
        run.then("update t set v = 'first' where id in (10, 30)")
        early.execute(
            "begin; update t set v = 'early' where id in (11, 31); insert into t values (-1, 'e'), (90, 'e');"
            "delete from t where id in (12, 32); update t set id = id + 100 where id = 13; update t set id = -id where id = 33"
        )
        if how == "prepared":
            early.execute("prepare transaction 'filter'")
        run.scenario.execute(f"alter publication pub_own set table {after}")
        step_until(run.replicator, lambda: run.replicator.records[T].state is not TableState.READY)
        for _ in range(5):
            run.replicator.step()
        assert run.replicator.records[T].state is not TableState.READY
        early.execute("commit prepared 'filter'" if how == "prepared" else "commit")
        run.then(
            "update t set v = 'late' where id in (14, 34)",
            "update t set id = id + 200 where id = 15",
            "update t set id = 5 - id where id = 35",
            "delete from t where id in (16, 36)",
        )
    assert run.journal.copies() == 2


@pytest.mark.since(15)
def test_rows_move_in_and_out_of_a_filter(scenario) -> None:
    with following(scenario, "for table t where (id > 20)") as run:
        assert run.replicator.row_count(T) == 30
        run.then("update t set id = id + 1000 where id <= 10", "update t set id = id - 1000 where id between 21 and 30")
        assert run.replicator.row_count(T) == 30
        run.then("truncate t", "insert into t select i from generate_series(11, 30) i")
        assert run.replicator.row_count(T) == 10
    assert run.journal.copies() == 1


# -- the publication itself --------------------------------------------------------------------------------------------


def test_a_publication_is_dropped_and_made_again_with_changes_between(scenario, pg_server) -> None:
    version = scenario.source.info.server_version
    with following(scenario, "for table t, other") as run:
        run.then("insert into other values (1, 'a')")
        run.then(
            "update t set v = 'published' where id = 1",
            "drop publication pub_own",
            "update t set v = 'unseen' where id = 2",
            "delete from t where id = 3",
            "create publication pub_own for table t, other",
            "update t set v = 'seen' where id = 4",
        )
        again = [notice for notice in run.journal.notices if "afresh" in notice]
        assert bool(again) is (version < 180_000)
    scenario.assert_equal("t", "other")
    assert (run.journal.copies("t"), run.journal.copies("other")) == (2, 2)


def test_a_publication_is_dropped_and_made_again_while_nothing_runs(scenario) -> None:
    with following(scenario, "for table t"):
        pass
    scenario.execute(
        "drop publication pub_own",
        "update t set v = 'unseen' where id = 2",
        "create publication pub_own for table t",
        "update t set v = 'seen' where id = 4",
    )
    journal = sync(scenario)
    scenario.assert_equal("t")
    assert journal.copies() == 1


def test_a_publication_that_is_renamed_is_named_with_what_to_do(scenario) -> None:
    with following(scenario, "for table t"):
        pass
    scenario.execute("alter publication pub_own rename to pub_other")
    with pytest.raises(PublicationError, match="pub_own") as refused:
        sync(scenario)
    assert refused.value.hint
    scenario.execute("alter publication pub_other rename to pub_own", "update t set v = 'x' where id = 1")
    sync(scenario)
    scenario.assert_equal("t")


def test_a_publication_that_withholds_deletes_is_told_by_the_check(scenario) -> None:
    scenario.execute(TABLE, ROWS)
    publish(scenario, "for table t with (publish = 'insert, update, truncate')")
    [found] = [result for result in scenario.pipeline.check() if "delete" in result.detail]
    assert not found.passed
    assert "delete" in found.todo


def test_a_long_transaction_on_another_table_does_not_hold_up_a_table_that_joins(scenario) -> None:
    with psycopg.connect(scenario.dsn) as busy, following(scenario, "for table t") as run:
        busy.execute("update t set v = 'long' where id = 1")
        run.scenario.execute("alter publication pub_own add table other", "insert into other values (1, 'a')")
        step_into(run.replicator, OTHER, TableState.READY)
        busy.commit()
    scenario.assert_equal("t", "other")
