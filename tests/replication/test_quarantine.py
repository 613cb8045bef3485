"""A value that cannot be held takes only its table out; what happens to it meanwhile is kept, and it comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from etl_dagster.destinations.duckdb.core import DuckDbDestination
from etl_dagster.model import TableId
from etl_dagster.store.base import TableRecord, TableState
from tests.replication.watching import (
    EAGER,
    Journal,
    T,
    after_chunks,
    catch_up,
    columns,
    process,
    running,
    select,
    step_into,
    sync,
)

SMALL_CHUNKS = {"chunk_bytes": 8192 * 2, "copy_connections": 1, "refresh_seconds": 0.2, "idle_poll_seconds": 0.02}
NULL = {"public.t": {"columns": {"n": {"values": "null"}}}}
SECRET = "a note that nobody is to see"
TABLES = [
    "create table t (id int primary key, v text, n numeric(12, 2), big text)",
    "alter table t alter big set storage external",
    "insert into t select i, 'v' || i, i, repeat('b' || i, 2000) from generate_series(1, 30) i",
    "create table other (id int primary key, v text)",
    "insert into other select i, 'o' || i from generate_series(1, 30) i",
]
BAD = f"insert into t values (987654, '{SECRET}', 'NaN')"


def _record(scenario) -> TableRecord:
    record = scenario.pipeline.record(T)
    assert record is not None
    return record


def _slot(scenario) -> tuple[int, int]:
    """How far the slot has come, and how much WAL it keeps back."""
    query = """select confirmed_flush_lsn - '0/0', pg_current_wal_flush_lsn() - restart_lsn
        from pg_replication_slots where database = current_database()"""
    [(confirmed, retained)] = scenario.source.execute(query).fetchall()
    return int(confirmed), int(retained)


def _differences(scenario) -> dict[str, tuple[int, int]]:
    return {table.name: (found.missing, found.extra) for table, found in scenario.pipeline.compare().items()}


def _taken_out(scenario, *after: str) -> Journal:
    """A pipeline whose table ``t`` is quarantined by one row in the stream."""
    scenario.execute(*TABLES)
    sync(scenario)
    scenario.execute(BAD, *after)
    journal = sync(scenario)
    assert _record(scenario).state is TableState.QUARANTINED
    return journal


def _resume(scenario, journal: Journal | None = None) -> Journal:
    scenario.pipeline.request_resume(T)
    return sync(scenario, journal)


# -- taken out ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "value", "shown"),
    [
        ("numeric(12, 2)", "'NaN'", None),
        ("timestamp", "'294276-12-31 23:59:58'", "23:59:58"),
        ("int[]", "'{{424242,2},{3,4}}'", "424242"),
        ("text[]", "'[5:6]={secretly,b}'", "secretly"),
    ],
)
def test_one_bad_value_takes_only_its_table_out_and_the_slot_goes_on(
    scenario, type_: str, value: str, shown: str | None
) -> None:
    scenario.execute(
        f"create table t (id int primary key, v text, n {type_})",
        "insert into t select i, 'v' from generate_series(1, 10) i",
        *TABLES[3:],
    )
    sync(scenario)
    before, _ = _slot(scenario)
    scenario.execute(
        f"insert into t values (987654, '{SECRET}', {value})", "update other set v = 'after' where id < 10"
    )
    journal = sync(scenario)
    record = _record(scenario)
    assert record.state is TableState.QUARANTINED
    assert record.held
    assert "987654" in record.reason
    assert "'n'" in record.reason
    assert SECRET not in f"{record.reason} {record.hint} {journal.notices}"
    assert shown is None or shown not in f"{record.reason} {record.hint} {journal.notices}"
    assert "resume" in record.hint
    scenario.assert_equal("other")
    scenario.execute(
        "update t set v = repeat('held', 1000)",
        "insert into other select i, repeat('x', 1000) from generate_series(100, 2000) i",
    )
    scenario.execute("checkpoint")  # only what it writes lets the server let go of older WAL
    sync(scenario, journal)
    scenario.assert_equal("other")
    assert journal.quarantines() == 1
    after, retained = _slot(scenario)
    assert after > before
    assert retained < 1024 * 1024
    assert scenario.pipeline.status().lag_bytes < 100_000


def test_readers_keep_the_table_as_it_was_when_it_was_taken_out(scenario) -> None:
    _taken_out(scenario, "update t set v = 'held' where id = 1", "delete from t where id = 2")
    sync(scenario)
    assert select(scenario, "select v from public.t where id in (1, 2) order by id") == [("v1",), ("v2",)]


def test_two_tables_are_taken_out_by_one_transaction(scenario) -> None:
    scenario.execute(*TABLES, "create table u (id int primary key, n numeric(5, 1))")
    sync(scenario)
    with scenario.source.transaction():
        scenario.execute(BAD, "insert into u values (1, 'NaN')", "insert into other values (100, 'x')")
    sync(scenario)
    assert scenario.state("t") is TableState.QUARANTINED
    assert scenario.state("u") is TableState.QUARANTINED
    scenario.assert_equal("other")


def test_a_bad_value_that_is_gone_again_in_its_own_window(scenario) -> None:
    """Whether it was ever written or not, both sides are equal once the table was resumed."""
    scenario.execute(*TABLES)
    sync(scenario)
    scenario.execute(BAD, "delete from t where id = 987654", "update t set v = 'x' where id = 1")
    sync(scenario)
    if scenario.state("t") is TableState.QUARANTINED:
        scenario.use(tables=NULL)
        journal = _resume(scenario)
        assert journal.copies() == 0
    scenario.assert_equal("t", "other")


# -- brought back ------------------------------------------------------------------------------------------------------

MEANWHILE = [
    "update t set v = 'held' where id < 5",
    "update t set id = id + 1000 where id between 5 and 8",
    "delete from t where id between 9 and 12",
    "insert into t values (9, 'again', 9.5)",
    "update t set v = 'moved' where id between 1001 and 2000",
    "insert into t values (987655, 'also', 'NaN')",
]


def test_a_changed_policy_and_a_resume_bring_it_back_without_a_fresh_copy(scenario) -> None:
    _taken_out(scenario, *MEANWHILE[:3])
    scenario.execute(*MEANWHILE[3:])
    sync(scenario)
    scenario.use(tables=NULL)
    journal = _resume(scenario)
    record = _record(scenario)
    assert (record.state, record.held, record.live, record.reason) == (TableState.READY, False, True, "")
    assert journal.copies() == 0
    assert record.replaced == {"n": 2}
    assert _differences(scenario) == {"t": (2, 2), "other": (0, 0)}
    assert select(scenario, "select count(*) from public.t where n is null") == [(2,)]
    scenario.execute("update t set n = 1 where n = 'NaN'", "insert into t values (70, 'x', 2)")
    sync(scenario, journal)
    scenario.assert_equal("t", "other")


def test_a_resume_in_the_running_process(scenario) -> None:
    scenario.execute(*TABLES)
    scenario.use(replication=EAGER, tables=NULL)
    journal = Journal()
    with running(scenario, journal) as replicator:
        catch_up(replicator)
        scenario.execute(
            "alter table t add column far timestamp", "insert into t (id, far) values (50, '294276-12-31 23:59:58')"
        )
        catch_up(replicator)
        assert replicator.records[T].state is TableState.QUARANTINED
        scenario.execute("update t set v = 'held' where id = 50", "insert into other values (100, 'x')")
        catch_up(replicator)
        scenario.execute("delete from t where id = 50")
        scenario.pipeline.request_resume(T)
        for _ in range(5):
            replicator.step()
        assert replicator.records[T].state is TableState.QUARANTINED  # the value is among what was kept
        assert journal.quarantines() == 2 or replicator.records[T].resume is False
        scenario.pipeline.request_resync(T)
        step_into(replicator, T, TableState.READY)
        catch_up(replicator)
    scenario.assert_equal("t", "other")


def test_a_resume_without_another_policy_leaves_it_as_it_is(scenario) -> None:
    _taken_out(scenario, *MEANWHILE[:4])
    for _ in range(2):
        journal = _resume(scenario)
        record = _record(scenario)
        assert (record.state, record.held, record.resume) == (TableState.QUARANTINED, True, False)
        assert "987654" in record.reason
        assert journal.copies() == 0
    scenario.execute("update t set v = 'later' where id = 20")
    sync(scenario)
    scenario.use(tables=NULL)
    _resume(scenario)
    assert _differences(scenario) == {"t": (1, 1), "other": (0, 0)}


@pytest.mark.parametrize("policy", ["null", "clamp", "text"])
def test_each_policy_brings_it_back(scenario, policy: str) -> None:
    _taken_out(scenario, *MEANWHILE[:2])
    scenario.use(tables={"public.t": {"columns": {"n": {"values": policy}}}})
    journal = _resume(scenario)
    assert scenario.state("t") is TableState.READY
    assert journal.copies() == (1 if policy == "text" else 0)
    assert _differences(scenario) == {"t": (0, 0) if policy == "text" else (1, 1), "other": (0, 0)}


def test_a_re_sync_brings_it_back_once_the_source_was_mended(scenario) -> None:
    _taken_out(scenario, *MEANWHILE[:4])
    scenario.execute("update t set n = 0 where n = 'NaN'")
    scenario.pipeline.request_resync(T)
    journal = sync(scenario)
    assert journal.copies() == 1
    record = _record(scenario)
    assert (record.state, record.held) == (TableState.READY, False)
    scenario.assert_equal("t", "other")


def test_a_re_sync_that_meets_the_value_again_takes_it_out_again(scenario) -> None:
    _taken_out(scenario)
    scenario.pipeline.request_resync(T)
    sync(scenario)
    record = _record(scenario)
    assert record.state is TableState.QUARANTINED
    assert "987654" in record.reason
    scenario.execute("delete from t where n = 'NaN'")
    scenario.pipeline.request_resync(T)
    sync(scenario)
    scenario.assert_equal("t", "other")


def test_values_are_replaced_by_policy_from_the_start_and_counted(scenario) -> None:
    scenario.execute(*TABLES, BAD)
    scenario.use(tables=NULL)
    journal = sync(scenario)
    scenario.execute("update t set v = 'x' where id = 987654", "insert into t values (3000, 'y', 'NaN')")
    sync(scenario, journal)
    assert _record(scenario).replaced == {"n": 3}
    assert journal.replaced() == {"n": 2}
    assert journal.quarantines() == 0
    assert _differences(scenario) == {"t": (2, 2), "other": (0, 0)}


def test_a_truncate_among_the_kept_changes(scenario) -> None:
    _taken_out(scenario)
    scenario.execute("truncate t", "insert into t values (1, 'after', 1)", "truncate other")
    sync(scenario)
    journal = _resume(scenario)
    if scenario.state("t") is TableState.QUARANTINED:  # what the truncate emptied is looked at all the same
        scenario.use(tables=NULL)
        journal = _resume(scenario, journal)
    assert journal.copies() == 0
    scenario.assert_equal("t", "other")


@pytest.mark.parametrize("resume", [True, False])
def test_a_held_table_leaves_the_publication_or_is_dropped(scenario, resume: bool) -> None:
    _taken_out(scenario)
    scenario.execute(
        "drop table t", "create table t (id int primary key, w text)", "insert into t values (1, 'another')"
    )
    sync(scenario)
    if resume and scenario.state("t") is TableState.QUARANTINED:
        _resume(scenario)
    if scenario.state("t") is TableState.QUARANTINED:
        scenario.pipeline.request_resync(T)
        sync(scenario)
    scenario.assert_equal("t", "other")


# -- while a copy runs -------------------------------------------------------------------------------------------------


def test_a_bad_value_in_the_first_copy_and_the_copy_goes_on_where_it_stopped(scenario) -> None:
    scenario.execute(*TABLES, "insert into t select i, 'v', i, null from generate_series(11000, 19000) i", BAD)
    scenario.use(replication=SMALL_CHUNKS)
    sync(scenario)
    record = _record(scenario)
    assert (record.state, record.live, record.held) == (TableState.QUARANTINED, False, True)
    assert "987654" in record.reason
    assert record.copy_id
    done = {chunk.chunk_id for chunk in scenario.pipeline._store.chunks(record.copy_id) if chunk.done}
    assert len(done) > 3
    scenario.execute(*MEANWHILE)
    sync(scenario)
    scenario.use(replication=SMALL_CHUNKS, tables=NULL)
    journal = _resume(scenario)
    assert _record(scenario).state is TableState.READY
    assert journal.progress[0].chunks_done >= len(done)
    assert journal.copies() in (0, 1)
    assert {found.copy_id for found in journal.records if found.state is TableState.COPYING} <= {record.copy_id}
    assert _differences(scenario) == {"t": (2, 2), "other": (0, 0)}
    assert _record(scenario).replaced["n"] in (2, 3)  # what a chunk saw may come again in the log


def test_a_bad_value_in_the_stream_while_the_table_is_copied(scenario) -> None:
    scenario.execute(*TABLES, "insert into t select i, 'v', i, null from generate_series(11000, 19000) i")
    scenario.use(replication=SMALL_CHUNKS)
    sync(
        scenario,
        after_chunks(
            scenario, BAD, "update t set v = 'during' where id % 7 = 0", "delete from t where id = 3", to_the_end=False
        ),
    )
    record = _record(scenario)
    assert (record.state, record.live, record.held) == (TableState.QUARANTINED, False, True)
    scenario.execute("update t set v = 'held' where id % 5 = 0", "update t set id = -id where id = 4")
    sync(scenario)
    scenario.use(replication=SMALL_CHUNKS, tables=NULL)
    journal = _resume(scenario)
    assert {found.copy_id for found in journal.records if found.state is TableState.COPYING} <= {record.copy_id}
    assert _differences(scenario) == {"t": (1, 1), "other": (0, 0)}


def test_a_bad_value_while_a_live_table_is_copied_again(scenario) -> None:
    scenario.execute(*TABLES, "insert into t select i, 'v', i, null from generate_series(11000, 19000) i")
    sync(scenario)
    scenario.use(replication=SMALL_CHUNKS)
    scenario.pipeline.request_resync(T)
    sync(
        scenario,
        after_chunks(
            scenario, "update t set v = 'during' where id % 7 = 0", BAD, "delete from t where id = 3", to_the_end=False
        ),
    )
    record = _record(scenario)
    assert (record.state, record.live, record.held) == (TableState.QUARANTINED, True, True)
    scenario.execute("update t set v = 'held' where id % 5 = 0")
    sync(scenario)
    scenario.use(replication=SMALL_CHUNKS, tables=NULL)
    _resume(scenario)
    assert _differences(scenario) == {"t": (1, 1), "other": (0, 0)}


def test_a_rewrite_while_a_table_is_held_in_its_first_copy(scenario) -> None:
    """Chunks read before the rewrite say nothing about the blocks after it."""
    scenario.execute(*TABLES, "insert into t select i, 'v', i, null from generate_series(11000, 19000) i", BAD)
    scenario.use(replication=SMALL_CHUNKS)
    sync(scenario)
    scenario.execute(
        "delete from t where id between 11000 and 13000", "vacuum full t", "update t set v = 'x' where id > 18000"
    )
    sync(scenario)
    scenario.use(replication=SMALL_CHUNKS, tables=NULL)
    _resume(scenario)
    assert _differences(scenario) == {"t": (1, 1), "other": (0, 0)}


# -- schema changes of a held table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("refresh", [0.0001, 1000])
def test_a_held_table_changes_its_columns(scenario, refresh: float) -> None:
    _taken_out(scenario, "update t set v = 'first' where id = 1")
    scenario.use(replication={"refresh_seconds": refresh, "idle_poll_seconds": 0.02})
    scenario.execute("alter table t add column extra int default 7", "update t set extra = 8 where id = 2")
    sync(scenario)
    scenario.execute(
        "alter table t rename column v to w",
        "update t set w = 'renamed' where id = 3",
        "alter table t drop column big",
        "insert into t values (60, 'x', 6, 9)",
    )
    sync(scenario)
    scenario.use(tables=NULL)
    journal = _resume(scenario)
    sync(scenario, journal)
    assert journal.copies() == 0, [record.reason for record in journal.records]
    assert _differences(scenario) == {"t": (1, 1), "other": (0, 0)}
    assert {"id", "w", "n", "extra"} <= set(columns(scenario))


def test_a_held_table_changes_its_columns_without_any_row(scenario) -> None:
    _taken_out(scenario)
    scenario.execute("alter table t add column extra int default 7", "alter table t rename column v to w")
    sync(scenario)
    scenario.use(tables=NULL)
    journal = _resume(scenario)
    sync(scenario, journal)
    assert journal.copies() == 0, [record.reason for record in journal.records]
    assert _differences(scenario) == {"t": (1, 1), "other": (0, 0)}


@pytest.mark.parametrize(
    "change",
    [
        "alter table t alter n type numeric(14, 2)",
        "alter table t drop constraint t_pkey, add primary key (id, v)",
        "alter table t add column token uuid default gen_random_uuid(); alter table t alter token drop default",
        "alter table t alter n type float8",
    ],
)
def test_a_held_table_changes_in_a_way_that_cannot_be_followed(scenario, change: str) -> None:
    _taken_out(scenario, "update t set v = 'first' where id = 1")
    scenario.execute(change, "update t set v = 'second' where id = 2", "insert into t (id, v) values (60, 'x')")
    sync(scenario)
    scenario.execute("update t set v = 'third' where id = 3")
    scenario.use(tables=NULL)
    _resume(scenario)
    sync(scenario)
    assert _differences(scenario) == {"t": (0, 0) if "float8" in change else (1, 1), "other": (0, 0)}


def test_the_column_is_dropped_that_took_the_table_out(scenario) -> None:
    _taken_out(scenario, "alter table t drop column n", "update t set v = 'x' where id = 1")
    sync(scenario)
    scenario.use(tables=NULL)
    _resume(scenario)
    sync(scenario)
    assert _differences(scenario) == {"t": (0, 0), "other": (0, 0)}


# -- restarts and deaths -----------------------------------------------------------------------------------------------


def test_what_is_kept_survives_many_restarts(scenario) -> None:
    _taken_out(scenario)
    for number in range(4):
        scenario.execute(
            f"update t set v = 'run {number}' where id % 4 = {number}",
            f"insert into t values ({2000 + number}, 'x', 1)",
            f"delete from t where id = {20 + number}",
        )
        sync(scenario)
        scenario.use()
    scenario.use(tables=NULL)
    journal = _resume(scenario)
    assert journal.copies() == 0
    assert _differences(scenario) == {"t": (1, 1), "other": (0, 0)}


def test_what_is_kept_survives_a_kill(scenario, tmp_path: Path) -> None:
    scenario.execute(*TABLES)
    sync(scenario)
    with process(scenario, tmp_path) as says:
        says("running")
        scenario.execute(BAD)
        says("t quarantined")
        scenario.execute(*MEANWHILE[:3])
        says("batch")
    scenario.execute(*MEANWHILE[3:])
    with process(scenario, tmp_path, tables=NULL) as says:
        says("running")
        scenario.pipeline.request_resume(T)
        says("t ready")
    scenario.use(tables=NULL)
    with scenario.pipeline.replicator(wait_seconds=30) as replicator:
        catch_up(replicator)
    assert _differences(scenario) == {"t": (2, 2), "other": (0, 0)}
    assert _record(scenario).replaced == {"n": 2}


class Dies(Exception):
    """The end of a process."""


@pytest.mark.parametrize("method", ["hold_table", "write_events", "release_table"])
@pytest.mark.parametrize("after", [True, False], ids=["after it", "before it"])
def test_deaths_while_a_table_is_taken_out_or_brought_back(scenario, monkeypatch, method: str, after: bool) -> None:
    scenario.execute(*TABLES)
    sync(scenario)
    scenario.execute(BAD, *MEANWHILE)
    original = getattr(DuckDbDestination, method)

    def dying(self, *arguments: Any, **named: Any) -> Any:
        if after:
            original(self, *arguments, **named)
        raise Dies

    def dies_in(how: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(DuckDbDestination, method, dying)
            try:
                how(scenario)
            except Dies:
                return

    dies_in(sync)
    sync(scenario)
    assert scenario.state("t") is TableState.QUARANTINED
    scenario.use(tables=NULL)
    dies_in(_resume)
    dies_in(sync)
    sync(scenario)
    if scenario.state("t") is TableState.QUARANTINED:
        _resume(scenario)
    assert _differences(scenario) == {"t": (2, 2), "other": (0, 0)}


def test_a_lost_destination_takes_what_was_kept_along_and_says_so(scenario) -> None:
    _taken_out(scenario, *MEANWHILE[:2])
    scenario.pipeline.close()
    (scenario.folder / "warehouse.duckdb").unlink()
    scenario.use(tables=NULL)
    sync(scenario)
    record = _record(scenario)
    assert record.state is TableState.QUARANTINED
    assert not record.held
    assert "re-sync" in record.hint
    scenario.pipeline.request_resume(T)
    sync(scenario)
    assert _differences(scenario) == {"t": (1, 1), "other": (0, 0)}


def test_a_lost_slot_while_a_table_is_held(scenario) -> None:
    _taken_out(scenario)
    slot = scenario.pipeline.config.source.slot.name
    scenario.execute(f"select pg_drop_replication_slot('{slot}')", "update t set v = 'unseen' where id = 1")
    scenario.use(tables=NULL)
    sync(scenario)
    scenario.pipeline.request_resume(T)
    sync(scenario)
    assert _differences(scenario) == {"t": (1, 1), "other": (0, 0)}


def test_other_tables_are_copied_while_one_is_held(scenario) -> None:
    _taken_out(scenario)
    scenario.execute(
        "create table late (id int primary key)",
        "insert into late values (1), (2)",
        "update t set v = 'held' where id = 1",
    )
    scenario.pipeline.request_resync(TableId("public", "other"))
    sync(scenario)
    scenario.assert_equal("other", "late")
    scenario.use(tables=NULL)
    _resume(scenario)
    assert _differences(scenario) == {"t": (1, 1), "other": (0, 0), "late": (0, 0)}


@pytest.mark.parametrize("policy", ["fail", "null", "clamp"])
def test_a_default_that_cannot_be_held_concerns_its_table_alone(scenario, policy: str) -> None:
    scenario.execute(*TABLES)
    scenario.use(tables={"public.t": {"values": policy}})
    sync(scenario)
    scenario.execute(
        "alter table t add column a numeric(50, 10) default 'NaN'",
        "alter table t add column b numeric(5, 2) default 'NaN'",
    )
    scenario.execute("insert into other values (100, 'x')")
    sync(scenario)
    assert _differences(scenario)["other"] == (0, 0)
    assert scenario.state("t") is (TableState.QUARANTINED if policy == "fail" else TableState.READY)
    if policy != "fail":
        assert select(scenario, "select count(*) from public.t where a is not null or b is not null") == [(0,)]
