"""The sensor looks and asks; it never writes, and an idle look is cheap."""

from datetime import UTC, datetime, timedelta
from statistics import median
from time import perf_counter

import dagster as dg
import psycopg
import pytest

from etl_dagster.orchestration import SensorSettings
from etl_dagster.orchestration.names import PIPELINE_TAG, UNTIL_TAG
from etl_dagster.orchestration.succession import reason_to_wait
from etl_dagster.pipeline import Pipeline
from tests.orchestration.project import ITEMS, ORDERS, Project

IDLE_SECONDS = 0.05


def test_it_asks_for_a_run_when_nothing_was_copied_yet(project: Project) -> None:
    request = project.tick()
    assert isinstance(request, dg.RunRequest)
    assert request.run_key is None
    assert request.tags[PIPELINE_TAG] == "test"
    assert request.tags[UNTIL_TAG]


def test_it_is_silent_when_there_is_nothing_to_do(project: Project) -> None:
    project.micro_batch()
    assert isinstance(project.tick(), dg.SkipReason)
    project.execute("create table public.not_ours (n int)", "insert into public.not_ours values (1)")
    assert isinstance(project.tick(), dg.SkipReason)


def test_an_idle_tick_costs_a_query_and_no_login(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.micro_batch()
    project.tick()
    seconds = []
    for _ in range(20):
        began = perf_counter()
        assert isinstance(project.tick(), dg.SkipReason)
        seconds.append(perf_counter() - began)
    with capsys.disabled():
        print(f"\nidle tick: median {median(seconds) * 1000:.1f} ms, worst {max(seconds) * 1000:.1f} ms")
    assert median(seconds) < IDLE_SECONDS


def test_it_asks_again_for_every_change_until_a_run_has_applied_it(project: Project) -> None:
    project.micro_batch()
    project.execute("delete from shop.orders where id = 1")
    first, second = project.tick(), project.tick()
    assert isinstance(first, dg.RunRequest)
    assert isinstance(second, dg.RunRequest)
    assert first.asset_selection == second.asset_selection
    project.micro_batch()
    assert isinstance(project.tick(), dg.SkipReason)


def test_it_writes_nothing(project: Project) -> None:
    project.micro_batch()
    project.execute("delete from shop.orders where id = 1")
    before = _state(project)
    for _ in range(3):
        project.tick()
    assert _state(project) == before


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_it_waits_while_a_run_of_the_pipeline_is_active(project: Project, status: dg.DagsterRunStatus) -> None:
    project.instance.create_run_for_job(
        project.defs.resolve_job_def("test__micro_batch"), status=status, tags={PIPELINE_TAG: "test"}
    )
    answer = project.tick()
    assert isinstance(answer, dg.SkipReason)
    assert "active" in str(answer.skip_message)


def test_a_run_of_another_pipeline_does_not_matter(project: Project) -> None:
    project.instance.create_run_for_job(
        project.defs.resolve_job_def("test__micro_batch"),
        status=dg.DagsterRunStatus.STARTED,
        tags={PIPELINE_TAG: "other"},
    )
    assert isinstance(project.tick(), dg.RunRequest)


def test_after_failures_it_asks_less_and_less_often(project: Project) -> None:
    job, tags = project.defs.resolve_job_def("test__micro_batch"), {PIPELINE_TAG: "test"}
    waits = []
    for _ in range(4):
        run = project.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
        project.instance.report_run_failed(run)
        now = datetime.now(UTC)
        moments = (
            s for s in range(1, 1000) if not reason_to_wait(project.instance, "test", now + timedelta(seconds=s))
        )
        waits.append(next(moments))
    assert waits == sorted(waits)
    assert waits[-1] > 5 * waits[0]


def test_while_another_process_holds_the_pipeline_runs_become_rare(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl_dagster.orchestration.session.BUSY_SECONDS", 0.0)
    project.micro_batch()
    project.execute("delete from shop.orders where id = 1")
    holder = Pipeline(project.config)
    with holder.replicator():
        assert project.micro_batch().success
        answer = project.tick()
    holder.close()
    assert isinstance(answer, dg.SkipReason)
    assert "busy" in str(answer.skip_message)


def test_with_many_tables_only_those_that_wait_for_a_copy_are_planned(project: Project) -> None:
    project.micro_batch()
    project.load(sensor=SensorSettings(planned_tables=1))
    project.execute("delete from shop.orders where id = 1")
    request = project.tick()
    assert isinstance(request, dg.RunRequest)
    assert request.asset_selection is not None
    assert len(request.asset_selection) == 1
    project.micro_batch()
    assert project.live(ORDERS)[0]["etl/changes"] == 1, "reported though not planned"
    assert len(project.live(ITEMS)) == 1


def test_it_says_that_the_source_cannot_be_reached_and_recovers_by_itself(project: Project, database: str) -> None:
    project.micro_batch()
    project.tick()
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
            "and pid not in (pg_backend_pid(), %s)",
            (project.source.info.backend_pid,),
        )
    answers = []
    for _ in range(2):
        try:
            answers.append(project.tick())
        except Exception as error:  # noqa: BLE001
            answers.append(error)
    assert isinstance(answers[-1], dg.SkipReason)


def _state(project: Project) -> object:
    # Decoding moves restart_lsn by itself whenever it passes a record of running transactions; no tick confirms anything.
    slots = project.source.execute(
        "select slot_name, confirmed_flush_lsn from pg_replication_slots where database = current_database()"
    ).fetchall()
    store = (project.folder / "state.sqlite").read_bytes()
    return slots, store, (project.folder / "warehouse.duckdb").stat().st_mtime_ns, project.instance.get_runs_count()
