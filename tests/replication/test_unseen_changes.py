"""What the stream does not tell and only the catalogue shows, also when everything looks as it did before."""

from __future__ import annotations

import pytest

from tests.replication.watching import publish, sync

ROWS = "insert into t select i, 'v' || i from generate_series(1, 20) i"
TABLE = ("create table t (id int primary key, v text)", ROWS)
MOODS = ("create type mood as enum ('a', 'b')", "create table t (id int primary key, m mood, ms mood[])")
PAIRS = ("create type pair as (a int, b text)", "create table t (id int primary key, p pair)")
INSERTS_ONLY = "alter publication pub_own set (publish = 'insert')"
EVERYTHING = "alter publication pub_own set (publish = 'insert, update, delete, truncate')"
UNSEEN = "update t set v = 'unseen' where id < 5"


def copies_after(scenario, publication: str, made: tuple[str, ...], *changes: str) -> int:
    """How often the table is copied because of changes that were made while nothing ran."""
    scenario.execute(*made)
    publish(scenario, publication)
    sync(scenario)
    scenario.execute(*changes)
    copies = sync(scenario).copies()
    scenario.assert_equal("t")
    return copies


def test_a_publication_that_left_out_updates_for_a_while(scenario) -> None:
    assert copies_after(scenario, "for table t", TABLE, INSERTS_ONLY, UNSEEN, "delete from t where id = 6", EVERYTHING)


def test_a_publication_that_bore_another_name_for_a_while(scenario) -> None:
    changes = (
        "alter publication pub_own rename to away",
        "create publication pub_own for table t with (publish = 'insert')",
        UNSEEN,
        "drop publication pub_own",
        "alter publication away rename to pub_own",
    )
    assert copies_after(scenario, "for table t", TABLE, *changes)


@pytest.mark.since(15)
def test_a_table_that_was_in_another_schema_for_a_while(scenario) -> None:
    scenario.execute("create schema elsewhere")
    changes = (
        "alter table t set schema elsewhere",
        "update elsewhere.t set v = 'unseen'",
        "alter table elsewhere.t set schema public",
    )
    assert copies_after(scenario, "for tables in schema public", TABLE, *changes)


def test_a_root_that_left_while_its_partition_stayed(scenario) -> None:
    made = (
        "create table t (id int primary key, v text) partition by range (id)",
        "create table t1 partition of t for values from (0) to (10)",
        "create table t2 partition of t default",
        ROWS,
    )
    changes = (
        "alter publication pub_own drop table t",
        "update t set v = 'unseen'",
        "alter publication pub_own add table t",
    )
    what = "for table t, t1 with (publish_via_partition_root = true)"
    assert copies_after(scenario, what, made, *changes)


@pytest.mark.parametrize(
    "publication", ["for all tables", pytest.param("for tables in schema public", marks=pytest.mark.since(15))]
)
def test_a_table_that_was_unlogged_for_a_while(scenario, publication: str) -> None:
    changes = ("alter table t set unlogged", UNSEEN, "alter table t set logged")
    assert copies_after(scenario, publication, TABLE, *changes)


def test_a_table_that_was_only_compacted_or_got_a_longer_row_is_not_copied(scenario) -> None:
    changes = (
        "vacuum full t",
        "cluster t using t_pkey",
        "alter table t add w text default 'w'",
        "insert into t (id) values (90)",
    )
    assert not copies_after(scenario, "for all tables", TABLE, *changes)


def test_a_key_that_was_dropped_and_made_again(scenario) -> None:
    changes = (
        "alter table t replica identity full",
        "alter table t drop constraint t_pkey",
        "insert into t values (1, 'twin')",
        "delete from t where v = 'twin'",
        "alter table t add primary key (id)",
    )
    assert copies_after(scenario, "for table t", TABLE, *changes)


def test_a_label_that_was_renamed(scenario) -> None:
    made = (*MOODS, "insert into t values (1, 'a', '{a,b}'), (2, 'b', '{}')")
    assert copies_after(scenario, "for table t", made, "alter type mood rename value 'a' to 'z'")


def test_a_label_that_was_added_or_an_enum_that_is_used_no_more_is_no_reason_to_copy(scenario) -> None:
    made = (*MOODS, "insert into t values (1, 'a', '{a,b}'), (2, 'b', '{}')")
    changes = ("alter type mood add value 'c'", "insert into t values (3, 'c', '{c}')")
    assert not copies_after(scenario, "for table t", made, *changes)
    scenario.execute("alter table t drop column m, drop column ms", "insert into t values (4)")
    assert not sync(scenario).copies()


@pytest.mark.parametrize("change", ["add attribute c int", "drop attribute a"])
def test_a_composite_type_that_was_altered(scenario, change: str) -> None:
    made = (*PAIRS, "insert into t values (1, row(1, 'x'))")
    assert copies_after(scenario, "for table t", made, f"alter type pair {change}")


@pytest.mark.parametrize(
    ("change", "copies"),
    [
        ("alter table t alter v type text using upper(v)", 1),
        ("vacuum full t", 0),
        ("truncate t", 0),
        ("alter table t alter v set default 'x'", 0),
    ],
)
def test_rows_rewritten_in_place_are_copied_afresh(scenario, change: str, copies: int) -> None:
    scenario.execute("create table t (id int primary key, v text)", "insert into t values (1, 'a'), (2, 'b')")
    publish(scenario, "for table t")
    sync(scenario)
    scenario.execute(change, "insert into t values (3, 'c')")
    journal = sync(scenario)
    assert journal.copies() == copies
    scenario.assert_equal("t")
