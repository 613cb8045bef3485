"""Runs of one pipeline follow each other without a rest, and one that died does not stop the others."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from time import monotonic

import dagster as dg
import pytest

from etl_dagster.errors import SourceError
from etl_dagster.orchestration.names import ENDING_TAG, HELD_TAG, PIPELINE_TAG, UNTIL_TAG
from etl_dagster.orchestration.succession import bury_dead, reason_to_wait
from etl_dagster.pipeline import IDLE_WAL_BYTES, Pipeline
from tests.orchestration.project import ORDERS, Project

STARTED = dg.DagsterRunStatus.STARTED
# Later than any run may be silent, or be waiting at the fence.
LATER = timedelta(minutes=10)


def started(project: Project, **tags: str) -> dg.DagsterRun:
    """A run that Dagster takes for active, whatever became of its process."""
    job = project.defs.resolve_job_def("test__micro_batch")
    run = project.instance.create_run_for_job(job, tags={PIPELINE_TAG: "test", UNTIL_TAG: "0/1"} | tags)
    project.instance.report_dagster_event(
        dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_START.value, job_name=job.name), run.run_id
    )
    return run


def wait_reason(project: Project, held: bool, after: timedelta = timedelta()) -> str | None:
    return reason_to_wait(project.instance, "test", datetime.now(UTC) + after, lambda: held)


def test_while_a_run_hands_over_its_successor_is_asked_for_but_only_one(project: Project) -> None:
    project.micro_batch()
    project.execute("delete from shop.orders where id = 1")
    run = started(project)
    assert isinstance(project.tick(), dg.SkipReason)
    project.instance.add_run_tags(run.run_id, {ENDING_TAG: run.run_id})
    assert isinstance(project.tick(), dg.RunRequest)
    started(project)
    assert isinstance(project.tick(), dg.SkipReason)


def test_a_copy_that_waits_in_the_queue_does_not_keep_the_stream_waiting(project: Project) -> None:
    job = project.defs.resolve_job_def("test__resync_all")
    project.instance.create_run_for_job(job, tags={PIPELINE_TAG: "test"}, status=dg.DagsterRunStatus.NOT_STARTED)
    assert wait_reason(project, held=True) is None


def test_a_re_execution_does_not_take_after_the_run_before_it(project: Project) -> None:
    first = started(project)
    project.instance.report_run_canceled(first)
    started(project, **{ENDING_TAG: first.run_id, HELD_TAG: first.run_id})
    assert wait_reason(project, held=True)


def test_a_run_without_the_fence_is_waited_for_a_minute_only(project: Project) -> None:
    started(project)
    assert wait_reason(project, held=False)
    assert wait_reason(project, held=True, after=LATER)
    assert wait_reason(project, held=False, after=LATER) is None


def test_whoever_holds_the_fence_buries_the_dead_but_not_those_that_wait_by_hand(project: Project) -> None:
    dead = started(project)
    me = started(project)
    by_hand = project.instance.create_run_for_job(
        project.defs.resolve_job_def("test__micro_batch"), status=STARTED, tags={PIPELINE_TAG: "test"}
    )
    assert bury_dead(project.instance, "test", me.run_id, datetime.now(UTC)) == []
    assert bury_dead(project.instance, "test", me.run_id, datetime.now(UTC) + LATER) == [dead.run_id]
    found = {run.run_id: run.status for run in project.instance.get_runs()}
    assert found[dead.run_id] is dg.DagsterRunStatus.FAILURE
    assert found[me.run_id] is STARTED
    assert found[by_hand.run_id] is STARTED


def test_a_run_ends_as_soon_as_its_successor_has_started(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl_dagster.orchestration.succession.HANDOVER_SECONDS", 60.0)
    monkeypatch.setattr("etl_dagster.orchestration.succession._QUIET_SECONDS", 60.0)
    project.load(batch_budget_seconds=0.1)
    added = project.instance.add_run_tags

    def add_and_start_successor(run_id: str, tags: dict[str, str]) -> None:
        added(run_id, tags)
        if ENDING_TAG in tags:
            started(project)

    monkeypatch.setattr(project.instance, "add_run_tags", add_and_start_successor)
    began = monotonic()
    assert project.micro_batch().success
    assert monotonic() - began < 30


def test_a_run_ends_when_nothing_comes_any_more(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl_dagster.orchestration.succession._QUIET_SECONDS", 0.2)
    project.load(batch_budget_seconds=0.1)
    began = monotonic()
    assert project.micro_batch().success
    assert monotonic() - began < 14
    run = project.instance.get_runs()[0]
    assert run.tags[ENDING_TAG] == run.run_id


def test_a_live_table_asked_for_by_hand_is_materialized_by_whoever_holds_the_pipeline(project: Project) -> None:
    project.micro_batch()

    def ask() -> None:
        project.execute("delete from shop.orders where id = 5")
        key = project.translator.live_key(ORDERS)
        assert project.run("test__micro_batch", asset_selection=[key]).success

    beside_a_follower(project, ask)

    project.assert_equal()
    assert len(project.live(ORDERS)) == 2


def beside_a_follower(project: Project, work: Callable[[], None]) -> None:
    stop, holding = threading.Event(), threading.Event()

    def follow() -> None:
        holder = Pipeline(project.config)
        with holder.replicator() as replicator:
            holding.set()
            replicator.follow(stop=stop)
        holder.close()

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        assert holding.wait(30)
        work()
    finally:
        stop.set()
        follower.join()


def test_a_change_behind_much_foreign_wal_is_seen(project: Project) -> None:
    project.micro_batch()
    project.execute("create table public.foreign_rows (what text)")
    project.execute("insert into public.foreign_rows select repeat('x', 2000) from generate_series(1, 12000)")
    before = project.source.execute("select pg_current_wal_lsn() - '0/0'").fetchone()
    project.execute("delete from shop.orders where id = 1")
    pipeline = Pipeline(project.config)
    behind = int(before[0]) - (pipeline.applied_position() or 0)
    assert 20_000_000 < behind < IDLE_WAL_BYTES
    assert pipeline.pending().reason.startswith("changes after")
    pipeline.close()


def test_a_source_that_is_gone_is_looked_at_less_and_less_often(project: Project) -> None:
    wrong = project.config.source.connection.model_copy(update={"dsn": None, "host": "127.0.0.1", "port": 1})
    source = project.config.source.model_copy(update={"connection": wrong})
    project.config = project.config.model_copy(update={"source": source})
    project.load(tables=[ORDERS])
    with pytest.raises(SourceError, match="cannot connect"):
        project.tick()
    answer = project.tick()
    assert isinstance(answer, dg.SkipReason)
    assert "cannot connect" in str(answer.skip_message)
    assert "next look in" in str(answer.skip_message)
