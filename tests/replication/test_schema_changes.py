"""Columns that are added, dropped and renamed follow in the stream; any other change copies that one table afresh."""

from __future__ import annotations

import random
from typing import Any

import psycopg
import pytest

from etl_dagster.destinations.duckdb.core import DuckDbDestination
from etl_dagster.model import TableId
from etl_dagster.postgres import PostgresSource
from etl_dagster.store.base import TableState
from etl_dagster.store.sqlite import SqliteStore
from tests.replication.watching import (
    EAGER,
    Following,
    Journal,
    T,
    after_chunks,
    catch_up,
    columns,
    parts,
    publish,
    running,
    select,
    step_until,
    sync,
)

TABLE = "create table t (id int primary key, v text)"
ROWS = "insert into t select i, 'v' || i from generate_series(1, 50) i"
SMALL_CHUNKS = {"chunk_bytes": 8192 * 2, "copy_connections": 1, "refresh_seconds": 0.2, "idle_poll_seconds": 0.02}


@pytest.fixture(params=["the stream tells", "the catalogue tells"])
def following(scenario, request) -> Any:
    made = Following(scenario, restarts=request.param == "the catalogue tells")
    yield made
    made.close()


# -- columns that are added --------------------------------------------------------------------------------------------


def test_a_column_without_default_is_added(following) -> None:
    following.begin(TABLE, ROWS)
    following.then(
        "alter table t add column n int",
        "insert into t values (51, 'x', 5)",
        "update t set n = id where id < 10",
        "delete from t where id = 20",
    )
    following.end("t", copies=1)


@pytest.mark.parametrize("nullable", ["", "not null"])
def test_a_column_with_a_constant_default_reaches_rows_that_nothing_else_touches(following, nullable: str) -> None:
    following.begin(TABLE, ROWS)
    following.then(f"alter table t add column n int {nullable} default 7", "update t set v = 'x' where id = 1")
    following.end("t", copies=1)
    assert select(following.scenario, "select n, count(*) from public.t group by 1") == [(7, 50)]


def test_defaults_of_many_types_reach_the_rows_that_were_there(following) -> None:
    following.begin(
        "create type mood as enum ('sad', 'it''s, {fine}')", "create domain short as varchar(9)", TABLE, ROWS
    )
    following.then(
        """alter table t
            add a text not null default 'it''s "quoted", \\ and {braced}', add b timestamptz default now(),
            add c numeric(12, 2) default 1.50, add d numeric default 12345678901234567890.123, add e jsonb default '{"a": [1, null]}',
            add f int[] default '{1, NULL, 3}', add g text[] default array['a,b', 'c"d', 'NULL', null], add h bool default true,
            add i date default '2024-02-29', add j uuid default 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
            add k bytea default '\\x00ff5c', add l mood default 'it''s, {fine}', add m short default 'short',
            add n interval default '1 mon -3 days 04:05:06.7', add o time default '12:30', add p inet default '10.0.0.0/8',
            add q float8 default 'NaN', add r int4range default '[1,5)', add s char(5) default 'ab', add u text default '',
            add w bigint default -9223372036854775808, add x real default 0.1, add y money default 3.5, add z json default '{"b":  1}'""",
        "update t set v = 'x' where id = 1",
        "insert into t (id) values (51)",
    )
    following.end("t", copies=1)


@pytest.mark.parametrize(
    "column",
    [
        "double precision default random()",
        "uuid default gen_random_uuid()",
        "serial",
        "int generated always as identity",
    ],
)
def test_a_default_that_differs_from_row_to_row_copies_the_table_afresh(following, column: str) -> None:
    following.begin(TABLE, ROWS)
    following.then(f"alter table t add column n {column}", "update t set v = 'x' where id = 1")
    following.end("t", copies=2)


@pytest.mark.parametrize("in_one_transaction", [True, False])
def test_a_default_that_is_dropped_at_once_after_a_rewrite(following, in_one_transaction: bool) -> None:
    following.begin(TABLE, ROWS)
    migration = [
        "alter table t add column token uuid default gen_random_uuid()",
        "alter table t alter column token drop default",
        "update t set v = 'x' where id = 1",
    ]
    if in_one_transaction:
        following.together(*migration)
    else:
        following.then(*migration)
    following.end("t", copies=2)


def test_a_default_that_is_changed_afterwards_leaves_older_rows_with_the_first_one(following) -> None:
    following.begin(TABLE, ROWS)
    following.then(
        "alter table t add column n int default 7",
        "insert into t (id) values (51)",
        "alter table t alter column n set default 8",
        "insert into t (id) values (52)",
        "alter table t alter column n drop default",
        "insert into t (id) values (53)",
    )
    following.end("t", copies=1)
    query = "select id, n from public.t where id > 49 order by 1"
    assert select(following.scenario, query) == [(50, 7), (51, 7), (52, 8), (53, None)]


@pytest.mark.parametrize("rewrite", ["vacuum full t", "cluster t using t_pkey", "truncate t"])
def test_a_rewrite_makes_postgres_forget_the_value_that_older_rows_have(following, rewrite: str) -> None:
    following.begin(TABLE, ROWS)
    following.then(
        "alter table t add column n int default 7",
        "insert into t (id) values (51)",
        rewrite,
        "update t set v = 'x' where id = 1",
        "insert into t (id) values (52)",
    )
    following.end("t")


def test_a_column_is_added_in_the_transaction_that_fills_it(following) -> None:
    following.begin(TABLE, ROWS)
    following.together(
        "update t set v = 'before' where id = 1",
        "alter table t add column n int default 3",
        "update t set n = id where id < 10",
        "alter table t alter column n set not null",
        "insert into t values (51, 'x', 5)",
        "delete from t where id = 40",
    )
    following.end("t", copies=1)


# -- columns that are dropped or renamed -------------------------------------------------------------------------------


def test_a_dropped_column_stays_at_the_destination_and_is_null_from_then_on(following) -> None:
    following.begin(TABLE, ROWS, "alter table t add column n int default 1")
    following.then("alter table t drop column v", "insert into t values (51, 2)", "update t set n = 9 where id = 1")
    following.end("t", copies=1)
    query = "select id, v, n from public.t where id in (1, 2, 51) order by 1"
    rows = select(following.scenario, query)
    assert rows[1:] == [(2, "v2", 1), (51, None, 2)]
    assert rows[0] in [(1, None, 9), (1, "v1", 9)]


def test_a_column_is_renamed(following) -> None:
    following.begin(TABLE, ROWS)
    following.then(
        "alter table t rename column v to w", "insert into t values (51, 'x')", "update t set w = 'y' where id = 1"
    )
    following.end("t", copies=1)
    assert columns(following.scenario) == ["id", "w"]


def test_a_key_column_is_renamed(following) -> None:
    following.begin(TABLE, ROWS)
    following.then(
        "alter table t rename column id to number",
        "update t set number = -1 where number = 1",
        "delete from t where number = 2",
    )
    following.end("t", copies=1)


def test_two_columns_swap_their_names(following) -> None:
    following.begin(
        "create table t (id int primary key, a text, b text)",
        "insert into t select i, 'a' || i, 'b' || i from generate_series(1, 50) i",
    )
    following.then("update t set a = 'A' where id = 1")
    following.together(
        "alter table t rename column a to c", "alter table t rename column b to a", "alter table t rename column c to b"
    )
    following.then(
        "update t set a = 'new a', b = 'new b' where id = 2", "insert into t (id, a, b) values (51, 'a51', 'b51')"
    )
    following.end("t")
    assert select(following.scenario, "select a, b from public.t where id = 3") == [("b3", "a3")]


@pytest.mark.parametrize("type_", ["int", "text"])
def test_a_column_is_dropped_and_added_again_under_the_same_name(following, type_: str) -> None:
    following.begin(TABLE, ROWS)
    following.then(
        "alter table t drop column v",
        f"alter table t add column v {type_}",
        "update t set v = '5' where id = 1",
        "insert into t values (51, '6')",
    )
    following.end("t")
    assert select(following.scenario, "select v::text, count(*) from public.t group by 1 order by 1 nulls first") == [
        (None, 49),
        ("5", 1),
        ("6", 1),
    ]


@pytest.mark.parametrize("default", ["", "default 4"])
def test_a_column_is_dropped_and_added_again_with_rows_written_between(following, default: str) -> None:
    following.begin(TABLE, ROWS)
    following.then("alter table t drop column v", "insert into t values (51)")
    following.then(
        f"alter table t add column v int {default}", "insert into t values (52, 1)", "update t set v = 2 where id = 1"
    )
    following.end("t", copies=1)


def test_a_rename_makes_room_for_a_new_column_of_the_old_name(following) -> None:
    following.begin(TABLE, ROWS)
    following.then(
        "alter table t rename column v to old_v",
        "alter table t add column v text default 'fresh'",
        "update t set old_v = 'x' where id = 1",
        "insert into t values (51, 'o', 'n')",
    )
    following.end("t")
    assert select(following.scenario, "select old_v, v from public.t where id = 2") == [("v2", "fresh")]


def test_a_column_takes_the_name_of_one_that_was_dropped_before(following) -> None:
    following.begin("create table t (id int primary key, a text, b text)", "insert into t values (1, 'a', 'b')")
    following.then("alter table t drop column a", "insert into t values (2, 'b2')")
    following.then("alter table t rename column b to a", "insert into t values (3, 'b3')")
    following.end("t", copies=1)
    assert select(following.scenario, "select id, a from public.t order by 1") == [(1, "b"), (2, "b2"), (3, "b3")]


def test_a_column_is_renamed_twice_with_rows_written_between(following) -> None:
    following.begin(TABLE, ROWS)
    following.then(
        "alter table t rename column v to w",
        "insert into t values (51, 'x')",
        "alter table t rename column w to z",
        "update t set z = 'y' where id < 5",
    )
    following.end("t", copies=1)


def test_a_rename_and_back_again(following) -> None:
    following.begin(TABLE, ROWS)
    following.then(
        "alter table t rename column v to w",
        "insert into t values (51, 'x')",
        "alter table t rename column w to v",
        "update t set v = 'y' where id < 5",
    )
    following.end("t", copies=1)


def test_several_changes_in_one_transaction_mixed_with_rows(following) -> None:
    following.begin(
        "create table t (id int primary key, a text, b int, c text)",
        "insert into t select i, 'a' || i, i, 'c' from generate_series(1, 50) i",
    )
    following.together(
        "insert into t values (51, 'x', 1, 'c')",
        "alter table t add column d int default 4",
        "update t set d = 5 where id = 1",
        "alter table t drop column c",
        "insert into t values (52, 'y', 2, 6)",
        "alter table t rename column b to bb",
        "update t set bb = -bb where id < 10",
        "delete from t where id in (2, 51)",
        "update t set id = 100 where id = 3",
    )
    following.end("t", copies=1)


def test_many_changes_one_after_the_other(following) -> None:
    following.begin(TABLE, ROWS)
    for number in range(12):
        following.then(
            f"alter table t add column c{number} int default {number}",
            f"insert into t (id, c{number}) values ({100 + number}, -1)",
            *([f"alter table t drop column c{number - 1}"] if number % 3 == 2 and number % 4 else []),
            *([f"alter table t rename column c{number} to d{number}"] if number % 4 == 3 else []),
            f"update t set v = 'x{number}' where id = {number + 1}",
        )
    following.end("t", copies=1)


def test_changes_that_were_rolled_back_did_not_happen(following) -> None:
    following.begin(TABLE, ROWS)
    with following.scenario.source.transaction(force_rollback=True):
        following.scenario.execute("alter table t add column n int default 1", "update t set n = 2")
    with following.scenario.source.transaction():
        following.scenario.execute(
            "update t set v = 'x' where id = 1", "savepoint s", "alter table t drop column v", "rollback to s"
        )
        following.scenario.execute("alter table t add column m int default 3", "insert into t values (51, 'y', 4)")
    following.then()
    following.end("t", copies=1)


# -- changes without rows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarts", [True, False])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("alter table t add column n int default 7", ["id", "v", "n"]),
        ("alter table t rename column v to w", ["id", "w"]),
        ("alter table t drop column v", ["id", "v"]),
        ("alter table t rename column v to w; alter table t add column v int default 3", ["id", "w", "v"]),
    ],
)
def test_a_change_without_any_row_arrives(scenario, change: str, expected: list[str], restarts: bool) -> None:
    scenario.execute(TABLE, ROWS)
    scenario.use(replication=EAGER)
    journal = Journal()
    with running(scenario, journal) as replicator:
        catch_up(replicator)
        if not restarts:
            scenario.execute(change)
            catch_up(replicator)
            replicator.step()
    if restarts:
        scenario.execute(change)
        sync(scenario, journal)
    scenario.assert_equal("t")
    assert sorted(columns(scenario)) == sorted(expected)
    assert journal.copies() == 1
    assert journal.schemas


def test_a_change_of_nothing_that_is_replicated_changes_nothing(following) -> None:
    following.begin(TABLE, ROWS)
    for change in (
        "alter table t alter v set default 'd'",
        "alter table t alter v set not null",
        "alter table t alter v drop not null",
        "alter table t alter v set storage external",
        "alter table t alter v set statistics 10",
        "create index on t (v)",
        "comment on table t is 'comment'",
        "alter table t set (fillfactor = 70)",
        "alter table t add constraint c check (id <> 0)",
        "analyze t",
    ):
        following.then(change, "update t set v = v || '!' where id < 4", "insert into t (id) select max(id) + 1 from t")
    following.end("t", copies=1)
    assert not following.journal.schemas


# -- changes that copy the table afresh --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "alter table t alter n type bigint",
        "alter table t alter v type varchar(60)",
        "alter table t alter n type smallint",
        "alter table t alter n type text using n::text || ' pieces'",
        "alter table t alter v type int using length(v)",
        "alter table t drop constraint t_pkey, add primary key (n)",
        "alter table t drop constraint t_pkey, add primary key (id, n)",
        "drop table t; create table t (n int not null, v text, id int primary key); insert into t values (1, 'new', 2)",
        "alter table t rename to former; create table t (id int primary key, v int); insert into t values (1, 2)",
    ],
)
def test_any_other_change_copies_the_table_afresh(following, change: str) -> None:
    following.begin(
        "create table t (id int primary key, v text, n int not null)",
        "insert into t select i, 'v' || i, i + 100 from generate_series(1, 50) i",
        "create table other (id int primary key)",
    )
    following.then(
        "update t set v = 'before' where id = 1",
        change,
        "update t set v = '7'",
        "insert into t (id, v, n) select 60, '1', 1000" if "create" not in change else "select 1",
        "insert into other values (1)",
    )
    following.end("t", "other")
    assert (following.journal.copies("t"), following.journal.copies("other")) == (2, 1)


def test_a_table_that_is_renamed_is_copied_under_its_new_name(following) -> None:
    following.begin(TABLE, ROWS)
    following.then("alter table t rename to u", "update u set v = 'x' where id = 1", "insert into u values (51, 'y')")
    following.end("u")
    assert following.scenario.state("t") is TableState.REMOVED
    assert following.journal.copies("u") == 1


def test_a_schema_that_is_renamed(following) -> None:
    scenario = following.scenario
    scenario.execute(
        "create schema s", "create table s.t (id int primary key, v text)", "insert into s.t values (1, 'a'), (2, 'b')"
    )
    scenario.execute("create publication pub_own for table s.t")
    following.begin(source=parts(scenario, "pub_own")["source"])
    following.then(
        "alter schema s rename to r", "update r.t set v = 'x' where id = 1", "insert into r.t values (3, 'c')"
    )
    following.end()
    assert set(following.scenario.pipeline.compare()) == {TableId("r", "t")}
    record = scenario.pipeline.record(TableId("s", "t"))
    assert record.state is TableState.REMOVED


# -- while the table is copied -----------------------------------------------------------------------------------------

BIG = "insert into t select i, 'v' || i || repeat('x', 40) from generate_series(1, 4000) i"
DURING = [
    "alter table t add column n int default 5",
    "alter table t drop column v; alter table t add column v int default 2",
    "alter table t rename column v to w; update t set w = 'renamed' where id % 5 = 0",
    "alter table t alter v type varchar(80)",
    "alter table t add column token uuid default gen_random_uuid(); alter table t alter token drop default",
]


@pytest.mark.parametrize("change", DURING)
@pytest.mark.parametrize("live", [False, True], ids=["first copy", "re-sync of a live table"])
def test_a_change_while_the_table_is_copied(scenario, change: str, live: bool) -> None:
    scenario.execute(TABLE, BIG)
    if live:
        scenario.sync()
        scenario.execute("update t set v = 'live' where id = 10")
        scenario.pipeline.request_resync(T)
    scenario.use(replication=SMALL_CHUNKS)
    sync(
        scenario, after_chunks(scenario, "delete from t where id % 100 = 0", change, "insert into t (id) values (5000)")
    )
    sync(scenario)
    assert scenario.state("t") is TableState.READY
    scenario.assert_equal("t")


def test_a_change_between_the_copy_and_its_end(scenario) -> None:
    scenario.execute(TABLE, ROWS)
    scenario.use(replication=EAGER)
    journal = Journal()

    def change(record) -> None:
        if record.state is TableState.COPIED and journal.copies() == 1:
            scenario.execute("alter table t add column n int default 5", "update t set n = 6 where id = 1")

    journal._on_change = change
    sync(scenario, journal)
    sync(scenario, journal)
    scenario.assert_equal("t")


# -- deaths ------------------------------------------------------------------------------------------------------------

DEATHS = {
    "after the destination's commit": (DuckDbDestination, "write_events", True),
    "before the store knows the position": (SqliteStore, "save_slot", False),
    "before the slot moves": (PostgresSource, "advance_slot", False),
}
MIGRATION = [
    "insert into t (id, v) values (51, 'x')",
    "alter table t add column n int default 7",
    "update t set n = 8 where id = 2",
    "alter table t rename column v to w",
    "update t set w = 'renamed' where id = 3",
    "alter table t drop column gone",
    "insert into t values (52, 'y')",
    "alter table t add column m text default 'late'",
    "update t set m = 'more' where id < 5",
]


class Dies(Exception):
    """The end of a process."""


@pytest.mark.parametrize("moment", DEATHS)
@pytest.mark.parametrize("window", [1, 1000], ids=["small windows", "one window"])
def test_an_older_relation_that_comes_again_after_a_death_undoes_nothing(
    scenario, monkeypatch, moment: str, window: int
) -> None:
    scenario.execute("create table t (id int primary key, v text, gone text default 'old')", ROWS)
    scenario.sync()
    scenario.use(replication={**STEADY, "min_window_changes": window, "max_window_changes": window})
    scenario.execute(*MIGRATION)
    owner, name, after = DEATHS[moment]
    original = getattr(owner, name)
    journal, deaths = Journal(), 0
    for countdown in (1, 2, 3, 2, 1):
        left = [countdown]

        def dying(self, *arguments: Any, left: list[int] = left, **named: Any) -> Any:
            left[0] -= 1
            result = original(self, *arguments, **named) if after or left[0] > 0 else None
            if left[0] <= 0:
                raise Dies
            return result

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, dying)
            try:
                with running(scenario, journal) as replicator:
                    catch_up(replicator)
            except Dies:
                deaths += 1
    assert deaths
    sync(scenario, journal)
    scenario.assert_equal("t")
    assert journal.copies() == 0, [record.reason for record in journal.records]
    rows = select(scenario, "select id, w, n, m, gone from public.t where id in (1, 2, 10, 52) order by 1")
    assert [row[:4] for row in rows] == [
        (1, "v1", 7, "more"),
        (2, "v2", 8, "more"),
        (10, "v10", 7, "late"),
        (52, "y", 7, "late"),
    ]
    assert [row[4] for row in rows[2:]] == ["old", None]


STEADY = {"refresh_seconds": 0.2, "idle_poll_seconds": 0.02}


# -- chance ------------------------------------------------------------------------------------------------------------


class Migrations:
    """Random statements for a table whose columns it knows."""

    def __init__(self, dice: random.Random, table: str) -> None:
        self.dice = dice
        self.table = table
        self.columns = {"a": "text", "b": "int"}
        self.made = 0
        self.copies_afresh = False

    def create(self) -> list[str]:
        return [
            f"create table {self.table} (id int primary key, a text, b int)",
            f"insert into {self.table} select i, 'a' || i, i from generate_series(1, 30) i",
        ]

    def next(self) -> str:
        return self._alter() if self.dice.random() < 0.35 else self._write()

    def _write(self) -> str:
        first = self.dice.randint(1, 40)
        what = self.dice.random()
        if what < 0.3:
            names = ", ".join(["id", *self.columns])
            values = ", ".join(["g", *(self._value(kind) for kind in self.columns.values())])
            return f"insert into {self.table} ({names}) select {values} from generate_series({first}, {first + 5}) g on conflict do nothing"
        if what < 0.7 and self.columns:
            name = self.dice.choice(sorted(self.columns))
            return f"update {self.table} set {name} = {self._value(self.columns[name])} where id between {first} and {first + 8}"
        if what < 0.85:
            return f"delete from {self.table} where id between {first} and {first + 2}"
        if what < 0.97:
            return f"update {self.table} set id = -id where id = {first} and not exists (select from {self.table} where id = -{first})"
        return f"truncate {self.table}"

    def _value(self, kind: str) -> str:
        return {"int": str(self.dice.randint(0, 99)), "text": f"'s{self.dice.randint(0, 99)}'", "date": "'2024-01-01'"}[
            kind
        ]

    def _alter(self) -> str:
        what = self.dice.random()
        if what < 0.45 or not self.columns:
            return self._add()
        name = self.dice.choice(sorted(self.columns))
        if what < 0.65:
            del self.columns[name]
            return f"alter table {self.table} drop column {name}"
        if what < 0.9:
            new = self._name()
            self.columns[new] = self.columns.pop(name)
            return f"alter table {self.table} rename column {name} to {new}"
        self.columns[name] = "text"
        return f"alter table {self.table} alter column {name} drop default, alter column {name} type text"

    def _add(self) -> str:
        name, kind = self._name(), self.dice.choice(["int", "text", "date"])
        self.columns[name] = kind
        default = self.dice.choice(["", f"default {self._value(kind)}", f"not null default {self._value(kind)}"])
        return f"alter table {self.table} add column {name} {kind} {default}"

    def _name(self) -> str:
        free = [name for name in "abcdefgh" if name not in self.columns]
        self.made += 1
        return self.dice.choice(free) if free else f"c{self.made}"


@pytest.mark.parametrize("seed", range(8))
def test_random_changes_and_rows_in_windows_of_random_size(scenario, seed: int) -> None:
    dice = random.Random(seed)
    tables = [Migrations(dice, "t"), Migrations(dice, "u")]
    scenario.execute(*(statement for table in tables for statement in table.create()))
    window = dice.choice([1, 3, 10, 1000])
    made = Following(
        scenario,
        restarts=seed % 3 == 0,
        min_window_changes=window,
        max_window_changes=window,
        refresh_seconds=dice.choice([0.0001, 0.05, 1000]),
    )
    made.begin()
    for _ in range(dice.randint(4, 8)):
        with_one = dice.random() < 0.5
        statements = [dice.choice(tables).next() for _ in range(dice.randint(2, 14))]
        if with_one:
            made.together(*statements)
        else:
            made.then(*statements)
    made.end("t", "u")


def test_a_change_that_stays_open_does_not_hold_up_the_other_tables(scenario) -> None:
    scenario.execute(TABLE, ROWS, "create table other (id int primary key)")
    impatient = {"connection": {"dsn": scenario.dsn, "lock_timeout_ms": 200}}
    scenario.use(
        replication=EAGER,
        source={
            **parts(scenario, "pub_test")["source"],
            **impatient,
            "publication": {"name": "pub_test", "schemas": ["public"]},
        },
    )
    with running(scenario) as replicator, psycopg.connect(scenario.dsn) as migration:
        catch_up(replicator)
        migration.execute("alter table t add column n int default 5")
        migration.execute("insert into t values (51, 'x', 6)")
        scenario.execute("insert into other values (1)")
        catch_up(replicator)
        assert replicator.row_count(TableId("public", "other")) == 1
        migration.commit()
        scenario.execute("insert into t values (52, 'y', 7)")
        migration.execute("alter table t rename column n to m")
        scenario.execute("insert into other values (2)")
        catch_up(replicator)
        migration.rollback()
        scenario.execute("insert into t values (53, 'z', 8)")
        catch_up(replicator)
    sync(scenario)
    scenario.assert_equal("t", "other")


def test_a_change_of_a_partitioned_table_reaches_it_through_its_root(scenario) -> None:
    scenario.execute(
        "create table p (id int primary key, v text) partition by range (id)",
        "create table p1 partition of p for values from (0) to (100)",
        "create table p2 (v text, gone int, id int not null)",
        "alter table p2 drop column gone",
        "alter table p attach partition p2 for values from (100) to (200)",
        "insert into p select i, 'v' || i from generate_series(1, 150) i",
    )
    publish(scenario, "for table p with (publish_via_partition_root = true)")
    journal = sync(scenario)
    scenario.execute(
        "alter table p add column n int default 7",
        "insert into p values (10000 % 200, 'x', 1) on conflict do nothing",
        "update p set n = id where id in (5, 105)",
        "alter table p rename column v to w",
        "update p set w = 'y' where id in (6, 106)",
        "alter table p drop column w",
        "delete from p where id in (7, 107)",
    )
    sync(scenario, journal)
    scenario.assert_equal("p")
    assert journal.copies("p") == 1


def test_only_the_table_that_is_copied_afresh_stops_for_readers(scenario) -> None:
    """The one that changed in a way that cannot be followed keeps what it has; the others go on meanwhile."""
    scenario.execute(TABLE, ROWS, "create table other (id int primary key)")
    scenario.use(replication=EAGER)
    with running(scenario) as replicator, psycopg.connect(scenario.dsn) as writer:
        catch_up(replicator)
        scenario.execute("alter table t alter v type varchar(90)")
        writer.execute("update t set v = 'open' where id = 1")
        step_until(replicator, lambda: replicator.records[T].state is not TableState.READY)
        scenario.execute("insert into other values (1)")
        for _ in range(5):
            replicator.step()
        assert replicator.records[T].state is not TableState.READY
        assert replicator.row_count(TableId("public", "other")) == 1
        assert replicator.row_count(T) == 50
        writer.commit()
        catch_up(replicator)
    scenario.assert_equal("t", "other")
