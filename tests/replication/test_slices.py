"""Slices of a live table copied again: what is wrong in them is mended, whatever is written meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import duckdb
import psycopg
import pytest

from etl_dagster.model import TableId
from etl_dagster.store.base import TableRecord, TableState
from tests.replication.watching import Journal, catch_up, parts, publish, running, select, step_until, sync

T = TableId("public", "t")
SMALL = {"chunk_bytes": 16384, "copy_connections": 2, "refresh_seconds": 0.05, "idle_poll_seconds": 0.01}
MONTHLY = {"type": "time", "column": "day", "every": "month", "start": "2026-01-01"}
JANUARY, FEBRUARY, MARCH, APRIL, MAY, JUNE = (f"2026-0{month}-01" for month in range(1, 7))
# Ten rows a day from January to June, some without a day, some outside of all windows but the first and last.
TABLE = [
    "create table t (id int primary key, day date, v text, big text)",
    "alter table t alter big set storage external",
    """insert into t select i, date '2026-01-01' + i / 10, 'v' || i,
        case when i % 20 = 0 then repeat('x' || i, 1500) end from generate_series(0, 1799) i""",
    """insert into t values (5001, null, 'none', null), (5002, null, 'none', null), (5003, '-infinity', 'first', null),
        (5004, 'infinity', 'last', null), (5005, '0044-03-15 BC', 'ides', null), (5006, '2199-12-31', 'late', null)""",
    "vacuum analyze t",
]
# Drift of each kind in February, which has the keys 310 to 589.
DRIFT = [
    "delete from public.t where id between 320 and 329",
    "update public.t set v = 'drifted' where id between 330 and 339",
    "insert into public.t select * replace (id + 10000 as id, 'extra' as v) from public.t where id between 340 and 349",
    "update public.t set day = '2026-05-05' where id between 350 and 359",
    "update public.t set day = null where id between 360 and 369",
    "update public.t set day = '2026-02-07' where id between 1000 and 1009",  # which are of April
    "update public.t set day = '2026-02-07' where id in (5001, 5003, 5004)",
    "insert into public.t select * replace ('twice' as v) from public.t where id between 370 and 374",
    "insert into public.t select * from public.t where id between 375 and 379",
    "update public.t set big = 'drifted' where id = 380",
]


def rules(rule: dict[str, Any], **choices: Any) -> dict[str, Any]:
    """The part of a config that cuts the table."""
    return {"tables": {"public.t": {"partitions": rule, **choices}}}


def begin(scenario, rule: dict[str, Any] = MONTHLY, statements: Any = tuple(TABLE), **changes: Any) -> None:
    """A live table with slices."""
    scenario.execute(*statements)
    choices = changes.pop("choices", {})
    scenario.use(**parts(scenario, **{"replication": SMALL, **rules(rule, **choices), **changes}))
    sync(scenario)
    scenario.pipeline.plan_slices(T)


def drift(scenario, *statements: str) -> None:
    """Somebody else writes into the destination."""
    with duckdb.connect(str(scenario.folder / "warehouse.duckdb")) as connection:
        for statement in statements:
            connection.execute(statement)


def ask(scenario, *names: str) -> Any:
    return scenario.pipeline.request_resync(T, names)


def was_sliced(journal: Journal) -> bool:
    """A copy of slices was made, of a table that stayed live, and no whole copy."""
    copies = [record for record in journal.records if record.state is TableState.COPYING]
    return bool(copies) and all(record.slices and record.live for record in copies)


def different(scenario, columns: str = "id, left(day::text, 10), v, big") -> set[int]:
    """Keys of rows that are not the same on both sides, each as often."""
    held = select(scenario, f"select {columns} from public.t order by all")
    rows = scenario.source.execute(f"select {columns} from t").fetchall()
    return {row[0] for row in {*rows} ^ {*held}} | {row[0] for row in {*held} if held.count(row) > 1 and rows}


def test_exactly_the_slices_that_were_asked_for_are_mended(scenario) -> None:
    begin(scenario)
    drift(
        scenario,
        *DRIFT,
        "delete from public.t where id = 3",
        "update public.t set v = 'drifted' where id in (700, 1500)",
        "insert into public.t values (20000, '2026-03-03', 'extra', null, 'copy', 0, now())",
    )
    assert different(scenario) >= {3, 325, 335, 345 + 10000, 355, 365, 372, 377, 380, 700, 1005, 1500, 20000}
    request = ask(scenario, FEBRUARY)
    assert not scenario.pipeline.is_done(request)
    journal = sync(scenario)
    assert scenario.pipeline.is_done(request)
    assert was_sliced(journal)
    assert different(scenario) == {3, 700, 1500, 20000}
    ask(scenario, JANUARY, MARCH)
    assert was_sliced(sync(scenario))
    assert different(scenario) == {1500}
    ask(scenario, MAY)
    sync(scenario)
    scenario.assert_equal("t")


def test_slices_that_are_right_stay_as_they_are(scenario) -> None:
    begin(scenario)
    ask(scenario, JANUARY, FEBRUARY)
    assert was_sliced(sync(scenario))
    scenario.assert_equal("t")


def test_the_first_slice_has_what_is_older_and_the_rows_without_a_value(scenario) -> None:
    begin(scenario)
    drift(
        scenario,
        "delete from public.t where id in (5001, 5003, 5005)",
        "update public.t set v = 'drifted' where id = 5002",
        "insert into public.t values (20000, null, 'extra', null, 'copy', 0, now())",
        "insert into public.t values (20001, '-infinity', 'extra', null, 'copy', 0, now())",
        "delete from public.t where id in (5004, 5006)",
        "insert into public.t values (20002, 'infinity', 'extra', null, 'copy', 0, now())",
    )
    ask(scenario, JANUARY)
    sync(scenario)
    assert different(scenario) == {5004, 5006, 20002}
    ask(scenario, scenario.pipeline.slices(T)[-1].name)
    sync(scenario)
    scenario.assert_equal("t")


PHASES: dict[str, Callable[[Journal], Any]] = {
    "when it begins": lambda journal: journal.records and journal.records[-1].state is TableState.COPYING,
    "when chunks are planned": lambda journal: journal.progress,
    "between chunks": lambda journal: journal.progress and journal.progress[-1].chunks_done,
    "before it ends": lambda journal: journal.records and journal.records[-1].state is TableState.COPIED,
    "when keys are read again": lambda journal: (
        journal.records
        and journal.records[-1].state is TableState.COPIED
        and len(journal.progress) > journal.progress_before_end
    ),
    "after keys were read again": lambda journal: (
        journal.records
        and journal.records[-1].state is TableState.COPIED
        and len(journal.progress) > journal.progress_before_end + 1
    ),
}


class Meddler(Journal):
    """Runs statements at the source, once, in a certain phase of a copy."""

    def __init__(self, scenario, phase: str, *statements: str) -> None:
        super().__init__(self._look, self._look)
        self.progress_before_end = 0
        self._reached = PHASES[phase]
        self._scenario = scenario
        self.waiting = list(statements)

    def _look(self, report: Any) -> None:
        if isinstance(report, TableRecord) and report.state is TableState.COPIED:
            self.progress_before_end = len(self.progress)
        if self.waiting and self._reached(self):
            statements, self.waiting[:] = list(self.waiting), []
            self._scenario.execute(*statements)


TRAFFIC = [
    "update t set v = 'written' where id % 7 = 0",
    "insert into t select i, date '2026-02-01' + i % 40, 'new' from generate_series(3000, 3100) i",
    "update t set day = day + interval '28 days' where id % 11 = 0",  # moves between slices
    "update t set day = day - interval '28 days' where id % 13 = 0",
    "update t set day = null where id % 83 = 0",
    "update t set id = id + 100000 where id % 17 = 0",
    "delete from t where id % 19 = 0",
    "insert into t select i, '2026-02-20', 'again' from generate_series(0, 500, 19) i on conflict do nothing",
    "update t set id = id + 10000 where id in (340, 341)",  # to keys that the destination has too much
]
DISTURBANCES = {
    "writes": TRAFFIC,
    "a truncate": ["truncate t", *TRAFFIC],
    "a new column": ["alter table t add n int default 7", *TRAFFIC],
    "a column less": ["alter table t drop v", "update t set day = day + interval '28 days' where id % 11 = 0"],
    "a renamed column": ["alter table t rename v to w", "update t set w = 'x' where id % 5 = 0"],
    "another type": ["alter table t alter v type varchar(100)", *TRAFFIC],
    "a renamed slice column": ["alter table t rename day to at", "delete from t where id % 19 = 0"],
    "another type of the slice column": ["alter table t alter day type timestamp", *TRAFFIC],
    "a rewrite": ["delete from t where id < 200", "vacuum full t"],
}
CASES = [
    *((phase, what) for what in ("writes", "a truncate") for phase in PHASES),
    *((phase, what) for what in list(DISTURBANCES)[2:] for phase in ("between chunks", "when keys are read again")),
]


@pytest.mark.parametrize(("phase", "what"), CASES, ids=[f"{what} {phase}" for phase, what in CASES])
def test_what_happens_at_the_source_meanwhile_arrives(scenario, phase: str, what: str) -> None:
    begin(scenario)
    drift(scenario, *DRIFT)
    ask(scenario, FEBRUARY, APRIL)
    sync(scenario, Meddler(scenario, phase, *DISTURBANCES[what]))
    assert scenario.state("t") is TableState.READY
    scenario.assert_equal("t")


@pytest.mark.parametrize("phase", ["when it begins", "between chunks", "when keys are read again"])
def test_slices_that_cannot_be_told_any_more_are_given_up_and_said_so(scenario, phase: str) -> None:
    begin(scenario)
    drift(scenario, *DRIFT)
    request = ask(scenario, FEBRUARY, APRIL)
    journal = sync(scenario, Meddler(scenario, phase, "alter table t drop day", "delete from t where id % 19 = 0"))
    assert scenario.state("t") is TableState.READY
    assert scenario.pipeline.is_done(request)
    assert any("were not copied" in notice for notice in journal.notices)
    scenario.pipeline.request_resync(T)
    sync(scenario)
    scenario.assert_equal("t")


def test_a_large_value_that_drifted_in_a_row_that_is_written_meanwhile(scenario) -> None:
    """The stream brings the row without the value, which did not change."""
    begin(scenario)
    drift(scenario, "update public.t set big = 'drifted' where id in (320, 340)", "delete from public.t where id = 360")
    ask(scenario, FEBRUARY)
    sync(scenario, Meddler(scenario, "when it begins", "update t set v = 'written' where id in (320, 340, 360)"))
    scenario.assert_equal("t")


def test_rows_that_are_there_twice_and_are_written_meanwhile(scenario) -> None:
    begin(scenario)
    drift(scenario, "insert into public.t select * replace ('twice' as v) from public.t where id between 330 and 349")
    ask(scenario, FEBRUARY)
    sync(scenario, Meddler(scenario, "when it begins", "update t set v = 'written' where id between 335 and 354"))
    scenario.assert_equal("t")


RANGES: dict[str, tuple[str, str, str]] = {
    # type, value of the i-th row, its value in DuckDB
    "int": ("int", "i", "i"),
    "bigint": ("bigint", "i * 10000000000", "i * 10000000000"),
    "negative": ("bigint", "(i - 1000) * 9000000000000000", "x"),
    "uuid": ("uuid", "md5(i::text)::uuid", "x"),
    "text": ("text", "chr(33 + i % 90) || '''\"\\ %.é日本🙂' || chr(945 + i % 25) || i", "x"),
    "varchar": ("varchar(40)", "md5(i::text)", "x"),
    "many alike": ("int", "i % 3", "x"),
}


@pytest.mark.parametrize("kind", RANGES)
def test_ranges_of_a_column(scenario, kind: str) -> None:
    type_, value, _ = RANGES[kind]
    begin(
        scenario,
        {"type": "range", "column": "k", "rows": 200},
        [
            f"create table t (id int primary key, k {type_}, v text)",
            f"insert into t select i, {value}, 'v' || i from generate_series(0, 1999) i",
            "insert into t values (5000, null, 'none')",
            "vacuum analyze t",
        ],
    )
    names = [each.name for each in scenario.pipeline.slices(T)]
    assert len(names) > (1 if kind == "many alike" else 4)
    drift(
        scenario,
        "delete from public.t where id % 10 = 0",
        "update public.t set v = 'drifted' where id % 10 = 1",
        "insert into public.t select * replace (id + 10000 as id) from public.t where id % 10 = 2",
        "update public.t set k = null where id % 10 = 3",
        "update public.t set k = (select max(k) from public.t) where id % 10 = 4",
        "insert into public.t select * from public.t where id % 10 = 5",
    )
    wrong = different(scenario, "id, k, v")
    ask(scenario, *names[::2])
    writes = [
        "update t set v = 'w' where id % 14 = 0",
        f"update t set k = (select k from t where id = 1500) where id % 50 = 6 and {kind != 'many alike'}",
        "delete from t where id % 22 = 0",
    ]
    assert was_sliced(sync(scenario, Meddler(scenario, "between chunks", *writes)))
    left = different(scenario, "id, k, v")
    assert left
    assert left < wrong
    ask(scenario, *names[1::2])
    assert was_sliced(sync(scenario))
    scenario.assert_equal("t")


@pytest.mark.parametrize(
    ("type_", "zone"), [("timestamp", "UTC"), ("timestamptz", "UTC"), ("timestamptz", "Europe/Berlin")]
)
def test_windows_of_timestamps(scenario, type_: str, zone: str) -> None:
    begin(
        scenario,
        {**MONTHLY, "column": "at", "timezone": zone},
        [
            f"create table t (id int primary key, at {type_})",
            # Every half an hour about the ends of months, and what no window of time has.
            """insert into t select m * 1000 + i, (date '2026-01-01' + m * interval '1 month') at time zone 'UTC'
                + (i - 50) * interval '30 minutes' from generate_series(0, 7) m, generate_series(0, 99) i""",
            "insert into t values (9001, 'infinity'), (9002, '-infinity'), (9003, null), (9004, '0044-03-15 BC')",
            "analyze t",
        ],
    )
    drift(
        scenario,
        "delete from public.t where id % 3 = 0",
        "insert into public.t select * replace (id + 20000 as id) from public.t where id % 3 = 1",
    )
    names = [each.name for each in scenario.pipeline.slices(T)]
    for some in (names[:2], names[2::2], names[3::2]):
        ask(scenario, *some)
        assert was_sliced(sync(scenario))
    scenario.assert_equal("t")


def test_soft_deletes_mark_what_the_source_does_not_have(scenario) -> None:
    begin(scenario, choices={"landing": "soft_delete"})
    scenario.execute("delete from t where id in (400, 401)")
    sync(scenario)
    drift(scenario, *DRIFT[:7])
    ask(scenario, FEBRUARY)
    writes = ["delete from t where id = 402", "update t set id = 20403 where id = 403", *TRAFFIC]
    assert was_sliced(sync(scenario, Meddler(scenario, "between chunks", *writes)))
    scenario.assert_equal("t")
    marked = select(scenario, "select id from public.t where \"_CHANGE_TYPE\" = 'delete' and id between 400 and 403")
    assert sorted(marked) == [(400,), (401,), (402,), (403,)]
    extra = select(
        scenario, "select count(*) from public.t where id between 10342 and 10349 and \"_CHANGE_TYPE\" = 'delete'"
    )
    assert extra == [(8,)]


def test_row_filters_and_column_lists(scenario) -> None:
    scenario.execute(*TABLE)
    publish(scenario, "for table t (id, day, v) where (id % 2 = 0)", replication=SMALL, **rules(MONTHLY))
    sync(scenario)
    drift(
        scenario,
        "delete from public.t where id between 320 and 329",
        "update public.t set v = 'drifted' where id between 330 and 339",
        "insert into public.t select * replace (id + 1 as id) from public.t where id between 340 and 349",
    )
    ask(scenario, FEBRUARY)
    assert was_sliced(sync(scenario, Meddler(scenario, "between chunks", *TRAFFIC)))
    scenario.assert_equal("t")


@pytest.mark.parametrize("by_root", [True, False], ids=["through the root", "leaf by leaf"])
def test_partitioned_tables(scenario, by_root: bool) -> None:
    scenario.execute(
        "create table t (id int, day date, v text, primary key (id, day)) partition by range (day)",
        "create table t1 partition of t for values from (minvalue) to ('2026-03-01')",
        "create table t2 partition of t for values from ('2026-03-01') to (maxvalue)",
        "insert into t select i, date '2026-01-01' + i / 10, 'v' || i from generate_series(0, 1799) i",
        "analyze t",
    )
    names = ["t"] if by_root else ["t1", "t2"]
    publish(
        scenario,
        f"for table t with (publish_via_partition_root = {str(by_root).lower()})",
        replication=SMALL,
        tables={f"public.{name}": {"partitions": MONTHLY} for name in names},
    )
    sync(scenario)
    for name in names:
        drift(
            scenario,
            f"delete from public.{name} where id % 10 = 0 and day < '2026-05-01'",
            f"update public.{name} set v = 'drifted' where id % 10 = 1 and day < '2026-05-01'",
            f"insert into public.{name} select * replace (id + 10000 as id) from public.{name}"
            " where id % 10 = 2 and day < '2026-05-01'",
        )
        scenario.pipeline.request_resync(TableId("public", name), [JANUARY, FEBRUARY, MARCH, APRIL])
    journal = Meddler(
        scenario,
        "between chunks",
        "update t set day = day + interval '28 days' where id % 11 = 0 and day < '2026-03-20'",
        "update t set id = -id where id % 13 = 0 and id > 0",
        "delete from t where id % 17 = 0",
        "create table t3 (id int, day date not null, v text, primary key (id, day))",
    )
    assert was_sliced(sync(scenario, journal))
    scenario.assert_equal(*names)


def test_a_partition_joins_and_another_one_leaves_while_slices_are_copied(scenario) -> None:
    scenario.execute(
        "create table t (id int, day date, v text, primary key (id, day)) partition by range (day)",
        "create table t1 partition of t for values from (minvalue) to ('2026-03-01')",
        "create table t2 partition of t for values from ('2026-03-01') to ('2026-06-01')",
        "insert into t select i, date '2026-01-01' + i / 10, 'v' || i from generate_series(0, 1500) i",
        "create table t3 (id int, day date not null, v text, primary key (id, day))",
        "insert into t3 select i, '2026-07-01', 'joins' from generate_series(1, 300) i",
    )
    publish(scenario, "for table t with (publish_via_partition_root = true)", replication=SMALL, **rules(MONTHLY))
    sync(scenario)
    drift(scenario, "delete from public.t where id % 10 = 0 and day < '2026-05-01'")
    ask(scenario, JANUARY, FEBRUARY, MARCH, APRIL)
    changes = [
        "alter table t attach partition t3 for values from ('2026-06-01') to (maxvalue)",
        "update t set v = 'w' where id % 9 = 0",
        "alter table t detach partition t2",
    ]
    sync(scenario, Meddler(scenario, "between chunks", *changes))
    sync(scenario)  # looks at the catalogue, which the former one has maybe seen last before the changes
    scenario.assert_equal("t")


def test_several_requests_at_once_and_the_same_slices_twice(scenario) -> None:
    begin(scenario)
    drift(scenario, *DRIFT, "delete from public.t where id < 50")
    asked = [ask(scenario, FEBRUARY), ask(scenario, FEBRUARY), ask(scenario, JANUARY, FEBRUARY), ask(scenario, MAY)]
    journal = sync(scenario)
    assert was_sliced(journal)
    assert all(map(scenario.pipeline.is_done, asked))
    scenario.assert_equal("t")


def test_slices_asked_for_while_others_are_copied_wait_for_them(scenario) -> None:
    begin(scenario)
    drift(scenario, *DRIFT, "delete from public.t where id between 1510 and 1600")
    ask(scenario, FEBRUARY)
    asked: list[Any] = []

    def more(progress: Any) -> None:
        if progress.chunks_done and not asked:
            asked.extend([ask(scenario, JUNE), ask(scenario, FEBRUARY)])

    journal = sync(scenario, Journal(on_progress=more))
    assert len(asked) == 2
    assert was_sliced(journal)
    assert journal.copies() == 2
    assert all(map(scenario.pipeline.is_done, asked))
    scenario.assert_equal("t")


def test_slices_asked_for_while_the_whole_table_is_copied(scenario) -> None:
    begin(scenario)
    drift(scenario, *DRIFT)
    scenario.pipeline.request_resync(T)
    asked: list[Any] = []

    def more(progress: Any) -> None:
        if progress.chunks_done and not asked:
            asked.append(ask(scenario, FEBRUARY))

    journal = sync(scenario, Journal(on_progress=more))
    assert journal.copies() == 1
    assert all(map(scenario.pipeline.is_done, asked))
    scenario.assert_equal("t")


def test_the_whole_table_asked_for_while_slices_are_copied(scenario) -> None:
    begin(scenario)
    drift(scenario, *DRIFT, "delete from public.t where id < 50")
    ask(scenario, FEBRUARY)
    asked: list[Any] = []

    def more(progress: Any) -> None:
        if progress.chunks_done and not asked:
            asked.append(scenario.pipeline.request_resync(T))

    journal = sync(scenario, Journal(on_progress=more))
    assert [bool(record.slices) for record in journal.records if record.state is TableState.COPYING] == [True, False]
    assert scenario.pipeline.is_done(asked[0])
    scenario.assert_equal("t")


def test_all_slices_are_the_whole_table(scenario) -> None:
    begin(scenario)
    drift(scenario, *DRIFT, "delete from public.t where id < 50")
    ask(scenario, *[each.name for each in scenario.pipeline.slices(T)])
    journal = sync(scenario)
    assert not was_sliced(journal)
    scenario.assert_equal("t")


def test_a_quarantined_table_is_copied_afresh_or_refused(scenario) -> None:
    begin(
        scenario,
        statements=[
            "create table t (id int primary key, day date, n numeric(5, 2))",
            "insert into t select i, date '2026-01-01' + i / 10, 1 from generate_series(0, 999) i",
        ],
    )
    drift(scenario, "delete from public.t where id < 700")
    ask(scenario, FEBRUARY)
    sync(scenario, Meddler(scenario, "between chunks", "insert into t values (2000, '2026-02-02', 'NaN')"))
    assert scenario.state("t") is TableState.QUARANTINED
    with pytest.raises(Exception, match="quarantined"):
        ask(scenario, FEBRUARY)
    scenario.execute("delete from t where id = 2000")
    scenario.pipeline.request_resync(T)
    sync(scenario)
    assert scenario.state("t") is TableState.READY
    scenario.assert_equal("t")


def test_a_quarantined_copy_of_slices_goes_on(scenario) -> None:
    begin(
        scenario,
        statements=[
            "create table t (id int primary key, day date, n numeric(5, 2))",
            "insert into t select i, date '2026-01-01' + i / 10, 1 from generate_series(0, 999) i",
        ],
    )
    drift(scenario, "delete from public.t where id between 310 and 589")
    ask(scenario, FEBRUARY)
    sync(scenario, Meddler(scenario, "when it begins", "insert into t values (2000, '2026-02-02', 'NaN')"))
    assert scenario.state("t") is TableState.QUARANTINED
    scenario.execute("update t set n = 2 where id = 2000", "update t set n = 3 where id % 7 = 0")
    scenario.use(**parts(scenario, replication=SMALL, **rules(MONTHLY, columns={"n": {"values": "null"}})))
    scenario.pipeline.request_resume(T)
    sync(scenario)
    assert scenario.state("t") is TableState.READY
    scenario.pipeline.request_resync(T)  # what was replaced by null meanwhile
    sync(scenario)
    scenario.assert_equal("t")


def test_the_table_leaves_the_publication_meanwhile(scenario) -> None:
    scenario.execute(*TABLE, "create table other (id int primary key)", "insert into other values (1)")
    publish(scenario, "for table t, other", replication=SMALL, **rules(MONTHLY))
    sync(scenario)
    drift(scenario, *DRIFT)
    ask(scenario, FEBRUARY)
    request = ask(scenario, MARCH)
    sync(scenario, Meddler(scenario, "between chunks", "alter publication pub_own drop table t"))
    assert scenario.state("t") is TableState.REMOVED
    assert scenario.pipeline.is_done(request)
    scenario.assert_equal("other")
    scenario.execute("alter publication pub_own add table t", "update t set v = 'w' where id < 100")
    sync(scenario)
    scenario.assert_equal("t", "other")


def test_the_table_is_dropped_and_made_anew_meanwhile(scenario) -> None:
    begin(scenario)
    drift(scenario, *DRIFT)
    ask(scenario, FEBRUARY)
    sync(scenario, Meddler(scenario, "between chunks", "drop table t", *TABLE[:3]))
    scenario.assert_equal("t")


def test_the_config_has_another_rule_when_the_request_is_taken_up(scenario) -> None:
    begin(scenario)
    drift(scenario, *DRIFT)
    ask(scenario, FEBRUARY)
    scenario.use(**parts(scenario, replication=SMALL))
    assert was_sliced(sync(scenario))
    scenario.assert_equal("t")


def test_a_copy_of_slices_goes_on_in_another_process(scenario) -> None:
    begin(scenario)
    drift(scenario, *DRIFT)
    ask(scenario, FEBRUARY, APRIL)
    with running(scenario) as replicator:
        step_until(replicator, lambda: replicator.records[T].state is TableState.COPIED)
    scenario.execute(*TRAFFIC)
    with running(scenario) as replicator:
        assert replicator.records[T].slices
        catch_up(replicator)
    scenario.assert_equal("t")


def test_readers_see_the_table_whole_and_current_while_slices_are_copied(scenario) -> None:
    begin(scenario)
    ask(scenario, FEBRUARY, MARCH)
    with running(scenario) as replicator:
        step_until(replicator, lambda: replicator.records[T].state is TableState.COPYING)
        scenario.execute("insert into t values (7000, '2026-02-14', 'new')")
        step_until(replicator, lambda: replicator.row_count(T) == 1807)
        assert replicator.records[T].live
        catch_up(replicator)
    scenario.assert_equal("t")


def test_a_day_that_a_time_zone_leaves_out_is_an_empty_slice(scenario) -> None:
    zone = {"type": "time", "column": "at", "every": "day", "start": "2011-12-26", "timezone": "Pacific/Apia"}
    made = (
        "insert into t select i, timestamptz '2011-12-27' + i * interval '1 hour', 'v' from generate_series(1, 100) i"
    )
    begin(scenario, zone, ["create table t (id int primary key, at timestamptz, v text)", made])
    drift(scenario, "update public.t set v = 'drifted' where id between 60 and 80")
    skipped = ask(scenario, "2011-12-30")
    sync(scenario)
    assert scenario.pipeline.is_done(skipped)
    ask(scenario, "2011-12-29", "2011-12-30")
    assert was_sliced(sync(scenario))
    scenario.assert_equal("t")


def test_the_last_slice_asked_for_before_and_after_it_was_cut_is_copied_to_its_end(scenario) -> None:
    rows = "insert into t select i, 'v' from generate_series({}, {}) i"
    made = ["create table t (id int primary key, v text)", rows.format(1, 1000), "vacuum analyze t"]
    begin(scenario, {"type": "range", "column": "id", "rows": 500}, made)
    last = scenario.pipeline.slices(T)[-1].name
    drift(
        scenario, "insert into public.t select * replace (id + 100000 as id) from public.t where id between 900 and 910"
    )
    ask(scenario, last)
    scenario.execute(rows.format(1001, 3000), "vacuum analyze t")
    scenario.pipeline.plan_slices(T)
    assert len(scenario.pipeline.slices(T)) > 2
    ask(scenario, last)
    sync(scenario)
    scenario.assert_equal("t")


def test_slices_by_two_columns_are_copied_one_after_the_other(scenario) -> None:
    begin(scenario, {"type": "range", "column": "id", "rows": 500})
    second = scenario.pipeline.slices(T)[1]
    drift(scenario, f"update public.t set v = 'drifted' where id >= {second.lower} and id < {second.lower} + 9")
    drift(scenario, "update public.t set v = 'drifted' where day between '2026-02-02' and '2026-02-04'")
    ask(scenario, second.name)
    scenario.use(**parts(scenario, replication=SMALL, **rules(MONTHLY)))
    ask(scenario, FEBRUARY)
    journal = sync(scenario)
    assert len([record for record in journal.records if record.state is TableState.COPYING]) == 2
    scenario.assert_equal("t")


def test_slices_that_are_given_up_bring_the_columns_that_changed_meanwhile(scenario) -> None:
    begin(scenario)
    scenario.execute("create table other (id int primary key)")
    with psycopg.connect(scenario.dsn) as writer, running(scenario, journal := Journal()) as replicator:
        writer.execute("update t set v = 'open' where id = 1")
        ask(scenario, FEBRUARY)
        step_until(replicator, lambda: replicator.records[T].state is TableState.COPYING)
        writer.rollback()
        scenario.execute("alter table t add extra int default 7, drop day")
        catch_up(replicator)
    assert any("were not copied" in notice for notice in journal.notices)
    sync(scenario)
    assert "extra" in [name for name, *_ in select(scenario, "describe public.t")]
    scenario.assert_equal("t")


@pytest.mark.parametrize("made_anew", [False, True])
def test_ranges_are_planned_again_for_another_type(scenario, made_anew: bool) -> None:
    made = [
        "create table t (id int primary key, v text)",
        "insert into t select i, 'v' from generate_series(1, 1200) i",
    ]
    begin(scenario, {"type": "range", "column": "id", "rows": 100}, [*made, "vacuum analyze t"])
    if made_anew:
        scenario.execute("drop table t", "create table t (id uuid primary key, v text)")
        scenario.execute("insert into t select gen_random_uuid(), 'v' from generate_series(1, 1000) i")
    else:
        scenario.execute("alter table t alter id type text")
    sync(scenario)
    assert not scenario.pipeline.slices(T)
    names = [each.name for each in scenario.pipeline.plan_slices(T)]
    drift(scenario, "update public.t set v = 'drifted'")
    ask(scenario, *names[: len(names) // 2])
    sync(scenario)
    ask(scenario, *names[len(names) // 2 :])
    sync(scenario)
    scenario.assert_equal("t")


def test_a_key_that_only_the_source_takes_for_the_same_is_not_there_twice(scenario) -> None:
    made = "insert into t select 'K' || i, date '2026-01-01' + i / 10, 'v' from generate_series(1, 600) i"
    begin(
        scenario,
        statements=["create extension citext", "create table t (k citext primary key, day date, v text)", made],
    )
    drift(scenario, "update public.t set k = lower(k) where k in ('K400', 'K401')")
    ask(scenario, FEBRUARY)
    assert was_sliced(sync(scenario))
    scenario.assert_equal("t")
