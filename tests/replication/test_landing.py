"""Soft deletes and changelogs: what lands is exact, also while the table is copied and processes die."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.destinations.duckdb.core import DuckDbDestination
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
    process,
    running,
    select,
    step_until,
    sync,
)

TABLE = ["create table t (id int primary key, v text, big text)", "alter table t alter big set storage external"]
ROWS = "insert into t select i, 'v' || i, repeat('b' || i, 2000) from generate_series(1, 30) i"
SMALL_CHUNKS = {"chunk_bytes": 8192 * 2, "copy_connections": 1, "refresh_seconds": 0.2, "idle_poll_seconds": 0.02}
SOFT, LOG = {"landing": "soft_delete"}, {"landing": "changelog"}
MIXED = [
    "insert into t values (31, 'new', 'n')",
    "update t set v = 'x' where id < 6",
    "delete from t where id in (3, 10, 11)",
    "insert into t values (10, 'again', null)",
    "update t set id = id + 100 where id in (4, 20)",
    "update t set big = 'short' where id in (104, 5)",
    "delete from t where id = 31",
    "update t set v = 'y' where id in (104, 120)",
]


def _counts(scenario, table: str = "t") -> dict[str, int]:
    return dict(select(scenario, f'select _CHANGE_TYPE, count(*) from public."{table}" group by 1'))


# -- soft deletes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
def test_deleted_rows_stay_as_they_were(scenario, together: bool) -> None:
    scenario.execute(*TABLE, ROWS)
    scenario.use(defaults=SOFT)
    sync(scenario)
    if together:
        with scenario.source.transaction():
            scenario.execute(*MIXED)
    else:
        for statement in MIXED:
            scenario.execute(statement)
            sync(scenario)
    sync(scenario)
    scenario.assert_equal("t")
    deleted = select(scenario, "select id, v, length(big) from public.t where _CHANGE_TYPE = 'delete' order by id")
    assert deleted == [(3, "x", 4000), (4, "x", 4000), (11, "v11", 6000), (20, "v20", 6000), (31, "new", 1)]


def test_a_deleted_row_tells_when_it_was_deleted(scenario) -> None:
    scenario.execute(*TABLE, ROWS)
    scenario.use(defaults=SOFT)
    sync(scenario)
    scenario.execute("update t set v = 'x' where id = 1")
    [(before,)] = scenario.source.execute("select clock_timestamp()").fetchall()
    scenario.execute("delete from t where id in (1, 2)")
    sync(scenario)
    rows = select(
        scenario,
        "select _CHANGE_TYPE, _TIMESTAMP >= ?::timestamptz from public.t where id < 3".replace(
            "?", f"'{before.isoformat()}'"
        ),
    )
    assert rows == [("delete", True), ("delete", True)]
    assert select(scenario, "select count(distinct _LSN) from public.t where id < 3") == [(2,)]


def test_a_truncate_marks_every_row(scenario) -> None:
    scenario.execute(*TABLE, ROWS)
    scenario.use(defaults=SOFT)
    sync(scenario)
    with scenario.source.transaction():
        scenario.execute(
            "insert into t values (40, 'short life')", "truncate t", "insert into t values (1, 'back'), (50, 'new')"
        )
    sync(scenario)
    scenario.assert_equal("t")
    assert select(
        scenario, "select count(*), min(v) from public.t where _CHANGE_TYPE = 'delete' and id between 2 and 30"
    ) == [(29, "v10")]


def test_soft_deletes_while_the_table_is_copied(scenario) -> None:
    scenario.execute(*TABLE, ROWS, "insert into t select i, 'v' || i, null from generate_series(31, 9000) i")
    scenario.use(defaults=SOFT, replication=SMALL_CHUNKS)
    sync(
        scenario,
        after_chunks(
            scenario,
            "delete from t where id % 9 = 0",
            "update t set id = id + 100000 where id % 11 = 0",
            "update t set v = 'x' where id % 5 = 0",
            "insert into t select i, 'again', 'b' from generate_series(9, 900, 27) i",
            "delete from t where id > 100000 and id % 2 = 0",
        ),
    )
    scenario.assert_equal("t")
    sync(scenario)
    scenario.execute("delete from t where id % 4 = 1")
    sync(scenario)
    scenario.assert_equal("t")


def test_a_re_sync_keeps_rows_that_were_deleted_long_ago(scenario) -> None:
    scenario.execute(*TABLE, ROWS)
    scenario.use(defaults=SOFT, replication=SMALL_CHUNKS)
    sync(scenario)
    scenario.execute("delete from t where id = 1", "update t set id = 200 where id = 2")
    sync(scenario)
    scenario.pipeline.request_resync(T)
    sync(scenario, after_chunks(scenario, "delete from t where id = 5; update t set v = 'x' where id = 6"))
    scenario.assert_equal("t")
    rows = select(scenario, "select id, v, big is null from public.t where _CHANGE_TYPE = 'delete' order by id")
    assert rows == [(1, "v1", False), (2, "v2", False), (5, "v5", False)]


def test_a_re_sync_after_a_gap_marks_rows_whose_deletion_nobody_saw(scenario) -> None:
    scenario.execute(*TABLE, ROWS)
    scenario.use(defaults=SOFT)
    sync(scenario)
    slot = scenario.pipeline.config.source.slot.name
    scenario.execute("delete from t where id = 1")
    sync(scenario)
    scenario.execute(
        f"select pg_drop_replication_slot('{slot}')",
        "delete from t where id in (2, 3)",
        "insert into t values (1, 'again')",
    )
    sync(scenario)
    scenario.assert_equal("t")
    assert select(scenario, "select id, v from public.t where _CHANGE_TYPE = 'delete' order by id") == [
        (2, "v2"),
        (3, "v3"),
    ]


def test_soft_deletes_and_changes_of_columns(scenario) -> None:
    following = Following(scenario, restarts=False)
    following.begin(*TABLE, ROWS, defaults=SOFT)
    following.together(
        "delete from t where id = 1",
        "alter table t add column n int default 7",
        "delete from t where id = 2",
        "alter table t rename column v to w",
        "update t set w = 'x', n = 8 where id = 3",
        "delete from t where id = 3",
        "alter table t drop column big",
        "delete from t where id = 4",
    )
    following.then("alter table t alter n type bigint", "delete from t where id = 5", "update t set n = 1 where id = 6")
    following.end("t", copies=2)
    rows = select(scenario, "select id, w from public.t where _CHANGE_TYPE = 'delete' order by id")
    assert rows == [(1, "v1"), (2, "v2"), (3, "x"), (4, "v4"), (5, "v5")]


# -- changelogs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
def test_every_change_is_a_row(scenario, together: bool) -> None:
    scenario.execute(*TABLE, ROWS)
    scenario.use(defaults=LOG)
    sync(scenario)
    if together:
        with scenario.source.transaction():
            scenario.execute(*MIXED)
    else:
        scenario.execute(*MIXED)
    sync(scenario)
    assert _counts(scenario) == {"copy": 30, "insert": 2, "update": 5 + 2 + 2 + 2, "delete": 4 + 2}
    scenario.assert_equal("t")
    unchanged = select(scenario, "select v, _UNCHANGED from public.t where id = 1 order by _LSN")
    assert unchanged == [("v1", None), ("x", ["big"])]


def test_a_changelog_is_in_commit_order_and_tells_when(scenario) -> None:
    scenario.execute(*TABLE)
    scenario.use(defaults=LOG)
    sync(scenario)
    with scenario.source.transaction():
        scenario.execute(
            "insert into t values (1, 'a')",
            "update t set v = 'b'",
            "update t set v = 'c'",
            "delete from t",
            "insert into t values (1, 'd')",
        )
    sync(scenario)
    rows = select(scenario, "select _CHANGE_TYPE, v from public.t order by _LSN")
    assert rows == [("insert", "a"), ("update", "b"), ("update", "c"), ("delete", None), ("insert", "d")]
    assert select(scenario, "select count(distinct _LSN), count(distinct _TIMESTAMP) from public.t") == [(5, 1)]


def test_what_was_rolled_back_is_no_row(scenario) -> None:
    scenario.execute(*TABLE)
    scenario.use(defaults=LOG)
    sync(scenario)
    with scenario.source.transaction():
        scenario.execute(
            "insert into t values (1, 'a')",
            "savepoint s",
            "insert into t values (2, 'b')",
            "rollback to s",
            "insert into t values (3, 'c')",
        )
    with scenario.source.transaction(force_rollback=True):
        scenario.execute("insert into t values (4, 'd')")
    sync(scenario)
    assert _counts(scenario) == {"insert": 2}
    scenario.assert_equal("t")


def test_a_truncate_is_a_row(scenario) -> None:
    scenario.execute(*TABLE, ROWS)
    scenario.use(defaults=LOG)
    sync(scenario)
    scenario.execute("insert into t values (31, 'x')", "truncate t", "insert into t values (1, 'after')")
    with scenario.source.transaction():
        scenario.execute("truncate t", "insert into t values (2, 'b')", "truncate t", "insert into t values (3, 'c')")
    sync(scenario)
    assert _counts(scenario) == {"copy": 30, "insert": 4, "truncate": 3}
    assert select(
        scenario, "select count(*) from public.t where _CHANGE_TYPE = 'truncate' and id is null and v is null"
    ) == [(3,)]
    scenario.assert_equal("t")


def test_a_truncate_while_a_changelog_is_copied(scenario) -> None:
    scenario.execute(*TABLE, ROWS)
    scenario.use(defaults=LOG, replication=EAGER)
    journal = Journal()

    def act(record: Any) -> None:
        if record.state is TableState.COPYING:
            scenario.execute(
                "update t set v = 'x' where id < 4", "truncate t", "insert into t values (1, 'after'), (2, 'b')"
            )

    journal._on_change = act
    sync(scenario, journal)
    scenario.assert_equal("t")
    scenario.execute("delete from t where id = 2")
    sync(scenario)
    scenario.assert_equal("t")


@pytest.mark.parametrize("identity", ["full", "nothing"])
def test_a_table_without_key_lands_as_a_changelog(scenario, identity: str) -> None:
    scenario.execute(
        "create table t (v text, n int)",
        f"alter table t replica identity {identity}",
        "insert into t values ('a', 1), ('a', 1), ('b', 2), (null, null), (null, null)",
    )
    scenario.use(tables={"public.t": LOG})
    sync(scenario)
    assert _counts(scenario) == {"copy": 5}
    scenario.execute("insert into t values ('a', 1), ('c', 3)")
    if identity == "full":
        scenario.execute(
            "delete from t where ctid = (select min(ctid) from t where v = 'a')",
            "update t set n = 9 where ctid = (select min(ctid) from t where v is null)",
            "update t set v = 'bb' where v = 'b'",
        )
    else:
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            scenario.execute("delete from t where v = 'b'")
    sync(scenario)
    scenario.assert_equal("t")
    expected = {"copy": 5, "insert": 2} | ({"delete": 1, "update": 2} if identity == "full" else {})
    counts = _counts(scenario)
    if identity == "full" and counts != expected:  # an update of a row that is known by all its values moves it
        assert counts == {"copy": 5, "insert": 2, "delete": 3, "update": 2}
    scenario.execute("truncate t", "insert into t values ('z', 0)")
    sync(scenario)
    scenario.assert_equal("t")


@pytest.mark.parametrize("landing", ["mirror", "soft_delete"])
def test_a_table_without_key_is_refused_elsewhere_with_advice(scenario, landing: str) -> None:
    scenario.execute("create table k (v text)", "insert into k values ('a')", *TABLE, ROWS)
    scenario.use(defaults={"landing": landing})
    sync(scenario)
    scenario.assert_equal("t")
    [record] = [record for record in scenario.pipeline._store.tables().values() if record.table.name == "k"]
    assert record.state is TableState.QUARANTINED
    assert "no key" in record.reason
    for advice in ("ADD PRIMARY KEY", "USING INDEX", "changelog", "exclude"):
        assert advice in record.hint
    scenario.use(defaults={"landing": landing}, tables={"public.k": LOG})
    scenario.pipeline.request_resync(record.table)
    sync(scenario)
    scenario.execute("insert into k values ('b')")
    sync(scenario)
    scenario.assert_equal("t", "k")


def test_a_changelog_and_changes_of_columns(scenario) -> None:
    following = Following(scenario, restarts=False)
    following.begin(*TABLE, ROWS, defaults=LOG)
    following.together(
        "update t set v = 'a' where id = 1",
        "alter table t add column n int",
        "update t set n = 8 where id = 1",
        "alter table t rename column v to w",
        "update t set w = 'b' where id = 1",
        "alter table t drop column big",
        "insert into t values (40, 'c', 9)",
    )
    following.end("t", copies=1)
    assert select(
        scenario, "select w, n from public.t where id in (1, 40) and _CHANGE_TYPE <> 'copy' order by _LSN"
    ) == [("a", None), ("a", 8), ("b", 8), ("c", 9)]
    assert select(scenario, "select count(*) from public.t where _CHANGE_TYPE = 'copy' and n is null") == [(30,)]


# -- another landing ---------------------------------------------------------------------------------------------------


def test_another_landing_copies_the_table_afresh(scenario) -> None:
    scenario.execute(*TABLE, ROWS, "create table other (id int primary key)")
    journal = sync(scenario)
    for number, landing in enumerate(["soft_delete", "changelog", "mirror", "changelog", "soft_delete", "mirror"]):
        first = 1 + number * 4
        scenario.execute(f"update t set v = 'x' where id = {first}", f"delete from t where id = {first + 1}")
        scenario.use(tables={"public.t": {"landing": landing}})
        if number not in (0, 3):  # what a former landing has kept, other than a mirror, is given up on request only
            before = len(journal.notices)
            sync(scenario, journal)
            assert (journal.copies("t"), len(journal.notices)) == (number + 1, before + 1)
            assert "goes on landing as" in journal.notices[-1]
            scenario.pipeline.request_resync(T)
        scenario.execute(f"update t set v = 'y' where id = {first + 2}", f"insert into other values ({number})")
        sync(scenario, journal)
        assert (journal.copies("t"), journal.copies("other")) == (number + 2, 1)
        scenario.assert_equal("t", "other")
        scenario.execute(
            f"update t set v = 'z' where id = {first + 3}",
            f"update t set id = id + 500 where id = {first}",
            f"delete from t where id = {first + 2}",
        )
        sync(scenario, journal)
        scenario.assert_equal("t", "other")
        assert columns(scenario) == ["id", "v", "big"]


def test_another_landing_for_a_table_that_is_held(scenario) -> None:
    scenario.execute(*TABLE, ROWS, "create table other (id int primary key)")
    sync(scenario)
    scenario.execute("alter table t add column n numeric(5, 1)", "insert into t values (90, 'bad', null, 'NaN')")
    sync(scenario)
    assert scenario.state("t") is TableState.QUARANTINED
    scenario.execute("delete from t where id = 90", "update t set v = 'x' where id = 1")
    scenario.use(tables={"public.t": LOG})
    sync(scenario)
    scenario.pipeline.request_resume(T)
    sync(scenario)
    scenario.assert_equal("t", "other")


# -- exactness under load ----------------------------------------------------------------------------------------------

# What was done to each key, in the order of its commits (its row's lock sees to that), with a value of its own each.
AUDIT = """
create schema audit;
create sequence audit.versions;
create table audit.log (seq bigserial, id int, op text, v text);
create function audit.note() returns trigger language plpgsql as $$ begin
    if tg_op = 'DELETE' or (tg_op = 'UPDATE' and old.id <> new.id) then
        insert into audit.log (id, op) values (old.id, 'delete');
    end if;
    if tg_op <> 'DELETE' then insert into audit.log (id, op, v) values (new.id, lower(tg_op), new.v); end if;
    return null;
end $$;
create trigger note after insert or update or delete on t for each row execute function audit.note();
"""
FRESH = "'v' || nextval('audit.versions')"


class Load:
    """Sessions that write to ``t`` until they are told to stop; some of their transactions stay open for a while."""

    def __init__(self, dsn: str, seed: int) -> None:
        self.dsn = dsn
        self.stop = threading.Event()
        self.dice = random.Random(seed)
        self.transactions = 0

    def __call__(self, number: int) -> None:
        dice = random.Random(self.dice.random() + number)
        with psycopg.connect(self.dsn, autocommit=True) as session:
            while not self.stop.is_set():
                try:
                    self._transaction(session, dice, f"load_{number}")
                except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
                    session.execute("rollback")
                self.transactions += 1

    def _transaction(self, session: psycopg.Connection[Any], dice: random.Random, name: str) -> None:
        session.execute("begin")
        for _ in range(dice.randint(1, 4)):
            session.execute(self._statement(dice))  # type: ignore[arg-type]
            if dice.random() < 0.2:
                session.execute("savepoint s")
                session.execute(self._statement(dice))  # type: ignore[arg-type]
                session.execute(dice.choice(["rollback to s", "release s"]))
        if dice.random() < 0.4:
            self.stop.wait(dice.random() * 0.05)
        if dice.random() < 0.1:
            session.execute(f"prepare transaction '{name}'")  # type: ignore[arg-type]
            self.stop.wait(dice.random() * 0.05)
            session.execute(f"{dice.choice(['commit', 'rollback'])} prepared '{name}'")  # type: ignore[arg-type]
        else:
            session.execute("rollback" if dice.random() < 0.1 else "commit")

    @staticmethod
    def _statement(dice: random.Random) -> str:
        first, what = dice.randint(1, 150), dice.random()
        if what < 0.3:
            return (
                f"insert into t select g, {FRESH} from generate_series({first}, {first + 5}) g on conflict do nothing"
            )
        if what < 0.7:
            return f"update t set v = {FRESH} where id between {first} and {first + 10}"
        if what < 0.85:
            return f"delete from t where id between {first} and {first + 3}"
        return f"update t set id = id + 1000, v = {FRESH} where id = {first} and not exists (select from t where id = {first + 1000})"


@contextmanager
def load(scenario, seed: int, sessions: int = 2) -> Iterator[Load]:
    made = Load(scenario.dsn, seed)
    with ThreadPoolExecutor(sessions) as pool:
        running_ones: list[Future[None]] = [pool.submit(made, number) for number in range(sessions)]
        try:
            yield made
        finally:
            made.stop.set()
        for future in running_ones:
            future.result()


def _begin_audit(scenario) -> None:
    scenario.execute(*TABLE, AUDIT, f"insert into t select i, {FRESH} from generate_series(1, 100) i")


def _audited(scenario) -> dict[int, list[tuple[str, str | None]]]:
    done: dict[int, list[tuple[str, str | None]]] = defaultdict(list)
    for key, op, value in scenario.source.execute("select id, op, v from audit.log order by seq").fetchall():
        done[key].append((op, value))
    return done


def assert_exact(scenario) -> None:
    """The changelog of each key is what was done to it since the copy, each change once, from what the copy saw."""
    done = _audited(scenario)
    found: dict[int, list[tuple[str, str | None]]] = defaultdict(list)
    for key, kind, value in select(
        scenario, "select id, _CHANGE_TYPE, v from public.t order by _CHANGE_TYPE <> 'copy', _LSN, _CHANGE_TYPE"
    ):
        found[key].append((kind, value))
    wrong = {key: (done[key], found[key]) for key in done.keys() | found.keys() if not _follows(done[key], found[key])}
    assert not wrong
    assert sum(len(changes) for changes in found.values()) > 0


def _follows(done: list[tuple[str, str | None]], found: list[tuple[str, str | None]]) -> bool:
    copied = [value for kind, value in found if kind == "copy"]
    changes = [change for change in found if change[0] != "copy"]
    if len(copied) > 1:
        return False
    begins = [place for place, (op, value) in enumerate(done) if (value == copied[0] if copied else op == "delete")]
    if not copied:
        begins.append(-1)
    return any(done[place + 1 :] == changes for place in begins)


@pytest.mark.parametrize("seed", range(3))
def test_a_changelog_is_exact_though_it_was_copied_under_load(scenario, seed: int) -> None:
    _begin_audit(scenario)
    scenario.use(defaults=LOG, replication=EAGER)
    with load(scenario, seed) as writers, running(scenario) as replicator:
        catch_up(replicator)
        done = writers.transactions
        step_until(replicator, lambda: writers.transactions > done + 30)
        scenario.pipeline.request_resync(T)
        catch_up(replicator)
        step_until(replicator, lambda: writers.transactions > done + 60)
    sync(scenario)
    scenario.assert_equal("t")
    assert_exact(scenario)


DEATHS = [
    (DuckDbDestination, "write_events"),
    (DuckDbDestination, "finish_copy"),
    (DuckDbDestination, "write_table_rows"),
    (SqliteStore, "save_slot"),
    (SqliteStore, "save_table"),
    (PostgresSource, "advance_slot"),
]


class Dies(Exception):
    """The end of a process."""


@pytest.mark.parametrize("landing", ["changelog", "soft_delete"])
@pytest.mark.parametrize("seed", range(2))
def test_deaths_at_chosen_moments_under_load(scenario, monkeypatch, landing: str, seed: int) -> None:
    dice = random.Random(seed)
    _begin_audit(scenario)
    scenario.use(
        defaults={"landing": landing}, replication={**EAGER, "min_window_changes": 50, "max_window_changes": 500}
    )
    with load(scenario, seed):
        for number in range(8):
            if number == 4:
                scenario.pipeline.request_resync(T)
            _dies_once(scenario, monkeypatch, dice)
    sync(scenario)
    scenario.assert_equal("t")
    if landing == "changelog":
        assert_exact(scenario)
    else:
        _assert_tombstones(scenario)


def _dies_once(scenario, monkeypatch, dice: random.Random) -> None:
    owner, name = dice.choice(DEATHS)
    original, left, after = getattr(owner, name), [dice.randint(1, 4)], dice.random() < 0.6

    def dying(self, *arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] > 0:
            return original(self, *arguments, **named)
        if after:
            original(self, *arguments, **named)
        raise Dies

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, dying)
        try:
            with running(scenario) as replicator:
                catch_up(replicator)
                catch_up(replicator)
        except Dies:
            return


def _assert_tombstones(scenario) -> None:
    """Every key that the destination has and the source has not is marked, with its last value or none."""
    done = _audited(scenario)
    present = {key for (key,) in scenario.source.execute("select id from t").fetchall()}
    rows = select(scenario, "select id, _CHANGE_TYPE, v from public.t")
    assert len({key for key, _, _ in rows}) == len(rows)
    for key, kind, value in rows:
        assert (kind == "delete") is (key not in present), key
        if kind == "delete":
            last = [version for op, version in done[key] if op != "delete"][-1]
            assert value in (last, None), key


def test_kills_under_load_leave_a_changelog_exact(scenario, tmp_path: Path) -> None:
    _begin_audit(scenario)
    dice = random.Random(1)
    with load(scenario, 7):
        for number in range(4):
            with process(scenario, tmp_path, defaults=LOG, replication={**EAGER, "max_window_changes": 500}) as says:
                says("running")
                for _ in range(dice.randint(1, 6)):
                    says("batch")
                if number == 2:
                    scenario.pipeline.request_resync(T)
                    says("t copying")
    scenario.use(defaults=LOG)
    with scenario.pipeline.replicator(wait_seconds=30) as replicator:
        catch_up(replicator)
    scenario.assert_equal("t")
    assert_exact(scenario)


def test_rows_of_a_changelog_that_are_older_than_a_column_say_nothing_of_it(scenario) -> None:
    scenario.execute(*TABLE, ROWS)
    scenario.use(defaults=LOG)
    sync(scenario)
    scenario.execute(
        "alter table t add column n int default 7",
        "update t set v = 'x' where id = 1",
        "insert into t values (40, 'y')",
    )
    journal = sync(scenario)
    assert journal.copies() == 0
    rows = select(scenario, "select _CHANGE_TYPE, n, count(*) from public.t group by all order by 1")
    assert rows == [("copy", None, 30), ("insert", 7, 1), ("update", 7, 1)]
